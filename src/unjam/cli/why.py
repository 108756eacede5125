"""What `unjam status --why URL` prints: all that is known of one endpoint, in full sentences, and what follows from it.

Reads the same state as `unjam status`. What a gateway does not tell is not mentioned, or said to be unknown.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from unjam.cli.status import PIPED_WIDTH, seconds_of
from unjam.cli.trouble import CliError
from unjam.config.address import parse_url
from unjam.config.quantities import BadValue
from unjam.core.spec import UNSIZED_SLOTS
from unjam.telemetry import endpoints as read
from unjam.telemetry.escape import printable

#: Other URLs named when the one asked for is not there.
NEAR: Final = 5
#: Lines longer than this are hard to read.
WIDEST: Final = 120

Endpoint = Mapping[str, Any]
Version = Mapping[str, Any]


def explain(state: Mapping[str, Any], url: str, console: Console | None = None) -> None:
    """Prints what is known of the endpoint `url`, once for each version that has it. Raises CliError naming the nearest
    URLs when none has."""
    found = find(state, url)
    out = console or Console(highlight=False)
    out.width = min(WIDEST, out.width if out.is_terminal else PIPED_WIDTH)
    for number, (service, version_name, version, endpoint) in enumerate(found):
        if number:
            out.print()
        title = Text(_text(endpoint.get("name")), "bold")
        out.print(title.append(f"  {_text(service)}, version {_text(version_name)}", "not bold"), soft_wrap=True)
        grid = Table.grid(padding=(0, 2, 0, 0))
        grid.add_column(no_wrap=True, style="dim")
        grid.add_column(overflow="fold")
        for label, sentences in paragraphs(version, endpoint):
            if text := " ".join(sentences):
                grid.add_row(Text(label), Text(text, "bold" if label == "conclusion" else ""))
        out.print(grid)


def find(state: Mapping[str, Any], url: str) -> list[tuple[str, str, Version, Endpoint]]:
    """All of that URL: (service, version, the version's entry, the endpoint's). Raises CliError for none."""
    known = list(read.all_endpoints(state))
    try:
        wanted = {url, parse_url(url).url}
    except BadValue:
        wanted = {url}
    found = [one for one in known if one[3].get("name") in wanted or one[3].get("url") in wanted]
    if found:
        return found
    names = sorted({str(one[3].get("name")) for one in known})
    near = [name for name in names if url and url in name]
    near += [name for name in difflib.get_close_matches(url, names, NEAR, 0.5) if name not in near]
    if near:
        raise CliError(
            f"no endpoint has the URL {_text(url)}, and no worker that name. "
            f"Near it: {', '.join(map(_text, near[:NEAR]))}."
        )
    few = f" There are: {', '.join(map(_text, names))}." if 0 < len(names) <= NEAR else ""
    there = f" unjam status lists the {len(names)} there are." if len(names) > NEAR else ""
    raise CliError(f"no endpoint has the URL {_text(url)}.{few or there or ' The gateway has none at all.'}")


def paragraphs(version: Version, endpoint: Endpoint) -> Iterator[tuple[str, list[str]]]:
    """(label, sentences), the conclusion last."""
    if endpoint.get("kind") == "worker":
        yield from _worker(version, endpoint)
        return
    yield "size", list(_size(endpoint))
    for source in read.sources(endpoint):
        yield _text(source.name), list(_source(source))
    yield "load", list(_load(endpoint))
    yield "memory", list(_memory(endpoint))
    yield "reports", list(_reports(endpoint))
    yield "work", list(_work(endpoint))
    yield "health", list(_health(endpoint))
    yield "version", list(_version(version))
    yield "conclusion", [conclusion(version, endpoint)]


def _worker(version: Version, worker: Endpoint) -> Iterator[tuple[str, list[str]]]:
    """As `paragraphs`: of what claims runs."""
    yield "size", [f"It may do {_count(worker.get('slots') or 0, 'run')} at once, by its own word."]
    for source in read.sources(worker):
        yield _text(source.name), list(_source(source))
    seen = seconds_of(worker.get("seen"))
    if worker.get("via"):
        yield "presence", [f"Known from {_text(worker['via'])}, as of {seen} ago; this gateway gives it nothing."]
        yield "work", [f"It does {_count(worker.get('taken') or 0, 'run')}."]
        yield "version", list(_version(version))
        yield "conclusion", [f"It gets work where it asks: it {_text(', '.join(read.words(worker)[-1:]))}."]
        return
    waits = " and waits for work now" if worker.get("claiming") else ""
    yield "presence", [f"It asks this gateway for runs{waits}; it was heard of {seen} ago."]
    here, taken = worker.get("inflight") or 0, worker.get("taken") or 0
    more = f", and {_plain(taken - here)} of others" if taken > here else ""
    work = [f"It does {_count(here, 'run')} of this gateway{more}, {_plain(worker.get('heavy') or 0)} of them heavy."]
    work.append(f"{_count(worker.get('served') or 0, 'run')} ended well, {_plain(worker.get('failed') or 0)} failed.")
    if worker.get("turned_away"):
        count = _count(worker["turned_away"], "claim")
        why = f", the last because {_listed([_text(worker['refusal'])])}" if worker.get("refusal") else ""
        work.append(f"{count} of it got nothing, whatever waited{why}.")
    yield "work", work
    yield "reports", list(_reports(worker))
    yield "health", [sentence for sentence in _health(worker) if not sentence.startswith("No check")]
    yield "version", list(_version(version))
    yield "conclusion", [conclusion(version, worker)]


def _size(endpoint: Endpoint) -> Iterator[str]:
    cores, memory = read.number(endpoint.get("cores")), read.number(endpoint.get("memory"))
    if cores is None and memory is None:
        yield "Neither its cores nor its memory are known."
    else:
        parts = [
            "cores unknown" if cores is None else f"{cores:g} {'core' if cores == 1 else 'cores'}",
            "memory unknown" if memory is None else f"{read.size(memory)} of memory",
        ]
        yield f"It has {' and '.join(parts)}{_says_who(endpoint)}."
    slots, origin = endpoint.get("slots"), endpoint.get("slots_from")
    if slots == UNSIZED_SLOTS and origin in (None, "unknown"):
        yield "How many requests it may run at once is not known, so work is spread and none waits for it."
    elif read.number(slots) is not None:
        because = {
            "configured": ", as configured",
            "cores": ": twice its cores",
            "memory": ": what its memory allows",
            "adapted": ", adapted to what its reports say it can do",
        }.get(str(origin), "")
        yield f"It may run {_count(slots, 'request')} at once{because}."
    if endpoint.get("discovered"):
        yield "It was added by its reporter and is in no configuration file."


def _says_who(endpoint: Endpoint) -> str:
    """Where the size is from: what no report names must be the configuration's."""
    told = [name for name in ("cores", "memory") if read.figure(endpoint, name) is not None]
    known = [name for name in ("cores", "memory") if endpoint.get(name) is not None]
    if not told:
        return ", as configured"
    by = next(source.name for source in read.sources(endpoint) if any(source.figures.get(name) for name in told))
    if all(read.figure(endpoint, name) == endpoint.get(name) for name in known):
        return f", which is what its {_SOURCES.get(by, _text(by))} says"
    figures = {"cores": _cores, "memory": read.size}
    said = " and ".join(figures[name](read.figure(endpoint, name)) for name in told)
    return f"; its {_SOURCES.get(by, _text(by))} says {said}"


