"""The auditor as a worker: claims audits as durable runs, tells each page and finding, and goes on from a checkpoint.

    unjam serve --config examples/runs.yaml
    python examples/audit_worker.py --slots 2                   # makes ledger.pdf where there is none
    curl http://127.0.0.1:8080/v1/runs -H 'content-type: application/json' \\
         -d '{"service": "auditor", "input": {"pages": 500}}'

Kill it half way, start it again, and the audit goes on with the next page. Pages are parsed in processes of their own,
one for each slot. `--pace` is the least time per page, seconds: it stands for the model call that a real auditor makes;
`--effort` is how often a page is read, about a millisecond of CPU each time.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

from auditor import Audit, count_pages, read_page
from unjam.worker import PlainRun, RunError, Worker

# From the environment, because the processes that parse pages read it too.
DOCUMENT = Path(os.environ.get("AUDIT_DOCUMENT", "ledger.pdf"))
PACE = float(os.environ.get("AUDIT_PACE", "0.1"))
EFFORT = int(os.environ.get("AUDIT_EFFORT", "1"))

worker = Worker("http://127.0.0.1:8080", service="auditor", slots=2, processes=True)


@worker.run
def audit(run: PlainRun) -> dict[str, Any]:
    """Emits "finding" {page, kind, detail} and "progress" {page, of}; returns {"pages", "findings"}."""
    try:
        most = int((run.input or {}).get("pages", 1_000_000))
        pages = min(most, count_pages(str(DOCUMENT)))
    except (ValueError, AttributeError, TypeError) as error:
        raise RunError("bad_input", f'send {{"pages": 500}}: {error}') from None
    except FileNotFoundError:
        raise RunError("no_document", "this worker has no ledger to audit") from None
    done, findings, audit = begin(run.checkpoint)
    for page in range(done + 1, pages + 1):
        due = time.monotonic() + PACE
        invoice = [read_page(str(DOCUMENT), page) for _ in range(EFFORT)][-1]
        for finding in audit.check(page, invoice):
            findings.append(finding)
            run.emit("finding", finding)
        time.sleep(max(0.0, due - time.monotonic()))
        run.emit("progress", {"page": page, "of": pages})
        # All that the next page needs. Whatever happens from here on, no page before is read again.
        run.save({"page": page, "findings": findings, "seen": audit.seen, "latest": audit.latest})
    return {"pages": pages, "findings": findings}


def begin(checkpoint: dict[str, Any] | None) -> tuple[int, list[dict[str, Any]], Audit]:
    """Pages done, what was found on them, and what they say."""
    audit = Audit()
    if checkpoint is None:
        return 0, [], audit
    audit.seen, audit.latest = checkpoint["seen"], checkpoint["latest"]
    return checkpoint["page"], checkpoint["findings"], audit


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", nargs="*", help="gateways, or redis://… (default: http://127.0.0.1:8080)")
    parser.add_argument("--slots", type=int, default=worker.slots, help="audits at once (default %(default)s)")
    parser.add_argument(
        "--document", type=Path, default=DOCUMENT, help="the PDF; made if missing (default %(default)s)"
    )
    parser.add_argument("--pages", type=int, default=500, help="pages of a ledger made (default %(default)s)")
    parser.add_argument("--pace", type=float, default=PACE, help="least seconds per page (default %(default)s)")
    parser.add_argument("--effort", type=int, default=EFFORT, help="times a page is read (default %(default)s)")
    options = parser.parse_args()
    if not options.document.exists():
        from make_pdf import make

        make(options.document, options.pages)
    os.environ["AUDIT_DOCUMENT"], os.environ["AUDIT_PACE"] = str(options.document), str(options.pace)
    os.environ["AUDIT_EFFORT"] = str(max(1, options.effort))
    if options.target:
        worker.target = options.target
    worker.slots = options.slots
    return worker.main()


if __name__ == "__main__":
    raise SystemExit(main())
