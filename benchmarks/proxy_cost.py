"""What a proxied request, event or message costs, in CPU microseconds of the proxy.

    python -m benchmarks.proxy_cost [--quick] [--only unjam haproxy] [--modes json sse ws]

All balancers run at once and are idle unless it is their turn; rounds are interleaved, so that whatever else the
machine does falls on all of them. Reported: medians over the rounds with their least and most, and the ratio to HAProxy
in the same round (median of ratios, not ratio of medians: neighbours in time share their disturbance).
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .common import results
from .common.figures import Spread, median, significant, spread
from .common.peers import Peer, Running, Setting, all_peers
from .common.procs import Process, pss_bytes

TITLES = {
    "json": "JSON POST, 32 keep-alive connections, closed loop: per request",
    "sse": "SSE relay, {streams} streams of {rate:g} events/s, one event of about 120 B a chunk: per event",
    "ws": "WebSocket echo through the tunnel, 32 connections, closed loop: per message there and back",
}
REFERENCE = "haproxy"


def start_origin(
    folder: Path, rate: float, beat: bool = False, ports: int = 2, extra: str = ""
) -> tuple[Process, list[int]]:
    """Starts an origin; returns it with its ports. `extra`: one more field of its answers, `name: value`."""
    log = folder / f"origin-{rate:g}.log"
    argv = [sys.executable, "-m", "benchmarks.load.origin", "--ports", str(ports), "--rate", str(rate)]
    argv += ["--beat"] if beat else []
    argv += ["--field", extra] if extra else []
    process = Process("origin", argv, log, cwd=results.ROOT)
    for _ in range(100):
        process.check()
        text = log.read_text()
        if text.endswith("\n"):
            return process, json.loads(text)["ports"]
        time.sleep(0.05)
    process.stop()
    raise RuntimeError("the origin did not start")


def client(mode: str, port: int, watch: Sequence[int], given: argparse.Namespace, slow: bool) -> dict[str, Any]:
    """One round through one balancer."""
    argv = [sys.executable, "-m", "benchmarks.load.client", mode, "--port", str(port), "--fields", given.fields]
    argv += ["--connections", str(given.streams if mode == "sse" else given.connections)]
    seconds = given.seconds * (2 if slow else 1)
    argv += ["--warm", "3" if slow else "1", "--seconds", str(seconds), "--watch", *map(str, watch)]
    done = subprocess.run(argv, cwd=results.ROOT, capture_output=True, text=True, timeout=seconds + 60, check=False)
    try:
        answer: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        return {"failed": (done.stderr or "no output")[-500:]}
    return answer


def measure(
    mode: str, running: list[Running], origin: tuple[Process, list[int]], given: argparse.Namespace
) -> dict[str, Any]:
    """All rounds of one mode: name → list of rounds; `direct` is the generator on the origin without a proxy."""
    rounds: dict[str, list[dict[str, Any]]] = {}
    for number in range(given.rounds):
        print(f"  {mode} round {number + 1} of {given.rounds}", file=sys.stderr)
        turn = [r for r in running if mode in r.peer.modes]
        shift = number % max(1, len(turn))
        for r in turn[shift:] + turn[:shift]:
            r.process.check()
            pids = r.process.pids
            answer = client(mode, r.port, pids, given, slow=r.peer.name == "litellm")
            answer["pss"] = pss_bytes(pids)
            rounds.setdefault(r.peer.name, []).append(answer)
        rounds.setdefault("direct", []).append(client(mode, origin[1][0], origin[0].pids, given, slow=False))
    return rounds


def column(rounds: list[dict[str, Any]], key: str) -> Spread:
    return spread([r[key] for r in rounds if r.get(key) is not None])


def ratio(rounds: list[dict[str, Any]], reference: list[dict[str, Any]]) -> Spread:
    """CPU of each round over the reference's in the same round."""
    return spread(
        [
            a["proxy_cpu_us"] / b["proxy_cpu_us"]
            for a, b in zip(rounds, reference, strict=False)
            if a.get("proxy_cpu_us") and b.get("proxy_cpu_us")
        ]
    )


