"""The demo's processes: example agents and gateways, each in a process group of its own, none left behind."""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from unjam.cli._demo_traffic import scale

#: Slots of each agent, and agents behind each gateway.
SLOTS, AGENTS = 4, 4

PAGE_PACE, TOKEN_PACE = 0.08, 0.025


class DemoError(Exception):
    """Something the demo needs is missing or did not start. The message says what to do."""


def examples_folder(given: Path | None) -> Path:
    """Where office.py and its neighbours are: the folder given, the checkout unjam is installed from, or ./examples.

    Raises DemoError when none of them has it.
    """
    places = [given] if given else [Path(__file__).parents[3] / "examples", Path.cwd() / "examples"]
    for place in places:
        if (place / "office.py").is_file():
            return place
    raise DemoError(
        "The demo runs the example agents of unjam's repository, and there are none in "
        f"{' or '.join(map(str, places))}. Clone the repository and run `make demo` there, or give --examples FOLDER."
    )


def free_port(wanted: int) -> int:
    """`wanted` where nobody listens on it, else one that the system picks."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            number: int = probe.getsockname()[1]
            return number
    raise DemoError("the system has no free port on 127.0.0.1")


def _end_with_demo() -> Callable[[], None] | None:
    """On Linux, a child's promise to die with the demo even when that is killed outright."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    set_parent_death_signal = 1
    return lambda: prctl(set_parent_death_signal, signal.SIGKILL)


@dataclass(slots=True)
class Child:
    """One process. What it writes to stderr goes to `log`, and its stdout as well unless it is `read` by line."""

    name: str
    process: asyncio.subprocess.Process
    log: Path

    @classmethod
    async def start(cls, name: str, command: list[str], folder: Path, read: bool) -> Child:
        log = folder / f"{name.replace(' ', '-')}.log"
        with log.open("wb") as errors:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE if read else errors,
                stderr=errors,
                cwd=folder,
                start_new_session=True,
                preexec_fn=_end_with_demo(),
            )
        return cls(name, process, log)

    async def line(self, within: float) -> str:
        """The next line it prints. Raises DemoError when none comes."""
        assert self.process.stdout is not None
        try:
            async with asyncio.timeout(within):
                line = (await self.process.stdout.readline()).decode().strip()
        except TimeoutError:
            line = ""
        if not line:
            raise self.failed("did not start")
        return line

    def failed(self, what: str) -> DemoError:
        said = self.log.read_text(errors="replace").strip()[-2000:]
        return DemoError(f"{self.name} {what}." + (f" It said:\n{said}" if said else " It said nothing."))

    async def stop(self, patience: float = 3.0) -> None:
        """SIGTERM; after `patience` seconds SIGKILL to all of its group."""
        if self.process.returncode is None:
            self._signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(patience):
                    await self.process.wait()
            except TimeoutError:
                pass
        self._signal(signal.SIGKILL)
        await self.process.wait()

    def _signal(self, number: signal.Signals) -> None:
        try:
            os.killpg(self.process.pid, number)
        except ProcessLookupError:
            pass  # it has ended, and so have all that it started


@dataclass(slots=True)
class AgentState:
    """What an agent says of itself: jobs in its slots, and jobs waiting inside it."""

    running: int = 0
    waiting: int = 0

    @property
    def word(self) -> str:
        if self.waiting and self.running >= SLOTS:
            return "jammed"
        if self.running >= SLOTS:
            return "full"
        return "" if self.running else "idle"


@dataclass(slots=True)
class Side:
    """One gateway, and the agents that only it knows."""

    policy: str
    port: int
    admin: int
    knows_slots: bool
    gateway: Child | None = None
    agents: list[Child] = field(default_factory=list)
    urls: list[str] = field(default_factory=list)
    states: list[AgentState] = field(default_factory=list)
    #: Requests waiting in the gateway, by its own word.
    queued: int = 0

    def config(self, seconds: float) -> str:
        """The gateway's configuration file."""
        slots = {"slots": SLOTS} if self.knows_slots else {}
        service: dict[str, object] = {
            "match": {"path": "/"},
            "policy": self.policy,
            "versions": {"v1": {"endpoints": [{"url": url, **slots} for url in self.urls]}},
        }
        if self.knows_slots:
            service["lanes"] = {"fast": {"up_to": f"{3 * scale(seconds):.2f}s"}}
        return yaml.safe_dump(
            {
                "listen": f"127.0.0.1:{self.port}",
                "admin": f"127.0.0.1:{self.admin}",
                "state": "memory:",
                "services": {"agents": service},
            },
            sort_keys=False,
        )


def gateway_command(config: Path) -> list[str]:
    return [sys.executable, "-m", "unjam.cli.main", "serve", "--config", str(config)]


