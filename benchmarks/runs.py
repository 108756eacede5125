"""Durable runs: how many a core does, how soon a client sees an event, and what becomes of a killed worker's job.

    python -m benchmarks.runs [--quick] [--only throughput latency killed]

*throughput*: create → claim → 3 events → finish by 32 concurrent actors in one process, on SQLite and on Redis; beside
arq and taskiq, whose jobs write three events into a Redis stream and return a result. CPU of the store's process (for
SQLite: its threads) is measured apart. *latency*: append → client receives, through a gateway's SSE, beside a bare
Redis PUBLISH → SUBSCRIBE that takes turns with it. *killed*: a worker is killed with -9 within a job, and another is
there: when does the job begin again?
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import redis

from .common import results
from .common.figures import quantile, significant
from .common.procs import Process, cpu_seconds, free_port, wait_until_ready
from .common.results import ROOT

PARTS = ("throughput", "latency", "killed")
PEERS = ROOT / ".peers"
#: Seconds of the lease in `killed`, and of the peers' time-outs where they are told one.
LEASE = 3.0


class Place:
    """A folder with a Redis of its own, and processes that end with it. `fsync`: of its append-only file."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack, fsync: str = "everysec") -> None:
        self.folder = folder
        self._stack = stack
        self.port = free_port()
        argv = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(folder)]
        argv += ["--save", "", "--appendonly", "yes", "--appendfsync", fsync]
        self.server = self.start("redis", argv)
        self.client = redis.Redis(port=self.port)
        stack.callback(self.client.close)
        self.until(self._answers)

    def _answers(self) -> bool:
        self.server.check()
        try:
            return bool(self.client.ping())
        except redis.ConnectionError:
            return False

    def start(self, name: str, argv: list[str], env: Mapping[str, str] | None = None) -> Process:
        process = Process(name, argv, self.folder / f"{name}.log", env=env, cwd=ROOT)
        self._stack.callback(process.stop)
        return process

    @staticmethod
    def until(true: Callable[[], Any], seconds: float = 60.0) -> float | None:
        """Seconds until it was true; None when it never was."""
        begin = time.monotonic()
        while not true():
            if time.monotonic() - begin > seconds:
                return None
            time.sleep(0.01)
        return time.monotonic() - begin

    def number(self, key: str) -> int:
        return int(self.client.get(key) or 0)  # type: ignore[arg-type]


@contextlib.contextmanager
def place() -> Iterator[Place]:
    with tempfile.TemporaryDirectory(prefix="unjam-bench-") as folder, contextlib.ExitStack() as stack:
        yield Place(Path(folder), stack)


# -- peers -------------------------------------------------------------------------------------------------------------


class Arq:
    name = "arq"
    note = "max_jobs 32, poll_delay 5 ms"
    python = PEERS / "arq" / "bin" / "python"
    broker = ""

    def missing(self) -> str | None:
        return None if self.python.exists() else "not installed: benchmarks/install_peers.sh arq"

    def version(self) -> str:
        code = f"from importlib.metadata import version; print(version({self.name.partition(' ')[0]!r}))"
        return subprocess.run([self.python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()

    def env(self, at: Place, idle: float | None) -> dict[str, str]:
        return {}

    def worker(self, at: Place, idle: float | None = None) -> Process:
        argv = [str(self.python), "-m", "benchmarks.load.jobs_arq", "work", str(at.port)]
        return at.start("arq-worker", [*argv, *([str(idle)] if idle else [])])

    def ask(self, at: Place, *words: str, idle: float | None = None) -> str:
        argv = [str(self.python), "-m", "benchmarks.load.jobs_arq", words[0], str(at.port), *words[1:]]
        return subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=True).stdout


class Taskiq(Arq):
    python = PEERS / "taskiq" / "bin" / "python"

    def __init__(self, broker: str) -> None:
        self.broker = broker
        self.name = f"taskiq ({broker})"
        self.note = f"{broker} broker, 1 worker process, 32 tasks at once"

    def missing(self) -> str | None:
        return None if self.python.exists() else "not installed: benchmarks/install_peers.sh taskiq"

    def env(self, at: Place, idle: float | None) -> dict[str, str]:
        given = {"JOBS_REDIS": str(at.port), "JOBS_BROKER": self.broker}
        return {**given, "JOBS_IDLE": str(idle)} if idle else given

    def worker(self, at: Place, idle: float | None = None) -> Process:
        argv = [str(self.python), "-m", "taskiq", "worker", "benchmarks.load.jobs_taskiq:broker", "--workers", "1"]
        return at.start(
            "taskiq-worker", [*argv, "--max-async-tasks", "32", "--log-level", "WARNING"], env=self.env(at, idle)
        )

    def ask(self, at: Place, *words: str, idle: float | None = None) -> str:
        argv = [str(self.python), "-m", "benchmarks.load.jobs_taskiq", *words]
        env = {**os.environ, **self.env(at, idle)}
        return subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=True, env=env).stdout


