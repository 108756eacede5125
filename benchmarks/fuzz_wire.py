"""Mutational fuzz of the wire: hostile bytes in, and only documented verdicts out.

    python benchmarks/fuzz_wire.py [--inputs N | --seconds S] [--seed K]

Each input is a valid or hostile message that was mutated (bytes flipped, inserted, deleted, pieces of others spliced
in), read whole and again in random pieces. Asserted for each: nothing but `Malformed` with a reason of the table is
raised (and of load figures nothing but their one error); both readings agree on every message and on the verdict; what
is forwarded holds no CR, LF or NUL of the peer's and reads back to the same; what was read before on the connection
makes no difference. `faulthandler` ends the run when one input takes longer than ten seconds. The same seed gives the
same inputs; a failure prints the one that failed.
"""

from __future__ import annotations

import argparse
import faulthandler
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from unjam.wire import agentcheck, frames, orca
from unjam.wire.http1 import (
    REASONS,
    RESPONSE_LIMITS,
    ChunkedReader,
    Limits,
    Malformed,
    RequestHead,
    RequestReader,
    ResponseHead,
    ResponseReader,
    request_head,
    response_head,
)
from unjam.wire.sse import SseTracker
from unjam.wire.websocket import check_handshake

#: Small enough that mutated inputs reach them.
TIGHT = Limits(line=120, head=260, fields=8, chunk_ext=24, trailers=60)

REQUESTS = [
    b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n",
    b"POST /v1/chat?x=1 HTTP/1.1\r\nHost: a:80\r\nContent-Type: application/json\r\nContent-Length: 5\r\n\r\nhello",
    b"POST /%7ea/../b//c HTTP/1.1\r\nHost: a\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n",
    b"GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nOrigin: http://a\r\n\r\n",
    b"GET http://user@a.example:81/x HTTP/1.1\r\nHost: b\r\nConnection: close, x-a\r\nX-A: 1\r\n\r\n",
    b"OPTIONS * HTTP/1.0\r\nConnection: keep-alive\r\n\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"0\r\n\r\nGET /smuggled HTTP/1.1\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nAuthorization: Bearer k\r\nContent-Length: 3\r\n\r\n"
    b"abcGET ",
    b"GET / HTTP/1.1\nHost: a\n\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\n folded\r\nContent_Length: 5\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n",
]
RESPONSES = [
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\nDate: x\r\n\r\n{}",
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"9\r\ndata: x\n\n\r\n0\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\n\r\n",
    b"HTTP/1.0 500\r\nConnection: keep-alive, x-b\r\nX-B: 1\r\n\r\noops",
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n"
    b"Sec-WebSocket-Accept: x\r\n\r\n\x81\x00",
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
]
BODIES = [
    b"5\r\nhello\r\n0\r\n\r\nnext",
    b'5;a="b\\"c";d\r\nhello\r\nA\r\n0123456789\r\n0;x\r\nX-Sum: 1\r\nX-Other: 2\r\n\r\n',
    b"7fffffffffffffff\r\nabc",
    b"0x5\r\nhello\r\n0\r\nContent-Length: 5\r\n\r\n",
    b"1\r\na\r\n" * 12 + b"00\r\n\r\n",
]
STREAMS = [
    b"data: x\n\nevent: error\ndata: y\n\n: hb\n\n",
    b"event:error\r\ndata: y\r\n\r\ndata: event: error\r\r",
    b"id: 1\r\rretry: 5\n\r\n\r",
]
LOADS = [
    b"TEXT cpu_utilization=0.3, mem_utilization=0.8, named_metrics.in_flight=3, utilization.gpu=1e-3",
    b"TEXT named_metrics.kv_cache_usage_perc: 0.98,named_metrics.num_requests_waiting:12.0, rps_fractional=7.",
    b'JSON {"cpuUtilization": 0.5, "rps": "12", "requestCost": {"tokens": 7}, "utilization": null, "eps": 1E+2}',
    b'{"named_metrics": {"memory": 17179869184, "cores": 8, "a.b/c": -0.0}, "mem_utilization": 1}',
    b"JSON " + b'{"named_metrics":' * 9 + b"{}" + b"}" * 9,
    b"BIN CZqZmZmZmbk/",
]
AGENTS = [
    b"ready up 75% maxconn:30\n",
    b"DOWN,drain\t0% # disk full, sorry\r\n",
    b"maint stopped 256% #\xc3\xbcbervoll\n",
    b"failed\r\nup\n",
]
#: What WebSocket clients send, masked with "mask": a text, a message in two frames around a ping, a binary message, a
#: close; lengths in all three forms; and a few that are refused.
SOCKETS = [
    b"\x81\x85mask\x05\x04\x1f\x07\x02",
    b"\x01\x81mask\x0c\x89\x80mask\x80\x82mask\xae\xc5\x8a\x81mask\x0c",
    b"\x82\xfe\x00\x7emask" + b"m" * 126 + b"\x88\x84mask\x6e\x89\x11\x12",
    b"\x82\xff\x00\x00\x00\x00\x00\x01\x00\x00mask" + bytes(60),
    b"\x88\x80mask\x81\x80mask",
    b"\x01\x80mask" + b"\x00\x80mask" * 9 + b"\x80\x80mask",
    b"\x81\x02hi\x81\x82mask\xff\xff",
]
FRAGMENTS = [
    *(
        b"\r\n",
        b"\r",
        b"\n",
        b"\r\n\r\n",
        b"\x00",
        b" ",
        b"\t",
        b":",
        b"0\r\n\r\n",
        b"\xff",
        b"%2f",
        b"%00",
        b"..",
        b"//",
        b"_",
        b";",
        b'"',
    ),
    *(
        b"Content-Length: 5\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Host: b\r\n",
        b"Connection: close\r\n",
        b" x\r\n",
        b"event: error",
    ),
    *(
        b"HTTP/1.1",
        b"ffffffffffffffff",
        b",",
        b"chunked",
        b"+",
        b"0x",
        b"A" * 130,
        b"X: y\r\n" * 9,
        b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n",
    ),
]

