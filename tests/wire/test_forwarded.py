"""Who the client is depends on whom the gateway trusts, never on what a stranger claims."""

from __future__ import annotations

import pytest

from unjam.wire.forwarded import TrustedProxies, parse_address
from unjam.wire.http1 import Limits, RequestHead, RequestReader


def head(*lines: bytes) -> RequestHead:
    parsed = RequestReader(Limits()).feed(b"\r\n".join([b"GET / HTTP/1.1", b"Host: a.example", *lines, b"", b""]))
    assert parsed is not None
    return parsed


@pytest.mark.parametrize(
    ("claimed", "client"),
    [
        (b"1.2.3.4", "1.2.3.4"),
        (b"6.6.6.6, 1.2.3.4", "1.2.3.4"),
        (b"6.6.6.6, 1.2.3.4, 10.0.0.9", "1.2.3.4"),
        (b"10.0.0.1, 10.0.0.2", "10.0.0.1"),
        (b"6.6.6.6, nonsense, 10.0.0.9", "10.0.0.9"),
        (b"nonsense", "10.0.0.5"),
        (b"", "10.0.0.5"),
        (b"1.2.3.4:5678", "1.2.3.4"),
        (b"[2001:db8::1]:80", "2001:db8::1"),
        (b"2001:db8::1", "2001:db8::1"),
        (b"::ffff:1.2.3.4", "1.2.3.4"),
    ],
)
def test_the_client_behind_trusted_proxies(claimed: bytes, client: str) -> None:
    proxies = TrustedProxies(["10.0.0.0/8", "fd00::/8"])
    assert proxies.client("10.0.0.5", head(b"X-Forwarded-For: " + claimed)) == client


def test_two_lines_are_one_list() -> None:
    proxies = TrustedProxies(["10.0.0.0/8"])
    assert proxies.client("10.0.0.5", head(b"X-Forwarded-For: 6.6.6.6", b"X-Forwarded-For: 1.2.3.4")) == "1.2.3.4"


def test_nobody_is_trusted_by_default() -> None:
    claims = head(b"X-Forwarded-For: 6.6.6.6", b"X-Forwarded-Proto: https")
    proxies = TrustedProxies()
    assert proxies.client("127.0.0.1", claims) == "127.0.0.1"
    assert proxies.scheme("127.0.0.1", claims, secure=False) == "http"
    assert proxies.scheme("127.0.0.1", claims, secure=True) == "https"


def test_a_trusted_proxy_names_scheme_and_host() -> None:
    proxies = TrustedProxies(["10.0.0.0/8"])
    claims = head(b"X-Forwarded-Proto: HTTPS", b"X-Forwarded-Host: shop.example", b"Forwarded: for=1.2.3.4")
    assert proxies.scheme("10.0.0.5", claims, secure=False) == "https"
    assert proxies.scheme("10.0.0.5", head(b"X-Forwarded-Proto: gopher"), secure=False) == "http"
    assert proxies.lines("10.0.0.5", claims, secure=False) == (
        b"X-Forwarded-For: 10.0.0.5\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: shop.example\r\n"
        b'Forwarded: for=1.2.3.4, for=10.0.0.5;proto=https;host="a.example"\r\n'
    )


def test_ipv6_and_unix_socket_peers() -> None:
    lines = TrustedProxies().lines("2001:db8::1", head(), secure=True)
    assert b'Forwarded: for="[2001:db8::1]";proto=https;host="a.example"\r\n' in lines
    assert b"X-Forwarded-For: 2001:db8::1\r\n" in lines
    lines = TrustedProxies(["0.0.0.0/0"]).lines("unix:", head(b"X-Forwarded-For: 6.6.6.6"), secure=False)
    assert b"X-Forwarded-For: unknown\r\n" in lines
    assert b"6.6.6.6" not in lines


def test_a_network_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="10"):
        TrustedProxies(["10.0.0.0/99"])


def test_addresses() -> None:
    assert str(parse_address(' "[fe80::1%eth0]:1" ')) == "fe80::1"
    assert parse_address("unix") is None
    assert parse_address("") is None


def test_what_is_remembered_is_bounded() -> None:
    proxies = TrustedProxies(["10.0.0.0/8"])
    plain = head()
    for number in range(10_000):
        peer = f"192.0.{number // 256}.{number % 256}"
        assert peer.encode() in proxies.lines(peer, plain, secure=False)
    assert len(proxies._memo) <= 4096
    assert len(proxies._trusted) <= 4096
