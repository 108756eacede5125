"""Workers in the balancer's view: what they may claim, what their leases count for, and what an operator sees."""

from __future__ import annotations

from typing import Any

import pytest

from unjam.core.balancer import Balancer
from unjam.core.load import LoadReport
from unjam.core.model import Lease, Outcome
from unjam.core.spec import BreakerSpec, EjectionSpec, EndpointSpec, LanesSpec, VersionSpec
from unjam.core.workers import Worker

from .made import OK, balancer, fleet, lease, refusal, request, service, teach, topology

BOTH = ("fast", "heavy")


def hear(made: Balancer, name: str = "w", slots: int = 2, now: float = 0.0, **more: Any) -> Worker:
    return made.workers.hear(made.services["s"], more.pop("version", None), name, slots, now, **more)


def start(made: Balancer, worker: Worker, lane: str = "fast", now: float = 0.0) -> Lease:
    assert made.workers.lanes(worker, BOTH, now)
    return made.workers.start(worker, "RUN s1", lane, "", now)


def seen(made: Balancer, name: str = "w", version: str = "v", now: float = 0.0) -> dict[str, Any]:
    entries = made.snapshot(now)["services"]["s"]["versions"][version]["workers"]
    return next(entry for entry in entries if entry["name"] == name)


def two_versions(**rest: Any) -> Balancer:
    def spec(name: str, port: int, weight: float) -> VersionSpec:
        return VersionSpec(name, (EndpointSpec(f"http://{name}:{port}", slots=4),), weight)

    return balancer(service(versions=(spec("v7", 1, 1.0), spec("v8", 2, 9.0)), **rest))


def test_a_run_takes_a_slot_of_its_worker_until_it_ends() -> None:
    made = balancer(service())
    worker = hear(made)
    running = [start(made, worker), start(made, worker)]
    assert made.workers.lanes(worker, BOTH, 1.0) == ()
    assert worker.refusal == "full"
    assert seen(made)["why"] == ["full"]
    assert seen(made)["inflight"] == 2
    made.finish(running[0], OK, 2.0)
    assert made.workers.lanes(worker, BOTH, 2.0) == BOTH
    assert seen(made)["served"] == 1
    assert worker.refusal == ""
    assert made.leases == 1


def test_what_it_has_from_elsewhere_counts_too() -> None:
    made = balancer(service())
    worker = hear(made, running=2)
    assert made.workers.lanes(worker, BOTH, 0.0) == ()
    assert seen(made)["taken"] == 2
    assert seen(made)["inflight"] == 0
    assert made.workers.lanes(hear(made, running=1), BOTH, 0.0) == BOTH


def test_no_request_is_ever_sent_to_a_worker() -> None:
    made = balancer(service(fleet=[EndpointSpec("http://e", slots=1)]))
    hear(made, slots=100)
    of = made.services["s"]
    assert lease(made.offer(request(of), 0.0)).endpoint.kind == "endpoint"
    assert not isinstance(made.offer(request(of), 0.0), Lease)
    assert of.versions[0].slots == 1


def test_its_runs_teach_the_estimator_like_any_request() -> None:
    made = balancer(service())
    worker = hear(made)
    for i in range(40):
        made.finish(start(made, worker, now=i * 100.0), OK, i * 100.0 + 50.0)
    bucket = made.services["s"].estimator.bucket("RUN s1")
    assert 40.0 < bucket.p50 < 60.0
    assert bucket.heavy


def test_a_drained_worker_gets_nothing_until_it_is_undrained() -> None:
    made = balancer(service())
    worker = hear(made)
    running = start(made, worker)
    made.drain(worker, True, 0.0)
    assert made.workers.lanes(worker, BOTH, 0.0) == ()
    assert seen(made)["why"][0] == "draining"
    assert seen(made)["draining"]
    made.finish(running, OK, 1.0)
    assert hear(made, now=1.0) is worker
    assert made.workers.lanes(worker, BOTH, 1.0) == ()
    made.drain(worker, False, 2.0)
    assert made.workers.lanes(worker, BOTH, 2.0) == BOTH


def test_a_version_without_weight_gets_nothing() -> None:
    made = two_versions()
    old, new = hear(made, "old", version="v7"), hear(made, "new", version="v8")
    made.set_weight("s", "v7", 0.0, 0.0)
    assert made.workers.lanes(old, BOTH, 0.0) == ()
    assert old.refusal == "version has no weight"
    assert made.workers.lanes(new, BOTH, 0.0) == BOTH


