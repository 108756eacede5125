"""The pages of durable runs: what operators need of them, and nothing of what is in them."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from unjam.admin import frame, runs_page
from unjam.admin.control import ControlRefused, Rows

from .fleet import Fleet
from .served import in_loop, served
from .test_page import Reader

ODD = "<script>alert(1)</script>\"'&"
NOW = datetime(2026, 11, 22, 19, 8, 0, tzinfo=UTC).timestamp()
ID = "run_001m82agcnrrp0zrgzw3tbp9ksq"


def row(**changes: Any) -> dict[str, Any]:
    return {
        "id": ID,
        "service": "auditor",
        "tenant": "",
        "status": "running",
        "lane": "heavy",
        "pull": True,
        "version": "v7",
        "attempt": 2,
        "max_attempts": 3,
        "seq": 12,
        "created_at": "2026-11-22T19:07:00.000Z",
        "started_at": "2026-11-22T19:07:30.500Z",
        "ended_at": None,
        "deadline": "2026-11-22T20:07:00.000Z",
        "worker": "web-1",
        "cancel_requested": False,
        "has_checkpoint": True,
        "error": None,
        **changes,
    }


FAILED = {
    "status": "failed",
    "ended_at": "2026-11-22T19:07:32.000Z",
    "error": {"code": "no_pages", "message": "say how many", "detail": {"got": "planted"}},
}


def test_a_list_says_how_each_run_stands() -> None:
    rows = [row(), row(**FAILED), row(status="queued", started_at=None, worker=None), row(cancel_requested=True)]
    text = Reader(runs_page.render_list(rows, {}, None, 5, NOW)).text
    for words in (
        "run status service attempt worker created (UTC) time",
        f"{ID} running auditor v7 2 of 3 web-1 19:07:00 2026-11-22 for 29.5 s",
        "failed no_pages auditor v7 2 of 3 web-1 19:07:00 2026-11-22 took 1.5 s",
        "queued auditor v7 2 of 3 19:07:00 2026-11-22 waits 60.0 s",
        "running to be cancelled",
        "all running queued failed expired cancelled completed",
    ):
        assert words in text, (words, text)
    assert "planted" not in text
    assert "tenant" not in text, "where nobody has keys there is no column for them"
    assert "tenant" in Reader(runs_page.render_list([row(tenant="acme")], {}, None, 5, NOW)).text


def links(html: str) -> list[str]:
    return [attributes["href"] or "" for tag, attributes in Reader(html).tags if tag == "a"]


def test_lists_are_narrowed_and_leafed_through() -> None:
    html = runs_page.render_list([row()], {"status": "failed", "service": "a&b"}, ID, 5, NOW)
    assert "/runs?service=a%26b&status=queued" in links(html)
    assert f"/runs?status=failed&service=a%26b&before={ID}" in links(html)
    assert "/runs?status=failed" in links(html), "any service"
    assert "newest" not in Reader(html).text
    assert ("a", {"href": "/runs?service=a%26b&status=failed", "aria-current": "page"}) in Reader(html).tags
    assert "/runs?status=failed&service=a%26b&refresh=0" in links(html), "the same, without refreshing"
    paused = runs_page.render_list([row()], {"status": "failed", "service": "a&b"}, ID, 0, NOW)
    assert links(paused).count("/runs?status=failed&service=a%26b") == 1, "and with"
    last = runs_page.render_list([row()], {"before": ID}, None, 5, NOW)
    assert "newest" in Reader(last).text
    assert "older" not in Reader(last).text
    assert "There is no such run." in Reader(runs_page.render_list([], {"service": "x"}, None, 5, NOW)).text
    assert "There is no run yet." in Reader(runs_page.render_list([], {}, None, 5, NOW)).text


def test_dead_letters_say_what_to_do() -> None:
    text = Reader(runs_page.render_dead([row(**FAILED)], 5, NOW)).text
    assert "unjam runs requeue RUN" in text
    assert ID in text
    assert "no run was given up" in Reader(runs_page.render_dead([], 5, NOW)).text


def test_one_run_and_the_last_of_its_log() -> None:
    events = [
        {"seq": 10, "type": "progress", "at": "2026-11-22T19:07:31.000Z", "size": 17},
        {"seq": 11, "type": "run.failed", "at": "2026-11-22T19:07:32.000Z", "size": 2048},
    ]
    text = Reader(runs_page.render_run(row(**FAILED), events, 5, NOW)).text
    for words in (
        f"{ID} failed took 1.5 s service auditor version v7 lane heavy executed by workers that claim it",
        "attempt 2 of 3 created 2026-11-22 19:07:00.000",
        "error no_pages : say how many",
        f"unjam runs requeue {ID}",
        "the last 2 of 12, the newest first",
        "11 2026-11-22 19:07:32.000 run.failed 2 KiB 10 2026-11-22 19:07:31.000 progress 17 B",
    ):
        assert words in text, (words, text)
    assert "planted" not in text
    assert "expires" not in text
    waits = Reader(runs_page.render_run(row(status="queued", pull=False, version=None), [], 5, NOW)).text
    assert "the gateway, which pushes it to an endpoint" in waits
    assert f"unjam runs cancel {ID}" in waits


def test_nothing_of_it_is_taken_for_markup() -> None:
    odd = row(
        **dict.fromkeys(("service", "tenant", "version", "worker", "lane"), ODD), error={"code": ODD, "message": ODD}
    )
    event = {"seq": 1, "type": ODD, "at": "x", "size": 1}
    for html in (
        runs_page.render_list([odd], {"service": ODD, "tenant": ODD}, ID, 5, NOW),
        runs_page.render_dead([odd], 5, NOW),
        runs_page.render_run(odd, [event], 5, NOW),
        runs_page.render_trouble(ODD, "/runs"),
    ):
        assert "<script" not in html
        reader = Reader(html)
        assert ODD in reader.text
        for tag, attributes in reader.tags:
            assert tag not in ("script", "img", "iframe", "object", "form")
            assert not any(name == "style" or name.startswith("on") for name in attributes)


class Kept(Fleet):
    """A gateway with runs, as it hands them out: times and errors not yet written."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[Any] = []
        self.away = ""

    def runs(self) -> Any:
        return self

    def _check(self) -> None:
        if self.away:
            raise ControlRefused("store_away", self.away, 503)

    async def list(self, *asked: Any) -> Rows:
        self._check()
        self.asked.append(asked)
        at = datetime(2026, 11, 22, 19, 7, tzinfo=UTC)
        return [row(created_at=at, started_at=at, error=msgspec.Raw(b'{"code": "no_pages"}'))]

    async def dead(self, service: str | None, limit: int) -> Rows:
        self._check()
        return []

    async def show(self, run: str, events: int) -> dict[str, Any]:
        if run != ID:
            raise ControlRefused("unknown_run", "There is no such run, or not any more.", 404)
        return {"run": row(), "events": []}


