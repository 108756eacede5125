"""Hostile input 1 to 23 at a real gateway: one verdict however the bytes are split, nothing forwarded, one count."""

from __future__ import annotations

import asyncio
from typing import Any
from unittest.mock import patch

from unjam.wire.http1 import RequestReader

from ..gateway.harness import Agent, Call, in_loop
from .gateway_driver import MARK, Hostile, answers_in, converse, hostile, request

CHUNKED = b"Transfer-Encoding: chunked"
POST = b"POST /" + MARK + b" HTTP/1.1"

Case = tuple[bytes, str] | tuple[bytes, str, int]


async def refused(*cases: Case) -> None:
    async with hostile() as target:
        for case in cases:
            await target.refuses(*case)


def posted(*lines: bytes, body: bytes = b"") -> bytes:
    return request(*lines, start=POST, body=body)


def chunks(body: bytes) -> bytes:
    return posted(CHUNKED, body=body)


@in_loop
async def test_01_content_length_with_transfer_encoding() -> None:
    await refused(
        (posted(b"Content-Length: 5", CHUNKED, body=b"0\r\n\r\n"), "length_and_coding"),
        (posted(CHUNKED, b"Content-Length: 5", body=b"0\r\n\r\n"), "length_and_coding"),
    )


@in_loop
async def test_02_content_length_twice_or_as_a_list() -> None:
    await refused(
        (posted(b"Content-Length: 5", b"Content-Length: 5", body=b"hello"), "duplicate_content_length"),
        (posted(b"Content-Length: 5", b"content-length: 6", body=b"hello!"), "duplicate_content_length"),
        (posted(b"Content-Length: 5, 5", body=b"hello"), "bad_content_length"),
    )


@in_loop
async def test_03_content_length_that_is_no_number() -> None:
    values = [b"+5", b"-1", b"0x5", b"1_0", b"", b"5.0", b"\xb2", b"9223372036854775808", b"0" * 20]
    await refused(*((posted(b"Content-Length: " + value), "bad_content_length") for value in values))


@in_loop
async def test_04_transfer_encoding_on_http_1_0() -> None:
    raw = request(CHUNKED, start=b"POST /" + MARK + b" HTTP/1.0", body=b"0\r\n\r\n")
    await refused((raw, "coding_on_http10"))


@in_loop
async def test_05_codings_that_are_not_chunked_alone_and_last() -> None:
    unknown = [b"gzip", b"gzip, chunked", b"identity", b"xchunked"]
    wrong = [b"chunked, gzip", b"chunked, chunked", b"chunked,", b"", b'"chunked"']
    await refused(
        *((posted(b"Transfer-Encoding: " + value, body=b"0\r\n\r\n"), "unknown_coding", 501) for value in unknown),
        *((posted(b"Transfer-Encoding: " + value, body=b"0\r\n\r\n"), "bad_transfer_encoding") for value in wrong),
        (posted(CHUNKED, CHUNKED, body=b"0\r\n\r\n"), "bad_transfer_encoding"),
        (posted(b"Transfer-Encoding: \x0bchunked", body=b"0\r\n\r\n"), "bad_value"),
    )


@in_loop
async def test_06_space_before_the_colon() -> None:
    names = [b"Content-Length ", b"Transfer-Encoding\t", b"X-Thing "]
    await refused(*((request(name + b": 1"), "space_before_colon") for name in names))


@in_loop
async def test_07_obs_fold() -> None:
    await refused(
        (request(b"X-Thing: 1", b" more"), "obs_fold"),
        (request(b"X-Thing: 1", b"\tContent-Length: 5"), "obs_fold"),
    )


@in_loop
async def test_08_bare_cr_or_lf() -> None:
    raws = [
        b"GET / HTTP/1.1\nHost: a\n\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: 1\nY: 2\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: 1\rY: 2\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n\n",
    ]
    await refused(*((raw, "bare_cr_or_lf") for raw in raws))


@in_loop
async def test_09_controls_in_a_value() -> None:
    controls = [b"\x00", b"\x01", b"\x0b", b"\x1b", b"\x7f"]
    await refused(*((request(b"X-Thing: a" + control + b"b"), "bad_value") for control in controls))


@in_loop
async def test_10_names_that_are_none() -> None:
    await refused(
        (request(b"X Thing: 1"), "bad_name"),
        (request(b"X-Th\xefng: 1"), "bad_name"),
        (request(b"X\x00: 1"), "bad_name"),
        (request(b": 1"), "empty_name"),
        (request(b"X-Thing"), "no_colon"),
    )


