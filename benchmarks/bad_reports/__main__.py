"""Reports that stop, come late or lie: what do they cost beside no reports at all?

    python -m benchmarks.bad_reports [--quick] [--only honest NaN] [--no-gateway]

First simulated: 6 servers of 8 cores and 2 of 64 with noisy neighbours, the same arrivals for every row, many seeds;
ratios to weighted least outstanding requests without reports, with 95 % intervals. Then the same lies to a real
gateway: are they counted, and named in `unjam status`? About 30 minutes on two cores; --quick one.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.common import results
from benchmarks.common.figures import significant

from . import real
from .compare import FIGURES, LIMIT, MIX, SCENARIOS, WARM, compare
from .tellers import BASE, ROWS


def show(made: dict[str, Any], given: argparse.Namespace) -> None:
    rows = []
    for name, row in made["rows"].items():
        f = row["figures"]
        told = row["reports"]
        rows.append(
            [
                name,
                *(f"{f[x]['ratio']:.3f} ({f[x]['low']:.3f}-{f[x]['high']:.3f})" for x in ("mean", "heavy p99")),
                *(f"{f[x]['ratio']:.2f}" for x in ("heavy mean", "hello p99")),
                f"{told['accepted']:,}",
                f"{told['refused']:,}",
                f"{told['late']:,}",
                ("pass" if row["pass"] else "FAIL") if row["required"] else "",
            ]
        )
    base = made["rows"][BASE]["figures"]
    columns = ["÷ base (95 % of bootstraps)", "mean", "heavy p99", "heavy mean", "hello p99"]
    columns += ["accepted", "refused", "late", f"≤ {LIMIT:g}"]
    wish = f"{'want' if made['fair'] else 'take'} {made['part']:.0%}"
    title = f"ρ {made['load']:g}, neighbours {wish}, there {made['on']:g} s and away {made['off']:g} s"
    title += "" if len(made["cores"]) > 2 else f", servers of {made['cores'][0]} cores"
    title += "" if made["appetite"] == 1.0 else f", requests use {made['appetite']:g} of a core"
    title += "" if made["sized"] else ", cores not configured"
    note = ", ".join(f"{x} {significant(base[x]['value'])} s" for x in FIGURES)
    results.table(f"{title}; {given.seeds} seeds of {given.count:,} requests", columns, rows, f"base: {note}")
    for name, row in made["rows"].items():
        if row["problem"]:
            print(f"  {name}: {row['problem']}")


def show_real(told: list[dict[str, Any]]) -> None:
    rows = [
        [
            t["liar"],
            ", ".join(f"{status}: {n}" for status, n in t["answers"].items()),
            "/".join(str(n) for n in t["counts"].values()) or "-",
            t["why"] or "-",
            "yes" if t["counted"] and t["named"] else "NO",
        ]
        for t in told
    ]
    results.table("a real gateway", ["", "answers", "taken/refused/late", "status says", "counted and named"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one scenario, four seeds of a third of the requests")
    parser.add_argument("--seeds", type=int, default=12, help="how many")
    parser.add_argument("--count", type=int, default=20_000, help="requests of one script")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--only", nargs="+", help="names of rows, or their beginnings")
    parser.add_argument("--scenarios", type=int, nargs="+", help="numbers, from 0; default all")
    parser.add_argument("--no-gateway", action="store_true", help="simulation only")
    parser.add_argument("--no-simulation", action="store_true", help="the real gateway only")
    given = parser.parse_args()
    if given.quick:
        given.seeds, given.count = min(given.seeds, 4), min(given.count, 7000)
    machine = results.machine()
    names = [r.name for r in ROWS if not given.only or r.name.startswith(tuple(given.only))]
    body: dict[str, Any] = {"machine": machine, "unjam": results.unjam_version()}
    failed = []
    if not given.no_simulation:
        began = time.monotonic()
        chosen = given.scenarios or ([1] if given.quick else range(len(SCENARIOS)))
        scenarios = [SCENARIOS[n] for n in chosen]
        made = compare(scenarios, range(1, given.seeds + 1), given.count, given.processes, names)
        for each in made:
            show(each, given)
            where = (
                f"ρ {each['load']:g}, neighbours {each['on']:g}/{each['off']:g} s{'' if each['sized'] else ', unsized'}"
            )
            failed += [f"{where}: {n}" for n, r in each["rows"].items() if r["required"] and not r["pass"]]
        print(f"simulated in {time.monotonic() - began:.0f} s", file=sys.stderr)
        body["settings"] = {
            "seeds": given.seeds,
            "count": given.count,
            "warm": WARM,
            "mix": {k: getattr(MIX, k) for k in ("hello", "chat", "audit", "mislabelled")},
            "limit": LIMIT,
        }
        body["simulated"] = made
    if not given.no_gateway:
        with tempfile.TemporaryDirectory(prefix="unjam-bench-") as scratch:
            body["gateway"] = told = real.play(Path(scratch), 14.0 if given.quick else 45.0)
        show_real(told)
        failed += [
            f"real gateway, not counted or named: {t['liar']}" for t in told if not (t["counted"] and t["named"])
        ]
    print(f"written: {results.write('bad_reports', body, given.quick).relative_to(results.ROOT)}")
    for each in failed:
        print(f"short: {each}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
