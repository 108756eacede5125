"""One agent server that does all four jobs in the same slots. Real agents are like this: one call is a hello, and the
next is an hour of work. `unjam demo` starts several of these.

    python examples/office.py --port 9005 --slots 4
"""

from __future__ import annotations

from pathlib import Path

import auditor
import chat
import hello
import script_runner
from agentkit import Slots, arguments, make_app, serve


def main() -> None:
    parser = arguments(__doc__, slots=4)
    parser.add_argument("--document", type=Path, required=True, help="the PDF to audit, from make_pdf.py")
    parser.add_argument(
        "--page-pace", type=float, default=0.1, help="least seconds per page audited (default %(default)s)"
    )
    parser.add_argument(
        "--token-pace", type=float, default=0.02, help="seconds per token of chat (default %(default)s)"
    )
    options = parser.parse_args()
    slots = Slots(options.slots)
    audits = auditor.Auditor(workers=1, pace=options.page_pace)
    with audits.pool:
        audits.pool.submit(auditor.count_pages, str(options.document))  # starts a worker
        jobs = [
            *hello.routes(slots),
            *script_runner.routes(slots),
            *auditor.routes(slots, audits, options.document),
            *chat.routes(slots, options.token_pace, tokens_per_minute=1e6),
        ]
        serve(make_app(jobs, slots), options)


if __name__ == "__main__":
    main()
