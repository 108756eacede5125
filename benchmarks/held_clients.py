"""WebSocket clients that are held and mostly silent: memory of each, CPU while they idle, one message told to all.

    python -m benchmarks.held_clients [--quick] [--clients 100000] [--beside 8000] [--only unjam nchan]

First every server alone with as many clients as one process of each can hold (`--beside`), then unjam with `--clients`
over as many processes as the descriptor limit forces. Pings every 30 s, which the clients answer. Memory is what the
server's processes grew by (PSS), not the kernel's for the sockets, which is the same for all. A message carries the
time at which it was handed to the server; its latency ends when a client has read it, and the clients share the
machine.

unjam is a whole gateway, `unjam serve`: each client subscribes to a run at /v1/ws, and a message is an event that a
worker appends to its log. nchan and `websockets` have neither runs nor logs: they pass the message on.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import urllib.parse
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from .common import results
from .common.figures import significant
from .common.peers import Nginx
from .common.procs import Process, cpu_seconds, free_port, pss_bytes, rss_bytes, wait_until_ready

PING_EVERY = 30.0
NCHAN = Path("/usr/lib/nginx/modules/ngx_nchan_module.so")
#: Bytes of a told message beside its word and time.
PADDING = 200


@dataclass
class Server:
    """Something that holds WebSocket clients at `path` and tells them all what `tell` is given."""

    name: str
    note: str
    path: str = "/ws"

    def missing(self) -> str | None:
        return None

    def version(self) -> str:
        return metadata.version(self.name)

    def argv(self, port: int, folder: Path) -> list[str]:
        module = [sys.executable, "-m", "benchmarks.load.socket_server", self.name]
        return [*module, "--port", str(port), "--ping-every", str(PING_EVERY)]

    def prepare(self, port: int) -> str:
        """Once it is ready. What each of its clients says first; empty: nothing."""
        return ""

    def tell(self, port: int, message: str) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("GET", "/broadcast?" + urllib.parse.quote(message))
        assert connection.getresponse().status == 200
        connection.close()


class Unjam(Server):
    """One run in each process, which its clients follow."""

    def __init__(self, name: str, note: str) -> None:
        super().__init__(name, note, "/v1/ws")
        self._runs: dict[int, tuple[str, int]] = {}

    def version(self) -> str:
        return results.unjam_version()

    def argv(self, port: int, folder: Path) -> list[str]:
        (folder / "unjam.yaml").write_text(f"""\
listen: 127.0.0.1:{port}
admin: off
state: "memory:"
access_log: off
runs: {{lease: 1h}}
services:
  bench:
    match: {{path: /bench}}
    runs: {{execute: pull}}
    versions: {{v1: {{endpoints: ["http://127.0.0.1:9"]}}}}
