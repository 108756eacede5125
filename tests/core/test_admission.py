"""The queue by itself: order, fairness between tenants, laziness that stays bounded."""

from __future__ import annotations

import random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from unjam.core.admission import PATIENCE, SLACK, Line, Queue, Waiting
from unjam.core.model import Reason, Request, Ticket
from unjam.core.spec import QueueSpec

ANY: Any = None


def ticket(arrived: float, expected: float, tenant: str = "", heavy: bool = False, expires: float = 1e9) -> Ticket:
    return Ticket(Request(ANY, "/", arrived, tenant), ANY, ANY, ANY, heavy, expected, expires)


def drain(line: Line) -> list[Ticket]:
    order = []
    while (head := line.head()) is not None:
        line.take(head)
        order.append(head)
    return order


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 50)), max_size=60))
def test_one_tenants_order_is_by_age_and_size(work: list[tuple[float, float]]) -> None:
    line = Line()
    for arrived, expected in work:
        line.push(ticket(arrived, expected))
    keys = [each.request.arrived + PATIENCE * each.expected for each in drain(line)]
    assert keys == sorted(keys)
    assert len(keys) == len(work)


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from([0.05, 1.0, 5.0])), max_size=120), st.integers(0, 999)
)
@settings(max_examples=60, deadline=None)
def test_nothing_is_lost_whatever_is_dropped_between(work: list[tuple[str, float]], seed: int) -> None:
    rng = random.Random(seed)
    line = Line()
    live: list[Ticket] = []
    for i, (tenant, expected) in enumerate(work):
        live.append(ticket(float(i), expected, tenant))
        line.push(live[-1])
        if rng.random() < 0.4:
            line.drop(live.pop(rng.randrange(len(live))))
        if rng.random() < 0.2 and (head := line.head()) is not None:
            line.take(head)
            live.remove(head)
        assert line.waiting == len(live)
        assert set(line.tickets()) == set(live)
    assert set(drain(line)) == set(live)
    assert line.head() is None


def test_tenants_share_by_work_and_not_by_number_of_requests() -> None:
    line = Line()
    for i in range(400):
        line.push(ticket(0.0, 1.0, "small"))
        if i < 100:
            line.push(ticket(0.0, 4.0, "large"))
    first = [line.head() for _ in range(1)]
    assert first[0] is not None
    seconds = {"small": 0.0, "large": 0.0}
    for _ in range(200):
        head = line.head()
        assert head is not None
        line.take(head)
        seconds[head.request.tenant] += head.expected
    assert abs(seconds["small"] - seconds["large"]) <= 8.0


def test_a_newcomer_waits_for_about_one_of_a_bursts_requests() -> None:
    line = Line()
    for _ in range(500):
        line.push(ticket(0.0, 1.0, "burst"))
    for _ in range(50):
        head = line.head()
        assert head is not None
        line.take(head)
    line.push(ticket(50.0, 1.0, "single"))
    assert "single" in [each.request.tenant for each in drain(line)[:2]]


def test_a_tenant_does_not_shed_its_debt_by_leaving_for_a_moment() -> None:
    """One that always has one request waiting gets its half and no more."""
    line = Line()
    for _ in range(200):
        line.push(ticket(0.0, 1.0, "steady"))
    line.push(ticket(0.0, 1.0, "hopping"))
    served = {"steady": 0, "hopping": 0}
    for i in range(100):
        head = line.head()
        assert head is not None
        line.take(head)
        served[head.request.tenant] += 1
        if head.request.tenant == "hopping":
            line.push(ticket(float(i), 1.0, "hopping"))
    assert 45 <= served["hopping"] <= 55


def test_a_stream_of_new_tenants_cannot_starve_a_long_request() -> None:
    line = Line()
    long = ticket(0.0, 5.0, "patient")
    line.push(long)
    for i in range(20_000):
        line.push(ticket(i * 0.01, 0.05, f"t{i}"))
        head = line.head()
        assert head is not None
        line.take(head)
        if head is long:
            break
    assert not long.live


def test_cancelled_tickets_do_not_pile_up() -> None:
    queue = Queue()
    keep = ticket(0.0, 1.0, "k")
    queue.push(keep, 0.0)
    for i in range(5000):
        gone = ticket(float(i), 1.0, f"t{i % 3}", heavy=i % 2 == 0)
        queue.push(gone, float(i))
        queue.drop(gone)
    assert len(queue) == 1
    assert len(queue._expiries) <= 2 * len(queue) + SLACK + 1
    for line in (queue.fast, queue.heavy):
        assert len(line._order) <= 2 * len(line._tenants) + SLACK + 1
        assert len(line._debts) <= SLACK + 1


def test_expiry_is_in_order_and_only_of_the_living() -> None:
    queue = Queue()
    tickets = [ticket(0.0, 1.0, expires=float(t)) for t in (5, 1, 3, 4)]
    for each in tickets:
        queue.push(each, 0.0)
    queue.drop(tickets[2])
    gone = []
    for each in queue.expired(4.5):
        queue.drop(each)
        gone.append(each.expires)
    assert gone == [1.0, 4.0]


def test_places_are_bounded_by_tenant() -> None:
    spec = QueueSpec(max=10, tenant_share=0.5)
    places = Waiting()
    for _ in range(9):
        assert places.refuses(spec, "a") is None
        places.add("a")
    assert places.refuses(spec, "a") is Reason.TENANT_SHARE
    assert places.refuses(spec, "b") is None
    places.add("b")
    assert places.refuses(spec, "b") is Reason.QUEUE_FULL
    for _ in range(5):
        places.remove("a")
    assert places.refuses(spec, "a") is None
    places.add("a")
    assert places.refuses(spec, "a") is Reason.TENANT_SHARE


def test_requests_without_a_tenant_may_use_every_place_while_alone() -> None:
    spec = QueueSpec(max=10)
    places = Waiting()
    for _ in range(10):
        assert places.refuses(spec, "") is None
        places.add("")
    assert places.refuses(spec, "") is Reason.QUEUE_FULL
