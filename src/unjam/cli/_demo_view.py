"""How the demo looks: the live screen, plain lines where nobody watches, and the summary."""

from __future__ import annotations

import math
import os
import platform
from pathlib import Path

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from unjam.cli._demo_fleet import AGENTS, PAGE_PACE, SLOTS, Side
from unjam.cli._demo_score import ROWS, Score

BLOCKS = "▁▂▃▄▅▆▇█"
#: The sparkline's scale is logarithmic, from 5 ms to 20 s.
LOW, HIGH = 0.005, 20.0

ABOUT = {"round_robin": "in turn, as a plain proxy does", "least_loaded": "where there is room: unjam"}


def clock(seconds: float | None) -> str:
    """8 ms, 1.24 s, 43.1 s: three figures at most."""
    if seconds is None:
        return "–"
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    return f"{seconds:.2f} s" if seconds < 9.995 else f"{seconds:.1f} s"


def tint(seconds: float | None) -> str:
    """What a caller of a hello feels."""
    if seconds is None:
        return "dim"
    return "green" if seconds < 0.1 else "yellow" if seconds < 1 else "red"


def times(slow: float | None, fast: float | None) -> str:
    """How many times `fast` goes into `slow`, to two figures or so."""
    if not slow or not fast:
        return "–"
    ratio = slow / fast
    return f"{ratio:.0f} ×" if ratio >= 10 else f"{ratio:.1f} ×"


# ---------------------------------------------------------------------------------------------------------------- live


