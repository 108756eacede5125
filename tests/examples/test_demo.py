"""The demo's parts: the plan, the sums, the screen. The whole of it runs in test_demo_run.py."""

from __future__ import annotations

import asyncio
import io
import json
import socket
from collections import Counter
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from unjam.cli import _demo_view as view
from unjam.cli._demo_fleet import AgentState, DemoError, Side, examples_folder, free_port
from unjam.cli._demo_score import Score, quantile
from unjam.cli._demo_traffic import Shot, plan, send
from unjam.config import load, parse


def sides() -> list[Side]:
    both = [Side("round_robin", 8090, 8091, knows_slots=False), Side("least_loaded", 8080, 8081, knows_slots=True)]
    for side in both:
        side.urls = [f"http://127.0.0.1:{9000 + n}" for n in range(4)]
        side.states = [AgentState(4, 12), AgentState(4, 0), AgentState(), AgentState(2, 0)]
    return both


def drawn(thing: object, width: int) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=width, force_terminal=True, color_system=None).print(thing)
    return out.getvalue().splitlines()


# --------------------------------------------------------------------------------------------------------------- plan


def test_a_seed_always_gives_the_same_plan() -> None:
    assert plan(45, 7) == plan(45, 7)
    assert plan(45, 7) != plan(45, 8)


@pytest.mark.parametrize("seconds", [8, 45, 90])
def test_every_plan_has_all_kinds_in_order_and_in_time(seconds: float) -> None:
    shots = plan(seconds, 7)
    assert set(Counter(shot.kind for shot in shots)) == {"hello", "chat", "script", "audit"}
    assert [shot.at for shot in shots] == sorted(shot.at for shot in shots)
    assert shots[-1].at < seconds
    assert max(shot.at for shot in shots if shot.kind == "audit") < 0.75 * seconds


def test_a_shorter_run_has_as_many_audits_with_fewer_pages() -> None:
    def pages(seconds: float) -> list[int]:
        return [json.loads(shot.body)["pages"] for shot in plan(seconds, 7) if shot.kind == "audit"]

    assert max(pages(45)) == 500
    assert max(pages(9)) == 100
    assert 0.6 < len(pages(9)) / len(pages(45)) < 1.6


# -------------------------------------------------------------------------------------------------------------- client


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"HTTP/1.1 200 OK\r\ncontent-length: 23\r\n\r\n" b'{"message": "Hello, x"}', ""),
        (b"HTTP/1.1 503 No\r\n\r\nfull", "status 503: full"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n7\r\nHello, \r\n", "cut short"),
        (b"HTTP/1.1 200 OK\r\n\r\nsomething else", "not an answer to hello: something else"),
        (b"HTTP/1.1 2", "IncompleteReadError: 10 bytes read on a total of undefined expected bytes"),
    ],
)  # fmt: skip
def test_only_a_whole_right_answer_counts(answer: bytes, why: str) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    async def ask() -> tuple[float, float, str]:
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            return await send(server.sockets[0].getsockname()[1], Shot(0.0, "hello", "/hello"))

    assert asyncio.run(ask())[2] == why


# --------------------------------------------------------------------------------------------------------------- score


def test_quantiles_are_values_that_were_measured() -> None:
    hundred = [float(n) for n in range(1, 101)]
    assert (quantile(hundred, 0.5), quantile(hundred, 0.99), quantile([3.0], 0.99)) == (50, 99, 3)
    assert quantile([], 0.5) is None


def test_a_request_still_stuck_shows_before_it_is_answered() -> None:
    score = Score([Shot(float(n), "hello", "/hello") for n in range(10)])
    for number in range(10):
        score.begin(number, float(number))
    for number in range(9):
        score.end(number, 0.01, 0.01, "")
    assert score.quantiles("hello", now=9.001) == (0.01, 0.01)
    assert score.quantiles("hello", now=15.0) == (0.01, 6.0)
    assert score.slowest_hellos(15.0, width=10, until=10.0) == [0.01] * 9 + [6.0]
    assert (score.answered, score.sent["hello"]) == (9, 10)