ALL_PEERS: list[Arq] = [Arq(), Taskiq("list"), Taskiq("stream")]


# -- throughput --------------------------------------------------------------------------------------------------------


def unjam_round(kind: str, seconds: float, batched: bool) -> dict[str, float]:
    """`kind`: sqlite or redis. CPU µs of each run: of the actors' process, and of the store's process or threads."""
    with place() as at:
        url = f"sqlite:{at.folder / 'runs.db'}" if kind == "sqlite" else f"redis://127.0.0.1:{at.port}"
        argv = [sys.executable, "-m", "benchmarks.load.run_actors", url, "--seconds", str(seconds)]
        with subprocess.Popen(
            [*argv, *(["--batched"] if batched else [])], cwd=ROOT, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()
            cpu = cpu_seconds(at.server.pids)
            process.stdout.readline()
            cpu = cpu_seconds(at.server.pids) - cpu
            line = process.stdout.readline()
        if not line:
            raise RuntimeError("the actors ended without a word")
        found = json.loads(line)
    runs, threads = max(1, found["runs"]), found["cpu"]
    inside = sum(used for name, used in threads.items() if name.startswith("unjam-runs"))
    own = sum(threads.values())
    store = inside if kind == "sqlite" else cpu
    return {
        "per_second": found["runs"] / found["seconds"],
        "actors_us": (own - inside) / runs * 1e6,
        "store_us": store / runs * 1e6,
        # A SQLite store and its actors share one interpreter, and so one core.
        "per_core": runs / (own if kind == "sqlite" else max(own, cpu)),
    }


def peer_round(peer: Arq, jobs: int) -> dict[str, float]:
    """Enqueued first, worked on then: neither waits for the other."""
    with place() as at:
        server = cpu_seconds(at.server.pids)
        begin = time.monotonic()
        client = float(peer.ask(at, "enqueue", str(jobs)).split()[-1])
        enqueued = time.monotonic() - begin
        worker = peer.worker(at)
        if at.until(lambda: at.number("done") > 0) is None:
            raise RuntimeError(f"{peer.name} did no job: {worker.log.read_text()[-500:]}")
        used, first, begin = cpu_seconds(worker.pids), at.number("done"), time.monotonic()
        if at.until(lambda: at.number("done") >= jobs, 300.0) is None:
            raise RuntimeError(f"{peer.name} did {at.number('done')} of {jobs} jobs")
        worked, done = time.monotonic() - begin, max(1, jobs - first)
        used = cpu_seconds(worker.pids) - used
        server = cpu_seconds(at.server.pids) - server
    return {
        "per_second": 1 / (enqueued / jobs + worked / done),
        "actors_us": (client / jobs + used / done) * 1e6,
        "store_us": server / jobs * 1e6,
        "per_core": 1 / max(client / jobs + used / done, server / jobs),
    }


def throughput(given: argparse.Namespace, about: dict[str, Any], absent: dict[str, str]) -> dict[str, Any]:
    rounds: dict[str, Callable[[], dict[str, float]]] = {}
    for kind in ("sqlite", "redis"):
        for batched in (False, True):
            name = f"unjam, {kind}{', one append' if batched else ''}"
            rounds[name] = lambda kind=kind, batched=batched: unjam_round(kind, given.seconds, batched)
    for peer in ALL_PEERS:
        if why := peer.missing():
            absent[peer.name] = why
            continue
        about[peer.name] = {"version": peer.version(), "note": peer.note}
        rounds[peer.name] = lambda peer=peer: peer_round(peer, given.jobs)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in rounds}
    for number in range(given.rounds):
        for name, one in rounds.items():
            print(f"  throughput, round {number + 1}: {name}", file=sys.stderr)
            found[name].append(one())
    middle = {
        name: {key: median(each[key] for each in many) for key in many[0]} | {"rounds": many}
        for name, many in found.items()
        if many
    }
    columns = ["", "runs/s", "CPU µs: actors", "CPU µs: store", "runs/s per core", "rounds"]
    rows = [
        [
            name,
            significant(row["per_second"]),
            significant(row["actors_us"]),
            significant(row["store_us"]),
            significant(row["per_core"]),
            " ".join(f"{each['per_core']:,.0f}" for each in row["rounds"]),
        ]
        for name, row in middle.items()
    ]
    rows += [[name, why, "", "", "", ""] for name, why in absent.items()]
    results.table("create → claim → 3 events → finish, 32 at once", columns, rows)
    return middle


