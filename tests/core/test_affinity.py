"""Sessions come home to the same endpoint, move once when it goes, and never pile up on one."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from unjam.core.affinity import Sessions, place
from unjam.core.spec import EndpointSpec


class Server:
    """What of an endpoint sessions look at."""

    def __init__(self, name: str, cores: float = 1.0, load: float = 1.0) -> None:
        self.name = name
        self.spec = EndpointSpec(url=name, cores=cores)
        self.load = load


def servers(n: int) -> list[Server]:
    return [Server(f"http://10.0.0.{i}:9000") for i in range(n)]


def load(server: Server) -> float:
    return server.load


A, B = Server("a"), Server("b")


def test_a_binding_lives_for_ttl_after_the_last_use() -> None:
    sessions = Sessions(ttl=10.0)
    sessions.bind("s", A, 0.0)
    assert sessions.lookup("s", 9.0) is A
    assert sessions.lookup("s", 18.9) is A
    assert sessions.lookup("s", 28.9) is None
    assert len(sessions) == 0


def test_an_epoch_grows_with_every_move_even_after_the_binding_was_lost() -> None:
    sessions = Sessions(ttl=10.0)
    first = sessions.bind("s", A, 0.0)
    assert sessions.bind("s", A, 1.0) == first
    assert sessions.bind("s", A, 11.0) > first  # expired in between: another session by the same name
    moved = sessions.bind("s", B, 12.0)
    assert moved > first
    sessions.forget(B)
    assert sessions.bind("s", B, 13.0) > moved


def test_forget_unbinds_all_of_one_endpoint_and_no_other() -> None:
    sessions = Sessions(ttl=10.0)
    for i in range(10):
        sessions.bind(f"s{i}", A if i % 2 else B, 0.0)
    assert sessions.count(A) == 5
    assert sessions.forget(A) == 5
    assert sessions.forget(A) == 0
    assert [sessions.lookup(f"s{i}", 1.0) for i in range(4)] == [B, None, B, None]


def test_full_means_the_least_recently_used_goes() -> None:
    sessions = Sessions(ttl=10.0, max_entries=2)
    sessions.bind("old", A, 0.0)
    sessions.bind("new", A, 1.0)
    sessions.lookup("old", 2.0)
    sessions.bind("newest", B, 3.0)
    assert sessions.lookup("new", 3.0) is None
    assert sessions.lookup("old", 3.0) is A
    assert len(sessions) == 2


def test_tick_clears_what_expired_a_bounded_number_at_a_time() -> None:
    sessions = Sessions(ttl=10.0)
    for i in range(10):
        sessions.bind(f"s{i}", A, float(i))
    assert sessions.tick(14.5, budget=3) == 3
    assert sessions.tick(14.5, budget=3) == 2
    assert len(sessions) == 5
    assert sessions.count(A) == 5


def test_unbind_ends_one_session() -> None:
    sessions = Sessions(ttl=10.0)
    sessions.bind("s", A, 0.0)
    sessions.unbind("s")
    sessions.unbind("s")
    assert sessions.lookup("s", 0.0) is None
    assert sessions.count(A) == 0


@pytest.mark.parametrize(("ttl", "entries"), [(0.0, 1), (-1.0, 1), (1.0, 0)])
def test_nonsense_is_refused(ttl: float, entries: int) -> None:
    with pytest.raises(ValueError, match="ttl"):
        Sessions(ttl, entries)


class Against(RuleBasedStateMachine):
    """Sessions against a plain dictionary of what should be bound."""

    def __init__(self) -> None:
        super().__init__()
        self.sessions = Sessions(ttl=10.0, max_entries=5)
        self.model: dict[str, tuple[Server, float]] = {}
        self.now = 0.0
        self.epochs: dict[str, int] = {}
        self.homes: dict[str, Server] = {}

    keys = st.sampled_from("abcdefgh")
    ends = st.sampled_from([A, B])

    @rule(gap=st.floats(min_value=0.0, max_value=6.0))
    def wait(self, gap: float) -> None:
        self.now += gap

    @rule(key=keys, end=ends)
    def bind(self, key: str, end: Server) -> None:
        epoch = self.sessions.bind(key, end, self.now)
        if self.homes.get(key) is not end:
            assert epoch > self.epochs.get(key, 0)
        assert epoch >= self.epochs.get(key, 0)
        self.epochs[key], self.homes[key] = epoch, end
        # The dictionary is in order of use: pop, then append.
        self.model.pop(key, None)
        self.model[key] = (end, self.now)
        if len(self.model) > 5:
            del self.model[next(iter(self.model))]

    @rule(key=keys)
    def lookup(self, key: str) -> None:
        end, used = self.model.pop(key, (None, 0.0))
        if end is not None and self.now - used < 10.0:
            self.model[key] = (end, self.now)
        else:
            end = None
        assert self.sessions.lookup(key, self.now) is end

    @rule(end=ends)
    def forget(self, end: Server) -> None:
        self.sessions.forget(end)
        self.model = {key: value for key, value in self.model.items() if value[0] is not end}

    @rule()
    def tick(self) -> None:
        self.sessions.tick(self.now)
        self.model = {key: value for key, value in self.model.items() if self.now - value[1] < 10.0}

    @invariant()
    def counts_agree(self) -> None:
        assert len(self.sessions) == len(self.model) <= 5
        assert self.sessions.count(A) + self.sessions.count(B) == len(self.model)


TestAgainst = Against.TestCase


def test_place_is_even_by_capacity() -> None:
    fleet = [Server("small", 8.0), Server("large", 64.0)]
    got = Counter(place(f"s{i}", fleet, load).name for i in range(4000))
    assert got["small"] / 4000 == pytest.approx(8 / 72, abs=0.02)


@given(st.integers(min_value=2, max_value=12), st.text(max_size=10), st.data())
def test_when_an_endpoint_goes_only_its_sessions_move(n: int, key: str, data: st.DataObject) -> None:
    fleet = servers(n)
    home = place(key, fleet, load)
    gone = data.draw(st.sampled_from(fleet))
    left = [server for server in fleet if server is not gone]
    after = place(key, left, load)
    assert after is home or home is gone
    assert place(key, fleet[::-1], load) is home


@given(
    st.lists(st.floats(min_value=0.0, max_value=100.0), min_size=1, max_size=12),
    st.text(max_size=10),
    st.floats(min_value=1.0, max_value=3.0),
)
def test_nobody_far_fuller_than_the_rest_is_chosen(loads: list[float], key: str, bound: float) -> None:
    fleet = servers(len(loads))
    for server, value in zip(fleet, loads, strict=True):
        server.load = value
    home = place(key, fleet, load, bound)
    assert home.load <= bound * sum(loads) / len(loads) * (1 + 1e-9)


def test_a_bound_nobody_meets_takes_the_lightest() -> None:
    fleet = servers(3)
    for i, server in enumerate(fleet):
        server.load = 5.0 - i
    assert place("s", fleet, load, bound=0.1) is fleet[2]


def test_no_endpoints_no_place() -> None:
    assert place("s", [], load) is None