""")
        return [sys.executable, "-m", "unjam", "serve", "--config", str(folder / "unjam.yaml")]

    def prepare(self, port: int) -> str:
        self._call(port, "/v1/runs", {"service": "bench"})
        claimed = self._call(port, "/v1/workers/claim", {"services": ["bench"], "worker": "bench"})
        run = claimed["run"]["id"]
        self._runs[port] = run, 0
        return json.dumps({"op": "subscribe", "run": run, "after": 1})

    def tell(self, port: int, message: str) -> None:
        run, batch = self._runs[port]
        self._runs[port] = run, batch + 1
        event = {"type": "news", "data": message}
        self._call(port, f"/v1/runs/{run}/append", {"fence": 1, "batch": batch + 1, "events": [event]})

    def _call(self, port: int, path: str, body: Any) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        said = answer.read()
        connection.close()
        if answer.status not in (200, 201):
            raise RuntimeError(f"{path}: {answer.status} {said[:200]!r}")
        return json.loads(said)


class Nchan(Server):
    def missing(self) -> str | None:
        return Nginx().missing() or (None if NCHAN.exists() else "not installed: apt-get install libnginx-mod-nchan")

    def version(self) -> str:
        done = subprocess.run(
            ["dpkg-query", "-W", "-f", "${Version}", "libnginx-mod-nchan"], capture_output=True, text=True, check=False
        )
        return f"{done.stdout or 'unknown'}, nginx {Nginx().version()}"

    def argv(self, port: int, folder: Path) -> list[str]:
        temporary = "\n".join(f"  {kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi"))
        (folder / "nginx.conf").write_text(f"""\
{"user root;" if os.getuid() == 0 else ""}
load_module {NCHAN};
worker_processes 1;
daemon off;
pid {folder}/nginx.pid;
error_log stderr error;
worker_rlimit_nofile 20000;
events {{ worker_connections 19900; }}
http {{
  access_log off;
{temporary}
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  nchan_shared_memory_size 256m;
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location = /healthz {{ return 200; }}
    location = /ws {{
      nchan_subscriber websocket;
      nchan_channel_id all;
      nchan_subscriber_first_message newest;
      nchan_websocket_ping_interval {PING_EVERY:.0f};
    }}
    location = /broadcast {{ nchan_publisher http; nchan_channel_id all; }}
  }}
}}
""")
        nginx = "/usr/sbin/nginx" if Path("/usr/sbin/nginx").exists() else "nginx"
        return [nginx, "-e", "stderr", "-p", str(folder), "-c", f"{folder}/nginx.conf"]

    def tell(self, port: int, message: str) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("POST", "/broadcast", message.encode(), {"Content-Type": "text/plain"})
        assert connection.getresponse().status in (200, 201, 202)
        connection.close()


SERVERS = [
    Unjam("unjam", "`unjam serve`, memory store; each client follows a run at /v1/ws"),
    Nchan("nchan", "1 worker, one channel"),
    Server("websockets", "asyncio server on uvloop, no compression"),
]


class Holders:
    """The clients, in as many processes as their own descriptors force."""

    def __init__(self, path: str, ports: list[int], first: list[str], clients: int, rate: float, hard: int) -> None:
        """`first`: what the clients of each port say first."""
        count = -(-clients // (hard - 100))
        share = -(-clients // count)
        self.running = []
        for number in range(count):
            argv = [sys.executable, "-m", "benchmarks.load.hold_sockets", "--ports", *map(str, ports)]
            mine = min(share, clients - number * share)
            argv += ["--clients", str(mine), "--rate", str(rate / count), "--first", str(number * share)]
            argv += ["--path", path, "--say", *first]
            self.running.append(
                subprocess.Popen(argv, cwd=results.ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )

    def answers(self) -> list[dict[str, Any]]:
        out = []
        for holder in self.running:
            assert holder.stdout is not None
            out.append(json.loads(holder.stdout.readline()))
        return out

    def ask(self, line: str) -> None:
        for holder in self.running:
            assert holder.stdin is not None
            holder.stdin.write(line + "\n")
            holder.stdin.flush()

    def close(self) -> None:
        for holder in self.running:
            assert holder.stdin is not None
            holder.stdin.close()
        for holder in self.running:
            holder.wait(60)

    def kill(self) -> None:
        for holder in self.running:
            holder.kill()
            holder.wait()


def total(answers: list[dict[str, Any]], key: str) -> int:
    return sum(answer[key] for answer in answers)


def one(server: Server, scratch: Path, clients: int, processes: int, given: argparse.Namespace) -> dict[str, Any]:
    """Everything about one server with so many clients."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.ExitStack() as stack:
        running, ports, first = [], [], []
        for number in range(processes):
            folder = scratch / f"{server.name}-{number}"
            folder.mkdir()
            port = free_port()
            process = Process(server.name, server.argv(port, folder), folder / "output.log", cwd=results.ROOT)
            stack.callback(process.stop)
            wait_until_ready(process, port, "/healthz")
            running.append(process)
            ports.append(port)
            first.append(server.prepare(port))
        pids = [pid for process in running for pid in process.pids]
        warm = Holders(server.path, ports, first, 200, 1000.0, hard)
        stack.callback(warm.kill)
        warm.answers()
        warm.close()
        time.sleep(given.settle)
        before = {"pss": pss_bytes(pids), "rss": rss_bytes(pids)}
        opening = cpu_seconds(pids)
        holders = Holders(server.path, ports, first, clients, given.rate, hard)
        stack.callback(holders.kill)
        opened = holders.answers()
        opening = cpu_seconds(pids) - opening
        # What was there for the handshakes goes within seconds.
        time.sleep(given.settle)
        after = {"pss": pss_bytes(pids), "rss": rss_bytes(pids)}
        begin, used = time.monotonic(), cpu_seconds(pids)
        time.sleep(given.hold)
        elapsed, used = time.monotonic() - begin, cpu_seconds(pids) - used
        held_pss = pss_bytes(pids)
        holders.ask("count")
        held = holders.answers()
        told = []
        for number in range(given.rounds):
            word = f"news{number}"
            holders.ask(f"expect {word} 60")
            telling = cpu_seconds(pids)
            for port in ports:
                server.tell(port, f"{word} {time.monotonic()} " + "x" * PADDING)
            answers = holders.answers()
            told.append(
                {
                    "told": total(answers, "told"),
                    "p50_ms": max(answer["p50_ms"] for answer in answers),
                    "p99_ms": max(answer["p99_ms"] for answer in answers),
                    "max_ms": max(answer["max_ms"] for answer in answers),
                    "cpu_us_each": (cpu_seconds(pids) - telling) / clients * 1e6,
                }
            )
        holders.close()
        time.sleep(3.0)
        n = max(1, total(opened, "open"))
        return {
            "clients": clients,
            "processes": processes,
            "open": total(held, "open"),
            "lost": total(held, "lost"),
            "pings": total(held, "pings"),
            "trouble": [trouble for answer in (*opened, *held) for trouble in answer["trouble"]][:5],
            "pss_per_client": (after["pss"] - before["pss"]) / n,
            "rss_per_client": (after["rss"] - before["rss"]) / n,
            "pss_per_client_after_pings": (held_pss - before["pss"]) / n,
            "base_pss": before["pss"],
            "pss_after_close": pss_bytes(pids) - before["pss"],
            "open_cpu_us": opening / n * 1e6,
            "idle_cpu_share_per_10000": used / elapsed / n * 10_000,
            "told": told,
        }