@in_loop
async def test_11_white_space_before_the_first_field() -> None:
    await refused(
        (request(host=b" Host: a.example"), "space_before_first_field"),
        (request(host=b"\tX: 1"), "space_before_first_field"),
    )


@in_loop
async def test_12_host_missing_doubled_or_bad() -> None:
    bad = [b"a,b", b"user@a", b"a/b", b"a?b", b"a#b", b"", b"a:b", b"a b", b"[::1"]
    await refused(
        (request(host=b""), "host_missing"),
        (request(b"Host: a.example"), "duplicate_host"),
        *((request(host=b"Host: " + value), "bad_host") for value in bad),
    )


@in_loop
async def test_13_absolute_form_wins_over_host() -> None:
    agent = Agent()
    async with hostile(agent) as target:
        start = b"GET http://Real.example:81/x?y HTTP/1.1"
        await target.accepts(request(b"Connection: close", start=start, host=b"Host: fake.example"))
        for seen in agent.requests:
            assert seen.target == "/x?y"
            assert seen.header("x-forwarded-host") == "real.example:81"
            assert seen.header("host") == f"127.0.0.1:{agent.port}"
            assert "fake.example" not in str(seen.headers)
        await target.refuses(request(start=b"GET http://user@a/ HTTP/1.1"), "bad_host")


@in_loop
async def test_14_other_forms_of_target_and_tunnelling_methods() -> None:
    await refused(
        (request(start=b"GET * HTTP/1.1"), "bad_target"),
        (request(start=b"GET a.example:80 HTTP/1.1"), "bad_target"),
        (request(start=b"CONNECT a.example:443 HTTP/1.1"), "method_not_allowed", 405),
        (request(start=b"TRACE / HTTP/1.1"), "method_not_allowed", 405),
    )


@in_loop
async def test_15_other_versions_of_http() -> None:
    await refused(
        (request(start=b"GET / HTTP/2.0"), "unsupported_version", 505),
        (request(start=b"GET / HTTP/0.9"), "unsupported_version", 505),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "unsupported_version", 505),
        (b"GET /\r\n\r\n", "bad_request_line"),
        (b"\x16\x03\x01\x02\x00\x01\r\n\r\n", "bad_request_line"),
    )


@in_loop
async def test_16_chunk_sizes_that_are_none() -> None:
    sizes = [b"0x5", b"+5", b"5_0", b" 5", b"-5", b"", b"g", b"10000000000000000", b"5 "]
    await refused(*((chunks(size + b"\r\nhello\r\n0\r\n\r\n"), "bad_chunk_size") for size in sizes))


@in_loop
async def test_17_chunk_data_without_its_crlf() -> None:
    await refused(
        (chunks(b"5\r\nhello0\r\n\r\n"), "bad_chunk_end"),
        (chunks(b"5\r\nhelloXX0\r\n\r\n"), "bad_chunk_end"),
        (chunks(b"5\r\nhello\n0\r\n\r\n"), "bad_chunk_end"),
    )


@in_loop
async def test_18_chunk_extensions() -> None:
    await refused(
        (chunks(b"5;a=\x00\r\nhello\r\n0\r\n\r\n"), "bad_chunk_extension"),
        (chunks(b"5;a=b\nc\r\nhello\r\n0\r\n\r\n"), "bare_cr_or_lf"),
        (chunks(b"5;" + b"a" * 17000 + b"\r\nhello\r\n0\r\n\r\n"), "chunk_extensions_too_large"),
        (
            chunks(b"1;" + b"a" * 4000 + b"\r\nx\r\n") + (b"1;" + b"b" * 4000 + b"\r\nx\r\n") * 5,
            "chunk_extensions_too_large",
        ),
    )


@in_loop
async def test_19_trailers_that_name_framing_host_or_credentials() -> None:
    names = [
        b"Content-Length: 5",
        b"Transfer-Encoding: chunked",
        b"Host: b",
        b"Authorization: x",
        b"X-Unjam-Lane: fast",
    ]
    await refused(*((chunks(b"1\r\nx\r\n0\r\n" + name + b"\r\n\r\n"), "forbidden_trailer") for name in names))


@in_loop
async def test_19_harmless_trailers_are_never_merged_nor_forwarded() -> None:
    async with hostile(agent := Agent()) as target:
        await target.accepts(
            posted(CHUNKED, b"Connection: close", body=b"1;x=y\r\nx\r\n0\r\nX-Sum: " + MARK + b"\r\n\r\n")
        )
        assert all(seen.header("x-sum") is None and seen.body == b"x" for seen in agent.requests)


