"""Ten thousand open SSE streams: memory of each, time to the first event, CPU while they are held.

    python -m benchmarks.held_streams [--quick] [--only unjam haproxy]

A proxied stream needs two descriptors in the balancer; where the hard limit is too low for one process, as many
processes as needed share the streams, and memory is what all of them grew by. The origin sends a comment of 14 bytes
on each stream every few seconds. Balancers are measured one after another, each on a fresh origin. Memory is that of
the processes (PSS), not the kernel's for the sockets, which is the same for all.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from .common import results
from .common.figures import significant
from .common.peers import Peer, Running, Setting, all_peers
from .common.procs import cpu_seconds, pss_bytes, rss_bytes
from .proxy_cost import start_origin

NAMES = ("unjam", "haproxy", "nginx", "envoy")


def processes_needed(streams: int, hard: int) -> int:
    """Balancer processes for `streams`, each with two descriptors a stream and 400 to spare."""
    return -(-2 * streams // max(1, hard - 400))


def one(peer: Peer, scratch: Path, given: argparse.Namespace, count: int) -> dict[str, Any]:
    """Everything about one balancer."""
    with contextlib.ExitStack() as stack:
        origin, ports = start_origin(scratch, 1.0 / given.beat, beat=True)
        stack.callback(origin.stop)
        running: list[Running] = []
        for n in range(count):
            # Slots enough for every stream: this measures holding, not admission.
            setting = Setting(ports, scratch / f"{peer.name}-{n}", hard_slots=2 * given.streams)
            running.append(peer.start(setting))
            stack.callback(running[-1].stop)
        targets = [str(r.port) for r in running]
        warm = [sys.executable, "-m", "benchmarks.load.hold", "--ports", *targets, "--streams", "200", "--hold", "0"]
        subprocess.run(
            [*warm, "--more", "1"], cwd=results.ROOT, stdin=subprocess.DEVNULL, check=True, capture_output=True
        )
        time.sleep(1.0)
        pids = [pid for r in running for pid in r.process.pids]
        before = {"pss": pss_bytes(pids), "rss": rss_bytes(pids)}
        argv = [sys.executable, "-m", "benchmarks.load.hold", "--ports", *targets, "--streams", str(given.streams)]
        argv += ["--rate", str(given.rate), "--hold", str(given.hold), "--more", str(given.more)]
        holder = subprocess.Popen(argv, cwd=results.ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        stack.callback(holder.kill)
        assert holder.stdout is not None
        assert holder.stdin is not None
        opening = cpu_seconds(pids)
        opened = json.loads(holder.stdout.readline())
        opening = cpu_seconds(pids) - opening
        settle = min(5.0, given.hold / 4)
        time.sleep(settle)
        after = {"pss": pss_bytes(pids), "rss": rss_bytes(pids)}
        begin, used = time.monotonic(), cpu_seconds(pids)
        time.sleep(given.hold - settle - 1.0)
        elapsed = time.monotonic() - begin
        used = cpu_seconds(pids) - used
        held = json.loads(holder.stdout.readline())
        holder.stdin.close()
        holder.wait(30)
        time.sleep(3.0)
        rest = {"pss": pss_bytes(pids), "rss": rss_bytes(pids)}
        n = max(1, opened["open"])
        return {
            "processes": count,
            "opened": opened,
            "held": held,
            "pss_per_stream": (after["pss"] - before["pss"]) / n,
            "rss_per_stream": (after["rss"] - before["rss"]) / n,
            "base_pss": before["pss"],
            "pss_after_close": rest["pss"] - before["pss"],
            "open_cpu_us": opening / n * 1e6,
            "idle_cpu_share": used / elapsed,
            "heartbeat_cpu_us": used / (elapsed * n / given.beat) * 1e6,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2,000 streams for ten seconds")
    parser.add_argument("--streams", type=int, default=10000)
    parser.add_argument("--rate", type=float, default=500.0, help="streams opened per second")
    parser.add_argument("--hold", type=float, default=30.0, help="seconds held")
    parser.add_argument("--beat", type=float, default=8.0, help="seconds between the origin's comments on a stream")
    parser.add_argument("--more", type=int, default=200, help="streams opened while the others are held")
    parser.add_argument("--only", nargs="+", help=f"of {', '.join(NAMES)}")
    parser.add_argument("--name", default="held_streams", help="name of the result file")
    given = parser.parse_args()
    if given.quick:
        given.streams, given.hold = min(given.streams, 2000), min(given.hold, 10.0)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    count = processes_needed(given.streams + given.more, hard)
    machine = results.machine()
    out: dict[str, Any] = {}
    absent: dict[str, str] = {}
    about: dict[str, Any] = {}
    for peer in all_peers():
        if peer.name not in NAMES or (given.only and peer.name not in given.only):
            continue
        if why := peer.missing():
            absent[peer.name] = why
            continue
        about[peer.name] = {"version": peer.version(), "note": peer.note}
        print(f"  {peer.name}: {given.streams:,} streams through {count} process(es)", file=sys.stderr)
        with tempfile.TemporaryDirectory(prefix="unjam-bench-") as scratch:
            try:
                out[peer.name] = one(peer, Path(scratch), given, count)
            except (RuntimeError, OSError, subprocess.SubprocessError, ValueError) as e:
                absent[peer.name] = "failed: " + str(e).strip().splitlines()[-1][:100]
    rows = []
    for name, r in out.items():
        first, later = r["opened"]["first_event"], r["held"]["first_event"]
        rows.append(
            [
                name,
                f"{r['held']['open']:,}",
                str(given.streams - r["held"]["open"]),
                significant(r["pss_per_stream"] / 1024),
                significant(r["base_pss"] / 2**20 / r["processes"]),
                f"{significant(first['p50_ms'])} / {significant(first['p99_ms'])}",
                f"{significant(later['p50_ms'])} / {significant(later['p99_ms'])}",
                significant(r["open_cpu_us"]),
                significant(r["idle_cpu_share"] * 100),
                significant(r["heartbeat_cpu_us"]),
            ]
        )
    rows += [[name, why, *[""] * 8] for name, why in absent.items()]
    columns = ["balancer", "held", "lost", "KiB a stream", "base MiB", "first event ms p50/p99", "the same, all held"]
    columns += ["µs to open", "CPU % held", "µs a heartbeat"]
    results.table(
        f"{given.streams:,} SSE streams through {count} process(es), a comment every {given.beat:g} s on each",
        columns,
        rows,
    )
    settings = {k: v for k, v in vars(given).items() if k not in ("only", "name", "quick")} | {"processes": count}
    body = {"machine": machine, "settings": settings, "balancers": about, "absent": absent, "streams": out}
    print(f"written: {results.write(given.name, body, given.quick).relative_to(results.ROOT)}")


if __name__ == "__main__":
    main()