Trace = list[Any]
Reading = Callable[[Iterable[bytes]], Trace]


#: A new text wherever one of these stands: what changes between the heads of one connection.
CHANGING = (b"a.example", b"hello", b" 5", b"a=1", b"k\r\n", b" x", b"json", b"OK")


def facts(head: RequestHead | ResponseHead) -> dict[str, Any]:
    """Everything a head says, copied: a head may be brought up to date for the next message. `memo` is the shell's."""
    said = {name: getattr(head, name) for name in head.__slots__ if name != "memo"}
    for name in ("_lines", "forward"):
        said[name] = list(said[name])
    said["known"] = dict(said["known"])
    return said


def read_repeated(messages: Iterable[bytes]) -> Trace:
    """Heads of one connection, one after the other, read by one reader and each by a reader of its own: what was read
    before must make no difference. Each message is fed alone and what is behind its head dropped."""
    trace: Trace = []
    messages = list(messages)
    answers = messages[0].startswith(b"HTTP")
    reader: Any = ResponseReader if answers else RequestReader
    one = reader(Limits())
    for raw in messages:
        alone = reader(Limits())
        verdict, expected = _attempt(alone, raw)
        again, head = _attempt(one, raw)
        assert again == verdict, f"{verdict!r} alone, {again!r} in a row: {raw!r}"
        if verdict:
            trace.append(verdict)
            return trace
        if expected is None:
            assert head is None
            return trace
        assert head is not None
        assert facts(head) == facts(expected), raw
        assert one.rest == alone.rest
        trace.append(facts(head))
    return trace


def _attempt(reader: Any, raw: bytes) -> tuple[str, Any]:
    try:
        return "", reader.feed(raw)
    except Malformed as error:
        return _verdict(error, "endpoint" if isinstance(reader, ResponseReader) else "client"), None


def repeat(rng: random.Random, raw: bytes) -> list[bytes]:
    """A few messages that differ in values, the last perhaps in more."""
    messages = []
    for _ in range(rng.choice((2, 3, 4, 6))):
        changed = raw
        for word in CHANGING:
            if rng.random() < 0.3:
                changed = changed.replace(
                    word, word[:1] + rng.choice((b"7", b"x", b"12", b"a, b", word[1:])) + word[-2:].strip(b"k"), 1
                )
        messages.append(changed)
    if rng.random() < 0.5:
        messages.append(mutate(rng, messages[-1], REQUESTS))
    return messages


