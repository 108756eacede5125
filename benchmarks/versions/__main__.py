"""Versions through a real gateway: exact shares, callers that stay, an outage as callers see it, canaries, the cost.

    python -m benchmarks.versions [--quick] [--only shares outage canary cost]

`shares`: 90/10 without a key and with 10,000 of them, before and after changes of the weights. `outage`: a version goes
bad, the basic agent behind it is killed, the version comes back; four kinds of callers throughout. `canary`: rollouts
of bad and of good versions under load. `cost`: CPU per request with all of it configured, beside without, and beside
an older commit (`--beside COMMIT`).
"""

from __future__ import annotations

import argparse
from typing import Any

from benchmarks.common import results
from benchmarks.common.figures import mean, median, significant

from . import canary, cost, outage, shares

PARTS = ("shares", "outage", "canary", "cost")


def show(body: dict[str, Any]) -> None:
    if "shares" in body:
        found, keyed = body["shares"]["windows"], body["shares"]["keyed"]
        rows = [
            [f"{found['requests']:,} requests without a key: v8's share", f"{found['v8'] / found['requests']:.3%}"],
            [f"in each of {found['windows']:,} windows of 100", f"{found['least']} to {found['most']}"],
            [f"{keyed['callers']:,} keyed callers: v8's share of them", f"{keyed['share']:.2%}"],
            ["callers that changed without a reason", str(keyed["unsteady"])],
        ]
        for each in keyed["changes"]:
            words = f"{each['moved']:,} moved, {each['needed']:,} had to, {each['moved_wrongly']} wrongly"
            rows.append([each["change"], f"{each['share']:.2%} of callers; {words}; {each['late']} late"])
        rows.append(["elsewhere after going back to 90/10", str(keyed["elsewhere_after_going_back"])])
        results.table("Shares", ["", "found"], rows)
    if "outage" in body:
        _show_outage(body["outage"])
    if "canary" in body:
        _show_canary(body["canary"])
    if "cost" in body:
        cost.show(body["cost"])


def _show_outage(found: dict[str, Any]) -> None:
    rows = []
    for phase, kinds in found["phases"].items():
        for kind, counts in kinds.items():
            rows.append([phase, kind, ", ".join(f"{count:,} × {result}" for result, count in counts.items())])
    results.table("Outage: what callers got", ["while the version is", "caller", "answers"], rows)
    after, sent = found["after_the_trip"], found["version"]
    rows = [
        ["calls until it tripped", ", ".join(map(str, found["before_the_trip"].values()))],
        ["answers after the trip", f"{after['answers']:,}"],
        ["of these a 5xx of the version", str(after["its_5xx"])],
        ["lost with the basic agent when it was killed", str(after["lost_with_the_basic_agent"])],
        ["anything else", str(dict(after["other"]))],
        ["first probe after the trip, s", ", ".join(significant(each["first_after"]) for each in sent.values())],
        ["probes by ramp", "; ".join(str(each["by_ramp"]) for each in sent.values())],
        ["well at once: trip to full weight, s", ", ".join(significant(each) for each in found["to_full_weight"])],
        ["after the long outage, s", significant(found["to_full_weight_after_long"])],
    ]
    results.table(f"Outage: open {found['open']:g} s", ["", "found"], rows)


def _show_canary(found: dict[str, Any]) -> None:
    rows = []
    for row in found["bad"]:
        calls = [run["calls"] for run in row["runs"]]
        rows.append(
            [
                row["what"],
                f"{len(calls)}",
                f"{mean(calls):.0f}, {median(calls):.0f}, {max(calls)}",
                f"{sum(calls_ > canary.MOST_CALLS for calls_ in calls)}",
                f"{sum(run['audited'] for run in row['runs'])}",
                f"{sum(run['webhook'] for run in row['runs'])}",
                significant(median([run["seconds"] for run in row["runs"]])),
            ]
        )
    columns = ["canary at 10 %", "seeds", "calls: mean, median, most", "above 100", "audited", "webhook", "s"]
    results.table("Bad canaries, until they were back at 0", columns, rows)
    good = found["good"]
    seconds = [run["seconds"] for run in good if run["state"] == "promoted"]
    rows = [
        ["reached 100 % by themselves", f"{len(seconds)} of {len(good)}"],
        [
            "s (4 steps of at least 1 s)",
            f"{significant(median(seconds))}, most {significant(max(seconds, default=0.0))}",
        ],
        ["those that did not", "; ".join(run["why"] for run in good if run["state"] != "promoted") or "none"],
    ]
    results.table("Canaries as good as the old version: 1 % of calls fail", ["", "found"], rows)


