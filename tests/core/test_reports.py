"""What reports change: who gets heavy work, how many slots, and endpoints that come and go by themselves."""

from __future__ import annotations

from typing import Any

import pytest

from tests.core.made import OK, balancer, endpoints, fleet, lease, refusal, request, service, teach, ticket, topology
from unjam.core.balancer import Balancer
from unjam.core.load import LoadReport
from unjam.core.model import Lease
from unjam.core.spec import EjectionSpec, EndpointSpec, QueueSpec, RegionSpec, SessionSpec, VersionSpec, WarmUpSpec

GIB = 1 << 30
MIB = 1 << 20


def seen(made: Balancer, at: int, now: float = 0.0) -> dict[str, Any]:
    found: dict[str, Any] = made.snapshot(now)["services"]["s"]["versions"]["v"]["endpoints"][at]
    return found


def heavy(made: Balancer, now: float = 0.0) -> object:
    return made.offer(request(made.services["s"], "/audit", now), now)


# -- processors


def test_a_choked_endpoint_gets_no_heavy_work_while_others_have_room() -> None:
    made = balancer(service(fleet=endpoints(2, cores=8)))
    teach(made, "/audit", 60.0)
    choked, free = fleet(made)
    made.report(choked, LoadReport(cpu=0.9, agent_cpu=0.0), 0.0)
    assert seen(made, 0)["why"] == ["no heavy work: others use 90 % of its CPU"]
    for _ in range(12):
        assert lease(heavy(made)).endpoint is free
    ticket(heavy(made))  # better late on a free processor than at once on a choked one
    made.report(choked, LoadReport(cpu=0.65, agent_cpu=0.0), 1.0)
    assert seen(made, 0)["why"] == ["no heavy work: others use 65 % of its CPU"]
    started = made.report(choked, LoadReport(cpu=0.5, agent_cpu=0.0), 2.0)
    assert [each.endpoint for each in started] == [choked]
    assert "others use 50 % of its CPU" in seen(made, 0)["why"]


def test_where_most_are_choked_they_are_used() -> None:
    made = balancer(service(fleet=endpoints(8, cores=8)))
    teach(made, "/audit", 60.0)
    for endpoint in fleet(made)[1:]:
        made.report(endpoint, LoadReport(cpu=0.8, agent_cpu=0.0), 0.0)
    assert not any(endpoint.barred for endpoint in fleet(made))
    for endpoint in fleet(made)[1:4]:
        made.report(endpoint, LoadReport(cpu=0.1, agent_cpu=0.0), 1.0)
    assert [endpoint.barred for endpoint in fleet(made)] == [False] * 4 + [True] * 4


def test_a_large_version_looks_over_its_endpoints_now_and_then() -> None:
    made = balancer(service(fleet=endpoints(100, cores=8)))
    teach(made, "/audit", 60.0)
    choked = fleet(made)[:10]
    for endpoint in choked:
        made.report(endpoint, LoadReport(cpu=0.9, agent_cpu=0.0), 0.0)
    made.tick(0.1)
    assert all(endpoint.barred for endpoint in choked)
    assert not any(lease(heavy(made, 0.2)).endpoint in choked for _ in range(200))
    for endpoint in choked:
        made.report(endpoint, LoadReport(cpu=0.1, agent_cpu=0.0), 0.3)
    made.tick(1.2)
    assert not any(endpoint.barred for endpoint in choked)


def test_heavy_work_comes_back_when_the_free_ones_fail() -> None:
    made = balancer(service(fleet=endpoints(2, cores=8)))
    teach(made, "/audit", 60.0)
    choked, free = fleet(made)
    made.report(choked, LoadReport(cpu=0.9, agent_cpu=0.0), 0.0)
    assert choked.barred
    made.set_health(free, False, 1.0)
    assert not choked.barred
    assert lease(heavy(made, 1.0)).endpoint is choked


