"""Hostile input, framing of requests: cases 1 to 15, 20 and 22, each split at every byte (23)."""

from __future__ import annotations

import pytest

from .wire_driver import accepted, play, played, refused, request

CHUNKED = b"Transfer-Encoding: chunked"


def test_01_content_length_with_transfer_encoding() -> None:
    refused(request(b"Content-Length: 5", CHUNKED, body=b"0\r\n\r\n"), "length_and_coding")
    refused(request(CHUNKED, b"Content-Length: 5", body=b"0\r\n\r\n"), "length_and_coding")
    refused(request(b"Content-Length: 0", b"Transfer-Encoding: identity"), "length_and_coding")


@pytest.mark.parametrize("value", [b"5, 5", b"5,5", b"5 5", b"5;5"])
def test_02_content_length_as_a_list(value: bytes) -> None:
    refused(request(b"Content-Length: " + value, body=b"hello"), "bad_content_length")


def test_02_content_length_twice() -> None:
    refused(request(b"Content-Length: 5", b"Content-Length: 5", body=b"hello"), "duplicate_content_length")
    refused(request(b"Content-Length: 5", b"content-length: 6", body=b"hello!"), "duplicate_content_length")


@pytest.mark.parametrize(
    "value",
    [
        b"+5",
        b"-1",
        b"0x5",
        b"1_0",
        b"",
        b"5.0",
        b"5e1",
        b"\xb2",
        b"9223372036854775808",
        b"99999999999999999999",
        b"0" * 20,
    ],
)
def test_03_content_length_that_is_no_number(value: bytes) -> None:
    refused(request(b"Content-Length: " + value), "bad_content_length")


def test_03_content_length_in_range() -> None:
    assert accepted(request(b"Content-Length:\t005 ", body=b"hello"))["length"] == 5
    head = play([request(b"Content-Length: 9223372036854775807")]).open
    assert head is not None
    assert head["length"] == 2**63 - 1


def test_04_transfer_encoding_on_http_1_0() -> None:
    refused(request(CHUNKED, start=b"POST / HTTP/1.0", body=b"0\r\n\r\n"), "coding_on_http10")


@pytest.mark.parametrize(
    "value", [b"gzip", b"gzip, chunked", b"identity", b"xchunked", b"chunkedx", b"deflate,chunked"]
)
def test_05_unknown_coding(value: bytes) -> None:
    refused(request(b"Transfer-Encoding: " + value, body=b"0\r\n\r\n"), "unknown_coding", 501)


@pytest.mark.parametrize(
    "value",
    [
        b"chunked, gzip",
        b"chunked, chunked",
        b"chunked,",
        b",chunked",
        b"",
        b'"chunked"',
        b"chunked;q=1",
        b"chun ked",
        b"[chunked]",
    ],
)
def test_05_chunked_not_last_or_twice_or_not_a_token(value: bytes) -> None:
    refused(request(b"Transfer-Encoding: " + value, body=b"0\r\n\r\n"), "bad_transfer_encoding")


def test_05_codings_over_two_lines() -> None:
    refused(request(CHUNKED, CHUNKED, body=b"0\r\n\r\n"), "bad_transfer_encoding")
    refused(request(CHUNKED, b"Transfer-Encoding: gzip", body=b"0\r\n\r\n"), "bad_transfer_encoding")
    refused(request(b"Transfer-Encoding: gzip", CHUNKED, body=b"0\r\n\r\n"), "unknown_coding", 501)


@pytest.mark.parametrize("value", [b"\x0bchunked", b"chunked\x0c", b"\x00chunked", b"chun\x01ked"])
def test_05_coding_with_controls(value: bytes) -> None:
    refused(request(b"Transfer-Encoding: " + value, body=b"0\r\n\r\n"), "bad_value")


def test_05_chunked_in_any_case_is_chunked() -> None:
    assert accepted(request(b"tRANSFER-eNCODING:  Chunked\t", body=b"0\r\n\r\n"))["chunked"] is True


@pytest.mark.parametrize("name", [b"Content-Length ", b"Transfer-Encoding\t", b"X-Thing  ", b"Host "])
def test_06_space_before_the_colon(name: bytes) -> None:
    refused(request(name + b": 1"), "space_before_colon")


@pytest.mark.parametrize("fold", [b" more", b"\tmore", b" ", b" Content-Length: 5"])
def test_07_obs_fold(fold: bytes) -> None:
    refused(request(b"X-Thing: 1", fold), "obs_fold")


@pytest.mark.parametrize(
    "raw",
    [
        b"GET / HTTP/1.1\nHost: a\n\n",
        b"GET / HTTP/1.1\r\nHost: a\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: 1\nY: 2\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: 1\rY: 2\r\n\r\n",
        b"GET / HTTP/1.1\rHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n\rx",
        b"\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"\r\n\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"\r\rGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\r\n\r\n",
    ],
)
def test_08_bare_cr_or_lf(raw: bytes) -> None:
    refused(raw, "bare_cr_or_lf")


