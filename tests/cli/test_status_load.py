"""What `unjam status` and `unjam status --why` say of sizes, load and reports."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console
from typer.testing import Result

from unjam.cli.status import show
from unjam.cli.why import conclusion

Unjam = Callable[..., Result]

FIGURES = {
    "cores": 8.0,
    "memory": 16 << 30,
    "cpu": 0.6,
    "agent_cpu": 0.2,
    "memory_free": 9 << 30,
    "agent_memory": 1 << 30,
    "in_flight": 3,
    "waiting": 0,
    "pressure": 0.02,
    "open_files": 80,
}


def endpoint(number: int, **changes: Any) -> dict[str, Any]:
    url = f"http://10.0.0.{number}:9000"
    return {
        "name": url,
        "url": url,
        "region": None,
        "cores": 8.0,
        "memory": 16 << 30,
        "slots": 16,
        "slots_from": "cores",
        "inflight": 2,
        "heavy": 1,
        "avail": 8.0,
        "healthy": True,
        "ejected": False,
        "draining": False,
        "discovered": False,
        "served": 1204,
        "failed": 3,
        "other_cpu": 0.0,
        "load": None,
        "why": ["open"],
        **changes,
    }


def load(age: float = 1.2, source: str = "reporter", **changes: Any) -> dict[str, Any]:
    figures = {**FIGURES, **changes.pop("figures", {})}
    return {
        "sources": {source: {"age": age, **figures}},
        "accepted": 120,
        "refused": 0,
        "late": 0,
        "problem": "",
        "trust": 1.0,
        "heavy_memory": None,
        **changes,
    }


NOISY = endpoint(1, other_cpu=0.4, avail=4.8, why=["others use 40 % of its CPU"], load=load())
CHOKED = endpoint(3, other_cpu=0.93, avail=0.56, why=["no heavy work: others use 93 % of its CPU"], load=load(late=2))
SHORT = endpoint(
    4,
    other_cpu=0.05,
    why=["no heavy work: 1.2 GiB free, one needs 2.0 GiB", "report 14 s old"],
    load=load(14.1, trust=0.64, heavy_memory=2 << 30, figures={"memory_free": 1288490188}),
)
LIAR = endpoint(
    6,
    why=["reports refused: cores is 1e+09: it must be from 0 to 4096"],
    load=load(sources={}, accepted=3, refused=41, trust=0.0, problem="cores is 1e+09: it must be from 0 to 4096"),
)
SILENT = endpoint(7, discovered=True, why=["its reporter is silent"], load=load(sources={}))
UNKNOWN = endpoint(8, cores=None, memory=None, slots=100_000, slots_from="unknown", avail=1.0)


def state(*endpoints: dict[str, Any]) -> dict[str, Any]:
    version = {
        "weight": 90,
        "share": 0.9,
        "breaker": {"state": "closed", "share": 1.0, "why": "", "opens_for": 0.0},
        "panic": False,
        "endpoints": list(endpoints),
    }
    service = {"policy": "least_loaded", "versions": {"v7": version}}
    return {"ready": True, "why": "", "leases": 2, "services": {"auditor": service}}


def rows(text: str) -> dict[str, str]:
    """By URL: its row, with what was folded."""
    found: dict[str, str] = {}
    url = ""
    for line in text.splitlines():
        words = line.split()
        if words and words[0].startswith("http://"):
            url = words[0]
            found[url] = " ".join(words)
        elif url:
            found[url] += " " + " ".join(words)
    return found


def test_a_fleet_that_reports(unjam: Unjam, admin: Any) -> None:
    admin.answer = state(NOISY, CHOKED, SHORT, LIAR, SILENT, UNKNOWN)
    text = unjam("status", "--admin", admin.url).stdout
    assert max(map(len, text.splitlines())) <= 160
    header = " ".join(next(line for line in text.splitlines() if "endpoint" in line).split())
    assert header == "endpoint running heavy slots from cores others mem free avail served failed reports why"
    found = rows(text)
    for url, row in (
        ("http://10.0.0.1:9000", "2 1 16 cores 8 40% 9.0 GiB 4.8 1,204 3 reporter 1.2 s open, others use 40 % of its"),
        ("http://10.0.0.6:9000", "2 1 16 cores 8 – – 8 1,204 3 none now reports refused: cores is 1e+09: it"),
        ("http://10.0.0.8:9000", "2 1 any – – – – 1 1,204 3 – open"),
    ):
        assert found[url].startswith(f"{url} {row}"), found[url]
    for url, words in (
        ("http://10.0.0.3:9000", "2 reports late"),
        ("http://10.0.0.4:9000", "report 14 s old"),
        ("http://10.0.0.6:9000", "41 reports refused"),
        ("http://10.0.0.7:9000", "its reporter is silent"),
    ):
        assert words in found[url]


def test_trouble_comes_before_notes(unjam: Unjam, admin: Any) -> None:
    admin.answer = state(NOISY, UNKNOWN, CHOKED)
    assert next(iter(rows(unjam("status", "--admin", admin.url).stdout))) == CHOKED["name"]


def test_a_fleet_without_sizes_and_reports_has_a_short_table(unjam: Unjam, admin: Any) -> None:
    admin.answer = state(UNKNOWN, endpoint(9, cores=None, memory=None, slots=4, slots_from="configured"))
    header = unjam("status", "--admin", admin.url).stdout.splitlines()[4]
    assert " ".join(header.split()) == "endpoint running heavy slots avail served failed why"


@pytest.mark.parametrize("width", [100, 147, 148, 160])
def test_a_terminal_shows_whole_urls_and_all_words(width: int) -> None:
    out = Console(width=width, force_terminal=True, color_system=None, highlight=False)
    with out.capture() as captured:
        show(state(NOISY, CHOKED, SHORT, LIAR, SILENT, UNKNOWN), out)
    lines = captured.get().splitlines()
    table = [line for line in lines if line.startswith("    ")]
    assert max(map(len, table)) <= width
    found = rows("\n".join(table))
    assert len(found) == 6
    for one in (NOISY, CHOKED, SHORT, LIAR, SILENT, UNKNOWN):
        for word in one["why"]:
            assert word in " ".join(found[one["name"]].split())
    assert ("2 of 16" in found[NOISY["name"]]) == (width < 148)


def test_notes_are_no_alarm() -> None:
    out = Console(width=160, force_terminal=True, color_system="standard", highlight=False, legacy_windows=False)
    with out.capture() as captured:
        show(state(NOISY, SILENT), out)
    text = captured.get()
    assert "\x1b[2mothers use 40 % of its CPU" in text  # dim
    assert "\x1b[1;31mits reporter is silent" in text  # bold red


def why(unjam: Unjam, admin: Any, one: dict[str, Any]) -> str:
    admin.answer = state(NOISY if one is not NOISY else CHOKED, one)
    result = unjam("status", "--why", one["name"], "--admin", admin.url)
    assert result.exit_code == 0
    return " ".join(result.stdout.split())


def test_why_tells_everything_in_sentences(unjam: Unjam, admin: Any) -> None:
    text = why(unjam, admin, SHORT)
    for words in (
        "http://10.0.0.4:9000 auditor, version v7",
        "It has 8 cores and 16 GiB of memory, which is what its reporter says.",
        "It may run 16 requests at once: twice its cores.",
        "reporter Said 14 s ago: 60 % of its CPU is in use, 20 % by the agent itself, ",
        "1.2 GiB of memory are free, the agent uses 1.0 GiB, it works on 3 requests",
        "Others than this gateway's requests use 5 % of its CPU",
        "count for 64 %",
        "One heavy request of this version was seen to need up to 2.0 GiB.",
        "120 reports accepted, 0 refused, 0 too late to count.",
        "It runs 2 requests, 1 of them heavy. Work is dealt to it as to 8 cores.",
        "1,204 requests ended well, 3 failed.",
        "No check of its health fails.",
        "The version's breaker is closed.",
        "conclusion It gets no heavy work because 1.2 GiB are free and one needs 2.0 GiB.",
    ):
        assert words in text, (words, text)


@pytest.mark.parametrize(
    ("one", "words"),
    [
        (NOISY, ["It gets less because others use 40 % of its CPU."]),
        (CHOKED, ["It gets no heavy work because others use 93 % of its CPU.", "2 too late"]),
        (
            LIAR,
            [
                "It gets work as if it had not reported: its last report was refused.",
                "41 refused",
                "The last one was refused: cores is 1e+09: it must be from 0 to 4096.",
                "No report of its load counts",
                "It has 8 cores and 16 GiB of memory, as configured.",
            ],
        ),
        (SILENT, ["It gets nothing because its reporter is silent.", "It was added by its reporter"]),
        (UNKNOWN, ["It gets work.", "Neither its cores nor its memory are known.", "none waits for it"]),
    ],
)
def test_why_concludes(unjam: Unjam, admin: Any, one: dict[str, Any], words: list[str]) -> None:
    text = why(unjam, admin, one)
    for phrase in words:
        assert phrase in text, (phrase, text)


@pytest.mark.parametrize(
    ("words", "concluded"),
    [
        (["open"], "It gets work."),
        (["report 14 s old"], "It gets work."),
        (["full"], "It gets nothing until a request of its own ends, because all its slots are taken."),
        (["full", "draining"], "It gets nothing because it was told to drain."),
        (["says it is draining"], "It gets nothing because it says it is draining."),
        (["memory short: 120 MiB free"], "It gets nothing because its memory is short: 120 MiB free."),
        (
            ["unhealthy", "ejected for 9 s more"],
            "It gets nothing because its health checks fail; it is ejected for 9 s more.",
        ),
        (["breaker open"], "It gets nothing because its version's breaker is open."),
        (["version has had its share"], "It gets nothing because its version has had its share."),
        (
            ["version has had its share of fast runs"],
            "It gets less because its version has had its share of fast runs.",
        ),
        (["no more heavy work"], "It gets no heavy work because heavy work has its share of the slots already."),
        (
            ["others use 40 % of its CPU", "no heavy work: 1.2 GiB free, one needs 2.0 GiB"],
            "It gets no heavy work because 1.2 GiB are free and one needs 2.0 GiB. "
            "It gets less of other work because others use 40 % of its CPU.",
        ),
        (["warming up", "failed lately"], "It gets less because it is warming up; it failed lately."),
        (
            ["unhealthy", "used all the same: too few are healthy"],
            "It gets work although its health checks fail, because too few of its version are healthy.",
        ),
        ([], "The gateway does not say whether it gets work."),
    ],
)
def test_conclusions(words: list[str], concluded: str) -> None:
    assert conclusion({}, endpoint(1, why=words)) == concluded


def test_sizes_that_differ_from_what_is_configured_are_told(unjam: Unjam, admin: Any) -> None:
    text = why(unjam, admin, endpoint(2, cores=4.0, load=load(), slots_from="configured"))
    assert "It has 4 cores and 16 GiB of memory; its reporter says 8 cores and 16 GiB." in text
    assert "It may run 16 requests at once, as configured." in text


@pytest.mark.parametrize("url", ["10.0.0.1:9000", "HTTP://10.0.0.1:9000/", "http://10.0.0.1:9000"])
def test_a_url_may_be_written_in_another_way(unjam: Unjam, admin: Any, url: str) -> None:
    admin.answer = state(NOISY, CHOKED)
    result = unjam("status", "--why", url, "--admin", admin.url)
    if url.startswith("10."):
        assert result.exit_code == 1
        assert "Near it: http://10.0.0.1:9000" in result.stderr
    else:
        assert result.stdout.startswith("http://10.0.0.1:9000  auditor")


def test_an_endpoint_of_two_versions_is_told_twice(unjam: Unjam, admin: Any) -> None:
    admin.answer = state(NOISY)
    versions = admin.answer["services"]["auditor"]["versions"]
    versions["v8"] = versions["v7"]
    text = unjam("status", "--why", NOISY["name"], "--admin", admin.url).stdout
    assert "version v7" in text
    assert "version v8" in text


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("http://10.0.0.9:9000", "Near it: http://10.0.0.3:9000, http://10.0.0.1:9000."),
        ("http://elsewhere.example:1", "no endpoint has the URL http://elsewhere.example:1."),
        ("\x1b[31m", "\\x1b[31m"),
    ],
)
def test_an_unknown_url_names_near_ones(unjam: Unjam, admin: Any, asked: str, said: str) -> None:
    admin.answer = state(NOISY, CHOKED)
    result = unjam("status", "--why", asked, "--admin", admin.url)
    assert result.exit_code == 1
    assert said in result.stderr
    assert result.stdout == ""


def test_an_unknown_url_of_a_large_fleet_does_not_list_it(unjam: Unjam, admin: Any) -> None:
    admin.answer = state(*(endpoint(number) for number in range(200)))
    result = unjam("status", "--why", "unix:/run/a.sock", "--admin", admin.url)
    assert "unjam status lists the 200 there are." in result.stderr


@pytest.mark.parametrize("answer", [{}, {"services": {"a": {"versions": {"v": {"endpoints": [{"name": "x"}]}}}}}])
def test_why_of_a_gateway_that_says_less(unjam: Unjam, admin: Any, answer: Any) -> None:
    admin.answer = answer
    result = unjam("status", "--why", "x", "--admin", admin.url)
    assert result.exit_code == (0 if answer else 1)
    assert ("does not say whether" in result.stdout) == bool(answer)


def test_why_and_json_exclude_each_other(unjam: Unjam, admin: Any) -> None:
    result = unjam("status", "--json", "--why", "http://x", "--admin", admin.url)
    assert result.exit_code == 2
    assert "give one of them" in result.stderr


def test_words_of_others_do_not_steer_the_terminal(unjam: Unjam, admin: Any) -> None:
    odd = endpoint(1, why=["reports refused: \x1b[31m"], load=load(source="\x1b[31m", problem="\x1b[31m[red]"))
    admin.answer = state(odd)
    for arguments in ((), ("--why", odd["name"])):
        result = unjam("status", *arguments, "--admin", admin.url)
        assert result.exit_code == 0
        assert "\x1b" not in result.stdout


def worker(**changes: Any) -> dict[str, Any]:
    return {
        "name": "web-1",
        "kind": "worker",
        "url": "web-1",
        "slots": 4,
        "slots_from": "configured",
        "inflight": 2,
        "taken": 3,
        "heavy": 1,
        "served": 12,
        "failed": 1,
        "seen": 1.2,
        "claiming": 0,
        "turned_away": 0,
        "refusal": "",
        "via": "",
        "load": None,
        "why": ["open"],
        **changes,
    }


def with_workers(*workers: dict[str, Any]) -> dict[str, Any]:
    said = state(NOISY)
    said["services"]["auditor"]["versions"]["v7"]["workers"] = list(workers)
    return said


def test_workers_are_listed_below_the_endpoints_of_their_version(unjam: Unjam, admin: Any) -> None:
    admin.answer = with_workers(
        worker(),
        worker(name="web-2", turned_away=7, why=["breaker open"]),
        worker(name="web-3", via="gateway:b:1", why=["asks another gateway"]),
    )
    lines = [" ".join(line.split()) for line in unjam("status", "--admin", admin.url).stdout.splitlines()]
    at = lines.index("worker running heavy turned away heard why")
    assert lines[at + 1 :][:3] == [
        "web-2 3 of 4 1 7 1.2 s ago breaker open",
        "web-1 3 of 4 1 0 1.2 s ago open",
        "web-3 3 of 4 1 0 1.2 s ago open, asks another gateway",
    ]


def test_in_eighty_columns_there_is_room_for_why_a_worker_gets_work() -> None:
    console = Console(width=80, highlight=False, file=io.StringIO(), force_terminal=True, no_color=True)
    show(
        with_workers(worker(name="a-worker-of-a-quite-long-name-4711"), worker(name="w", why=["breaker open"])), console
    )
    assert isinstance(console.file, io.StringIO)
    lines = [" ".join(line.split()) for line in re.sub(r"\x1b\[\d*m", "", console.file.getvalue()).splitlines()]
    at = lines.index("worker running heard why")
    assert lines[at + 1 :][:2] == [
        "w 3 of 4 1.2 s ago breaker open",
        "a-worker-of-a-quite-long-name-4711 3 of 4 1.2 s ago open",
    ]


def test_how_old_a_workers_report_is_stands_beside_it_already(unjam: Unjam, admin: Any) -> None:
    admin.answer = with_workers(worker(why=["report 17 s old"], seen=17.0), worker(name="web-2", why=["full"]))
    said = [" ".join(line.split()) for line in unjam("status", "--admin", admin.url).stdout.splitlines()]
    assert "web-1 3 of 4 1 0 17 s ago open" in said
    assert "web-2 3 of 4 1 0 1.2 s ago full" in said


@pytest.mark.parametrize(
    ("changes", "sentences"),
    [
        ({"claiming": 1}, ["It may do 4 runs at once", "waits for work now", "and 1 of others, 1 of them heavy"]),
        (
            {"turned_away": 7, "refusal": "breaker open", "why": ["breaker open"]},
            ["7 claims of it got nothing, whatever waited", "It gets nothing because its version's breaker is open."],
        ),
        ({"via": "the store", "why": ["asks the store itself"]}, ["Known from the store", "it asks the store itself."]),
    ],
)
def test_a_worker_is_explained_by_its_name(
    unjam: Unjam, admin: Any, changes: dict[str, Any], sentences: list[str]
) -> None:
    admin.answer = with_workers(worker(**changes))
    said = " ".join(unjam("status", "--why", "web-1", "--admin", admin.url).stdout.split())
    for sentence in sentences:
        assert sentence in said