def divide(made: Balancer, worker: Worker, now: float = 0.0) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Lanes of which it may have anything, and of which only what is its version's."""
    assert made.workers.lanes(worker, BOTH, now)
    division = made.workers.divide(worker, BOTH, now, 15.0)
    assert division is not None
    return division.free, division.held


def begin(made: Balancer, worker: Worker, now: float = 0.0, lane: str = "fast") -> Lease | None:
    """It claims a run that is nobody's yet; None: it may not."""
    assert made.workers.lanes(worker, BOTH, now)
    division = made.workers.divide(worker, BOTH, now, 15.0)
    assert division is not None
    if lane not in division.free:
        return None
    for of, turns in division.turns.items():
        turns.begin(worker.pool.version.name)
        turns.end(worker.pool.version.name, began=of == lane, otherwise=True)
    return made.workers.start(worker, "RUN s1", lane, "", now)


def asking(made: Balancer, now: float = 0.0, slots: int = 1000) -> tuple[Worker, Worker]:
    """One of each version; v8 has nine parts in ten."""
    old = hear(made, "old", slots, now, version="v7", asks=BOTH)
    return old, hear(made, "new", slots, now, version="v8", asks=BOTH)


def test_weights_divide_what_workers_of_two_versions_claim() -> None:
    made = two_versions()
    old, new = asking(made)
    begun = [begin(made, old) or begin(made, new) for _ in range(100)]
    assert [each is not None and each.version.name for each in begun].count("v7") == 10
    assert begin(made, old)
    assert divide(made, old) == (("heavy",), ("fast",))
    assert old.refusal == "version has had its share of fast runs"
    assert begin(made, old, lane="heavy") is not None
    assert divide(made, old) == ((), BOTH)
    assert old.refusal == "version has had its share"
    assert seen(made, "old", "v7")["why"] == ["version has had its share"]


def test_a_version_alone_is_not_counted_nor_kept() -> None:
    made = two_versions()
    old = hear(made, "old", 1000, version="v7", asks=BOTH)
    quiet = hear(made, "quiet", 1000, version="v8")  # seen by its signs of life only
    anybody = hear(made, "anybody", 1000, asks=BOTH)  # doesn't say what it is: takes what comes
    assert (quiet.asks, anybody.asks) == ((), ())
    assert all(begin(made, old) for _ in range(50))


def test_nobody_waits_for_workers_that_are_gone_or_cannot() -> None:
    made = two_versions()
    old, new = asking(made)
    assert begin(made, old)
    assert not begin(made, old)
    assert not begin(made, hear(made, "old", 1000, 14.0, version="v7", asks=BOTH), 14.0)
    assert made.workers.stirred(made.services, 14.0, 15.0) == set()
    assert made.workers.stirred(made.services, 16.0, 15.0) == {"s"}
    assert begin(made, old, 16.0)  # v8 was not heard of for 15 s
    for now, problem in ((20.0, "drained"), (21.0, "breaker"), (22.0, "weight")):
        hear(made, "new", 1000, now, version="v8", asks=BOTH)
        hear(made, "old", 1000, now, version="v7", asks=BOTH)
        assert begin(made, old, now)
        assert not begin(made, old, now)
        made.drain(new, problem == "drained", now)
        if problem == "breaker":
            made.trip("s", "v8", now)
        if problem == "weight":
            made.set_weight("s", "v8", 0.0, now)
        assert begin(made, old, now), problem
        made.drain(new, False, now)
        made.reset("s", "v8", now)


def test_who_waits_is_told_of_new_weights_whoever_found_them_first() -> None:
    made = two_versions()
    old, new = asking(made)
    assert begin(made, old)
    assert not begin(made, old)
    made.set_weight("s", "v7", 8.0, 0.0)
    assert begin(made, new)
    assert made.workers.stirred(made.services, 0.0, 15.0) == {"s"}
    assert made.workers.stirred(made.services, 0.0, 15.0) == set()


def test_those_at_work_with_all_their_slots_hold_others_back_as_long_as_they_live() -> None:
    made = two_versions()
    old, new = asking(made, slots=1)
    running = begin(made, new)
    assert running is not None
    made.finish(begin(made, old) or running, OK, 0.0)
    for now in (10.0, 20.0, 30.0):
        new.seen = now
        hear(made, "old", 1, now, version="v7", asks=BOTH)
        assert not begin(made, old, now)
    made.finish(running, OK, 31.0)
    # It has room, and has not asked for half a minute: it leaves, or asks elsewhere.
    assert begin(made, old, 31.0)