def test_a_failure_is_no_answer() -> None:
    score = Score([Shot(0.0, "audit", "/audit")])
    score.begin(0, 0.0)
    score.end(0, 1.0, 0.5, "cut short")
    assert (score.answered, score.failed, score.quantiles("audit", 1.0)) == (0, [("audit", "cut short")], (None, None))


# -------------------------------------------------------------------------------------------------------------- screen


@pytest.fixture
def scores() -> list[Score]:
    shots = plan(10, 7)
    both = [Score(shots), Score(shots)]
    for slow, score in zip((30.0, 1.0), both, strict=True):
        for number, shot in enumerate(shots):
            score.begin(number, shot.at)
            score.end(number, slow * (0.01 + number / 1000), 0.01, "")
    return both


@pytest.mark.parametrize("width", [80, 100, 120])
def test_the_screen_fits_and_says_who_is_jammed_and_who_idle(scores: list[Score], width: int) -> None:
    lines = drawn(view.screen(sides(), scores, 12.0, 10.0, width, 7), width)
    assert max(map(len, lines)) <= width
    assert len(lines) <= 24
    text = "\n".join(lines)
    assert "agent 1 ■ ■ ■ ■  +12 jammed" in text
    assert "agent 2 ■ ■ ■ ■      full" in text
    assert "agent 3 □ □ □ □      idle" in text


def test_the_summary_gives_ratios_and_what_failed(scores: list[Score]) -> None:
    scores[0].failed.append(("audit", "cut short"))
    lines = drawn(view.summary(sides(), scores, 7), 80)
    assert max(map(len, lines)) <= 80
    assert next(line for line in lines if line.startswith("hello")).rstrip().endswith("30 ×")
    assert "round_robin: audit failed: cut short" in "\n".join(lines)


def test_every_line_to_paste_is_a_command_and_fits() -> None:
    lines = drawn(view.farewell(sides()), 80)
    assert max(map(len, lines)) <= 80
    assert len([line for line in lines if line.startswith("curl")]) == 5


def test_times_are_short_and_ratios_round() -> None:
    assert [view.clock(t) for t in (None, 0.0082, 0.99949, 0.9996, 9.99, 43.14)] == [
        "–", "8 ms", "999 ms", "1.00 s", "9.99 s", "43.1 s",
    ]  # fmt: skip
    assert [view.times(a, b) for a, b in ((10, 0.1), (1, 1), (1, None))] == ["100 ×", "1.0 ×", "–"]


# --------------------------------------------------------------------------------------------------------------- fleet


def test_only_one_gateway_is_told_the_slots() -> None:
    plain, ours = (yaml.safe_load(side.config(45))["services"]["agents"] for side in sides())
    assert plain["versions"]["v1"]["endpoints"][0] == {"url": "http://127.0.0.1:9000"}
    assert ours["versions"]["v1"]["endpoints"][0] == {"url": "http://127.0.0.1:9000", "slots": 4}


def test_a_port_that_is_taken_is_replaced() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert free_port(taken.getsockname()[1]) not in (0, taken.getsockname()[1])


def test_without_example_agents_it_says_where_they_are(tmp_path: Path) -> None:
    assert (examples_folder(None) / "office.py").is_file()
    with pytest.raises(DemoError, match="Clone the repository"):
        examples_folder(tmp_path)


@pytest.mark.parametrize("knows_slots", [True, False])
def test_the_gateways_configuration_is_valid(knows_slots: bool) -> None:
    side = next(side for side in sides() if side.knows_slots is knows_slots)
    assert list(parse(side.config(45), {}).services) == ["agents"]


def test_the_example_configuration_is_valid_and_its_readme_starts_what_it_names() -> None:
    folder = examples_folder(None)
    config = load(folder / "unjam.yaml")
    assert list(config.services) == ["hello", "scripts", "auditor", "chat"]
    readme = (folder / "README.md").read_text()
    for service in config.services.values():
        for endpoint in service.versions["v1"].endpoints:
            assert f"--port {str(endpoint.url).rsplit(':', 1)[1]}" in readme