#: Where a report is from, as a sentence has it.
_SOURCES: Final = {"header": "answers' header", "metrics": "metrics page", "agent_check": "agent-check"}
_SHARES: Final = (
    ("cpu", "{} of its CPU is in use"),
    ("agent_cpu", "{} by the agent itself"),
    ("cache", "{} of its cache is in use"),
    ("pressure", "work waited for CPU {} of the time"),
    ("memory_pressure", "work waited for memory {} of the time"),
    ("weight", "it wants {} of its share"),
)
_SIZES: Final = (("memory_free", "{} of memory are free"), ("agent_memory", "the agent uses {}"))
_NUMBERS: Final = (
    ("in_flight", "it works on {} requests"),
    ("waiting", "{} of them not begun"),
    ("slots", "it wants at most {} at once"),
    ("run_queue", "{} tasks are ready to run"),
    ("open_files", "{} files are open"),
)


def _source(source: read.Source) -> Iterator[str]:
    told = []
    for names, show in ((_SHARES, _percent), (_SIZES, read.size), (_NUMBERS, _plain)):
        for name, words in names:
            value = read.number(source.figures.get(name))
            if value is not None:
                told.append(words.format(show(value)))
    ago = f"{seconds_of(source.age)} ago"
    yield f"Said {ago}: {', '.join(told)}." if told else f"Was heard {ago}."
    state = source.figures.get("state")
    if state not in (None, "ready"):
        yield f"It says that the endpoint is {_text(state)}."


def _load(endpoint: Endpoint) -> Iterator[str]:
    if not read.has_load(endpoint):
        yield "No report of its load counts: it is used by its size and by what this gateway runs there."
        return
    others = read.number(endpoint.get("other_cpu"))
    if others is not None:
        yield (
            f"Others than this gateway's requests use {_percent(others)} of its CPU, as far as that counts now."
            if others
            else "Nobody but this gateway's requests uses its CPU, as far as is known."
        )
    trust = read.number((endpoint.get("load") or {}).get("trust"))
    if trust is not None and trust < 0.995:
        yield f"The reports are old and count for {_percent(trust)}; what they don't say is taken from its size."


def _memory(endpoint: Endpoint) -> Iterator[str]:
    need = read.number((endpoint.get("load") or {}).get("heavy_memory"))
    if need is not None:
        yield f"One heavy request of this version was seen to need up to {read.size(need)}."


def _reports(endpoint: Endpoint) -> Iterator[str]:
    counts = read.tally(endpoint)
    if not counts:
        return
    yield (
        f"{_count(counts.get('accepted', 0), 'report')} accepted, {counts.get('refused', 0):,} refused, "
        f"{counts.get('late', 0):,} too late to count."
    )
    if problem := (endpoint.get("load") or {}).get("problem"):
        yield f"The last one was refused: {_text(problem)}."


