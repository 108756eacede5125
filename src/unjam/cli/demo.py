"""`unjam demo`: real agents, two gateways, the same traffic; how it fares, live; then it stays up for your own curl."""

from __future__ import annotations

import asyncio
import json
import signal
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.live import Live

from unjam.cli import _demo_view as view
from unjam.cli._demo_fleet import AGENTS, DemoError, Fleet, Side, examples_folder, free_port, watch
from unjam.cli._demo_score import Score
from unjam.cli._demo_traffic import Shot, plan

FRAME, LINE_EVERY, LOOK_EVERY = 0.25, 5.0, 0.25


async def stage(fleet: Fleet, sides: list[Side], seconds: float, seed: int, console: Console) -> list[Score]:
    """Starts everything, sends the traffic, shows it; returns what was measured once every request has ended.

    Raises DemoError when something does not start, or ends too early.
    """
    live = console.is_terminal
    with console.status("Making a PDF of 500 pages …") if live else _Silence():
        await fleet.make_document()
    with console.status(f"Starting {len(sides) * AGENTS} agents and {len(sides)} gateways …") if live else _Silence():
        await asyncio.gather(*(fleet.start_agents(side) for side in sides))
        await asyncio.gather(*(fleet.start_gateway(side, seconds) for side in sides))
    shots = plan(seconds, seed)
    scores = [Score(shots) for _ in sides]
    watchers = [asyncio.create_task(watch(side, LOOK_EVERY)) for side in sides]
    sender = await fleet.start_sender(seconds, seed, sides)
    reading = asyncio.create_task(_read(sender.process.stdout, scores))
    try:
        await _show(fleet, sides, scores, reading, seconds, seed, console)
    finally:
        for task in (*watchers, reading):
            task.cancel()
    if await sender.process.wait():
        raise sender.failed("failed")
    return scores


async def _read(lines: asyncio.StreamReader | None, scores: list[Score]) -> None:
    assert lines is not None
    async for line in lines:
        said = json.loads(line)
        score = scores[said["side"]]
        if "sent" in said:
            score.begin(said["sent"], said["at"])
        else:
            score.end(said["number"], said["seconds"], said["first"], said["why"])


async def _show(
    fleet: Fleet,
    sides: list[Side],
    scores: list[Score],
    reading: asyncio.Task[None],
    seconds: float,
    seed: int,
    console: Console,
) -> None:
    """Draws until the sender has ended."""
    while not reading.done() and not scores[0].open:
        await asyncio.sleep(0.01)
    began = time.monotonic() - min(scores[0].open.values(), default=0.0)
    if console.is_terminal:
        with Live(console=console, auto_refresh=False) as screen:
            while True:
                ended = reading.done()
                now = time.monotonic() - began
                screen.update(view.screen(sides, scores, now, seconds, console.width, seed), refresh=True)
                if ended:
                    break
                fleet.check(sides)
                await asyncio.wait((reading,), timeout=FRAME)
    else:
        while not reading.done():
            await asyncio.wait((reading,), timeout=LINE_EVERY)
            fleet.check(sides)
            for line in view.plain(sides, scores, time.monotonic() - began):
                console.print(line, soft_wrap=True, highlight=False)
    reading.result()


class _Silence:
    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


async def perform(
    seconds: float, stay: bool, port: int, admin_port: int, seed: int, examples: Path, console: Console
) -> bool:
    """The whole demo; False when a request was not answered, or with `stay` False when it was stopped before all were.
    Ends early, and cleanly, at ctrl-C, SIGTERM and SIGHUP."""
    ours, ours_admin = free_port(port), free_port(admin_port)
    for wanted, got, name in ((port, ours, "port"), (admin_port, ours_admin, "admin port")):
        if wanted not in (got, 0):
            console.print(f"{name} {wanted} is taken: using {got} instead", style="yellow")
    sides = [
        Side("round_robin", free_port(0), free_port(0), knows_slots=False),
        Side("least_loaded", ours, ours_admin, knows_slots=True),
    ]
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stop.set)
    stopping = asyncio.create_task(stop.wait())
    with tempfile.TemporaryDirectory(prefix="unjam-demo-") as folder:
        fleet = Fleet(Path(folder), examples)
        staging = asyncio.create_task(stage(fleet, sides, seconds, seed, console))
        try:
            await asyncio.wait((staging, stopping), return_when=asyncio.FIRST_COMPLETED)
            if not staging.done():
                staging.cancel()
                await asyncio.gather(staging, return_exceptions=True)
                return stay  # the user has seen enough; but --once was asked for a verdict
            scores = staging.result()
            console.print(view.summary(sides, scores, seed))
            if stay:
                console.print(view.farewell(sides))
                await stopping
            return _all_answered(scores, plan(seconds, seed))
        finally:
            stopping.cancel()
            await fleet.stop()


def _all_answered(scores: list[Score], shots: list[Shot]) -> bool:
    return all(score.answered == len(shots) for score in scores)


def run(
    seconds: float = 45.0,
    seed: int = 7,
    stay: bool = True,
    port: int = 8080,
    admin_port: int = 8081,
    examples: Path | None = None,
) -> int:
    """The demo's exit code: 0 when every request was answered, or when the user stopped it before the summary.

    `stay` False ends after the summary, and is 0 only when every request was answered. `port`, `admin_port`: of the
    least_loaded gateway; where one is taken, the system picks another. `examples`: the folder of the example agents,
    where it isn't found by itself.
    """
    console = Console()
    try:
        answered = asyncio.run(perform(seconds, stay, port, admin_port, seed, examples_folder(examples), console))
    except DemoError as error:
        Console(stderr=True).print(str(error), style="red", soft_wrap=True, highlight=False, markup=False)
        return 1
    console.print("Everything is stopped.")
    return 0 if answered else 1
