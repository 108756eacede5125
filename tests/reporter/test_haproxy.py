"""A real HAProxy asks a real sidecar, and its stats socket says what it made of the answers."""

from __future__ import annotations

import asyncio
import csv
import io
import os
import shutil
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from benchmarks.common.procs import free_port

from ..gateway.harness import Agent
from ..gateway.processes import Process, process
from .measured import GIB, Running, sidecar
from .skipping import plain

PATIENCE = 20.0

CONFIG = """global
  stats socket {socket} level admin
defaults
  mode http
  timeout connect 1s
  timeout client 5s
  timeout server 5s
frontend f
  bind 127.0.0.1:{port}
  default_backend b
backend b
  balance leastconn
  server a 127.0.0.1:{agent} weight 100 check inter 200ms agent-check agent-port {check} agent-inter 50ms{more}
"""


class HAProxy:
    def __init__(self, path: Path, port: int) -> None:
        self._path = path
        self.port = port

    async def ask(self, command: str) -> str:
        reader, writer = await asyncio.open_unix_connection(str(self._path))
        writer.write(command.encode() + b"\n")
        text = (await reader.read()).decode()
        writer.close()
        await writer.wait_closed()
        return text

    async def stat(self) -> dict[str, str]:
        """The server's line of `show stat`."""
        rows = csv.DictReader(io.StringIO((await self.ask("show stat")).removeprefix("# ")))
        return next(row for row in rows if row["svname"] == "a")

    async def shows(self, what: Callable[[dict[str, str]], bool]) -> dict[str, str]:
        """The server's line when it is so."""
        until = time.monotonic() + PATIENCE
        while not what(stat := await self.stat()):
            shown = {name: stat[name] for name in ("status", "weight", "agent_status", "last_agt", "agent_desc")}
            assert time.monotonic() < until, shown
            await asyncio.sleep(0.02)
        return stat


@asynccontextmanager
async def haproxy(folder: Path, agent: int, check: int, more: str = "") -> AsyncIterator[HAProxy]:
    program = shutil.which("haproxy") or shutil.which("/usr/sbin/haproxy")
    assert program is not None, "HAProxy is missing: scripts/system_packages.sh haproxy"
    path, port = folder / "haproxy.sock", free_port()
    file = folder / "haproxy.cfg"
    file.write_text(CONFIG.format(socket=path, port=port, agent=agent, check=check, more=more), encoding="utf-8")
    child = await asyncio.create_subprocess_exec(
        program, "-db", "-q", "-f", str(file), stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
    )
    try:
        until = time.monotonic() + PATIENCE
        while not path.exists():
            if child.returncode is not None:
                assert child.stderr is not None
                pytest.fail((await child.stderr.read()).decode())
            assert time.monotonic() < until
            await asyncio.sleep(0.01)
        yield HAProxy(path, port)
    finally:
        if child.returncode is None:
            child.kill()
        await child.communicate()


@asynccontextmanager
async def asked(folder: Path, *arguments: str, more: str = "") -> AsyncIterator[tuple[HAProxy, Running]]:
    """HAProxy, and a sidecar in this loop whose machine is made up."""
    agent = await Agent().start()
    try:
        async with sidecar("--agent-check", "127.0.0.1:0", "--pid", "1", *arguments, quick=10.0) as running:
            while not running.sidecar.check_port:
                await asyncio.sleep(0)
            async with haproxy(folder, agent.port, running.sidecar.check_port, more) as proxy:
                yield proxy, running
    finally:
        await agent.stop()


def weighs(low: int, high: int) -> Callable[[dict[str, str]], bool]:
    return lambda stat: low <= int(stat["weight"]) <= high


@plain
async def test_the_weight_follows_what_others_leave(tmp_path: Path) -> None:
    async with asked(tmp_path) as (proxy, running):
        stat = await proxy.shows(weighs(80, 80))  # 25 % used, 5 % of it by the agent
        assert stat["status"] == "UP"
        assert stat["agent_status"].endswith("L7OK")  # a star before it: it is asking again
        running.meter.figures["cpu"] = 0.95
        await proxy.shows(weighs(10, 10))
        running.meter.figures["agent_cpu"] = 0.95
        await proxy.shows(weighs(100, 100))
        running.meter.figures["memory_free"] = 16 * GIB // 50  # 2 % free: a fifth of the tenth that counts as short
        await proxy.shows(weighs(20, 20))
        assert " 20 100 " in await proxy.ask("show servers state b"), "its weight of now, beside the configured"