def screen(sides: list[Side], scores: list[Score], now: float, seconds: float, width: int, seed: int) -> RenderableType:
    """One frame. `now`: seconds since the first request was due."""
    head = Text.assemble((" unjam demo ", "bold reverse"), "  the same requests, at the same moments, to two gateways")
    sent = sum(scores[0].sent.values())
    room = width - 44
    full = round(room * min(1.0, now / seconds))
    line = Text.assemble(
        (f" {now:3.0f} s ", "bold"),
        ("━" * full, "green"),
        ("━" * (room - full), "dim"),
        f" {seconds:.0f} s   {sent} sent to each",
        (f"   seed {seed}", "dim"),
        no_wrap=True,
    )
    grid = Table.grid(expand=True)
    for _ in sides:
        grid.add_column(ratio=1)
    grid.add_row(
        *(_panel(side, score, now, seconds, width // 2 - 4) for side, score in zip(sides, scores, strict=True))
    )
    small = Text(" ■ a slot at work   □ a free slot   +n waiting inside the agent", style="dim")
    return Group(head, line, grid, small)


def _panel(side: Side, score: Score, now: float, seconds: float, width: int) -> RenderableType:
    agents = Table.grid(padding=(0, 1))
    for number, state in enumerate(side.states, 1):
        word = state.word
        colour = {"jammed": "red", "full": "yellow", "idle": "dim"}.get(word, "green")
        busy = min(state.running, SLOTS)
        bar = Text.assemble(
            (" ".join("■" * busy), colour), " " * (0 < busy < SLOTS), (" ".join("□" * (SLOTS - busy)), "dim")
        )
        waiting = Text(f"+{state.waiting}" if state.waiting else "", style="red bold")
        agents.add_row(f"agent {number}", bar, waiting, Text(word, style="red bold" if word == "jammed" else colour))
    held = side.queued
    agents.add_row("gateway", Text(f"{held} queued" if held else "no queue", style="cyan" if held else "dim"), "", "")

    table = Table(box=None, expand=True, padding=(0, 0), header_style="dim")
    table.add_column("")
    for name, least in (("p50", 6), ("p99", 8), ("done", 9)):
        table.add_column(name, justify="right", no_wrap=True, min_width=least)
    for row in ROWS:
        middle, worst = score.quantiles(row, now)
        label = Text("  first word", style="dim") if row == "first word" else Text(row)
        style = tint(worst) if row == "hello" else ""
        done = "" if row == "first word" else f"{len(score.took[row])}/{score.sent[row]}"
        table.add_row(label, clock(middle), Text(clock(worst), style=style), done)

    slowest = score.slowest_hellos(now, width, seconds)
    spark = Text(no_wrap=True)
    for value in slowest:
        spark.append(" " if value is None else BLOCKS[_level(value)], tint(value))
    worst_now = max((value for value in slowest if value is not None), default=None)
    caption = Text.assemble(("slowest hello over time", "dim"), f"  max {clock(worst_now)}")
    failed = [Text(f"{len(score.failed)} failed: {score.failed[-1][1]}", "red", no_wrap=True)] if score.failed else []
    title = Text.assemble((side.policy, "bold"), ("  " + ABOUT[side.policy], "dim") if width >= 44 else "")
    return Panel(Group(agents, Text(""), table, Text(""), caption, spark, *failed), title=title, padding=(0, 1))


def _level(seconds: float) -> int:
    place = math.log(max(seconds, LOW) / LOW) / math.log(HIGH / LOW)
    return min(len(BLOCKS) - 1, int(place * len(BLOCKS)))


def plain(sides: list[Side], scores: list[Score], now: float) -> list[str]:
    """What the screen shows, as lines for a log."""
    lines = []
    for side, score in zip(sides, scores, strict=True):
        words = [state.word for state in side.states]
        worst = clock(score.quantiles("hello", now)[1])
        inside = sum(state.waiting for state in side.states)
        failed = f", {len(score.failed)} FAILED" if score.failed else ""
        lines.append(
            f"{now:5.1f} s  {side.policy:<12} {score.answered}/{sum(score.sent.values())} answered, hello p99 {worst}, "
            f"agents: {words.count('jammed')} jammed, {words.count('idle')} idle; "
            f"waiting: {inside} in agents, {side.queued} in the gateway{failed}"
        )
    return lines


# ------------------------------------------------------------------------------------------------------------- summary


def summary(sides: list[Side], scores: list[Score], seed: int) -> RenderableType:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("")
    table.add_column("n", justify="right")
    for side in sides:
        for name in ("p50", "p99"):
            table.add_column(f"{side.policy}\n{name}", justify="right", no_wrap=True)
    table.add_column("p99\nratio", justify="right", style="bold")
    for row in ROWS:
        cells: list[RenderableType] = []
        for score in scores:
            middle, worst = score.quantiles(row, 0.0)
            cells += [clock(middle), Text(clock(worst), style=tint(worst) if row == "hello" else "")]
        ratio = times(*(score.quantiles(row, 0.0)[1] for score in scores))
        count = "" if row == "first word" else str(scores[0].sent[row])
        table.add_row("  first word" if row == "first word" else row, count, *cells, ratio)
    failures = [
        Text(f"{side.policy}: {kind} failed: {why}", style="red")
        for side, score in zip(sides, scores, strict=True)
        for kind, why in score.failed
    ]
    return Group(
        Text(""),
        Rule("the same traffic, twice: time from sending to the last byte", align="left"),
        table,
        *failures[:20],
        Text(""),
        small_print(seed),
    )


def small_print(seed: int) -> Text:
    return Text(
        f"Measured just now, seed {seed}, on {machine()}; clients, gateways and agents share it. The agents are real "
        f"servers ({AGENTS} per gateway, {SLOTS} hard slots each: more work waits inside them). An audit reads a real "
        f"PDF page by page, at least {PAGE_PACE * 1000:.0f} ms each in place of a model call; a script holds a core. "
        "round_robin sends each request on at once, as a proxy does that knows neither slots nor sizes; least_loaded "
        "knows the slots, learns which work is heavy, and lets work wait in the gateway until there is room.",
        style="dim",
    )


def machine() -> str:
    """`2 cores of AMD EPYC 7B13, Linux, Python 3.11.7`."""
    model = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = " ".join(line.split(":", 1)[1].split())
                break
    except OSError:
        pass  # not Linux: the processor's short name will do
    return f"{os.cpu_count()} cores of {model}, {platform.system()}, Python {platform.python_version()}"


def farewell(sides: list[Side]) -> RenderableType:
    """Lines to paste, for each agent; none is longer than 80 columns."""
    other, best = sides
    url = f"http://127.0.0.1:{best.port}"
    events, json = "-H 'accept: text/event-stream'", "-H 'content-type: application/json'"
    chat = """'{"model": "harbour-1", "stream": true,
       "messages": [{"role": "user", "content": "Tell me of ships"}]}'"""
    lines = f"""\
curl -i '{url}/hello?name=Ada'
curl {url}/run -d '{{"name": "mandelbrot"}}'
curl -N {url}/audit {events} \\
     -d '{{"pages": 50}}'
curl -N {url}/v1/chat/completions \\
     {json} -d \\
     {chat}
curl {url}/v1/models"""
    where = f"""
admin         http://127.0.0.1:{best.admin}/  (also /metrics, /api/state)
{other.policy:<13} http://127.0.0.1:{other.port}  its admin http://127.0.0.1:{other.admin}/"""
    return Group(
        Text(""),
        Rule(f"still up, {best.policy}: try it", align="left"),
        Text(lines, no_wrap=True, overflow="ignore"),
        Text(where, style="dim", no_wrap=True, overflow="ignore"),
        Text("ctrl-C stops everything.", style="bold"),
    )