def read_requests(pieces: Iterable[bytes], limits: Limits = TIGHT) -> Trace:
    """Heads, bodies of finished messages, and the refusal, if any."""
    reader, chunked = RequestReader(limits), ChunkedReader(limits)
    trace: Trace = []
    head: RequestHead | None = None
    body, left = b"", 0
    try:
        for data in pieces:
            while True:
                if head is None:
                    head = reader.feed(data)
                    if head is None:
                        break
                    trace.append(facts(head))
                    trace.append(_check_request(head))
                    body, left, data = b"", head.length or 0, reader.rest
                    chunked.reset()
                if head.chunked:
                    body += b"".join(chunked.feed(data)) if data else b""
                    if not chunked.done:
                        break
                    data = chunked.rest
                else:
                    body, data, left = body + data[:left], data[left:], max(0, left - len(data))
                    if left:
                        break
                trace.append(body)
                head = None
                if not data:
                    break
    except Malformed as error:
        trace.append(_verdict(error, "client"))
    return trace


def _check_request(head: RequestHead) -> str:
    """What we would send on is one head, and says the same. The verdict over a WebSocket handshake."""
    verdict = ""
    if head.upgrade is not None:
        try:
            check_handshake(head, {"http://a"})
        except Malformed as error:
            verdict = _verdict(error, "client")
    raw = request_head(head.method, head.wire_target, head.authority or b"a", head.forward)
    again = RequestReader(Limits()).feed(raw)
    assert again is not None
    assert (again.method, again.path, again.query, again.forward) == (head.method, head.path, head.query, head.forward)
    assert again.length is None
    assert not again.chunked
    assert b"\x00" not in raw
    assert raw.count(b"\r\n") == raw.count(b"\r") == raw.count(b"\n") == len(head.forward) + 3
    return verdict


def read_responses(pieces: Iterable[bytes]) -> Trace:
    reader = ResponseReader(TIGHT)
    trace: Trace = []
    rest = b""
    head: ResponseHead | None = None
    try:
        for data in pieces:
            while head is None or head.status < 200:
                head = reader.feed(data)
                if head is None:
                    data = b""
                    break
                trace.append(facts(head))
                for method in ("GET", "HEAD"):
                    trace.append(head.body(method))
                again = ResponseReader(RESPONSE_LIMITS).feed(response_head(head.status, head.forward, head.reason))
                assert again is not None
                assert (again.forward, again.length, again.chunked) == (head.forward, None, False)
                data = reader.rest
                if not data:
                    break
            rest += data
        trace.append(rest)
    except Malformed as error:
        trace.append(_verdict(error, "endpoint"))
    return trace


def read_chunked(pieces: Iterable[bytes]) -> Trace:
    reader = ChunkedReader(TIGHT, "endpoint")
    payload = b""
    try:
        for data in pieces:
            for piece in reader.feed(data):
                assert piece
                payload += piece
    except Malformed as error:
        # How much was handed on before depends on the pieces; that it ends here does not.
        return [_verdict(error, "endpoint")]
    return [payload, reader.done, reader.rest]


def read_events(pieces: Iterable[bytes]) -> Trace:
    tracker = SseTracker()
    for data in pieces:
        tracker.feed(data)
    return [tracker.at_boundary, tracker.errors]


def read_load(pieces: Iterable[bytes]) -> Trace:
    try:
        figures = orca.parse(b"".join(pieces))
    except orca.BadLoad:
        return ["bad_load"]
    assert len(figures) <= orca.MOST_FIGURES
    if sum(map(len, figures)) < 2000:
        assert orca.parse(orca.to_text(figures).encode()) == figures
        assert orca.parse(orca.to_json(figures).encode()) == figures
    return [figures, orca.report(figures)]


def read_agent(pieces: Iterable[bytes]) -> Trace:
    try:
        state = agentcheck.parse(b"".join(pieces))
    except agentcheck.BadAgentReply:
        return ["bad_agent_reply"]
    line = agentcheck.render(state)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert agentcheck.parse(line) == state
    return [state]


def read_frames(pieces: Iterable[bytes]) -> Trace:
    reader = frames.FrameReader(frames.FrameLimits(message=150, fragments=8))
    trace: Trace = []
    for data in pieces:
        trace.extend(reader.feed(data))
    for event in trace:
        if isinstance(event, frames.Ping | frames.Pong):
            assert len(event.payload) <= frames.CONTROL
        elif isinstance(event, frames.Close | frames.Broken):
            assert event is trace[-1]
            assert reader.ended
            assert not reader.partial
            assert frames.close(event.code, event.reason)
        else:
            assert len(event.encode() if isinstance(event, str) else event) <= 150
    if trace and isinstance(trace[-1], frames.Broken):
        trace.append(f"close_{trace[-1].code}")
    return trace