@in_loop
async def test_20_pipelined_requests_are_answered_in_order_up_to_the_first_refusal() -> None:
    async def echo(call: Call) -> None:
        await call.answer(call.seen.target.encode() + b" " + call.seen.body)

    one = request(start=b"GET /1 HTTP/1.1")
    two = request(b"Content-Length: 5", start=b"POST /2 HTTP/1.1", body=b"hello")
    three = request(CHUNKED, start=b"POST /3 HTTP/1.1", body=b"3;x=y\r\nabc\r\n0\r\nX-Sum: 1\r\n\r\n")
    bad = request(b"X : 1", start=b"GET /bad HTTP/1.1")
    after = request(start=b"GET /after HTTP/1.1")
    async with hostile(agent := Agent(echo)) as target:
        raw = one + two + three + bad + after
        answers = []
        for at in range(1, len(raw), 7):
            answers.append(await converse(target.port, [raw[:at], raw[at:]]))
        for answer in answers:
            assert answer.count(b"HTTP/1.1 200") == 3
            assert answers_in(answer) == 4
            places = [answer.index(part) for part in (b"/1 ", b"/2 hello", b"/3 abc", b"space_before_colon")]
            assert places == sorted(places)
        assert {seen.target for seen in agent.requests} == {"/1", "/2", "/3"}
        assert len(agent.requests) == 3 * len(answers)
        assert target.rejects == {"space_before_colon": len(answers)}


async def _unread(target: Hostile, length: int, sent: int) -> bytes:
    """A request that no service takes, with a body of `length`, of which `sent` bytes come; then a second request."""
    head = request(b"Content-Length: %d" % length, start=b"POST /none HTTP/1.1", host=b"Host: other")
    last = request(b"Connection: close", start=b"GET /last HTTP/1.1", host=b"Host: a.example")
    return await converse(target.port, [head, b"x" * sent, last if sent == length else b""])


@in_loop
async def test_21_an_unread_body_is_drained_within_a_bound_else_the_connection_closes() -> None:
    config = "services: {a: {match: {host: a.example}, versions: {v1: {endpoints: ['%s']}}}}"
    agent = await Agent().start()
    async with hostile(agent, config=config % agent.url) as target:
        answer = await _unread(target, 100_000, 100_000)
        assert answer.count(b"HTTP/1.1 404") == 1
        assert answer.count(b"HTTP/1.1 200") == 1
        assert [seen.target for seen in agent.requests] == ["/last"]
        answer = await _unread(target, 10_000_000, 500_000)
        assert answers_in(answer) == 1
        assert b"connection: close" in answer
        assert len(agent.requests) == 1


@in_loop
async def test_21_a_broken_body_that_nobody_reads_is_not_answered_twice() -> None:
    config = "services: {a: {match: {host: a.example}, versions: {v1: {endpoints: ['%s']}}}}"
    agent = await Agent().start()
    async with hostile(agent, config=config % agent.url) as target:
        head = request(CHUNKED, start=b"POST /none HTTP/1.1", host=b"Host: other")
        answer = await converse(target.port, [head, b"5\r\nhello\r\nXYZ\r\n" + request()])
        assert answers_in(answer) == 1
        assert answer.startswith(b"HTTP/1.1 404")
        assert target.rejects.get("bad_chunk_size") == 1
        assert agent.requests == []


@in_loop
async def test_22_underscores_that_shadow_known_names() -> None:
    names = [b"Content_Length", b"TRANSFER_ENCODING", b"X_Forwarded_For", b"x_api_key", b"x_unjam_lane"]
    await refused(*((request(name + b": 5"), "shadow_name") for name in names))


@in_loop
async def test_23_the_pieces_really_arrive_apart() -> None:
    """What the split runs above rest on: a piece is read before the next one is sent."""
    reads: list[int] = []
    plain = RequestReader.feed

    def noting(self: RequestReader, data: bytes) -> Any:
        reads.append(len(data))
        return plain(self, data)

    raw = request(b"X-Thing: 1", b"Connection: close")
    async with hostile() as target:
        with patch.object(RequestReader, "feed", noting):
            await asyncio.gather(*(converse(target.port, [raw[:9], raw[9:30], raw[30:]]) for _ in range(40)))
    assert sorted(reads) == sorted([9, 21, len(raw) - 30] * 40)


@in_loop
async def test_23_good_requests_mean_the_same_however_they_are_split() -> None:
    async with hostile() as target:
        await target.accepts(request(b"Connection: close", b"X-Thing: 1"))
        await target.accepts(posted(b"Content-Length: 5", b"Connection: close", body=b"hello"))
        await target.accepts(posted(CHUNKED, b"Connection: close", body=b"3;x=y\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"))
