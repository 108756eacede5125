"""Hostile input, chunked bodies: cases 16 to 19 and 35, each split at every byte (23)."""

from __future__ import annotations

import pytest

from unjam.wire.http1 import ChunkedReader, Limits, Malformed

from .wire_driver import LIMITS, play, played, splits

HEAD = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"


def decode(pieces: list[bytes], limits: Limits = LIMITS) -> tuple[bytes, bool, bytes]:
    """(payload, done, rest)"""
    reader = ChunkedReader(limits, "endpoint")
    payload = b""
    for piece in pieces:
        payload += b"".join(reader.feed(piece))
    return payload, reader.done, reader.rest


def decoded(raw: bytes) -> bytes:
    whole = decode([raw])
    for pieces in splits(raw):
        assert decode(pieces) == whole
    assert whole[1:] == (True, b"")
    return whole[0]


def refused(body: bytes, reason: str, status: int = 400, limits: Limits = LIMITS) -> None:
    """Refused in a request, however it is split, and in an answer as the endpoint's fault."""
    for pieces in [[HEAD + body], *([HEAD, *parts] for parts in splits(body))]:
        exchange = play(pieces, limits)
        assert (exchange.refused, exchange.status, exchange.messages) == (reason, status, [])
    reader = ChunkedReader(limits, "endpoint")
    with pytest.raises(Malformed) as caught:
        reader.feed(body)
    assert (caught.value.reason, caught.value.status, caught.value.side) == (reason, 502, "endpoint")


@pytest.mark.parametrize(
    "size",
    [
        *(
            b"0x5",
            b"+5",
            b"-5",
            b"5_0",
            b" 5",
            b"5 ",
            b"\t5",
            b"5\t",
            b"",
            b"g",
            b"5 ;x",
            b"5.0",
            b"\xb2",
            b"5,5",
            b"h5",
        ),
        *(
            b"10000000000000000",
            b"8000000000000000",
            b"ffffffffffffffff",
            b"f" * 100,
            b"0" * 17,
            b"5\x00",
            b"0x0",
            b"00 ",
        ),
    ],
)
def test_16_chunk_size(size: bytes) -> None:
    refused(size + b"\r\nhello\r\n0\r\n\r\n", "bad_chunk_size")


def test_16_sizes_that_are_right() -> None:
    assert decoded(b"5\r\nhello\r\n0\r\n\r\n") == b"hello"
    assert decoded(b"A\r\n0123456789\r\n000a\r\n0123456789\r\n000\r\n\r\n") == b"0123456789" * 2
    assert decoded(b"0\r\n\r\n") == b""
    reader = ChunkedReader(LIMITS)
    assert reader.feed(b"7fffffffffffffff\r\nabc") == [b"abc"]


@pytest.mark.parametrize(
    "body", [b"5\nhello\r\n0\r\n\r\n", b"5\rhello\r\n", b"\n5\r\n", b"5;x\ny\r\n", b"0\r\n\n", b"0\r\n\rx", b"0\n\r\n"]
)
def test_16_bare_line_ends(body: bytes) -> None:
    refused(body, "bare_cr_or_lf")


@pytest.mark.parametrize("end", [b"x", b"\n", b"x\r\n", b"\rx", b"\n\r\n", b"\r\r\n", b"0\r\n\r\n", b" \r\n"])
def test_17_missing_crlf_after_chunk_data(end: bytes) -> None:
    refused(b"5\r\nhello" + end + b"0\r\n\r\n", "bad_chunk_end")


@pytest.mark.parametrize(
    "extension",
    [
        *(
            b";a=\x00",
            b";a\x1b",
            b";\x7f",
            b';a="\x01"',
            b";",
            b";=",
            b";a=",
            b"; a",
            b";a =b",
            b";a= b",
            b";a;",
            b';a="b',
        ),
        *(b";a=b c", b';a="b"c', b";\xc3\xa9", b";a=b=c", b";a,b", b';a="\\\x00"', b";a=\xff"),
    ],
)
def test_18_chunk_extension_that_is_malformed(extension: bytes) -> None:
    refused(b"5" + extension + b"\r\nhello\r\n0\r\n\r\n", "bad_chunk_extension")