@plain
async def test_gone_is_down_and_back_is_up(tmp_path: Path) -> None:
    async with asked(tmp_path) as (proxy, running):
        await proxy.shows(lambda stat: stat["status"] == "UP" and stat["weight"] == "80")
        running.meter.process = None
        stat = await proxy.shows(lambda stat: stat["status"].startswith("DOWN"))
        assert stat["last_agt"] or stat["agent_desc"]
        running.meter.process = 4243
        await proxy.shows(lambda stat: stat["status"] == "UP" and stat["weight"] == "80")


@plain
async def test_slots_are_the_most_connections(tmp_path: Path) -> None:
    async with asked(tmp_path, "--slots", "7") as (proxy, _running):
        await proxy.shows(lambda stat: stat["slim"] == "7")


@plain
async def test_what_haproxy_sends_first_does_no_harm(tmp_path: Path) -> None:
    async with asked(tmp_path, more=' agent-send "who are you\\n"') as (proxy, running):
        await proxy.shows(weighs(80, 80))
        running.meter.figures["cpu"] = 0.55
        stat = await proxy.shows(weighs(50, 50))
        assert stat["status"] == "UP"


@plain
async def test_an_operators_drain_holds(tmp_path: Path) -> None:
    """`ready` would undo it, so the sidecar stops saying it."""
    async with asked(tmp_path) as (proxy, running):
        await proxy.shows(weighs(80, 80))
        check = running.sidecar._check
        assert check is not None
        check._began -= 60.0  # it has run for a minute
        await proxy.ask("set server b/a state drain")
        await proxy.shows(lambda stat: stat["status"].startswith("DRAIN"))
        running.meter.figures["cpu"] = 0.65
        stat = await proxy.shows(weighs(40, 40))  # it has heard of the sidecar since
        assert stat["status"].startswith("DRAIN")
        await proxy.ask("set server b/a state ready")
        await proxy.shows(lambda stat: stat["status"] == "UP")


@asynccontextmanager
async def reported(check: int, *command: str) -> AsyncIterator[Process]:
    async with process("-m", "unjam.reporter", "--agent-check", f"127.0.0.1:{check}", *command) as running:
        await running.says(r"agent-check is answered")
        yield running


@plain
async def test_sigterm_drains_and_a_new_reporter_brings_it_back(tmp_path: Path) -> None:
    check, agent = free_port(), await Agent().start()
    try:
        async with haproxy(tmp_path, agent.port, check) as proxy:
            async with reported(check, "--port", str(agent.port)) as first:
                await proxy.shows(lambda stat: stat["agent_status"] == "L7OK" and stat["status"] == "UP")
                first.send(signal.SIGTERM)
                await proxy.shows(lambda stat: stat["status"].startswith("DRAIN"))
                assert await first.exit_code() == 0
            assert (await proxy.stat())["status"].startswith("DRAIN"), "nothing undoes it but a reporter or an operator"
            async with reported(check, "--port", str(agent.port)):
                await proxy.shows(lambda stat: stat["status"] == "UP")
    finally:
        await agent.stop()


SLOW_TO_STOP = """
import signal, socket, sys, time
stop = []
signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
with socket.create_server(("127.0.0.1", int(sys.argv[1]))) as listener:
    listener.settimeout(0.05)
    print("listening", flush=True)
    while len(stop) < 2:
        try:
            listener.accept()[0].close()
        except TimeoutError:
            pass
"""


@plain
async def test_an_agent_that_is_being_stopped_is_down(tmp_path: Path) -> None:
    check, port = free_port(), free_port()
    async with haproxy(tmp_path, port, check) as proxy:
        command = ("--port", str(port), "--", sys.executable, "-c", SLOW_TO_STOP, str(port))
        async with reported(check, *command) as running:
            await proxy.shows(lambda stat: stat["agent_status"] == "L7OK" and stat["status"] == "UP")
            running.send(signal.SIGTERM)
            await proxy.shows(lambda stat: stat["status"].startswith("DRAIN"))
            await proxy.shows(lambda stat: stat["status"].startswith("DOWN") and stat["agent_status"] == "L7STS")
            pid = int((await running.says(r"the agent is process (\d+)")).group(1))
            os.kill(pid, signal.SIGTERM)
            assert await running.exit_code() == 0