def _work(endpoint: Endpoint) -> Iterator[str]:
    running, heavy = endpoint.get("inflight"), endpoint.get("heavy")
    if read.number(running) is not None:
        yield f"It runs {_count(running, 'request')}, {_plain(heavy or 0)} of them heavy."
    avail = read.number(endpoint.get("avail"))
    if avail is not None:
        unit = _cores(avail) if endpoint.get("cores") is not None else f"a capacity of {_plain(avail)}"
        yield f"Work is dealt to it as to {unit}."
    if read.number(endpoint.get("served")) is not None:
        yield f"{_count(endpoint['served'], 'request')} ended well, {_plain(endpoint.get('failed') or 0)} failed."


def _health(endpoint: Endpoint) -> Iterator[str]:
    if endpoint.get("healthy") is not None:
        yield "No check of its health fails." if endpoint["healthy"] else "Its health checks fail."
    if endpoint.get("ejected"):
        yield "It was ejected for failing in a row."
    if endpoint.get("draining"):
        yield "It was told to drain: it finishes what it runs."


def _version(version: Version) -> Iterator[str]:
    breaker = version.get("breaker") or {}
    state, why = breaker.get("state"), breaker.get("why")
    if state is not None:
        yield f"The version's breaker is {_text(state)}{f' ({_text(why)})' if why else ''}."
    share = read.number(version.get("share"))
    if share is not None:
        yield f"The version gets {_percent(share)} of the service's traffic."
    if version.get("panic"):
        yield "Too few of its endpoints are healthy, so all are used."


def conclusion(version: Version, endpoint: Endpoint) -> str:
    """What follows, for its work: begins with `It gets`. The reasons are the balancer's own words."""
    words = [_text(word) for word in read.words(endpoint)]
    if not words:
        return "The gateway does not say whether it gets work."
    if any(word.startswith(_DESPERATE) for word in words):
        others = [word for word in words if not word.startswith(_DESPERATE) and read.tone(word) != read.FINE]
        although = f" although {_listed(others)}" if others else " all the same"
        return f"It gets work{although}, because too few of its version are healthy."
    nothing = [word for word in words if not read.usable({"why": [word]})]
    if nothing:
        return f"It gets nothing because {_listed(nothing)}."
    if "full" in words:
        return "It gets nothing until a request of its own ends, because all its slots are taken."
    no_heavy = [word for word in words if word.startswith(_NO_HEAVY)]
    less = [word for word in words if word.startswith(_LESS)]
    found = []
    if no_heavy:
        found.append(f"It gets no heavy work because {_listed(no_heavy)}.")
    if less:
        found.append(f"It gets less{' of other work' if no_heavy else ''} because {_listed(less)}.")
    if any(word.startswith("reports refused") for word in words):
        found.append(
            f"It gets {'the rest' if found else 'work'} as if it had not reported: its last report was refused."
        )
    return " ".join(found) or "It gets work."


_DESPERATE: Final = "used all the same"
_NO_HEAVY: Final = ("no heavy work", "no more heavy work")
#: Reasons for a smaller share.
_LESS: Final = ("others use", "warming up", "failed lately", "breaker ramping", "version has had its share of")
#: How a sentence has the beginning of a word of `why`; others are told as they are.
_SENTENCES: Final = {
    "full": "all its slots are taken",
    "unhealthy": "its health checks fail",
    "ejected": "it is ejected",
    "draining": "it was told to drain",
    "removed": "it was removed from the configuration",
    "weight 0": "its weight is 0",
    "memory short": "its memory is short",
    "version has no weight": "its version has no weight",
    "version has had its share": "its version has had its share",
    "breaker": "its version's breaker is",
    "region out of quota": "its region is out of quota",
    "says it is": "it says it is",
    "asks for no work": "it asks for no work",
    "warming up": "it is warming up",
    "failed lately": "it failed lately",
    "no more heavy work": "heavy work has its share of the slots already",
    "no heavy work: ": "",
    "no heavy work": "its machine is too busy",
}


def _listed(words: Iterable[str]) -> str:
    """As the end of a sentence that began with `because`."""
    return "; ".join(_clause(word) for word in words)


def _clause(word: str) -> str:
    for begins, clause in _SENTENCES.items():
        if word.startswith(begins):
            return (clause + word.removeprefix(begins)).replace(" free, one needs", " are free and one needs")
    return word


def _cores(value: float) -> str:
    return f"{_plain(value)} {'core' if value == 1 else 'cores'}"


def _count(value: Any, what: str) -> str:
    return f"{_plain(value)} {what}{'' if value == 1 else 's'}"


def _plain(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.2f}".rstrip("0").rstrip(".")


def _percent(value: float) -> str:
    return f"{100 * value:.0f} %"


def _text(value: Any) -> str:
    return "–" if value is None or value == "" else printable(str(value), 200)