# -- latency -----------------------------------------------------------------------------------------------------------


def gateway(at: Place, state: str) -> int:
    port = free_port()
    config = at.folder / "gateway.yaml"
    config.write_text(f"""\
listen: 127.0.0.1:{port}
admin: off
access_log: off
state: "{state}"
runs: {{lease: 1h}}
services:
  bench:
    match: {{path: /bench}}
    runs: {{execute: pull}}
    versions: {{v1: {{endpoints: ["http://127.0.0.1:9"]}}}}
""")
    process = at.start("gateway", [sys.executable, "-m", "unjam.cli.main", "serve", "--config", str(config)])
    wait_until_ready(process, port, "/v1/runs?limit=1")
    return port


def latency(given: argparse.Namespace) -> dict[str, Any]:
    rounds: dict[str, list[list[float]]] = {}
    for number in range(given.rounds):
        for kind in ("redis", "sqlite"):
            print(f"  latency, round {number + 1}: {kind}", file=sys.stderr)
            with place() as at:
                state = f"redis://127.0.0.1:{at.port}" if kind == "redis" else f"sqlite:{at.folder / 'runs.db'}"
                argv = [sys.executable, "-m", "benchmarks.load.run_latency", "--gateway", str(gateway(at, state))]
                argv += ["--redis", str(at.port)] if kind == "redis" else []
                argv += ["--rate", str(given.rate), "--seconds", str(given.seconds)]
                done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(done.stderr.strip()[-1000:])
            for way, found in json.loads(done.stdout).items():
                if len(found["latencies"]) != found["sent"]:
                    raise RuntimeError(f"{kind}, {way}: {found['sent']} sent, {len(found['latencies'])} received")
                name = f"unjam, {kind}, worker: {way}" if way in ("http", "direct") else f"{way} publish → subscribe"
                rounds.setdefault(name, []).append(found["latencies"])
    bare = {q: median(quantile(each, q) for each in rounds["redis publish → subscribe"]) for q in (0.5, 0.99)}
    out: dict[str, Any] = {}
    for name, many in rounds.items():
        row: dict[str, Any] = {"events": sum(map(len, many))}
        for q in (0.5, 0.99):
            spread = [quantile(each, q) for each in many]
            row[f"p{q * 100:g}_ms"] = median(spread) * 1e3
            row[f"p{q * 100:g}_ms_rounds"] = [each * 1e3 for each in spread]
            row[f"p{q * 100:g}_of_bare"] = median(spread) / bare[q]
        out[name] = row
    columns = ["", "events", "p50 ms", "p99 ms", "p50, of bare", "p99, of bare"]
    rows = [
        [
            name,
            f"{row['events']:,}",
            significant(row["p50_ms"]),
            significant(row["p99_ms"]),
            significant(row["p50_of_bare"]),
            significant(row["p99_of_bare"]),
        ]
        for name, row in out.items()
    ]
    results.table(f"append → client receives, {given.rate:g} events/s by each way", columns, rows)
    return out


# -- killed ------------------------------------------------------------------------------------------------------------


def peer_killed(peer: Arq, idle: float | None, patience: float) -> dict[str, Any]:
    with place() as at:
        worker = peer.worker(at, idle)
        peer.ask(at, "begin", idle=idle)
        if at.until(lambda: at.client.llen("begun") >= 1) is None:
            raise RuntimeError(f"{peer.name} did not begin: {worker.log.read_text()[-500:]}")
        # Whatever belongs to it, in one moment.
        for pid in worker.pids:
            os.kill(pid, 9)
        at_once = time.monotonic()
        peer.worker(at, idle)
        again = None
        while again is None and time.monotonic() - at_once < patience:
            # Other jobs come all the time: taskiq looks for lost ones only then.
            peer.ask(at, "enqueue", "1", idle=idle)
            if at.until(lambda: at.client.llen("begun") >= 2, 2.0) is not None:
                again = time.monotonic() - at_once
        done = None if again is None else at.until(lambda: at.number("slow") >= 1, 30.0)
    return {"again_after_s": again, "completed": done is not None}


