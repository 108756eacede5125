"""HAProxy's agent-check: its manual's lines are read as it reads them; what is none is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unjam.wire.agentcheck import ADMIN, HEALTH, MOST_BYTES, AgentState, BadAgentReply, parse, render

whys = st.text(st.characters(categories=("L", "N", "P"), include_characters=" "), max_size=60).map(
    lambda text: text.strip()
)
states = st.builds(
    AgentState,
    weight=st.none() | st.integers(0, 256).map(lambda percent: percent / 100),
    maxconn=st.none() | st.integers(0, 10_000_000),
    admin=st.none() | st.sampled_from(ADMIN),
    health=st.none() | st.sampled_from(HEALTH),
    why=whys,
)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"75%\n", AgentState(weight=0.75)),
        (b"0%\n", AgentState(weight=0.0)),
        (b"256%\n", AgentState(weight=2.56)),
        (b"maxconn:30\n", AgentState(maxconn=30)),
        (b"ready\n", AgentState(admin="ready")),
        (b"DRAIN\r\n", AgentState(admin="drain")),
        (b"maint", AgentState(admin="maint")),
        (b"up\n", AgentState(health="up")),
        (b"Up,50%\tMaxConn:7 , ready\n", AgentState(0.5, 7, "ready", "up")),
        (b"down # no disk left, sorry\n", AgentState(health="down", why="no disk left, sorry")),
        (b"down #no disk\n", AgentState(health="down", why="no disk")),
        (b"failed\n", AgentState(health="fail")),
        (b"fail\n", AgentState(health="fail")),
        (b"stopped #\n", AgentState(health="stopped")),
        (b"up down\n", AgentState(health="down")),
        (b"10% 20%\n", AgentState(weight=0.2)),
        (b"up\nnonsense behind", AgentState(health="up")),
        (b"up\rnonsense behind", AgentState(health="up")),
        (b"up\n" + b"x" * 5000, AgentState(health="up")),
        (b"\n", AgentState()),
        (b"", AgentState()),
        (" , down # übervoll\n".encode(), AgentState(health="down", why="übervoll")),
    ],
)
def test_what_is_read(line: bytes, expected: AgentState) -> None:
    assert parse(line) == expected


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"75\n", "word"),
        (b"75.5%\n", "word"),
        (b"-5%\n", "word"),
        (b"%\n", "word"),
        (b"50%x\n", "word"),
        (b"257%\n", "256"),
        (b"maxconn:\n", "word"),
        (b"maxconn: 3\n", "word"),
        (b"maxconn:-1\n", "word"),
        (b"maxconn:99999999\n", "maxconn"),
        (b"up#why\n", "word"),
        (b"upp\n", "word"),
        (b"up\x00\n", "word"),
        (b"HTTP/1.1 200 OK\r\n", "word"),
        (b"down #\x1b[2J\n", "control"),
        (b"down #\xff\n", "UTF-8"),
        (b"up " * 400, "bytes"),
    ],
)
def test_what_is_refused_whole_and_why(line: bytes, why: str) -> None:
    with pytest.raises(BadAgentReply, match=why):
        parse(line)


@given(states)
def test_what_is_written_reads_back(state: AgentState) -> None:
    line = render(state)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert parse(line) == state


def test_a_little_weight_is_not_none() -> None:
    assert render(AgentState(weight=0.001)) == b"1%\n"
    assert render(AgentState(weight=0.0)) == b"0%\n"
    assert render(AgentState(0.5, 30, "ready", "down", "disk full")) == b"ready down 50% maxconn:30 #disk full\n"


@pytest.mark.parametrize(
    "state",
    [
        AgentState(weight=3.0),
        AgentState(weight=float("nan")),
        AgentState(weight=-0.1),
        AgentState(maxconn=-1),
        AgentState(admin="up"),
        AgentState(health="ready"),
        AgentState(why="two\nlines"),
        AgentState(why="x" * (MOST_BYTES + 1)),
    ],
)
def test_what_would_be_refused_is_not_written(state: AgentState) -> None:
    with pytest.raises(BadAgentReply):
        render(state)


WORDS = [b"up", b"75%", b"maxconn:3", b"drain", b"#", b" ", b",", b"\n", b"\r", b"%", b"9" * 30]


@given(st.binary(max_size=100) | st.lists(st.sampled_from(WORDS) | st.binary(max_size=3), max_size=20).map(b"".join))
def test_any_bytes_are_an_answer_or_refused(line: bytes) -> None:
    try:
        state = parse(line)
    except BadAgentReply:
        return
    assert parse(render(state)) == state