def test_barred_slots_do_not_count_for_the_heavy_share_of_a_small_pool() -> None:
    """Two endpoints of two slots: with one barred, one slot of the other stays free for a hello."""
    made = balancer(service(fleet=endpoints(2, cores=1)))
    teach(made, "/audit", 60.0)
    teach(made, "/hello", 0.01)
    choked, free = fleet(made)
    made.report(choked, LoadReport(cpu=0.95, agent_cpu=0.0), 0.0)
    assert lease(heavy(made)).endpoint is free
    ticket(heavy(made))
    assert lease(made.offer(request(made.services["s"], "/hello"), 0.0)).endpoint is free


def test_the_report_that_fades_takes_its_words_with_it() -> None:
    made = balancer(service(fleet=endpoints(2, cores=8)))
    choked, _ = fleet(made)
    made.report(choked, LoadReport(cpu=0.9, agent_cpu=0.0, state="draining"), 0.0)
    assert choked.draining
    assert choked.barred
    for second in range(1, 31):
        made.tick(float(second))
    assert not choked.barred
    assert not choked.draining
    assert choked.avail == 8.0
    assert seen(made, 0, 31.0)["why"] == ["no report for 31 s"]


# -- memory


def memory_report(free: int, agent: int, cpu: float = 0.1) -> LoadReport:
    return LoadReport(memory=GIB, memory_free=free, agent_memory=agent, cpu=cpu, agent_cpu=cpu)


def test_an_endpoint_without_memory_for_one_more_gets_no_heavy_work() -> None:
    made = balancer(service(fleet=endpoints(2, cores=8, memory=GIB)))
    teach(made, "/audit", 60.0)
    teach(made, "/hello", 0.01)
    tight, roomy = fleet(made)
    made.report(tight, memory_report(300 * MIB, 100 * MIB), 0.0)
    made.report(roomy, memory_report(900 * MIB, 100 * MIB), 0.0)
    assert (tight.room, roomy.room) == (0, 1)  # half of 1 GiB, until it is known better
    assert "no heavy work: 300 MiB free, one needs 512 MiB" in seen(made, 0)["why"]
    assert lease(heavy(made)).endpoint is roomy
    ticket(heavy(made))
    assert lease(made.offer(request(made.services["s"], "/hello"), 0.0)).endpoint is tight  # fast work, it may


def test_what_a_heavy_request_needs_is_learnt() -> None:
    made = balancer(service(fleet=endpoints(2, cores=8, memory=GIB)))
    teach(made, "/audit", 60.0)
    one, other = fleet(made)
    for endpoint in (one, other):
        made.report(endpoint, memory_report(900 * MIB, 100 * MIB), 0.0)
    now = 0.0
    for i in range(4):
        each = lease(heavy(made, now))
        now += 2.0
        made.report(each.endpoint, memory_report(820 * MIB, 180 * MIB, 0.2), now)
        made.finish(each, OK, now)
        now += 2.0
        for j, endpoint in enumerate((one, other)):
            made.report(endpoint, memory_report(900 * MIB - i, 100 * MIB, 0.1 + j / 100), now)
    assert seen(made, 0, now)["load"]["heavy_memory"] == pytest.approx(80 * MIB, rel=0.1)
    assert one.room == other.room == 10
    # Those that run and have not grown yet are counted with what they will need.
    for _ in range(5):
        lease(heavy(made, now))
    made.report(one, memory_report(880 * MIB, 120 * MIB, 0.3), now + 1.0)
    assert one.room == 10


def test_with_memory_for_none_the_roomiest_may_try_what_one_needs() -> None:
    made = balancer(service(fleet=endpoints(2, cores=8, memory=GIB)))
    teach(made, "/audit", 60.0)
    one, other = fleet(made)
    made.report(one, memory_report(200 * MIB, 100 * MIB), 0.0)
    made.report(other, memory_report(300 * MIB, 100 * MIB), 0.0)
    assert lease(heavy(made)).endpoint is other
    ticket(heavy(made))


