"""An agent that audits a PDF of invoices page by page, for minutes if need be, and reports what is wrong with it.

    python examples/auditor.py --port 9003 --slots 4            # makes a 500-page ledger to audit, see make_pdf.py
    curl -N http://127.0.0.1:9003/audit -H 'accept: text/event-stream' -d '{"pages": 500}'
    curl http://127.0.0.1:9003/audit -H 'content-type: application/pdf' --data-binary @ledger.pdf

Every page is parsed by pypdf in a worker process. `--pace` is the least time per page, seconds: it stands for the model
call that a real auditor makes. A client that hangs up ends its audit.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import multiprocessing
import os
import re
import signal
import tempfile
import threading
from collections.abc import AsyncGenerator
from concurrent.futures import ProcessPoolExecutor
from contextlib import aclosing
from decimal import Decimal
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from agentkit import EventStream, Slots, arguments, make_app, refusal, serve, sse, unless_gone, wants_events

LINE = re.compile(r"(\d+) x .+ @ ([\d.]+) = ([\d.]+)")


# ------------------------------------------------------------------------------------------- in the worker processes


@functools.lru_cache(maxsize=4)
def open_pdf(path: str) -> Any:
    from pypdf import PdfReader  # here: only the workers need it

    return PdfReader(path)


def count_pages(path: str) -> int:
    """Raises ValueError when it is not a PDF that can be read."""
    from pypdf.errors import PyPdfError

    try:
        return len(open_pdf(path).pages)
    except PyPdfError as error:
        raise ValueError(f"not a readable PDF: {error}") from None


def read_page(path: str, number: int) -> dict[str, Any]:
    """One page's invoice: its number, date, totals as printed and as summed, lines that don't multiply out."""
    text = open_pdf(path).pages[number - 1].extract_text()
    lines = [(int(count), Decimal(price), Decimal(amount)) for count, price, amount in LINE.findall(text)]

    def field(pattern: str) -> str | None:
        match = re.search(pattern, text, re.MULTILINE)
        return match and match[1]

    return {
        "number": field(r"^Invoice (\S+)"),
        "date": field(r"^Date (\S+)"),
        "total": Decimal(field(r"^Total ([\d.]+)") or "NaN"),
        "sum": sum(amount for _, _, amount in lines),
        "wrong_lines": [f"{c} x {p} is not {a}" for c, p, a in lines if c * p != a],
        "signature": field(r"^Signed: *(\S.*)$"),
    }


def start_worker() -> None:
    """ctrl-C is for the agent, which then ends its workers; but should the agent be killed, they must not stay."""

    def end_with_agent() -> None:
        agent = multiprocessing.parent_process()
        if agent is not None:
            agent.join()
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=end_with_agent, daemon=True).start()


# ------------------------------------------------------------------------------------------------------- in the agent


class Audit:
    """What the pages read so far say, and what is wrong with the next one."""

    def __init__(self) -> None:
        self.seen: dict[str, int] = {}
        self.latest = ""

    def check(self, page: int, invoice: dict[str, Any]) -> list[dict[str, Any]]:
        if not invoice["number"] or not invoice["date"]:
            return [{"page": page, "kind": "not_an_invoice", "detail": "no invoice number or no date"}]
        found: list[tuple[str, str]] = []
        if invoice["total"] != invoice["sum"]:
            found.append(("wrong_total", f"total {invoice['total']}, the lines add up to {invoice['sum']}"))
        found += [("wrong_amount", wrong) for wrong in invoice["wrong_lines"]]
        if (first := self.seen.setdefault(invoice["number"], page)) != page:
            found.append(("duplicate_number", f"{invoice['number']} is also on page {first}"))
        if not invoice["signature"]:
            found.append(("missing_signature", "nobody signed"))
        if invoice["date"] < self.latest:
            found.append(("date_out_of_order", f"{invoice['date']} comes after {self.latest}"))
        self.latest = max(self.latest, invoice["date"])
        return [{"page": page, "kind": kind, "detail": detail} for kind, detail in found]


class Auditor:
    def __init__(self, workers: int, pace: float) -> None:
        self.pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), start_worker)
        self.pace = pace

    async def audit(self, path: str, most: int) -> AsyncGenerator[tuple[str, dict[str, Any]], None]:
        """Yields ("progress", {page, of}) and ("finding", {...}) page by page, then one ("report", {...})."""
        loop, audit, findings = asyncio.get_running_loop(), Audit(), []
        pages = min(most, await loop.run_in_executor(self.pool, count_pages, path))
        for page in range(1, pages + 1):
            pace = asyncio.ensure_future(asyncio.sleep(self.pace))
            invoice = await loop.run_in_executor(self.pool, read_page, path, page)
            for finding in audit.check(page, invoice):
                findings.append(finding)
                yield "finding", finding
            await pace
            yield "progress", {"page": page, "of": pages}
        yield "report", {"pages": pages, "findings": findings}


def routes(slots: Slots, auditor: Auditor, document: Path) -> list[Route]:
    async def post(request: Request) -> Response:
        body = await request.body()
        upload = request.headers.get("content-type") == "application/pdf"
        try:
            asked = {} if upload or not body else await request.json()
            most = int(asked.get("pages", 1_000_000))
        except (ValueError, AttributeError, TypeError) as error:
            return refusal(f'send a PDF as application/pdf, or {{"pages": 500}} for the server\'s own ledger: {error}')

        async def steps() -> AsyncGenerator[tuple[str, dict[str, Any]], None]:
            with tempfile.NamedTemporaryFile(suffix=".pdf") as file:
                if upload:
                    file.write(body)
                    file.flush()
                async with slots, aclosing(auditor.audit(file.name if upload else str(document), most)) as audit:
                    async for step in audit:
                        yield step

        async def events() -> AsyncGenerator[bytes, None]:
            ids = itertools.count(1)
            try:
                async with aclosing(steps()) as audit:
                    async for event, data in audit:
                        yield b"id: %d\n" % next(ids) + sse(event, data)
            except ValueError as error:
                yield sse("error", {"message": str(error)})

        async def answer() -> dict[str, Any]:
            async with aclosing(steps()) as audit:
                *_, (_, report) = [step async for step in audit]
                return report

        if wants_events(request):
            return EventStream(events())
        try:
            return JSONResponse(await unless_gone(request, answer()))
        except ValueError as error:
            return refusal(str(error), 422)

    return [Route("/audit", post, methods=["GET", "POST"])]


def main() -> None:
    parser = arguments(__doc__, slots=4)
    parser.add_argument("--document", type=Path, help="the PDF to audit (default: a ledger made at the start)")
    parser.add_argument("--pages", type=int, default=500, help="pages of the ledger made (default %(default)s)")
    parser.add_argument("--pace", type=float, default=0.1, help="least seconds per page (default %(default)s)")
    parser.add_argument("--workers", type=int, default=1, help="processes that parse pages (default %(default)s)")
    options = parser.parse_args()
    slots = Slots(options.slots)
    with tempfile.TemporaryDirectory(prefix="auditor-") as folder:
        if options.document is None:
            from make_pdf import make

            options.document = Path(folder) / "ledger.pdf"
            make(options.document, options.pages)
        auditor = Auditor(options.workers, options.pace)
        with auditor.pool:
            auditor.pool.submit(count_pages, str(options.document))  # starts a worker
            serve(make_app(routes(slots, auditor, options.document), slots), options)


if __name__ == "__main__":
    main()