def _verdict(error: Malformed, side: str) -> str:
    assert error.reason in REASONS
    assert error.side == side
    assert 400 <= error.status < 600
    return error.reason


KINDS: list[tuple[Reading, list[bytes]]] = [
    (read_requests, REQUESTS),
    (read_requests, REQUESTS),
    (read_responses, RESPONSES),
    (read_chunked, BODIES),
    (read_events, STREAMS),
    (read_repeated, REQUESTS),
    (read_repeated, RESPONSES),
    (read_load, LOADS),
    (read_agent, AGENTS),
    (read_frames, SOCKETS),
]
#: What is told apart in the count: reasons, and the errors of codecs that have no more than one.
VERDICTS = {*REASONS, "bad_load", "bad_agent_reply", "close_1002", "close_1007", "close_1009"}


def mutate(rng: random.Random, raw: bytes, others: list[bytes]) -> bytes:
    data = bytearray(raw)
    for _ in range(rng.choice((0, 1, 1, 1, 2, 2, 3, 5))):
        at = rng.randrange(len(data) + 1)
        what = rng.randrange(7)
        if what == 0 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif what == 1 and at < len(data):
            data[at] = rng.randrange(256)
        elif what == 2:
            del data[at : at + rng.choice((1, 1, 2, 8, 40))]
        elif what == 3:
            data[at:at] = rng.choice(FRAGMENTS)
        elif what == 4:
            other = rng.choice(others)
            start = rng.randrange(len(other))
            data[at:at] = other[start : start + rng.choice((4, 16, 64))]
        elif what == 5:
            start = rng.randrange(len(data) + 1)
            data[at:at] = data[start : start + rng.choice((1, 8, 30))]
        else:
            data[at:at] = rng.randbytes(rng.choice((1, 2, 5)))
    return bytes(data)


def pieces_of(rng: random.Random, raw: bytes) -> list[bytes]:
    if rng.random() < 0.1:
        return [raw[at : at + 1] for at in range(len(raw))]
    places = sorted(rng.randrange(len(raw) + 1) for _ in range(rng.choice((1, 1, 2, 5))))
    return [raw[start:end] for start, end in zip([0, *places], [*places, len(raw)], strict=True)]


def fuzz(inputs: int, seed: int, seconds: float | None = None) -> Counter[str]:
    """Runs and counts verdicts. AssertionError, or whatever a codec raised, on a finding."""
    rng = random.Random(seed)
    verdicts: Counter[str] = Counter()
    end = None if seconds is None else time.monotonic() + seconds
    done = 0
    while done < inputs:
        if done % 1000 == 0:
            faulthandler.dump_traceback_later(10, exit=True)
            if end is not None and time.monotonic() >= end:
                break
        read, corpus = rng.choice(KINDS)
        raw = mutate(rng, rng.choice(corpus), corpus)
        pieces = repeat(rng, raw) if read is read_repeated else pieces_of(rng, raw)
        try:
            whole = read(pieces if read is read_repeated else [raw])
            split = whole if read is read_repeated else read(pieces)
            assert whole == split, f"pieces read differently: {whole} != {split}"
        except BaseException:
            print(f"seed {seed}, input {done}, {read.__name__}: {raw!r}\nin pieces {pieces!r}", flush=True)
            raise
        done += 1
        reasons = [step for step in whole if isinstance(step, str) and step in VERDICTS]
        verdicts[reasons[-1] if reasons else "read"] += 1
    faulthandler.cancel_dump_traceback_later()
    return verdicts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=None, help="stop after this long")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    started = time.monotonic()
    verdicts = fuzz(options.inputs, options.seed, options.seconds)
    total = sum(verdicts.values())
    print(f"{total:,} inputs in {time.monotonic() - started:.0f} s, seed {options.seed}: no finding")
    for verdict, count in verdicts.most_common():
        print(f"{count:>10,}  {verdict}")
    wire_only = set(REASONS) - {"head_timeout", "body_timeout", "body_too_large", "unasked_101"}
    print("never seen:", ", ".join(sorted(wire_only - set(verdicts))) or "none")


if __name__ == "__main__":
    main()
