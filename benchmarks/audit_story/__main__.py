"""One audit of ten minutes from its beginning to its end, with real processes, while everything but its log is hurt.

    python -m benchmarks.audit_story --store redis
    python -m benchmarks.audit_story --store sqlite --minutes 0.15      # the same in seconds

Gateways, workers of the example auditor, clients and a headless Chromium; connections are reset, the worker is killed
with -9 half way, Redis (on SQLite: the gateway) goes away and comes back. Ends with status 1 when anybody missed an
event or had one twice, when a page was audited again without need, or when the result is not that of one go.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from ..common import results
from .settings import LONG, scaled
from .story import tell
from .verdict import breaches


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", choices=("redis", "sqlite"), required=True)
    parser.add_argument("--minutes", type=float, default=10.2, help="that the audit takes (default %(default)s)")
    parser.add_argument("--no-browser", action="store_true", help="without the page in Chromium")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="leave logs and files of the processes there")
    given = parser.parse_args()
    try:
        settings = scaled(given.store, given.minutes, not given.no_browser)
    except ValueError as error:
        parser.error(str(error))
    machine = results.machine()
    with tempfile.TemporaryDirectory(prefix="unjam-story-") as folder:
        try:
            told, figures = asyncio.run(tell(Path(folder), settings, lambda words: print(words, flush=True)))
        finally:
            if given.keep:
                shutil.copytree(folder, given.keep, dirs_exist_ok=True, ignore=shutil.ignore_patterns("profile"))
    found = breaches(told)
    _table(settings.store, figures)
    body = {
        "machine": machine,
        "version": results.unjam_version(),
        "settings": settings._asdict(),
        **figures,
        "breaches": found,
    }
    path = results.write(f"audit_story_{settings.store}", body, given.minutes < LONG)
    print(f"written: {path.relative_to(results.ROOT)}")
    for words in found:
        print(f"  {words}")
    print(f"breaches: {len(found)}")
    return 1 if found else 0


def _table(store: str, figures: dict[str, Any]) -> None:
    rows = []
    for name, row in figures["readers"].items():
        after = figures["after_each_fault"].get(name, [])
        worst = f"{max(each['until_next_event_s'] for each in after):.1f}" if after else "-"
        rows.append([name, str(len(row["connections"])), f"{row['longest_held_s']:.1f}", worst])
    results.table(
        f"An audit of {figures['took_s']:.0f} s, {figures['events']} events, under faults: {store}",
        ["reader", "requests", "longest held, s", "longest without an event, s"],
        rows,
        f"pages audited again: {figures['pages_again'] or 'none'}; findings: {figures['findings']}; CPU s: "
        + ", ".join(f"{name} {seconds:.1f}" for name, seconds in figures["cpu_s"].items()),
    )


if __name__ == "__main__":
    sys.exit(main())