def test_18_chunk_extensions_are_checked_and_dropped() -> None:
    assert decoded(b'5;a;b=c;d="e f\\"g;h"\r\nhello\r\n0;last\r\n\r\n') == b"hello"


def test_18_chunk_extensions_are_bounded_over_the_whole_body() -> None:
    limits = Limits(chunk_ext=12)
    assert decode([b"1;abc\r\nx\r\n1;abc\r\ny\r\n0;abc\r\n\r\n"], limits)[1]
    refused(b"1;abc\r\nx\r\n1;abc\r\ny\r\n0;abcd\r\n\r\n", "chunk_extensions_too_large", limits=limits)
    refused(b"1;" + b"a" * 40 + b"\r\nx", "chunk_extensions_too_large", limits=limits)
    # Without waiting for the end of the line.
    refused(b"1;" + b"a" * 40, "chunk_extensions_too_large", limits=limits)
    refused(b"1" * 40, "chunk_extensions_too_large", limits=limits)
    assert play([HEAD + b"1;" + b"a" * 16383 + b"\r\nx\r\n0\r\n\r\n"]).refused == ""
    assert play([HEAD + b"1;" + b"a" * 16384 + b"\r\nx\r\n0\r\n\r\n"]).refused == "chunk_extensions_too_large"


@pytest.mark.parametrize(
    "name",
    [
        *(
            b"Content-Length",
            b"transfer-encoding",
            b"Host",
            b"Authorization",
            b"Connection",
            b"X-Forwarded-For",
            b"Trailer",
        ),
        *(b"X-Unjam-Lane", b"Cookie", b"Set-Cookie", b"Content-Type", b"X-API-Key", b"Upgrade", b"Forwarded", b"TE"),
    ],
)
def test_19_trailers_that_would_change_the_message(name: bytes) -> None:
    # A value that is fine in a head does not make it fine here.
    value = {b"Connection": b"close", b"Host": b"a", b"Content-Length": b"5"}.get(name, b"x")
    refused(b"0\r\n" + name + b": " + value + b"\r\n\r\n", "forbidden_trailer")


def test_19_trailers_are_checked_like_fields() -> None:
    refused(b"0\r\nX : 1\r\n\r\n", "space_before_colon")
    refused(b"0\r\nX: 1\r\n more\r\n\r\n", "obs_fold")
    refused(b"0\r\n X: 1\r\n\r\n", "obs_fold")
    refused(b"0\r\nX\r\n\r\n", "no_colon")
    refused(b"0\r\nX: \x00\r\n\r\n", "bad_value")
    refused(b"0\r\nX: 1\nY: 2\r\n\r\n", "bare_cr_or_lf")
    refused(b"0\r\nContent_Length: 1\r\n\r\n", "shadow_name")


def test_19_other_trailers_are_never_merged() -> None:
    exchange = played(HEAD + b"1\r\nx\r\n0\r\nX-Sum: 1\r\nX-Other: 2\r\n\r\n")
    ((head, body),) = exchange.messages
    assert body == b"x"
    assert head["forward"] == []
    assert b"x-sum" not in head["known"]


def test_19_trailers_are_bounded() -> None:
    limits = Limits(trailers=64, fields=5)
    refused(b"0\r\nX: " + b"a" * 100, "trailers_too_large", 431, limits)
    refused(b"0\r\n" + b"X: 12345678\r\n" * 6 + b"\r\n", "trailers_too_large", 431, limits)
    refused(b"0\r\n" + b"X:\r\n" * 6 + b"\r\n", "trailers_too_large", 431, limits)


def test_35_bytes_behind_the_end_are_the_next_message_or_nothing() -> None:
    raw = b"5\r\nhello\r\n0\r\n\r\nHTTP/1.1 200 OK\r\n"
    for pieces in splits(raw):
        assert decode(pieces) == (b"hello", True, b"HTTP/1.1 200 OK\r\n")


def test_a_payload_is_handed_on_as_it_comes() -> None:
    reader = ChunkedReader(LIMITS)
    assert reader.feed(b"400\r\nabc") == [b"abc"]
    assert reader.feed(b"def") == [b"def"]
    assert reader.feed(b"") == []