def summarise(rounds: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """name → medians, spreads, ratio to the reference, errors."""
    out: dict[str, Any] = {}
    for name, made in rounds.items():
        failed = [r["failed"] for r in made if "failed" in r]
        out[name] = {
            "cpu_us": column(made, "proxy_cpu_us"),
            "kernel_us": column(made, "proxy_kernel_us"),
            "ratio": ratio(made, rounds[REFERENCE]) if REFERENCE in rounds and name != "direct" else spread([]),
            "per_second": column(made, "per_second"),
            "p50_ms": column(made, "p50_ms"),
            "p99_ms": column(made, "p99_ms"),
            "rss_mib": median([r["rss"] / 2**20 for r in made if "rss" in r]),
            "pss_mib": median([r["pss"] / 2**20 for r in made if "pss" in r]),
            "done": sum(r.get("done", 0) for r in made),
            "errors": sum(r.get("errors", 0) for r in made),
            "error_samples": [s for r in made for s in r.get("error_samples", [])][:5],
            "failed": failed,
            "events_per_read": column(made, "events_per_read"),
            "client_cpu_us": column(made, "client_cpu_us"),
        }
    return out


def show(mode: str, summary: dict[str, Any], absent: dict[str, str], given: argparse.Namespace) -> None:
    rows = []
    for name, s in summary.items():
        if name == "direct":
            continue
        if math.isnan(s["cpu_us"]["median"]):
            rows.append([name, "FAILED: " + (s["failed"] or s["error_samples"] or ["no answers"])[0][:80], *[""] * 8])
            continue
        cpu, r = s["cpu_us"], s["ratio"]
        rows.append(
            [
                name,
                f"{significant(cpu['median'])} ({significant(cpu['min'])}–{significant(cpu['max'])})",
                f"{significant(r['median'])} ({significant(r['min'])}–{significant(r['max'])})",
                significant(s["kernel_us"]["median"]),
                significant(s["per_second"]["median"]),
                significant(s["p50_ms"]["median"]),
                significant(s["p99_ms"]["median"]),
                significant(s["rss_mib"]),
                f"{s['done']:,}",
                str(s["errors"] + len(s["failed"])),
            ]
        )
    rows += [[name, why, *[""] * 8] for name, why in absent.items()]
    title = TITLES[mode].format(streams=given.streams, rate=given.rate)
    columns = [
        "balancer",
        "CPU µs (min–max)",
        "× HAProxy",
        "in kernel",
        "per s",
        "p50 ms",
        "p99 ms",
        "RSS MiB",
        "done",
        "errors",
    ]
    direct = summary.get("direct")
    note = ""
    if direct and not math.isnan(direct["per_second"]["median"]):
        own, client_own = direct["cpu_us"]["median"], direct["client_cpu_us"]["median"]
        note = (
            f"Without a proxy: {significant(direct['per_second']['median'])} per s, "
            f"p50 {significant(direct['p50_ms']['median'])} ms; "
            f"origin {significant(own)} µs and generator {significant(client_own)} µs of CPU each."
        )
    results.table(title, columns, rows, note)


TARGETS = {"json": (2.0, 1.5), "sse": (2.0, 1.2)}


def verdicts(summaries: dict[str, Any]) -> list[dict[str, Any]]:
    """The targets, and whether they are met."""
    out = []
    for mode, (most, aim) in TARGETS.items():
        ours = summaries.get(mode, {}).get("unjam")
        if ours is None or math.isnan(ours["ratio"]["median"]):
            continue
        value = ours["ratio"]["median"]
        short = "" if value <= most else f"short by {significant(value - most)}"
        out.append(
            {
                "target": f"{mode}: CPU at most {most:g} × HAProxy (aim {aim:g})",
                "value": value,
                "pass": value <= most,
                "short": short,
            }
        )
    for mode in ("json", "sse"):
        summary = summaries.get(mode, {})
        for rival in ("envoy", "sglang-router"):
            if rival in summary and "unjam" in summary:
                a, b = summary["unjam"]["cpu_us"]["median"], summary[rival]["cpu_us"]["median"]
                if not (math.isnan(a) or math.isnan(b)):
                    out.append({"target": f"{mode}: CPU below {rival}'s", "value": a / b, "pass": a < b, "short": ""})
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round of one second")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=4.0, help="measured seconds a round and balancer")
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--rate", type=float, default=40.0, help="events per second and stream")
    parser.add_argument(
        "--fields", choices=("ten", "sdk"), default="ten", help="request head: ten fields, or the SDK's 17"
    )
    parser.add_argument("--modes", nargs="+", choices=tuple(TITLES), default=list(TITLES))
    parser.add_argument("--only", nargs="+", help="names of balancers")
    parser.add_argument("--name", default="proxy_cost", help="name of the result file")
    given = parser.parse_args()
    if given.quick:
        given.rounds, given.seconds = min(given.rounds, 2), min(given.seconds, 1.0)
    chosen: list[Peer] = [p for p in all_peers() if p.name != "nginx rr" and (not given.only or p.name in given.only)]
    absent = {p.name: why for p in chosen if (why := p.missing())}
    about = {p.name: {"version": p.version(), "note": p.note} for p in chosen if p.name not in absent}
    machine = results.machine()
    running: list[Running] = []
    origin: tuple[Process, list[int]] | None = None
    summaries: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="unjam-bench-") as scratch:
        try:
            origin = start_origin(Path(scratch), given.rate)
            for peer in chosen:
                if peer.name in absent:
                    continue
                try:
                    folder = Path(scratch) / peer.name.replace(" ", "_").replace(",", "")
                    running.append(
                        peer.start(Setting(origin[1], folder, access_log=getattr(peer, "access_log", False)))
                    )
                except (RuntimeError, OSError) as e:
                    absent[peer.name] = "did not start: " + str(e).strip().splitlines()[-1][:100]
            for mode in given.modes:
                summaries[mode] = summarise(measure(mode, running, origin, given))
                show(mode, summaries[mode], absent, given)
        finally:
            for r in running:
                r.stop()
            if origin is not None:
                origin[0].stop()
    checks = verdicts(summaries)
    for check in checks:
        print(
            f"{'PASS' if check['pass'] else 'short'}  {check['target']}: {significant(check['value'])} {check['short']}"
        )
    settings = {k: v for k, v in vars(given).items() if k not in ("only", "name", "quick")}
    body = {
        "machine": machine,
        "settings": settings,
        "balancers": about,
        "absent": absent,
        "modes": summaries,
        "targets": checks,
    }
    print(f"written: {results.write(given.name, body, given.quick).relative_to(results.ROOT)}")


if __name__ == "__main__":
    main()
