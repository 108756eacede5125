"""Real Redis servers on loopback, on ports of the system's choosing, in folders of their own; ended by their pids."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import redis
from benchmarks.common.procs import free_port

SLOTS = 16384


def until(what: Any, seconds: float = 20.0) -> Any:
    """Asks until the answer is true; servers have no other way to tell when they are ready."""
    end = time.monotonic() + seconds
    while True:
        try:
            if answer := what():
                return answer
        except (redis.RedisError, OSError):
            pass
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.01)


class Server:
    """One redis-server. `options`: lines of its configuration. It keeps its port and data when it is started again."""

    def __init__(self, place: Path, *options: str, sentinel: bool = False, port: int | None = None) -> None:
        place.mkdir(parents=True, exist_ok=True)
        self.place = place
        self.port = port or free_port()
        self.sentinel = sentinel
        self.options = options
        self.process: subprocess.Popen[bytes] | None = None
        self.admin: dict[str, Any] = {"host": "127.0.0.1", "port": self.port}

    def start(self, wait: bool = True) -> Server:
        config = self.place / "redis.conf"
        if not (self.sentinel and config.exists()):
            lines = [f"port {self.port}", "bind 127.0.0.1", f"dir {self.place}", *self.options]
            if not self.sentinel:
                lines += ["save ''"]
            config.write_text("\n".join(lines) + "\n")
        command = ["redis-server", str(config), *(["--sentinel"] if self.sentinel else [])]
        with (self.place / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        if wait:
            try:
                until(lambda: self.ask("PING"))
            except BaseException:
                self.kill()
                raise
        return self

    @contextlib.contextmanager
    def client(self) -> Iterator[redis.Redis]:
        with redis.Redis(**self.admin, socket_timeout=20) as client:
            yield client

    def ask(self, *command: Any) -> Any:
        with self.client() as client:
            return client.execute_command(*command)

    def raw(self, *command: Any) -> Any:
        """The reply as it came."""
        connection = redis.Connection(host="127.0.0.1", port=self.port, protocol=2)
        try:
            connection.send_command(*command)
            return connection.read_response()
        finally:
            connection.disconnect()

    def url(self, **query: Any) -> str:
        return f"redis://127.0.0.1:{self.port}{asked(query)}"

    def kill(self) -> None:
        """With -9."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def pause(self) -> None:
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGCONT)


def asked(query: dict[str, Any]) -> str:
    return "?" + "&".join(f"{name}={value}" for name, value in query.items()) if query else ""


class Cluster:
    """Three masters that share the slots."""

    def __init__(self, place: Path) -> None:
        ports = [free_port() for _ in range(6)]
        self.servers = [
            Server(
                place / f"node{n}",
                "cluster-enabled yes",
                f"cluster-port {ports[n + 3]}",
                "cluster-node-timeout 2000",
                "appendonly yes",
                port=ports[n],
            )
            for n in range(3)
        ]
        self.buses = ports[3:]

    def start(self) -> Cluster:
        for server in self.servers:
            server.start(wait=False)
        bounds = [round(SLOTS * n / 3) for n in range(4)]
        for n, server in enumerate(self.servers):
            until(lambda server=server: server.ask("PING"))
            server.ask("CLUSTER", "SET-CONFIG-EPOCH", n + 1)
            server.ask("CLUSTER", "ADDSLOTSRANGE", bounds[n], bounds[n + 1] - 1)
        first = self.servers[0]
        for server, bus in zip(self.servers[1:], self.buses[1:], strict=True):
            first.ask("CLUSTER", "MEET", "127.0.0.1", server.port, bus)
        for server in self.servers:
            until(lambda server=server: self._complete(server))
        return self

    @staticmethod
    def _complete(server: Server) -> bool:
        info = server.ask("CLUSTER", "INFO")
        return b"cluster_state:ok" in info and b"cluster_known_nodes:3" in info

    def url(self, **query: Any) -> str:
        return f"redis+cluster://{','.join(f'127.0.0.1:{server.port}' for server in self.servers)}{asked(query)}"

    def move(self, slot: int) -> None:
        """To the next server, with its keys."""
        ids = [server.raw("CLUSTER", "MYID").decode() for server in self.servers]
        owner = next(n for n in range(3) if self._has(self.servers[n], slot, ids[n]))
        other = (owner + 1) % 3
        source, target = self.servers[owner], self.servers[other]
        target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[owner])
        source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[other])
        keys = source.ask("CLUSTER", "GETKEYSINSLOT", slot, 10_000)
        if keys:
            source.ask("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys)
        for server in (target, source, self.servers[3 - owner - other]):
            server.ask("CLUSTER", "SETSLOT", slot, "NODE", ids[other])

    @staticmethod
    def _has(server: Server, slot: int, own: str) -> bool:
        for first, last, node, *_ in server.raw("CLUSTER", "SLOTS"):
            if first <= slot <= last:
                return bool(node[2].decode() == own)
        return False

    def kill(self) -> None:
        for server in self.servers:
            server.kill()
