"""examples/browser/audit.html in a real Chromium, with real processes: the page misses nothing and repeats nothing."""

from __future__ import annotations

import json
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from benchmarks.common.procs import free_port

from ..gateway.harness import in_loop
from ..gateway.processes import process, served
from .devtools import chromium

ROOT = Path(__file__).parents[2]
PAGES = 60
LOG = "[...document.querySelectorAll('#log div')].map(line => line.dataset.seq)"
ROWS = "[...document.querySelectorAll('#findings tr')]"
FINDINGS = f"{ROWS}.map(row => [Number(row.cells[0].innerText), row.cells[1].innerText])"
STATE = "document.getElementById('state').textContent"


def configure(folder: Path, listen: int, pages: int) -> None:
    text = (ROOT / "examples" / "runs.yaml").read_text(encoding="utf-8")
    text = text.replace("127.0.0.1:8080", f"127.0.0.1:{listen}").replace("127.0.0.1:9005", f"127.0.0.1:{pages}")
    (folder / "unjam.yaml").write_text(f"admin: off\n{text}".replace("runs: on", "runs: {lease: 3s}"), encoding="utf-8")


@asynccontextmanager
async def file_server(port: int) -> AsyncIterator[None]:
    """Serves the page, from before the gateway is asked for it."""
    folder = str(ROOT / "examples" / "browser")
    command = ("-u", "-m", "http.server", str(port), "--bind", "127.0.0.1", "--directory", folder)
    async with process(*command) as running:
        await running.says("Serving HTTP")
        yield


@in_loop
async def test_the_page_survives_a_reload_a_new_gateway_and_the_death_of_its_worker(tmp_path: Path) -> None:
    make = (str(ROOT / "examples" / "make_pdf.py"), "ledger.pdf", "--pages", str(PAGES))
    async with process(*make, cwd=tmp_path) as making:
        assert await making.exit_code() == 0, making.said
    planted = json.loads((tmp_path / "ledger.planted.json").read_text())
    listen, files = free_port(), free_port()
    configure(tmp_path, listen, files)
    audit = (str(ROOT / "examples" / "audit_worker.py"), f"http://127.0.0.1:{listen}", "--pace", "0.12", "--slots", "1")
    async with (
        file_server(files),
        chromium(tmp_path) as page,
        AsyncExitStack() as stack,
    ):
        async with process(*audit, cwd=tmp_path) as killed:
            async with served(cwd=tmp_path) as (first, _):
                await page.open(f"http://127.0.0.1:{listen}/audit.html")
                await page.evaluate(f"pages.value = {PAGES}; start.click()")
                await page.until("bar.max > 1 && bar.value >= 4")
                await page.reload()
                await page.until("bar.value >= 6")
                first.send(signal.SIGKILL)
                await first.exit_code()
            await page.until(f"{STATE} === 'reconnecting…'")
            await stack.enter_async_context(served(cwd=tmp_path))
            await page.until("bar.value >= 12")
            killed.send(signal.SIGKILL)
            await killed.exit_code()
        async with process(*audit, cwd=tmp_path):
            await page.until(f"{STATE} === 'completed'")
            log = await page.evaluate(LOG)
            assert log == [str(seq) for seq in range(len(log))]
            assert await page.evaluate("[bar.value, bar.max]") == [PAGES, PAGES]
            found = await page.evaluate(FINDINGS)
            assert found == [[each["page"], each["kind"].replace("_", " ")] for each in planted]
            text = await page.evaluate("document.getElementById('log').textContent")
            assert '"reason":"lost"' in text
            # Also what has ended is there again after a reload, and is submitted no second time.
            run = await page.evaluate("run")
            await page.reload()
            await page.until(f"{STATE} === 'completed'")
            assert await page.evaluate(LOG) == log
            assert await page.evaluate("run") == run


@in_loop
async def test_the_page_leaves_what_is_forgotten_and_what_was_begun_before(tmp_path: Path) -> None:
    listen, files = free_port(), free_port()
    configure(tmp_path, listen, files)
    called = "(path, method) => fetch(path, {method}).then(answer => answer.status)"
    async with (
        file_server(files),
        chromium(tmp_path) as page,
    ):
        async with served(cwd=tmp_path) as (first, _):
            await page.open(f"http://127.0.0.1:{listen}/audit.html")
            await page.evaluate("pages.value = 3; start.click()")
            await page.until("run !== null")
            assert await page.evaluate(f"({called})(`/v1/runs/${{run}}/cancel`, 'POST')") == 200
            await page.until(f"{STATE} === 'cancelled'")
            assert await page.evaluate(f"({called})(`/v1/runs/${{run}}`, 'DELETE')") == 204
            await page.reload()
            await page.until(f"{STATE} === 'this audit is not kept any more'")
            await page.reload()
            await page.until(f"{STATE} === ''")
            first.send(signal.SIGKILL)
            await first.exit_code()
        for number in (5, 7):  # the second is wanted, while the first is being submitted in vain
            await page.evaluate(f"pages.value = {number}; start.click()")
            await page.until(f"{STATE} === 'no gateway; trying again…'")
        async with served(cwd=tmp_path):
            await page.until("run !== null")
            kept = await page.evaluate("localStorage.audit")
            assert json.loads(kept)["pages"] == 7
            await page.evaluate("new Promise(done => setTimeout(done, 1500))")  # the first would have been tried again
            assert await page.evaluate("localStorage.audit") == kept
            listed = "fetch('/v1/runs').then(answer => answer.json()).then(said => said.runs.map(each => each.id))"
            assert await page.evaluate(listed) == [json.loads(kept)["run"]]
