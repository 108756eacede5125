"""One audit from its beginning to its end while everything but its log is hurt, scaled to seconds. That of ten minutes
is a command: `python -m benchmarks.audit_story`."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from benchmarks.audit_story.proxy import Held, Proxy
from benchmarks.audit_story.readers import Entry
from benchmarks.audit_story.settings import scaled
from benchmarks.audit_story.story import tell
from benchmarks.audit_story.verdict import Told, breaches, longest

from ..gateway.harness import in_loop


@pytest.mark.parametrize(("store", "browser"), [("redis", False), ("sqlite", True)])
def test_nobody_misses_anything_of_an_audit_while_all_else_goes(store: str, browser: bool, tmp_path: Path) -> None:
    """With the page in a Chromium on one store; the long story has it on both."""
    for program in ("curl", *(["redis-server"] if store == "redis" else ["chromium"])):
        assert shutil.which(program), "make test installs it"
    said: list[str] = []
    told, figures = asyncio.run(tell(tmp_path, scaled(store, 0.1, browser), said.append))
    assert breaches(told) == [], "\n".join(said)
    done = {each["kind"] for each in figures["timeline"]}
    hurt = {"redis away", "redis back"} if store == "redis" else {"gateway killed"}
    assert done >= {"cut", "kill worker", "gateway away", "gateway back"} | hurt
    assert len(told.readings) == (4 if browser else 2)
    if store == "redis":
        # One answer was waited for over all of it: by a gateway that nothing was done to, and whose Redis went away.
        assert longest(told.held, "curl-wait") >= 0.8 * told.took


# ------------------------------------------------------------------------------- the verdict finds what is wrong


PAGES = 6


def finding(page: int) -> dict[str, Any]:
    return {"page": page, "kind": "wrong_total", "detail": "…"}


def made() -> Told:
    """All is well: killed after page 3, whose checkpoint didn't come any more."""
    steps: list[tuple[str, Any]] = [
        ("run.created", {"service": "auditor", "lane": "fast"}),
        ("run.attempt", {"n": 1, "from_seq": 1, "reason": "first"}),
        ("progress", {"page": 1, "of": PAGES}),
        ("finding", finding(2)),
        ("progress", {"page": 2, "of": PAGES}),
        ("progress", {"page": 3, "of": PAGES}),
        ("run.attempt", {"n": 2, "from_seq": 5, "reason": "lost"}),
        *(("progress", {"page": page, "of": PAGES}) for page in range(3, PAGES + 1)),
        ("run.completed", {}),
    ]
    log = [Entry(seq, kind, data) for seq, (kind, data) in enumerate(steps)]
    straight = {"pages": PAGES, "findings": [finding(2)]}
    return Told(
        log=log,
        readings={"client": list(log), "browser": list(log)},
        results={"client": straight},
        straight=straight,
        took=10.0,
        least=9.0,
        held=[Held("a", "client/1", "/v1/runs/r/events", 3, 0.0, 7.0), Held("a", "client/1", "/", None, 0.0, 9.0)],
        resumed={"client": ["a"]},
        view={"page": PAGES, "of": PAGES, "findings": [[2, "wrong total"]]},
        left={"runs running": 0},
    )


def test_a_good_story_has_no_breach() -> None:
    assert breaches(made()) == []
    assert longest(made().held, "client") == 9.0


def renumbered(entries: list[Entry]) -> list[Entry]:
    return [replace(entry, seq=seq) for seq, entry in enumerate(entries)]


def everywhere(told: Told, log: list[Entry]) -> None:
    """The log, and all who read it."""
    told.log = log
    told.readings = {name: list(log) for name in told.readings}


def missed(told: Told) -> None:
    told.readings["client"].pop(4)  # type: ignore[attr-defined]


def doubled(told: Told) -> None:
    told.readings["client"].insert(4, told.readings["client"][3])  # type: ignore[attr-defined]


def early(told: Told) -> None:
    told.readings["browser"].pop()  # type: ignore[attr-defined]


def other(told: Told) -> None:
    told.readings["browser"][3] = Entry(3, "finding", finding(4))  # type: ignore[index]