def test_a_full_cache_takes_no_more_heavy_work() -> None:
    made = balancer(service(fleet=endpoints(2)))
    teach(made, "/audit", 60.0)
    full, free = fleet(made)
    lease(heavy(made))
    lease(heavy(made))
    made.report(full, LoadReport(in_flight=1, waiting=0, cache=0.97, source="metrics"), 0.0)
    assert all(lease(heavy(made)).endpoint is free for _ in range(5))
    assert "no heavy work: its cache is 97 % full" in seen(made, 0)["why"]


# -- slots


def test_slots_come_from_cores_that_a_reporter_finds() -> None:
    made = balancer(service(fleet=endpoints(1)))
    one = fleet(made)[0]
    assert seen(made, 0)["slots_from"] == "unknown"
    made.report(one, LoadReport(cores=4, memory=8 * GIB, cpu=0.1), 0.0)
    assert (one.slots, one.avail, seen(made, 0)["slots_from"], seen(made, 0)["cores"]) == (8, 3.6, "cores", 4)
    made.report(one, LoadReport(cores=4, memory=128 * MIB, cpu=0.11), 1.0)
    assert (one.slots, seen(made, 0)["slots_from"]) == (2, "memory")


def test_what_is_configured_holds_against_what_is_found() -> None:
    made = balancer(service(fleet=endpoints(1, cores=8, slots=5)))
    one = fleet(made)[0]
    made.report(one, LoadReport(cores=512, memory=512 * GIB, cpu=0.0), 0.0)
    assert (one.slots, one.avail, seen(made, 0)["cores"], seen(made, 0)["slots_from"]) == (5, 8.0, 8, "configured")


def test_learning_a_size_strangles_nobody_that_runs() -> None:
    made = balancer(service(fleet=endpoints(1)))
    one = fleet(made)[0]
    for _ in range(20):
        lease(made.offer(request(made.services["s"]), 0.0))
    made.report(one, LoadReport(cores=2, cpu=0.1, agent_cpu=0.1), 0.0)
    assert one.slots == 30  # twenty ran on an idle processor: so they fit, and more do
    made.report(one, LoadReport(cores=2, cpu=0.8, agent_cpu=0.8), 2.0)
    assert one.slots == 30


def test_a_waiting_agent_gets_more_slots_as_reports_come_in() -> None:
    made = balancer(service(fleet=endpoints(1, cores=2)))
    one = fleet(made)[0]
    for _ in range(10):
        made.offer(request(made.services["s"]), 0.0)
    assert one.inflight == one.slots == 4
    started = made.report(one, LoadReport(cpu=0.02, agent_cpu=0.02), 2.0)
    assert len(started) == 2
    assert (one.slots, seen(made, 0)["slots_from"]) == (6, "adapted")


def test_slots_that_the_server_asks_for_bound_those_configured() -> None:
    made = balancer(service(fleet=endpoints(1, slots=10)))
    one = fleet(made)[0]
    made.report(one, LoadReport(slots=3, source="agent_check"), 0.0)
    assert one.slots == 3
    made.report(one, LoadReport(slots=50, source="agent_check"), 1.0)
    assert one.slots == 10


def test_a_reload_keeps_what_was_found() -> None:
    made = balancer(service(fleet=endpoints(1)))
    made.report(fleet(made)[0], LoadReport(cores=4, cpu=0.5), 0.0)
    made.apply(topology(service(fleet=endpoints(1), queue=made.services["s"].spec.queue)), 1.0)
    assert fleet(made)[0].slots == 8
    made.apply(topology(service(fleet=endpoints(1, cores=16))), 2.0)
    assert fleet(made)[0].slots == 32


# -- its own word


