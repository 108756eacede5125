"""Sessions stay with their endpoint, are forgotten in time and with it, and never grow without bound."""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from unjam.core.affinity import Sessions


class Server:
    """An endpoint, of which sessions need only the identity."""


A, B = Server(), Server()


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


def test_long_keys_are_kept_short_and_apart() -> None:
    sessions = Sessions(ttl=10.0)
    one, two = "k" * 8000 + "1", "k" * 8000 + "2"
    sessions.bind(one, A, 0.0)
    sessions.bind(two, B, 0.0)
    assert (sessions.lookup(one, 1.0), sessions.lookup(two, 1.0)) == (A, B)
    assert all(len(key) <= 64 for key in sessions._bindings)
    binding = sessions.binding(one)
    assert binding is not None
    assert binding.endpoint is A


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
