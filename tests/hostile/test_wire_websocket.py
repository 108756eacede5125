"""Hostile input, WebSocket handshakes: cases 41 and 42, and the endpoint's side of 43."""

from __future__ import annotations

import pytest

from unjam.wire.http1 import Malformed, RequestHead, RequestReader, ResponseReader
from unjam.wire.websocket import accept_for, check_accept, check_handshake

from .wire_driver import LIMITS, request

KEY = b"dGhlIHNhbXBsZSBub25jZQ=="
GOOD = {
    b"Upgrade": b"websocket",
    b"Connection": b"keep-alive, Upgrade",
    b"Sec-WebSocket-Key": KEY,
    b"Sec-WebSocket-Version": b"13",
    b"Origin": b"https://App.example",
}


def handshake(start: bytes = b"GET /ws HTTP/1.1", **changes: bytes | None) -> RequestHead:
    fields = {**GOOD, **{name.replace("_", "-").encode(): value for name, value in changes.items()}}
    lines = [name + b": " + value for name, value in fields.items() if value is not None]
    head = RequestReader(LIMITS).feed(request(*lines, start=start))
    assert head is not None
    return head


def refusal(head: RequestHead, origins: set[str] | None = None) -> tuple[str, int]:
    # That it is recognised as an attempt is what keeps the endpoint from being dialled.
    assert head.upgrade == "websocket"
    with pytest.raises(Malformed) as caught:
        check_handshake(head, origins)
    return caught.value.reason, caught.value.status


def test_a_good_handshake_passes() -> None:
    head = handshake()
    assert head.upgrade == "websocket"
    check_handshake(head, None)
    check_handshake(head, {"https://app.example"})
    check_handshake(head, {"*"})
    check_handshake(handshake(Origin=None), {"https://app.example"})
    assert [line.split(b":")[0] for line in head.forward] == [b"Sec-WebSocket-Key", b"Sec-WebSocket-Version", b"Origin"]


@pytest.mark.parametrize(
    "key",
    [
        b"",
        b"short",
        KEY[:-1],
        KEY + b"=",
        b"A" * 24,
        KEY.replace(b"Q==", b"R=="),
        b"dGhl IHNhbXBsZSBub25jZQ=",
        b"*" * 22 + b"==",
    ],
)
def test_41_bad_key(key: bytes) -> None:
    assert refusal(handshake(Sec_WebSocket_Key=key)) == ("bad_websocket_key", 400)


def test_41_no_key() -> None:
    assert refusal(handshake(Sec_WebSocket_Key=None)) == ("bad_websocket_key", 400)


@pytest.mark.parametrize("upgrade", [None, b"", b"h2c", b"websocket, h2c", b"websockets"])
def test_41_bad_upgrade(upgrade: bytes | None) -> None:
    assert refusal(handshake(Upgrade=upgrade)) == ("bad_handshake", 400)


@pytest.mark.parametrize("connection", [None, b"", b"keep-alive", b"close"])
def test_41_bad_connection(connection: bytes | None) -> None:
    assert refusal(handshake(Connection=connection)) == ("bad_handshake", 400)


@pytest.mark.parametrize("start", [b"POST /ws HTTP/1.1", b"HEAD /ws HTTP/1.1", b"GET /ws HTTP/1.0"])
def test_41_bad_method_or_version(start: bytes) -> None:
    assert refusal(handshake(start=start)) == ("bad_handshake", 400)


def test_41_a_body() -> None:
    assert refusal(handshake(Content_Length=b"5")) == ("bad_handshake", 400)
    assert refusal(handshake(Transfer_Encoding=b"chunked")) == ("bad_handshake", 400)


@pytest.mark.parametrize("version", [b"12", b"8", b"", b"013", b"13, 8"])
def test_41_other_version(version: bytes) -> None:
    assert refusal(handshake(Sec_WebSocket_Version=version)) == ("bad_websocket_version", 426)


def test_41_no_version() -> None:
    assert refusal(handshake(Sec_WebSocket_Version=None)) == ("bad_handshake", 400)


@pytest.mark.parametrize(
    "name", [b"Sec-WebSocket-Key: " + KEY, b"Sec-WebSocket-Version: 13", b"Origin: https://app.example"]
)
def test_41_doubled_fields(name: bytes) -> None:
    lines = [field + b": " + value for field, value in GOOD.items()]
    with pytest.raises(Malformed, match="duplicate_field"):
        RequestReader(LIMITS).feed(request(*lines, name))


@pytest.mark.parametrize(
    "origin", [b"https://evil.example", b"null", b"https://app.example.evil", b"http://app.example", b""]
)
def test_42_origin_not_allowed(origin: bytes) -> None:
    assert refusal(handshake(Origin=origin), {"https://app.example"}) == ("forbidden_origin", 403)


def test_other_upgrades_are_ignored() -> None:
    head = handshake(Upgrade=b"h2c", Sec_WebSocket_Key=None)
    assert head.upgrade is None
    assert not any(line.lower().startswith(b"upgrade") for line in head.forward)


def test_43_only_a_real_101_answers_the_handshake() -> None:
    def check(*lines: bytes, status: bytes = b"101 Switching Protocols") -> bool:
        head = ResponseReader().feed(b"\r\n".join([b"HTTP/1.1 " + status, *lines, b"", b""]))
        assert head is not None
        return check_accept(head, KEY)

    accept = b"Sec-WebSocket-Accept: " + accept_for(KEY)
    assert accept == b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
    assert check(b"Upgrade: WebSocket", b"Connection: upgrade", accept)
    assert not check(b"Upgrade: websocket", b"Connection: upgrade", accept, status=b"200 OK")
    assert not check(b"Upgrade: websocket", b"Connection: upgrade")
    assert not check(b"Upgrade: websocket", b"Connection: upgrade", accept[:-1])
    assert not check(b"Upgrade: h2c", b"Connection: upgrade", accept)
    assert not check(b"Upgrade: websocket", accept)
