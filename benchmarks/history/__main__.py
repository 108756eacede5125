"""Kill gateways, workers and connections to Redis while runs are made, worked on and followed; then check what all of
them saw against the promises of durable runs.

    python -m benchmarks.history --store redis --kills 1000 --seed 1
    python -m benchmarks.history --check FILE

Ends with status 1 when a promise was broken, and when too little happened to break one. `--seed` fixes what is killed
and when, and what clients do; not how the processes' steps fall together. `--keep` writes the history to a file, which
`--check` reads.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

from ..common import results
from . import records
from .checker import Violation, check
from .drive import Settings, drive, summary
from .plan import KILLS

#: Violations that are printed.
SHOWN = 40


def report(found: list[Violation]) -> int:
    for violation in found[:SHOWN]:
        print(f"  {violation}")
    if len(found) > SHOWN:
        print(f"  and {len(found) - SHOWN} more")
    print(f"violations: {len(found)}")
    return 1 if found else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", choices=list(KILLS), default="redis")
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--every", type=float, default=0.5, help="seconds between kills in the mean")
    parser.add_argument("--clients", type=int, default=12, help="runs under way at once")
    parser.add_argument("--workers", type=int, default=4, help="processes, of four slots each")
    parser.add_argument("--planted", action="store_true", help="gateways that don't look at fences; only with memory")
    parser.add_argument("--keep", type=Path, metavar="FILE", help="write the history there")
    parser.add_argument("--check", type=Path, metavar="FILE", help="check a history that was kept, and nothing else")
    given = parser.parse_args()
    if given.check:
        return report(check(records.load([given.check])))
    if given.planted and given.store != "memory":
        parser.error("--planted goes with --store memory")
    settings = Settings(given.store, given.kills, given.seed, given.every, given.clients, given.workers, given.planted)
    machine = results.machine()
    with tempfile.TemporaryDirectory(prefix="unjam-history-") as folder:
        history = asyncio.run(drive(Path(folder), settings, tell=lambda words: print(f"  {words}", file=sys.stderr)))
    if given.keep:
        records.save(given.keep, history)
    found = check(history)
    figures = summary(history, settings)
    rows = [[name, f"{value:,}"] for name, value in figures.items()]
    results.table(f"A history under kills: {given.store}, seed {given.seed}", ["", "count"], rows)
    if not given.planted:
        body = {
            "machine": machine,
            "version": results.unjam_version(),
            "settings": settings._asdict(),
            "figures": figures,
            "violations": [str(each) for each in found],
        }
        path = results.write(f"history_{given.store}", body, given.kills < 1000)
        print(f"written: {path.relative_to(results.ROOT)}")
    status = report(found)
    if figures["runs"] < given.kills:
        print("fewer runs than kills: too little happened to prove anything")
        status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