def test_a_version_that_ramps_gets_its_part_and_nobody_waits_for_it() -> None:
    made = two_versions(breaker=BreakerSpec(open=10.0))
    old, new = asking(made, slots=10_000)
    made.trip("s", "v8", 0.0)
    made.tick(11.0)
    version = made.services["s"].versions[1]
    assert 0.0 < version.share < 1.0
    old, new = asking(made, 11.0, 10_000)
    begun = 0
    for _ in range(300):
        running = begin(made, new, 11.0) if made.workers.lanes(new, BOTH, 11.0) else None
        begun += running is not None
        assert begin(made, old, 11.0)
    assert version.share == pytest.approx(0.01)
    assert begun == 3  # 0.9 % of 300, of which the first comes first
    # While it is at work with as many as its breaker lets it, its next turn goes by.
    hear(made, "new", 2, 11.0, version="v8", asks=BOTH)
    assert not made.workers.lanes(new, BOTH, 11.0)
    assert all(begin(made, old, 11.0) for _ in range(300))


def test_what_only_some_ask_for_is_divided_among_them() -> None:
    made = two_versions()
    old = hear(made, "old", 1000, version="v7", asks=("fast", "heavy"))
    hear(made, "new", 1000, version="v8", asks=("fast",))
    assert begin(made, old)
    assert not begin(made, old)
    assert all(begin(made, old, lane="heavy") for _ in range(20))


def test_failing_runs_open_the_breaker_of_the_version_for_requests_and_workers() -> None:
    made = two_versions(ejection=EjectionSpec(failures=1000))
    worker = hear(made, slots=100, version="v7")
    for _ in range(50):
        if not made.workers.lanes(worker, BOTH, 1.0):
            break
        made.finish(start(made, worker, now=1.0), Outcome.SERVER_ERROR, 1.0)
    assert worker.refusal == "breaker open"
    assert {lease(made.offer(request(made.services["s"]), 1.0)).version.name for _ in range(4)} == {"v8"}


def test_failing_requests_close_the_door_to_workers() -> None:
    made = two_versions(breaker=BreakerSpec(open=10.0))
    worker = hear(made, slots=40, version="v7")
    made.trip("s", "v7", 0.0)
    assert made.workers.lanes(worker, BOTH, 0.1) == ()
    # It ramps back: the share of its slots, one at least.
    made.tick(10.1)
    running = 0
    while made.workers.lanes(worker, BOTH, 10.1):
        start(made, worker, now=10.1)
        running += 1
    assert running == max(1, int(40 * made.services["s"].versions[0].share))
    assert worker.refusal.startswith("breaker ramping at ")


def test_a_worker_that_keeps_failing_is_passed_over_for_a_while() -> None:
    made = balancer(service(ejection=EjectionSpec(failures=3, base=10.0), breaker=BreakerSpec(enabled=False)))
    bad, good = hear(made, "bad"), hear(made, "good")
    hear(made, "other")
    for _ in range(3):
        made.finish(start(made, bad), Outcome.SERVER_ERROR, 0.0)
    assert made.workers.lanes(bad, BOTH, 1.0) == ()
    assert bad.refusal.startswith("ejected")
    assert made.workers.lanes(good, BOTH, 1.0) == BOTH
    made.tick(10.1)
    assert made.workers.lanes(bad, BOTH, 10.1) == BOTH


def test_a_client_s_own_fault_is_not_the_worker_s() -> None:
    made = balancer(service())
    worker = hear(made)
    for _ in range(50):
        made.finish(start(made, worker), Outcome.CLIENT_ERROR, 0.0)
    assert made.workers.lanes(worker, BOTH, 0.0) == BOTH
    assert made.services["s"].versions[0].breaker.evidence == 0.0


def test_endpoints_that_are_all_down_keep_no_worker_from_its_runs() -> None:
    made = balancer(service())
    worker = hear(made)
    for endpoint in fleet(made):
        made.set_health(endpoint, False, 0.0)
    refusal(made.offer(request(made.services["s"]), 0.0))
    assert made.workers.lanes(worker, BOTH, 0.0) == BOTH
    assert seen(made)["why"] == ["open"]