@pytest.mark.parametrize(("state", "words"), [("draining", "says it is draining"), ("down", "says it is down")])
def test_an_endpoint_takes_itself_out(state: str, words: str) -> None:
    made = balancer(service(fleet=endpoints(2, cores=2)))
    one, other = fleet(made)
    made.report(one, LoadReport(state=state), 0.0)
    assert all(lease(made.offer(request(made.services["s"]), 0.0)).endpoint is other for _ in range(3))
    assert words in seen(made, 0)["why"]
    made.report(one, LoadReport(state="ready"), 1.0)
    assert lease(made.offer(request(made.services["s"]), 1.0)).endpoint is one


def test_an_operators_drain_outlasts_a_ready_report() -> None:
    made = balancer(service(fleet=endpoints(2, cores=2)))
    one, _ = fleet(made)
    made.drain(one, True, 0.0)
    made.report(one, LoadReport(state="ready", cpu=0.1), 1.0)
    assert one.draining
    made.report(one, LoadReport(state="draining", cpu=0.2), 2.0)
    made.drain(one, False, 3.0)
    assert one.draining  # it says so itself
    made.report(one, LoadReport(state="ready", cpu=0.1), 4.0)
    assert not one.draining


def test_its_sessions_go_elsewhere_when_it_drains() -> None:
    made = balancer(service(fleet=endpoints(2, cores=4), session=SessionSpec(header="x")))
    first = lease(made.offer(request(made.services["s"], session="k"), 0.0))
    made.finish(first, OK, 0.0)
    made.report(first.endpoint, LoadReport(state="draining"), 1.0)
    assert lease(made.offer(request(made.services["s"], session="k"), 1.0)).endpoint is not first.endpoint


def test_weight_zero_is_no_work_and_half_is_half() -> None:
    made = balancer(service(fleet=endpoints(2, cores=8)))
    one, _ = fleet(made)
    made.report(one, LoadReport(weight=0.5, source="agent_check"), 0.0)
    assert one.avail == 4.0
    made.report(one, LoadReport(weight=0.0, source="agent_check"), 1.0)
    assert not one.usable
    assert "asks for no work" in seen(made, 0, 1.0)["why"]


# -- endpoints that come and go


def test_an_endpoint_joins_serves_and_leaves() -> None:
    made = balancer(service(versions=(VersionSpec("v", ()),)))
    refusal(made.offer(request(made.services["s"]), 0.0))
    joined = made.join("s", "v", EndpointSpec("http://new", cores=2), 1.0)
    assert joined.discovered
    running = lease(made.offer(request(made.services["s"]), 1.0))
    assert running.endpoint is joined
    assert seen(made, 0)["discovered"]
    made.leave(joined, 2.0)
    refusal(made.offer(request(made.services["s"]), 2.0))
    assert made.leases == 1
    again = made.join("s", "v", EndpointSpec("http://new", cores=4), 3.0)
    assert again is joined  # what still runs on it counts
    assert (again.inflight, again.slots, again.usable) == (1, 8, True)
    made.finish(running, OK, 4.0)
    assert made.leases == 0


def test_what_waits_is_served_by_the_one_that_joins() -> None:
    made = balancer(service(fleet=endpoints(1, slots=1)))
    lease(made.offer(request(made.services["s"]), 0.0))
    waiting = request(made.services["s"])
    ticket(made.offer(waiting, 0.0))
    joined = made.join("s", "v", EndpointSpec("http://new", slots=1), 1.0)
    started = made.tick(1.1)
    assert [(each.request, each.endpoint) for each in started if isinstance(each, Lease)] == [(waiting, joined)]


def test_joining_is_refused_for_what_does_not_exist() -> None:
    made = balancer(service(fleet=endpoints(1)), regions=(RegionSpec("r"),))
    with pytest.raises(ValueError, match="has an endpoint http://e0 already"):
        made.join("s", "v", EndpointSpec("http://e0"), 0.0)
    for args in (
        ("t", "v", EndpointSpec("http://n")),
        ("s", "w", EndpointSpec("http://n")),
        ("s", "v", EndpointSpec("http://n", region="x")),
    ):
        with pytest.raises(KeyError):
            made.join(*args, 0.0)
    assert len(fleet(made)) == 1