@in_loop
async def test_the_pages_are_served() -> None:
    fleet = Kept()
    async with served(fleet) as admin:
        answer = await admin.client.get("/runs", params={"status": "running", "tenant": "acme", "before": ID})
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        assert answer.headers["content-security-policy"] == frame.CSP
        assert fleet.asked == [("acme", None, "running", ID, runs_page.ROWS)]
        assert "no_pages" in Reader(answer.text).text
        assert "19:07:00 2026-11-22" in Reader(answer.text).text
        assert 'content="5"' in answer.text
        assert "None: no run was given up." in (await admin.client.get("/runs/dead")).text
        assert ID in (await admin.client.get(f"/runs/{ID}")).text
        for path, status, said in (
            ("/runs?status=done", 400, "No run has the status done."),
            ("/runs/run_x", 404, "There is no such run, or not any more."),
        ):
            answer = await admin.client.get(path)
            assert (answer.status_code, said in Reader(answer.text).text) == (status, True)
        navigation = re.search("<nav>.*?</nav>", (await admin.client.get("/")).text)
        assert navigation is not None
        assert '<a href="/" aria-current="page">' in navigation[0]


@pytest.mark.parametrize("path", ["/runs", "/runs/dead"])
@in_loop
async def test_while_the_store_is_away_the_page_says_so_and_looks_again(path: str) -> None:
    fleet = Kept()
    fleet.away = "Runs can't be reached just now. Why: Redis is away."
    async with served(fleet) as admin:
        answer = await admin.client.get(path)
        assert answer.status_code == 503
        assert "Redis is away." in Reader(answer.text).text
        assert 'content="5"' in answer.text


@in_loop
async def test_a_gateway_without_runs_has_no_links_to_them() -> None:
    async with served() as admin:
        assert "<nav>" not in (await admin.client.get("/")).text
        answer = await admin.client.get("/runs")
        assert answer.status_code == 409
        assert "This gateway has no durable runs." in Reader(answer.text).text