def unjam_killed(lease: float, patience: float) -> dict[str, Any]:
    """By the records of the worker of `benchmarks.history`, whose run shows a step at once."""
    from .history.records import Claimed, load

    with place() as at:
        url = f"redis://127.0.0.1:{at.port}"
        port = gateway(at, url)

        def worker(name: str) -> Process:
            argv = [sys.executable, "-m", "benchmarks.history.worker", "--service", "bench", "--target", url]
            argv += ["--name", name, "--records", str(at.folder / f"{name}.records"), "--lease", str(lease)]
            return at.start(name, argv)

        def claimed(name: str) -> bool:
            file = at.folder / f"{name}.records"
            return file.exists() and any(isinstance(record, Claimed) for record in load([file]))

        import http.client

        def ask(method: str, path: str, body: str | None = None) -> Any:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            try:
                connection.request(method, path, body, {"Content-Type": "application/json"})
                return json.loads(connection.getresponse().read())
            finally:
                connection.close()

        first = worker("first")
        run = ask("POST", "/v1/runs", '{"service":"bench","input":{"steps":10,"pause":0.2,"save":1}}')["id"]
        if at.until(lambda: claimed("first")) is None:
            raise RuntimeError(f"no claim: {first.log.read_text()[-500:]}")
        time.sleep(0.5)  # well within its two seconds
        os.kill(first.pid, 9)
        at_once = time.monotonic()
        worker("second")
        again = at.until(lambda: claimed("second"), patience)
        again = None if again is None else time.monotonic() - at_once
        done = at.until(lambda: ask("GET", f"/v1/runs/{run}")["status"] == "completed", 30.0) if again else None
    return {"again_after_s": again, "completed": done is not None}


def killed(given: argparse.Namespace, absent: dict[str, str]) -> dict[str, Any]:
    cases: dict[str, Callable[[], dict[str, Any]]] = {}
    for lease in (LEASE, 30.0):
        name = f"unjam, lease {lease:g} s{' (default)' if lease == 30.0 else ''}"
        cases[name] = lambda lease=lease: unjam_killed(lease, given.patience)
    for peer in ALL_PEERS:
        if why := peer.missing():
            absent[peer.name] = why
            continue
        # A list's tasks belong to nobody once they are taken: there is nothing to tune.
        for idle in (None, LEASE) if peer.broker != "list" else (None,):
            name = f"{peer.name}, {'as it comes' if idle is None else f'told {idle:g} s'}"
            cases[name] = lambda peer=peer, idle=idle: peer_killed(peer, idle, given.patience)
    # Each has processes of its own, and they do little but wait.
    with ThreadPoolExecutor(max_workers=4) as pool:
        under_way = {name: pool.submit(case) for name, case in cases.items()}
        for name in under_way:
            print(f"  killed: {name}", file=sys.stderr)
        out = {name: case.result() for name, case in under_way.items()}
    rows = []
    for name, row in out.items():
        after = row["again_after_s"]
        when = f"not within {given.patience:g} s" if after is None else f"{after:.1f} s"
        rows.append([name, when, "yes" if row["completed"] else "no"])
    rows += [[name, why, ""] for name, why in absent.items()]
    results.table("A worker is killed within its job; another is there", ["", "begun again after", "completed"], rows)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round of two seconds")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each round")
    parser.add_argument("--jobs", type=int, default=10_000, help="of each of the peers' rounds")
    parser.add_argument("--rate", type=float, default=100.0, help="events per second, by each way of `latency`")
    parser.add_argument("--patience", type=float, default=60.0, help="seconds that a killed worker's job may take")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    given = parser.parse_args()
    if given.quick:
        given.rounds, given.seconds, given.jobs = 1, min(given.seconds, 2.0), min(given.jobs, 1000)
        given.patience = min(given.patience, 40.0)
    machine = results.machine()
    about: dict[str, Any] = {
        "unjam": {"version": results.unjam_version()},
        "redis": {"version": subprocess.run(["redis-server", "--version"], capture_output=True, text=True).stdout},
    }
    absent: dict[str, str] = {}
    out: dict[str, Any] = {}
    if "throughput" in given.only:
        out["throughput"] = throughput(given, about, absent)
    if "latency" in given.only:
        out["latency"] = latency(given)
    if "killed" in given.only:
        out["killed"] = killed(given, absent)
    settings = {key: value for key, value in vars(given).items() if key not in ("only", "quick")}
    body = {"machine": machine, "settings": settings, "about": about, "absent": absent, **out}
    print(f"written: {results.write('runs', body, given.quick or set(given.only) != set(PARTS)).relative_to(ROOT)}")


if __name__ == "__main__":
    main()