def row(name: str, r: dict[str, Any]) -> list[str]:
    told = sorted(r["told"], key=lambda each: each["p99_ms"])[len(r["told"]) // 2]
    return [
        name,
        f"{r['open']:,}",
        str(r["processes"]),
        str(r["lost"]),
        significant(r["pss_per_client"] / 1024),
        significant(r["base_pss"] / 2**20 / r["processes"]),
        significant(r["open_cpu_us"]),
        significant(r["idle_cpu_share_per_10000"] * 100),
        f"{min(each['told'] for each in r['told']):,}",
        f"{significant(told['p50_ms'])} / {significant(told['p99_ms'])}",
        significant(told["cpu_us_each"]),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2,000 clients, 1,000 beside the others, ten seconds")
    parser.add_argument("--clients", type=int, default=100_000)
    parser.add_argument("--beside", type=int, default=8000, help="clients of each server alone")
    parser.add_argument("--rate", type=float, default=2000.0, help="clients opened per second")
    parser.add_argument("--hold", type=float, default=60.0, help="seconds held")
    parser.add_argument("--settle", type=float, default=20.0, help="seconds between opening and weighing")
    parser.add_argument("--rounds", type=int, default=5, help="messages told to all")
    parser.add_argument("--only", nargs="+", help=f"of {', '.join(server.name for server in SERVERS)}")
    parser.add_argument("--name", default="held_clients", help="name of the result file")
    given = parser.parse_args()
    if given.quick:
        given.clients, given.beside = min(given.clients, 2000), min(given.beside, 1000)
        given.hold, given.settle = min(given.hold, 10.0), min(given.settle, 3.0)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    machine = results.machine()
    out: dict[str, Any] = {}
    absent: dict[str, str] = {}
    about: dict[str, Any] = {}
    runs = [(server.name, server, given.beside, 1) for server in SERVERS]
    # A gateway refuses connections beyond 90 % of its descriptors.
    runs.append(("unjam, all", SERVERS[0], given.clients, -(-given.clients // int(hard * 0.9 - 100))))
    for name, server, clients, processes in runs:
        if given.only and server.name not in given.only:
            continue
        if why := server.missing():
            absent[name] = why
            continue
        about[server.name] = {"version": server.version(), "note": server.note}
        print(f"  {name}: {clients:,} clients, {processes} process(es)", file=sys.stderr)
        with tempfile.TemporaryDirectory(prefix="unjam-bench-") as scratch:
            try:
                out[name] = one(server, Path(scratch), clients, processes, given)
            except (RuntimeError, OSError, subprocess.SubprocessError, ValueError, AssertionError) as e:
                absent[name] = "failed: " + (str(e).strip().splitlines() or [repr(e)])[-1][:100]
    columns = ["server", "held", "processes", "lost", "KiB a client", "base MiB", "µs to open", "idle CPU % / 10,000"]
    columns += ["told", "told ms p50/p99", "µs each"]
    rows = [row(name, r) for name, r in out.items()] + [[name, why, *[""] * 9] for name, why in absent.items()]
    results.table(f"Held WebSocket clients, a ping every {PING_EVERY:g} s to each", columns, rows)
    settings = {k: v for k, v in vars(given).items() if k not in ("only", "name", "quick")}
    body = {"machine": machine, "settings": settings, "servers": about, "absent": absent, "runs": out}
    print(f"written: {results.write(given.name, body, given.quick).relative_to(results.ROOT)}")


if __name__ == "__main__":
    main()