def test_one_that_joins_warms_up_beside_warm_ones() -> None:
    made = balancer(service(fleet=endpoints(1, cores=8), warm_up=WarmUpSpec(window=30.0)))
    joined = made.join("s", "v", EndpointSpec("http://new", cores=8), 0.0)
    assert joined.avail == pytest.approx(0.8)
    made.tick(15.0)
    assert joined.avail == pytest.approx(4.0)


def test_a_silent_reporter_takes_its_endpoint_out_but_never_all_of_them() -> None:
    made = balancer(service(versions=(VersionSpec("v", ()),), ejection=EjectionSpec(panic=0.5)))
    one, two, three = (made.join("s", "v", EndpointSpec(f"http://j{i}", cores=4), 0.0) for i in range(3))
    made.silence(one, True, 1.0)
    assert all(lease(made.offer(request(made.services["s"]), 1.0)).endpoint is not one for _ in range(4))
    assert "its reporter is silent" in seen(made, 0, 1.0)["why"]
    made.silence(two, True, 2.0)
    made.silence(three, True, 2.0)
    # It is rather the network between reporters and gateway that broke.
    assert {lease(made.offer(request(made.services["s"]), 2.0)).endpoint for _ in range(9)} == {one, two, three}
    made.silence(two, False, 3.0)
    made.silence(three, False, 3.0)
    assert not one.usable


# -- what a hostile reading found