def test_08_bare_lf_is_refused_at_once() -> None:
    assert play([b"GET / HTTP/1.1\n"]).refused == "bare_cr_or_lf"
    assert play([b"GET / HTTP/1.1\r"]).refused == ""
    assert play([b"GET / HTTP/1.1\r", b"H"]).refused == "bare_cr_or_lf"


@pytest.mark.parametrize("control", [bytes([code]) for code in (*range(9), 0x0B, 0x0C, *range(0x0E, 0x20), 0x7F)])
def test_09_control_in_a_value(control: bytes) -> None:
    refused(request(b"X-Thing: a" + control + b"b"), "bad_value")
    refused(request(b"X-Thing: " + control), "bad_value")


def test_09_tab_and_obs_text_are_no_controls() -> None:
    head = accepted(request(b"X-Thing: a\tb \xe9\xff"))
    assert b"X-Thing: a\tb \xe9\xff\r\n" in head["forward"]


@pytest.mark.parametrize(
    "name", [b"X Thing", b"X(Thing", b"X\x00", b"X-Th\xefng", b"X@", b'"X"', b"X/Y", b"{x}", b"X\x7f", b"\xc3\xa9"]
)
def test_10_bad_name(name: bytes) -> None:
    refused(request(name + b": 1"), "bad_name")


def test_10_empty_name_or_no_colon() -> None:
    refused(request(b": 1"), "empty_name")
    refused(request(b":"), "empty_name")
    refused(request(b"X-Thing"), "no_colon")
    # A name that is known to the memo is no line.
    accepted(request(b"X-Thing: 1"))
    refused(request(b"X-Thing"), "no_colon")


@pytest.mark.parametrize("white", [b" ", b"\t", b" \t "])
def test_11_white_space_before_the_first_field(white: bytes) -> None:
    refused(request(host=white + b"Host: a"), "space_before_first_field")
    refused(request(b"Host: a", host=white), "space_before_first_field")


def test_12_host_missing() -> None:
    refused(request(host=b""), "host_missing")
    refused(request(host=b"", start=b"GET http://a.example/ HTTP/1.1"), "host_missing")


def test_12_host_doubled() -> None:
    refused(request(b"Host: a.example"), "duplicate_host")
    refused(request(b"hOST: b.example"), "duplicate_host")


@pytest.mark.parametrize(
    "value",
    [
        *(
            b"a" + char + b"b"
            for char in (b",", b"@", b"/", b"?", b"#", b" ", b"\\", b"%41", b"<", b'"', b"\xe9", b"\t")
        ),
        *(
            b"",
            b":80",
            b"a:",
            b"a:b",
            b"a:+1",
            b"a:65536",
            b"a:123456",
            b"a..b",
            b".",
            b"[::1",
            b"::1",
            b"[zz]",
            b"[::1]x",
            b"[]",
        ),
        b"a" * 300,
        b"a:80:80",
    ],
)
def test_12_bad_host(value: bytes) -> None:
    refused(request(host=b"Host: " + value), "bad_host")


@pytest.mark.parametrize(
    ("value", "host", "authority"),
    [
        (b"A.Example:8080", "a.example", b"a.example:8080"),
        (b"a.example.", "a.example", b"a.example."),
        (b"10.0.0.1", "10.0.0.1", b"10.0.0.1"),
        (b"[2001:DB8::1]:80", "[2001:db8::1]", b"[2001:db8::1]:80"),
        (b"my_service-1", "my_service-1", b"my_service-1"),
    ],
)
def test_12_good_host(value: bytes, host: str, authority: bytes) -> None:
    head = accepted(request(host=b"Host: " + value))
    assert (head["host"], head["authority"]) == (host, authority)
    assert not [line for line in head["forward"] if line.lower().startswith(b"host")]


def test_12_http_1_0_may_come_without_host() -> None:
    head = accepted(request(start=b"GET / HTTP/1.0", host=b""))
    assert (head["host"], head["authority"], head["keep_alive"]) == ("", b"", False)


def test_13_absolute_form_wins_over_host() -> None:
    head = accepted(request(start=b"GET http://Real.example:81/a//b?c HTTP/1.1", host=b"Host: fake.example"))
    assert (head["host"], head["authority"]) == ("real.example", b"real.example:81")
    assert (head["path"], head["wire_target"]) == ("/a/b", b"/a/b?c")
    head = accepted(request(start=b"GET HTTPS://real.example?c HTTP/1.1"))
    assert (head["host"], head["path"], head["wire_target"]) == ("real.example", "/", b"/?c")


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        (b"http://user@real.example/", "bad_host"),
        (b"http:///path", "bad_host"),
        (b"http://a,b/", "bad_host"),
        (b"http://a:b@c/", "bad_host"),
        (b"http://", "bad_host"),
        (b"http:/a", "bad_target"),
        (b"ftp://a/", "bad_target"),
        (b"ws://a/", "bad_target"),
        (b"javascript:1", "bad_target"),
    ],
)
def test_13_absolute_form_that_is_none(target: bytes, reason: str) -> None:
    refused(request(start=b"GET " + target + b" HTTP/1.1"), reason)