def holed(told: Told) -> None:
    everywhere(told, [entry for entry in told.log if entry.seq != 4])


def two_ends(told: Told) -> None:
    everywhere(told, renumbered([*told.log, told.log[-1]]))


def from_the_start(told: Told) -> None:
    """The second worker began again: its checkpoint was lost."""
    log = told.log[:7] + told.log[2:6] + told.log[8:]
    log[6] = Entry(6, "run.attempt", {"n": 2, "from_seq": 2, "reason": "lost"})
    everywhere(told, renumbered(log))


def skipped(told: Told) -> None:
    everywhere(told, renumbered(told.log[:8] + told.log[9:]))


def unsaid(told: Told) -> None:
    """A page again, before the checkpoint."""
    log = list(told.log)
    log[6] = Entry(6, "run.attempt", {"n": 2, "from_seq": 6, "reason": "lost"})
    everywhere(told, log)


def third(told: Told) -> None:
    again = Entry(0, "run.attempt", {"n": 3, "from_seq": 9, "reason": "lost"})
    everywhere(told, renumbered([*told.log[:9], again, *told.log[9:]]))


def wrong_result(told: Told) -> None:
    told.results = {"client": {"pages": PAGES, "findings": [finding(2), finding(2)]}}


def not_resumed(told: Told) -> None:
    told.resumed = {"client": ["a", "b"]}


def half_a_bar(told: Told) -> None:
    assert told.view is not None
    told.view["page"] = 3


def empty_table(told: Told) -> None:
    assert told.view is not None
    told.view["findings"] = []


def hurried(told: Told) -> None:
    told.took = 3.0


def left_over(told: Told) -> None:
    told.left = {"runs running": 1}


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (missed, "client: 5 (progress) stands where 4 should"),
        (doubled, "client: 3 (finding) stands where 4 should"),
        (early, "browser: its 11 events are not the 12 of the store"),
        (other, "browser: its 12 events are not the 12 of the store"),
        (holed, "the stored log has a gap"),
        (two_ends, "not one run.completed as the last"),
        (from_the_start, "3 pages were audited again: [1, 2, 3]"),
        (skipped, "not every page was audited once"),
        (unsaid, "not every page was audited once"),
        (third, "attempts: ['first', 'lost', 'lost']"),
        (wrong_result, "client: the result is not that"),
        (not_resumed, "client did not go on at b"),
        (half_a_bar, "bar stands at 3 of 6"),
        (empty_table, "table doesn't show the findings"),
        (hurried, "it took 3.0 s"),
        (left_over, "1 runs running left"),
    ],
)
def test_what_is_wrong_is_found(spoil: Callable[[Told], None], words: str) -> None:
    told = made()
    spoil(told)
    assert any(words in breach for breach in breaches(told)), breaches(told)


@in_loop
async def test_the_proxy_knows_who_holds_what_and_cuts_only_them() -> None:
    """An answer that ends is no cut; a cut is a reset, and of the one agent."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        writer.write(b"told")
        if b"/short" in head:
            writer.close()
        else:
            await reader.read()
            writer.transport.abort()

    resumed: list[Held] = []
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    proxy = Proxy("a", server.sockets[0].getsockname()[1], asyncio.get_running_loop().time, resumed.append)
    await proxy.start()

    async def ask(path: str, agent: str, more: str = "") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nUser-Agent: {agent}\r\n{more}\r\n".encode())
        assert await reader.readexactly(4) == b"told"
        return reader, writer

    try:
        short, short_writer = await ask("/short", "curl")
        assert await short.read() == b""
        one, one_writer = await ask("/held", "curl", "Last-Event-ID: 17\r\n")
        other, other_writer = await ask("/held", "Mozilla/5.0")
        assert [(each.agent, each.after) for each in resumed] == [("curl", 17)]
        assert proxy.cut("curl") == 1
        with pytest.raises(ConnectionResetError):
            await one.read()
        assert [each.cut for each in proxy.held] == [False, True, False]
        assert proxy.cut("nobody") == 0
        assert not other.at_eof()
        for writer in (short_writer, one_writer, other_writer):
            writer.transport.abort()
    finally:
        await proxy.close()
        server.close()
        await server.wait_closed()