class Fleet:
    """Everything the demo started. `stop` ends it all, also halfway through a start."""

    def __init__(self, folder: Path, examples: Path) -> None:
        self.folder, self.examples = folder, examples
        self.document = folder / "ledger.pdf"
        self.children: list[Child] = []

    async def make_document(self) -> None:
        maker = await self._start("make_pdf", [sys.executable, str(self.examples / "make_pdf.py"), str(self.document)])
        if await maker.process.wait():
            raise maker.failed("could not make the PDF to audit (`pip install unjam[examples]` has what it needs)")

    async def start_agents(self, side: Side) -> None:
        command = [sys.executable, str(self.examples / "office.py"), "--slots", str(SLOTS)]
        command += ["--document", str(self.document), "--page-pace", str(PAGE_PACE), "--token-pace", str(TOKEN_PACE)]
        names = [f"agent {n + 1} of {side.policy}" for n in range(AGENTS)]
        side.agents = list(await asyncio.gather(*(self._start(name, command, read=True) for name in names)))
        side.urls = list(await asyncio.gather(*(agent.line(60) for agent in side.agents)))
        side.states = [AgentState() for _ in side.urls]
        # One page each, past the gateway: all that an agent imports and starts at first use is there before the clock.
        first = b'{"pages": 1}'
        for url, (status, answer) in zip(
            side.urls, await asyncio.gather(*(fetch(url, "/audit", first, 60) for url in side.urls)), strict=True
        ):
            if status != 200:
                raise DemoError(f"the agent at {url} could not audit a page: {status} {answer[:500]!r}")

    async def start_gateway(self, side: Side, seconds: float) -> None:
        config = self.folder / f"{side.policy}.yaml"
        config.write_text(side.config(seconds))
        side.gateway = await self._start(f"gateway {side.policy}", gateway_command(config))
        for _ in range(300):
            if side.gateway.process.returncode is not None:
                raise side.gateway.failed("ended at its start")
            try:
                if (await fetch(f"http://127.0.0.1:{side.port}", "/readyz", b"", 2))[0] == 200:
                    return
            except (OSError, EOFError, TimeoutError):
                pass  # not listening yet
            await asyncio.sleep(0.1)
        raise side.gateway.failed(f"was not ready on port {side.port} within 30 s")

    async def _start(self, name: str, command: list[str], read: bool = False) -> Child:
        child = await Child.start(name, command, self.folder, read)
        self.children.append(child)
        return child

    async def start_sender(self, seconds: float, seed: int, sides: list[Side]) -> Child:
        ports = [str(side.port) for side in sides]
        command = [sys.executable, "-m", "unjam.cli._demo_traffic", str(seconds), str(seed), *ports]
        return await self._start("sender", command, read=True)

    def check(self, sides: list[Side]) -> None:
        """Raises DemoError when a process that should run has ended."""
        for child in [child for side in sides for child in (*side.agents, side.gateway) if child]:
            if child.process.returncode is not None:
                raise child.failed(f"ended with {child.process.returncode}")

    async def stop(self) -> None:
        await asyncio.gather(*(child.stop() for child in self.children))


async def fetch(url: str, path: str, body: bytes, within: float) -> tuple[int, bytes]:
    """(status, body) of one small request. Raises OSError, EOFError or TimeoutError."""
    host, port = url.removeprefix("http://").split(":")
    method = "POST" if body else "GET"
    async with asyncio.timeout(within):
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            fields = f"host: {host}:{port}\r\nconnection: close\r\ncontent-length: {len(body)}"
            writer.write(f"{method} {path} HTTP/1.1\r\n{fields}\r\n\r\n".encode() + body)
            answer = await reader.readuntil(b"\r\n\r\n")
            return int(answer.split(b" ", 2)[1]), await reader.read()
        finally:
            writer.close()


async def watch(side: Side, every: float) -> None:
    """Keeps `side.states` at what the agents' own /health says, and `side.queued` at what the gateway's admin says,
    until cancelled. Where one does not answer, its last word stands: `Fleet.check` tells when a process has ended."""

    async def ask(url: str, path: str) -> dict[str, Any] | None:
        try:
            status, answer = await fetch(url, path, b"", 5)
            said = json.loads(answer) if status == 200 else None
        except (OSError, EOFError, TimeoutError, ValueError):
            return None
        return said if isinstance(said, dict) else None

    async def look(url: str, state: AgentState) -> None:
        if said := await ask(url, "/health"):
            state.running, state.waiting = said["running"], said["waiting"]

    async def look_in() -> None:
        if said := await ask(f"http://127.0.0.1:{side.admin}", "/api/state"):
            queues = [service["queue"] for service in said["services"].values()]
            side.queued = sum(queue["fast"] + queue["heavy"] for queue in queues)

    while True:
        await asyncio.gather(look_in(), *map(look, side.urls, side.states))
        await asyncio.sleep(every)