def test_workers_that_come_and_go_move_no_endpoint_s_books() -> None:
    made = balancer(service())
    version = made.services["s"].versions[0]
    before = (version.slots, version.usable, version.members, version.healthy, version.large, version.heavy_cap)
    for i in range(5):
        hear(made, f"w{i}", slots=8)
    start(made, hear(made, "w0", slots=8), "heavy")
    assert (version.slots, version.usable, version.members, version.healthy, version.large, version.heavy_cap) == before
    assert version.heavy == 0


@pytest.mark.parametrize("slots", [1, 10])
def test_heavy_runs_hold_their_share_of_the_slots_and_no_more(slots: int) -> None:
    made = balancer(service(lanes=LanesSpec(share=0.7)))
    workers = [hear(made, f"w{i}", slots=slots) for i in range(10 // slots)]
    running = []
    while found := [worker for worker in workers if "heavy" in made.workers.lanes(worker, BOTH, 0.0)]:
        running.append(start(made, found[0], "heavy"))
    assert len(running) == 7
    idle = next(worker for worker in workers if worker.inflight < worker.slots)
    assert made.workers.lanes(idle, BOTH, 0.0) == ("fast",)
    assert made.workers.lanes(idle, ("heavy",), 0.0) == ()
    assert idle.refusal == "no more heavy work"
    made.finish(running[0], OK, 1.0)
    assert "heavy" in made.workers.lanes(running[0].endpoint, BOTH, 1.0)  # type: ignore[arg-type]


def test_what_outlives_the_boundary_counts_as_heavy_from_then_on() -> None:
    made = balancer(service(lanes=LanesSpec(share=0.5, up_to=10.0)))
    worker = hear(made, slots=10)
    running = [start(made, worker) for _ in range(5)]
    made.tick(10.1)
    assert seen(made)["heavy"] == 5
    assert made.workers.lanes(worker, BOTH, 10.1) == ("fast",)
    for each in running:
        made.finish(each, OK, 11.0)
    assert seen(made)["heavy"] == 0
    assert made.workers.lanes(worker, BOTH, 11.0) == BOTH


def test_heavy_work_is_kept_from_a_worker_whose_memory_has_no_room_for_it() -> None:
    made = balancer(service())
    worker = hear(made, slots=8)
    roomy = hear(made, "roomy", slots=8)
    gib = 1 << 30
    made.workers.report(roomy, LoadReport(cores=4.0, memory=16 * gib, memory_free=12 * gib), 0.0)
    made.workers.report(worker, LoadReport(cores=4.0, memory=16 * gib, memory_free=gib + gib // 2), 0.0)
    assert made.workers.lanes(worker, BOTH, 0.0) == ("fast",)
    assert made.workers.lanes(roomy, BOTH, 0.0) == BOTH
    assert "no heavy work: " in seen(made)["why"][0]
    assert seen(made)["load"]["sources"]["reporter"]["memory_free"] == gib + gib // 2
    made.workers.report(worker, LoadReport(cores=4.0, memory=16 * gib, memory_free=gib // 4), 1.0)
    assert made.workers.lanes(worker, BOTH, 1.0) == ()
    assert worker.refusal.startswith("memory short")


def test_a_report_that_cannot_be_true_is_counted_and_nothing_else() -> None:
    made = balancer(service())
    worker = hear(made)
    made.workers.report(worker, LoadReport(cores=1e9), 0.0)
    assert worker.tally is not None
    assert worker.tally.refused == 1
    assert made.workers.lanes(worker, BOTH, 0.0) == BOTH


def test_who_is_not_heard_of_leaves_and_who_has_something_to_do_stays() -> None:
    made = balancer(service())
    idle, busy, held = hear(made, "idle"), hear(made, "busy"), hear(made, "held")
    running = start(made, busy)
    held.claiming = 1
    assert made.workers.forget(1.0, 40.0) == [idle]
    version = made.services["s"].versions[0]
    assert version.crew is not None
    assert {worker.name for worker in version.crew.workers()} == {"busy", "held"}
    assert version.crew.slots == 4
    made.finish(running, OK, 50.0)
    held.claiming = 0
    assert len(made.workers.forget(1.0, 50.0)) == 2
    assert version.crew.slots == version.crew.members == version.crew.usable == 0


def test_a_worker_may_change_its_slots_and_its_version() -> None:
    made = two_versions()
    worker = hear(made, slots=1, version="v7")
    running = start(made, worker)
    assert hear(made, slots=6, version="v7") is worker
    assert made.workers.lanes(worker, BOTH, 0.0) == BOTH
    crew = made.services["s"].versions[0].crew
    assert crew is not None
    assert crew.slots == 6
    assert crew.large == 1
    moved = hear(made, slots=6, version="v8")
    assert moved is not worker
    assert crew.slots == 0
    assert not crew.endpoints
    made.finish(running, OK, 1.0)  # what it has ends where it began
    assert worker.inflight == 0
    with pytest.raises(KeyError):
        hear(made, version="v9")


def test_who_names_no_version_belongs_to_the_one_with_the_greatest_weight() -> None:
    made = two_versions()
    assert hear(made).pool.version.name == "v8"


def test_workers_survive_a_reload_and_leave_with_their_version() -> None:
    made = two_versions()
    stays, goes = hear(made, "stays", version="v8"), hear(made, "goes", version="v7")
    running = start(made, goes)
    spec = made.services["s"].spec
    made.apply(topology(service(versions=spec.versions[1:])), 1.0)
    assert made.workers.named("stays") == [stays]
    assert not made.workers.named("goes")
    assert made.workers.lanes(stays, BOTH, 1.0) == BOTH
    made.finish(running, OK, 2.0)
    assert made.leases == 0


def test_workers_known_from_elsewhere_are_shown_and_nothing_else() -> None:
    made = balancer(service())
    hear(made, "here")
    of = made.services
    entries = [("s", None, {"name": name}) for name in ("here", "there")]
    made.workers.show_elsewhere(of, [*entries, ("gone", None, {"name": "x"}), ("s", "v9", {"name": "y"})])
    shown = made.snapshot(0.0)["services"]["s"]["versions"]["v"]["workers"]
    assert [entry["name"] for entry in shown] == ["here", "there"]
    assert made.services["s"].versions[0].crew.slots == 2  # type: ignore[union-attr]
    made.workers.show_elsewhere(of, [])
    assert len(made.snapshot(0.0)["services"]["s"]["versions"]["v"]["workers"]) == 1


# Pins


def test_a_pinned_request_keeps_to_its_version_whatever_its_weight() -> None:
    made = two_versions()
    made.set_weight("s", "v7", 0.0, 0.0)
    for _ in range(4):
        pinned = request(made.services["s"])
        pinned.pin = "v7"
        assert lease(made.offer_pinned(pinned, 0.0)).version.name == "v7"
    waiting = request(made.services["s"])
    waiting.pin = "v7"
    made.offer_pinned(waiting, 0.0)
    made.tick(0.1)  # what waits for a version without weight goes elsewhere, but not this
    assert made.services["s"].versions[0].queue.length == 1


def test_a_pin_to_a_version_that_is_gone_is_none() -> None:
    made = balancer(service())
    pinned = request(made.services["s"])
    pinned.pin = "v1"
    assert lease(made.offer_pinned(pinned, 0.0)).version.name == "v"


def test_a_pinned_request_goes_nowhere_else_while_its_version_is_out_of_service() -> None:
    made = two_versions()
    pinned = request(made.services["s"])
    pinned.pin = "v7"
    made.trip("s", "v7", 0.0)
    refusal(made.offer_pinned(pinned, 0.0))
    made.reset("s", "v7", 1.0)
    assert lease(made.offer_pinned(pinned, 1.0)).version.name == "v7"


def test_a_pinned_request_that_tried_every_endpoint_is_refused() -> None:
    made = two_versions()
    pinned = request(made.services["s"])
    pinned.pin = "v7"
    first = lease(made.offer_pinned(pinned, 0.0))
    made.finish(first, Outcome.SERVER_ERROR, 0.0, connect_failed=True)
    pinned.tried = (first.endpoint,)
    refusal(made.offer_pinned(pinned, 0.0))


def test_a_heavy_request_and_a_heavy_run_have_shares_of_their_own() -> None:
    made = balancer(service(fleet=[EndpointSpec("http://e", slots=2)], lanes=LanesSpec(share=0.5)))
    teach(made, "/slow", 100.0)
    worker = hear(made, slots=2)
    start(made, worker, "heavy")
    assert lease(made.offer(request(made.services["s"], "/slow"), 0.0)).heavy
    running = made.snapshot(0.0)["services"]["s"]["running"]
    assert running == {"fast": 0, "heavy": 2}