def test_a_need_above_all_memory_does_not_keep_heavy_work_away_for_ever() -> None:
    """A model that is loaded once looks like what requests need; nothing runs any more that could show otherwise."""
    made = balancer(service(fleet=endpoints(2, cores=8, memory=16 * GIB), queue=QueueSpec(timeout=1e9)))
    teach(made, "/audit", 60.0)
    both = fleet(made)

    def report(now: float, used: int, free: int) -> None:
        for endpoint in both:
            cpu = 0.1 + (now % 10) / 100
            made.report(endpoint, LoadReport(agent_memory=used, memory_free=free, cpu=cpu, agent_cpu=0.05), now)

    report(0.0, GIB // 5, 15 * GIB)
    running = [lease(heavy(made)) for _ in both]
    now = 0.0
    for _ in range(3):
        now += 2.0
        report(now, 9 * GIB, 6 * GIB)
        for each in running:
            made.finish(each, OK, now)
        running = [started for _ in both if isinstance(started := heavy(made, now), Lease)]
    for each in running:
        made.finish(each, OK, now)
    heavy(made, now)
    for _ in range(600):
        now += 2.0
        report(now, 9 * GIB, 6 * GIB)
        made.tick(now)
    assert sum(endpoint.heavy for endpoint in both) >= 1


def test_memory_of_fast_work_is_no_room_for_heavy_work() -> None:
    made = balancer(service(fleet=endpoints(1, cores=16, slots=64, memory=16 * GIB)))
    teach(made, "/audit", 60.0)
    teach(made, "/hello", 0.1)
    one = fleet(made)[0]

    def report(now: float, used: int, free: int, cpu: float) -> None:
        made.report(one, LoadReport(agent_memory=used, memory_free=free, cpu=cpu, agent_cpu=cpu / 2), now)

    report(0.0, GIB // 5, 15 * GIB, 0.1)
    for i in range(4):
        now = 2.0 * i
        each = lease(heavy(made, now))
        report(now + 1.0, GIB // 5 + 3 * GIB, 12 * GIB, 0.2 + i / 50)
        made.finish(each, OK, now + 1.5)
        report(now + 1.9, GIB // 5, 15 * GIB, 0.1 + i / 50)
    assert one.room == 4
    for _ in range(24):
        lease(made.offer(request(made.services["s"], "/hello", 10.0), 10.0))
    report(11.0, GIB // 5 + 12 * GIB, 3 * GIB, 0.3)
    assert one.room == 0


def test_an_impossible_use_of_memory_stops_nobody_else() -> None:
    made = balancer(service(fleet=endpoints(2, cores=8, memory=64 * GIB)))
    teach(made, "/audit", 60.0)
    liar, honest = fleet(made)
    for endpoint in (liar, honest):
        made.report(endpoint, LoadReport(agent_memory=GIB, memory_free=60 * GIB, cpu=0.1, agent_cpu=0.0), 0.0)
    running = [lease(heavy(made)) for _ in range(6)]
    made.report(liar, LoadReport(agent_memory=10**14, memory_free=60 * GIB, cpu=0.2, agent_cpu=0.0), 1.0)
    for each in running:
        made.finish(each, OK, 2.0)
    made.report(honest, LoadReport(agent_memory=GIB, memory_free=60 * GIB, cpu=0.12, agent_cpu=0.0), 3.0)
    assert honest.room > 10


def test_a_saturated_server_that_clips_its_figure_is_no_liar() -> None:
    made = balancer(service(fleet=endpoints(2, cores=8)))
    one, _ = fleet(made)
    for _ in range(4):
        lease(made.offer(request(made.services["s"]), 0.0))
    for i in range(60):
        made.report(one, LoadReport(cpu=1.0, in_flight=2, source="header"), 2.0 * i)
    assert one.tally is not None
    assert one.tally.refused == 0


def test_a_long_request_that_ends_hides_no_hog() -> None:
    made = balancer(service(fleet=endpoints(2, cores=8)))
    teach(made, "/audit", 600.0)
    one, _ = fleet(made)
    running = [lease(heavy(made)) for _ in range(2)]
    for i in range(5):
        made.report(one, LoadReport(cpu=0.95 + i / 1000, source="header"), 290.0 + 2.0 * i)
    assert one.barred
    made.finish(next(each for each in running if each.endpoint is one), OK, 299.0)
    made.report(one, LoadReport(cpu=0.96, source="header"), 300.0)
    assert one.barred


def test_the_roomiest_may_try_when_the_roomy_one_fails() -> None:
    made = balancer(service(fleet=endpoints(2, cores=8, memory=16 * GIB), queue=QueueSpec(timeout=1e9)))
    teach(made, "/audit", 60.0)
    roomy, tight = fleet(made)
    made.report(roomy, LoadReport(memory_free=12 * GIB, agent_memory=GIB, cpu=0.1, agent_cpu=0.0), 0.0)
    made.report(tight, LoadReport(memory_free=3 * GIB // 2, agent_memory=12 * GIB, cpu=0.1, agent_cpu=0.0), 0.0)
    assert tight.room == 0
    made.set_health(roomy, False, 1.0)
    assert lease(heavy(made, 1.0)).endpoint is tight


def test_a_limit_that_is_raised_is_taken() -> None:
    made = balancer(service(fleet=endpoints(1)))
    one = fleet(made)[0]
    made.report(one, LoadReport(cores=8, memory=GIB // 2, memory_free=GIB // 4, cpu=0.1, agent_cpu=0.0), 0.0)
    assert one.slots == 8
    made.report(one, LoadReport(cores=8, memory=64 * GIB, memory_free=60 * GIB, cpu=0.12, agent_cpu=0.0), 2.0)
    assert (one.spec.memory, one.slots) == (64 * GIB, 16)


def test_one_that_comes_back_while_it_still_runs_is_not_judged_by_old_news() -> None:
    made = balancer(service(fleet=endpoints(2, cores=8)))
    teach(made, "/audit", 60.0)
    one, other = fleet(made)
    while lease(heavy(made)).endpoint is not one:
        pass
    made.report(one, LoadReport(cpu=0.95, agent_cpu=0.0), 1.0)
    assert one.barred
    made.apply(topology(service(fleet=[other.given])), 2.0)
    made.apply(topology(service(fleet=[one.given, other.given])), 3.0)
    assert fleet(made)[0] is one
    for second in range(4, 60):
        made.tick(float(second))
    assert not one.barred
    assert not one.choked
    assert one.avail == 8.0
