"""Addresses to listen on, endpoints to dial, networks to trust."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unjam.config.address import Address, Target, parse_listen, parse_network, parse_url
from unjam.config.quantities import BadValue


@pytest.mark.parametrize(
    ("text", "address", "loopback"),
    [
        ("127.0.0.1:8080", Address("127.0.0.1", 8080), True),
        ("0.0.0.0:0", Address("0.0.0.0", 0), False),
        ("[::1]:8080", Address("::1", 8080), True),
        ("[::]:8080", Address("::", 8080), False),
        ("LOCALHOST:80", Address("localhost", 80), True),
        ("unix:/run/unjam.sock", Address(path="/run/unjam.sock"), True),
    ],
)
def test_listen(text: str, address: Address, loopback: bool) -> None:
    parsed = parse_listen(text)
    assert parsed == address
    assert parsed.loopback is loopback
    assert parse_listen(str(parsed)) == parsed


@pytest.mark.parametrize(
    ("text", "fix"),
    [
        ("8080", "127.0.0.1:8080"),
        (":8080", "0.0.0.0:8080"),
        ("*:80", "0.0.0.0:80"),
        ("localhost", "127.0.0.1:8080"),
        ("::1:8080", "[::1]"),
        ("[::g]:80", "[::]:8080"),
        ("127.0.0.256:80", "127.0.0.1:8080"),
        ("h:65536", "127.0.0.1:8080"),
        ("h:-1", "127.0.0.1:8080"),
        ("a b:80", "127.0.0.1:8080"),
        ("unix:run.sock", "unix:/run/agent.sock"),
        ("unix:/" + "x" * 200, "shorter"),
        ("unix:/run/a\r\nb", "unix:/run/agent.sock"),
    ],
)
def test_where_nothing_can_listen(text: str, fix: str) -> None:
    with pytest.raises(BadValue) as refused:
        parse_listen(text)
    assert fix in refused.value.fix


@pytest.mark.parametrize(
    ("text", "target", "url"),
    [
        ("http://10.0.0.1:9000", Target("http", "10.0.0.1", 9000), "http://10.0.0.1:9000"),
        ("http://10.0.0.1:9000/", Target("http", "10.0.0.1", 9000), "http://10.0.0.1:9000"),
        ("HTTP://Agents.Example.com", Target("http", "agents.example.com", 80), "http://agents.example.com"),
        ("http://h:80", Target("http", "h", 80), "http://h"),
        ("https://h:443", Target("https", "h", 443), "https://h"),
        ("https://[fd00:0::1]:9000", Target("https", "fd00::1", 9000), "https://[fd00::1]:9000"),
        ("unix:/run/agent.sock", Target("unix", path="/run/agent.sock"), "unix:/run/agent.sock"),
        ("unix:///run/agent.sock", Target("unix", path="/run/agent.sock"), "unix:/run/agent.sock"),
    ],
)
def test_endpoint_urls(text: str, target: Target, url: str) -> None:
    assert parse_url(text) == target
    assert parse_url(text).url == url
    assert parse_url(url) == target


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("10.0.0.1:9000", "no scheme"),
        ("ws://h:1", "ws://"),
        ("ftp://h:1", "not a scheme"),
        ("http://h/base", "a path"),
        ("http://h?x=1", "a query"),
        ("http://h#f", "a fragment"),
        ("http://u:secret@h", "user name or password"),
        ("http://h:0", "no port"),
        ("http://h:99999", "no port"),
        ("http://", "no valid host"),
        ("http://h h", "no valid host"),
        ("http://h\r\nx: y", "no"),
        ("http://fd00::1", "brackets"),
        ("unix:", "absolute path"),
        ("unix:/run/a\r\nx: y", "control character"),
        ("unix:/run/a\nb", "control character"),
        ("unix:/run/a\x00b", "control character"),
        ("unix:/run/a\x7fb", "control character"),
    ],
)
def test_what_is_no_endpoint(text: str, message: str) -> None:
    with pytest.raises(BadValue, match=message) as refused:
        parse_url(text)
    assert refused.value.fix


def test_a_password_in_a_url_is_never_echoed() -> None:
    for text in ("http://u:hunter2@h", "u:hunter2@h", "http://u:hunter2@h/path"):
        with pytest.raises(BadValue) as refused:
            parse_url(text)
        assert "hunter2" not in refused.value.message + refused.value.fix


def test_networks() -> None:
    assert str(parse_network("10.0.0.0/8")) == "10.0.0.0/8"
    assert str(parse_network("192.0.2.7")) == "192.0.2.7/32"
    assert str(parse_network("fd00::/8")) == "fd00::/8"


def test_a_network_with_bits_beyond_its_prefix_is_refused_with_the_right_one() -> None:
    with pytest.raises(BadValue) as refused:
        parse_network("10.0.0.1/8")
    assert refused.value.fix == "Write 10.0.0.0/8."


@given(st.text())
def test_no_text_makes_them_fail_in_another_way(text: str) -> None:
    for parse in (parse_listen, parse_url, parse_network):
        with contextlib.suppress(BadValue):
            parse(text)