def targets(body: dict[str, Any]) -> list[dict[str, Any]]:
    checks: list[dict[str, Any]] = []

    def check(target: str, value: float, met: bool) -> None:
        checks.append({"target": target, "value": value, "met": met})

    if "shares" in body:
        found, keyed = body["shares"]["windows"], body["shares"]["keyed"]
        worst = max(found["most"] - 10, 10 - found["least"])
        check("without a key: within ± 1 of 10 in every 100", worst, worst <= 1)
        off = abs(keyed["share"] - 0.1)  # of as many callers chance takes 0.3 points
        check("keyed, 90/10: within ± 1 point", 100 * off, off <= 0.01)
        strays = keyed["unsteady"] + keyed["elsewhere_after_going_back"]
        strays += sum(each["unsteady"] + each["late"] for each in keyed["changes"])
        check("callers that change without a reason: none", strays, not strays)
        wrong = sum(each["moved_wrongly"] + each["moved"] - each["needed"] for each in keyed["changes"])
        check("callers that move without need: none", wrong, not wrong)
    if "outage" in body:
        found = body["outage"]
        after = found["after_the_trip"]
        check("5xx of the version that callers saw after the trip: none", after["its_5xx"], not after["its_5xx"])
        strange = sum(after["other"].values())
        check("answers that are neither the version's, the basic agent's nor the message: none", strange, not strange)
        least = min(each["first_after"] for each in found["version"].values())
        check(f"nothing sent to it for {found['open']:g} s after the trip", least, least >= found["open"])
        silent = [
            kind for kind, counts in found["phases"]["bad, basic agent killed"].items() if not counts.get("maintenance")
        ]
        check("dialects in which the message was not read: none", len(silent), not silent)
    if "canary" in body:
        for row in body["canary"]["bad"]:
            most = max(run["calls"] for run in row["runs"])
            if row["held_to_it"]:
                check(f"{row['what']}: at most 100 calls", most, most <= canary.MOST_CALLS)
            told = sum(not (run["audited"] and run["webhook"]) for run in row["runs"])
            check(f"{row['what']}: rollbacks without audit entry or webhook: none", told, not told)
        short = sum(run["state"] != "promoted" for run in body["canary"]["good"])
        check("good canaries that did not arrive: at most one in ten", short, short <= len(body["canary"]["good"]) / 10)
    if "cost" in body:
        value = body["cost"]["added"]["median"]
        check("all of it, beside two versions: adds at most 2 µs", value, value <= 2.0)
    return checks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a twentieth of the requests, few seeds")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--requests", type=int, default=100_000, help="without a key")
    parser.add_argument("--callers", type=int, default=10_000, help="with a key")
    parser.add_argument("--outage", type=float, default=12.0, help="seconds of each bad phase")
    parser.add_argument("--recoveries", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=25, help="bad canaries of each kind")
    parser.add_argument("--good", type=int, default=10, help="good canaries")
    parser.add_argument("--rounds", type=int, default=7, help="of the cost")
    parser.add_argument("--seconds", type=float, default=4.0, help="a round of the cost")
    parser.add_argument("--beside", default="", help="commit whose cost is measured too")
    given = parser.parse_args()
    if given.quick:
        given.requests, given.callers, given.outage, given.recoveries = 5_000, 2_000, 4.0, 1
        given.seeds, given.good, given.rounds, given.seconds = 3, 2, 2, 1.0
    body: dict[str, Any] = {"machine": results.machine(), "unjam": results.unjam_version(), "settings": vars(given)}
    if "shares" in given.only:
        body["shares"] = shares.measure(given.requests, given.callers)
    if "outage" in given.only:
        body["outage"] = outage.measure(given.outage, given.recoveries)
    if "canary" in given.only:
        body["canary"] = canary.measure(given.seeds, given.good)
    if "cost" in given.only:
        body["cost"] = cost.measure(given.rounds, given.seconds, given.beside)
    show(body)
    body["targets"] = targets(body)
    for check in body["targets"]:
        print(f"{'met' if check['met'] else 'MISSED'}: {check['target']}: {significant(check['value'])}")
    whole = set(given.only) == set(PARTS)
    name = "versions" if whole else f"versions.{'.'.join(sorted(given.only))}"
    print(f"written: {results.write(name, body, given.quick).relative_to(results.ROOT)}")


if __name__ == "__main__":
    main()