@pytest.mark.parametrize("target", [b"*", b"a.example:80", b"a.example", b"path", b"#", b"a?b", b"*?x"])
def test_14_asterisk_and_authority_form(target: bytes) -> None:
    refused(request(start=b"GET " + target + b" HTTP/1.1"), "bad_target")


def test_14_asterisk_with_options_is_allowed() -> None:
    head = accepted(request(start=b"OPTIONS * HTTP/1.1"))
    assert (head["path"], head["wire_target"]) == ("*", b"*")
    refused(request(start=b"OPTIONS *?x HTTP/1.1"), "bad_target")


@pytest.mark.parametrize(
    "start", [b"CONNECT a:443 HTTP/1.1", b"CONNECT / HTTP/1.1", b"TRACE / HTTP/1.1", b"TRACK / HTTP/1.1"]
)
def test_14_connect_and_trace(start: bytes) -> None:
    refused(request(start=start), "method_not_allowed", 405)


@pytest.mark.parametrize("version", [b"2.0", b"0.9", b"1.2", b"3.0", b"9.9", b"0.0"])
def test_15_other_versions(version: bytes) -> None:
    refused(request(start=b"GET / HTTP/" + version), "unsupported_version", 505)


def test_15_h2_preface() -> None:
    refused(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "unsupported_version", 505)


@pytest.mark.parametrize(
    "start",
    [
        b"GET ?query HTTP/1.1",
        *(b"GET /", b"GET", b"GET / ", b"GET  / HTTP/1.1", b"GET / HTTP/1.1 ", b" GET / HTTP/1.1", b"GET\t/\tHTTP/1.1"),
        *(
            b"GET / http/1.1",
            b"GET / HTTP/1",
            b"GET / HTTP/1.10",
            b"GET / HTTP/01.1",
            b"GET / HTTPS/1.1",
            b"GET /a b HTTP/1.1",
        ),
        *(
            b"G@T / HTTP/1.1",
            b"GET /\x00 HTTP/1.1",
            b"GET /\xff HTTP/1.1",
            b"GET /\x7f HTTP/1.1",
            b"\x16\x03\x01 / HTTP/1.1",
        ),
    ],
)
def test_15_request_lines_that_are_none(start: bytes) -> None:
    refused(request(start=start), "bad_request_line")


def test_15_unknown_method() -> None:
    refused(request(start=b"get / HTTP/1.1"), "unknown_method", 501)
    refused(request(start=b"FROB / HTTP/1.1"), "unknown_method", 501)


def test_20_pipelined_requests_come_in_order() -> None:
    one = request(start=b"GET /1 HTTP/1.1")
    two = request(b"Content-Length: 5", start=b"POST /2 HTTP/1.1", body=b"hello")
    three = request(CHUNKED, start=b"POST /3 HTTP/1.1", body=b"3;x=y\r\nabc\r\n0\r\nX-Sum: 1\r\n\r\n")
    exchange = played(one + two + three + one)
    assert [(head["path"], body) for head, body in exchange.messages] == [
        ("/1", b""),
        ("/2", b"hello"),
        ("/3", b"abc"),
        ("/1", b""),
    ]
    assert (exchange.open, exchange.refused) == (None, "")


def test_20_nothing_is_parsed_after_a_refusal() -> None:
    good = request(start=b"GET /1 HTTP/1.1")
    exchange = played(good + request(b"X : 1") + good)
    assert [head["path"] for head, _ in exchange.messages] == ["/1"]
    assert exchange.refused == "space_before_colon"


def test_20_one_empty_line_before_a_request_is_skipped() -> None:
    accepted(b"\r\n" + request())
    exchange = played(request(start=b"GET /1 HTTP/1.1") + b"\r\n" + request(start=b"GET /2 HTTP/1.1"))
    assert [head["path"] for head, _ in exchange.messages] == ["/1", "/2"]
    refused(b"\r\n\r\n" + request(), "empty_line")


@pytest.mark.parametrize(
    "name",
    [
        *(
            b"Content_Length",
            b"TRANSFER_ENCODING",
            b"Transfer-Encoding_".rstrip(b"_").replace(b"-", b"_"),
            b"content_type",
        ),
        *(b"X_Forwarded_For", b"X-Forwarded_For", b"x_real-ip", b"X_API_KEY", b"x_unjam_lane", b"sec_websocket_key"),
        *(b"keep_alive", b"proxy_authorization", b"X_Request_Id", b"x_forwarded_anything", b"idempotency_key"),
    ],
)
def test_22_underscore_that_shadows(name: bytes) -> None:
    refused(request(name + b": 5"), "shadow_name")


def test_22_other_underscores_pass() -> None:
    assert accepted(request(b"my_thing: 5"))["forward"] == [b"my_thing: 5\r\n"]


def test_23_the_first_offence_in_order_is_named() -> None:
    refused(request(b"X : 1", b" fold", host=b"Host: a,b"), "bad_host")
    refused(request(b"X : 1", b" fold", b"Y: 1\n", host=b"Host: a"), "space_before_colon")
    refused(request(b"Content-Length: 5", b"Content-Length: 5", b"X : 1"), "space_before_colon")
    refused(request(b"Content-Length: x", start=b"BAD"), "bad_request_line")
