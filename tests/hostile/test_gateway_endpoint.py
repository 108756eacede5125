"""Hostile input 31 to 40: endpoints that refuse, die, lie or overstay, and clients that leave, in every phase."""

# ruff: noqa: E501, UP031

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from structlog.testing import capture_logs

from unjam.telemetry.accesslog import AccessLog

from ..gateway.harness import PATIENCE, Agent, Call, Running, answers_ok, gateway, in_loop, until_gone

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


async def reaches(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.002)


def outcomes(gw: Running, service: str = "default") -> dict[str, int]:
    """Outcomes that have happened, both lanes."""
    stats = gw.gateway.stats.service(service)
    both = {str(o): n + stats.lane(True).outcomes[o] for o, n in stats.lane(False).outcomes.items()}
    return {name: count for name, count in both.items() if count}


@contextmanager
def nobody() -> Iterator[str]:
    """The URL of a port on which nobody listens."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{held.getsockname()[1]}"


@contextmanager
def deaf() -> Iterator[str]:
    """The URL of a port that never completes a handshake: its backlog is full."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        fillers = []
        for _ in range(4):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
            fillers.append(filler)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            for filler in fillers:
                filler.close()


def two(first: str, second: str, more: str = "") -> str:
    """Two endpoints tried in order: the first has all the weight that round robin gives to one that is free."""
    return f"services: {{default: {{policy: round_robin, {more} versions: {{v1: {{endpoints: ['{first}', '{second}']}}}}}}}}"


@in_loop
async def test_31_a_refused_connection_goes_to_the_next_endpoint() -> None:
    agent = await Agent().start()
    with nobody() as dead:
        async with gateway(agent, config=two(dead, agent.url)) as gw:
            wire = await gw.connect()
            for _ in range(4):
                assert (await wire.post(body=b"not idempotent, and nothing was sent")).status == 200
            assert len(agent.requests) == 4
            assert gw.gateway.stats.service("default").retries >= 1
            assert outcomes(gw) == {"ok": 4}


@in_loop
async def test_31_when_all_refuse_the_answer_is_502() -> None:
    with nobody() as dead, nobody() as gone:
        async with gateway(config=two(dead, gone)) as gw:
            wire = await gw.connect()
            answer = await wire.get()
            assert answer.status == 502
            assert b"connect_failed" in answer.body
            assert gw.leases == 0
            assert (await wire.get()).status in (502, 503)  # the connection goes on; the endpoints may be ejected


@in_loop
async def test_31_a_connection_that_times_out_is_504() -> None:
    with deaf() as url:
        config = f"services: {{default: {{lanes: {{fast: {{connect: 300ms}}}}, versions: {{v1: {{endpoints: ['{url}']}}}}}}}}"
        async with gateway(config=config) as gw:
            wire = await gw.connect()
            answer = await wire.get()
            assert answer.status == 504
            assert b"connect_timeout" in answer.body
            assert outcomes(gw) == {"timeout": 1}
            assert gw.leases == 0


@in_loop
async def test_31_an_endpoint_that_accepts_and_closes_at_once_hangs_nobody() -> None:
    def slam(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    server = await asyncio.start_server(slam, "127.0.0.1", 0)
    url = "http://127.0.0.1:%d" % server.sockets[0].getsockname()[1]
    config = f"services: {{default: {{retry: off, versions: {{v1: {{endpoints: ['{url}']}}}}}}}}"
    async with gateway(config=config) as gw:
        for _ in range(20):
            wire = await gw.connect()
            answer = await asyncio.wait_for(wire.post(), 20)
            assert answer.status in (502, 503)
        assert gw.leases == 0
    server.close()


class Dropping:
    """Answers a first request on each connection and hangs up on the next without a word."""

    def __init__(self) -> None:
        self.seen: list[Call] = []
        self.used: set[Any] = set()

    async def __call__(self, call: Call) -> None:
        if call.writer in self.used:
            call.abort()
            return
        self.used.add(call.writer)
        self.seen.append(call)
        await call.answer()


@in_loop
async def test_32_a_reused_connection_that_dies_is_retried_when_that_is_safe() -> None:
    async with gateway(agent := Agent(Dropping())) as gw:
        wire = await gw.connect()
        for _ in range(4):
            assert (await wire.get()).status == 200
        assert gw.gateway.stats.service("default").retries == 3
        assert agent.connections == 4
        # Its connections die, but it answers: no failure of its own.
        assert outcomes(gw) == {"ok": 4}
        assert gw.endpoint(agent.url).failures == 0


@in_loop
async def test_32_a_post_on_a_reused_connection_that_dies_is_not_sent_again_unless_it_says_so() -> None:
    async with gateway(agent := Agent(Dropping())) as gw:
        wire = await gw.connect()
        assert (await wire.post()).status == 200
        answer = await wire.post()
        assert answer.status == 502
        assert b"Idempotency-Key" in answer.body
        assert len(agent.requests) == 2  # as often as it was sent
        assert (await wire.post()).status == 200
        assert (await wire.post(headers="Idempotency-Key: 1\r\n")).status == 200
        assert len(agent.requests) == 5


@in_loop
async def test_32_an_idle_connection_that_its_endpoint_closed_is_not_used() -> None:
    async def once(call: Call) -> None:
        await call.answer()
        call.writer.close()

    async with gateway(agent := Agent(once)) as gw:
        wire = await gw.connect()
        for _ in range(20):
            assert (await wire.post()).status == 200  # a POST: it would not be retried
        assert agent.connections == 20
        await reaches(lambda: gw.endpoint(agent.url).shell.connections == 0)
        assert gw.endpoint(agent.url).shell.idle == []


BAD_ANSWERS = [
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\nX-A: a\rb\r\n\r\n",
    b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
    b"HTTP/1.1 200 OK\r\n folded: x\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nBad Name: x\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nX: a\x00b\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 99 X\r\n\r\n",
    b"HTTP/1.1 1000 X\r\n\r\n",
    b"SSH-2.0-OpenSSH_9.6\r\n",
    b"\x15\x03\x01\x00\x02\x02\x0a",
    b"hello\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nX: " + b"a" * 70_000 + b"\r\n\r\n",
]


@in_loop
async def test_33_a_malformed_answer_is_502_and_its_connection_is_not_used_again() -> None:
    bad = iter(BAD_ANSWERS)

    async def malformed(call: Call) -> None:
        await call.write(next(bad))
        await until_gone(call)

    config = {"breaker": "off", "ejection": {"failures": 1000}}
    async with gateway(agent := Agent(malformed), **config) as gw:
        wire = await gw.connect()
        with capture_logs() as lines:
            for number, raw in enumerate(BAD_ANSWERS, 1):
                answer = await asyncio.wait_for(wire.get(), 20)
                assert answer.status == 502, raw[:60]
                assert agent.connections == number
        assert gw.gateway.stats.upstream_reuses == 0
        assert outcomes(gw) == {"server_error": len(BAD_ANSWERS)}
        assert len([line for line in lines if line["event"] == "bad_answer"]) == len(BAD_ANSWERS)
        assert "OpenSSH" not in str(lines)


@in_loop
async def test_33_malformed_chunks_in_the_middle_are_a_cut() -> None:
    async def broken(call: Call) -> None:
        await call.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
        await asyncio.sleep(0.02)  # in a read of its own
        await call.write(b"zz\r\nhello\r\n0\r\n\r\n")
        await until_gone(call)

    async with gateway(agent := Agent(broken)) as gw:
        wire = await gw.connect()
        answer = await wire.get()
        assert (answer.body[:5], answer.whole) == (b"hello", False)
        assert await wire.closed() == b""
        await gw.settled()
        assert outcomes(gw) == {"truncated": 1}
        assert gw.endpoint(agent.url).shell.idle == []


DEATHS = {
    "length": b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf",
    "chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
    "in a chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n64\r\nhalf",
    "closing": b"HTTP/1.1 200 OK\r\n\r\nhalf",
}


@pytest.mark.parametrize("framing", DEATHS)
@pytest.mark.parametrize("version", ["1.1", "1.0"])
@in_loop
async def test_34_dying_in_the_middle_leaves_no_clean_end(framing: str, version: str) -> None:
    async def dies(call: Call) -> None:
        await call.write(DEATHS[framing])
        await asyncio.sleep(0.02)
        sock = call.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        call.abort()  # a reset, as of a killed process with unread input

    async with gateway(agent := Agent(dies)) as gw:
        reader, writer = await asyncio.open_connection("127.0.0.1", gw.port)
        writer.write(GET.replace(b"1.1", version.encode()))
        data = b""
        reset = False
        try:
            while more := await asyncio.wait_for(reader.read(65536), PATIENCE):
                data += more
        except ConnectionResetError:
            reset = True
        writer.close()
        head, _, body = data.partition(b"\r\n\r\n")
        assert b"half" in body
        if b"Transfer-Encoding: chunked" in head:
            assert not body.endswith(b"0\r\n\r\n")
        elif b"Content-Length" in head:
            assert len(body) < 100
        else:
            assert reset, "a body that ends with the connection must not seem to end"
        await gw.settled()
        assert outcomes(gw) == {"truncated": 1}
        assert gw.leases == 0
        assert gw.endpoint(agent.url).inflight == 0


@in_loop
async def test_34_dying_within_an_event_ends_that_line_then_says_error() -> None:
    async def dies(call: Call) -> None:
        await call.start_events()
        await call.chunk(b"data: one\n\ndata: ha")
        call.abort()

    async with gateway(Agent(dies)) as gw:
        answer = await (await gw.connect()).get()
        assert answer.body.startswith(b"data: one\n\ndata: ha\n\nevent: error\ndata: {")
        assert not answer.whole
        await gw.settled()
        assert outcomes(gw) == {"truncated": 1}
        assert gw.gateway.stats.held == 0


@in_loop
async def test_34_an_http_1_0_client_of_a_stream_gets_the_error_event() -> None:
    async def dies(call: Call) -> None:
        await call.start_events()
        await call.chunk(b"data: one\n\n")
        call.abort()

    async with gateway(Agent(dies)) as gw:
        wire = await gw.connect()
        await wire.send(b"GET / HTTP/1.0\r\n\r\n")
        data = await wire.closed()
        assert b"data: one\n\nevent: error\ndata: {" in data
        await gw.settled()
        assert outcomes(gw) == {"truncated": 1}


@in_loop
async def test_35_bytes_after_an_answer_are_dropped_with_their_connection() -> None:
    async def poisons(call: Call) -> None:
        await call.write(
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"
        )

    async def poisons_later(call: Call) -> None:
        await call.answer()
        await asyncio.sleep(0.01)
        await call.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")

    async def poisons_head(call: Call) -> None:
        await call.write(b"HTTP/1.1 204 No Content\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")

    async def poisons_chunked(call: Call) -> None:
        await call.write(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\nHTTP/1.1 200 evil\r\n\r\n"
        )

    for behaviour in (poisons, poisons_later, poisons_head, poisons_chunked):
        async with gateway(agent := Agent(behaviour)) as gw:
            for _ in range(5):
                answer = await (await gw.connect()).get()
                assert (answer.status, answer.body) in ((200, b"ok"), (204, b""))
                if behaviour is poisons_later:
                    shell = gw.endpoint(agent.url).shell
                    await reaches(lambda shell=shell: not shell.connections)  # type: ignore[misc]
            assert agent.connections == 5
            assert gw.gateway.stats.upstream_reuses == 0
            assert gw.gateway.stats.upstream_discarded == 5


@in_loop
async def test_36_a_101_nobody_asked_for_is_502() -> None:
    async def switches(call: Call) -> None:
        await call.write(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\nGET / HTTP/1.1\r\n\r\n"
        )
        await until_gone(call)

    async with gateway(agent := Agent(switches), breaker="off") as gw:
        wire = await gw.connect()
        for headers in (
            "",
            "Connection: upgrade\r\nUpgrade: x\r\n",
            "Connection: upgrade, http2-settings\r\nUpgrade: h2c\r\n",
        ):
            answer = await wire.get(headers=headers)
            assert answer.status == 502
            assert b"unasked_101" in answer.body
        assert all(seen.header("upgrade") is None for seen in agent.requests)


@in_loop
async def test_36_other_interim_answers_are_relayed() -> None:
    async def hints(call: Call) -> None:
        await call.write(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>; rel=preload\r\n\r\n")
        await call.write(b"HTTP/1.1 103 Early Hints\r\nLink: </b>\r\n\r\n")
        await call.answer()

    async with gateway(Agent(hints)) as gw:
        wire = await gw.connect()
        await wire.send(GET)
        interim: list[int] = []
        assert (await wire.answer(interim=interim)).status == 200
        assert interim == [103, 103]
        await wire.send(b"GET / HTTP/1.0\r\n\r\n")
        interim = []
        assert (await wire.answer(interim=interim)).status == 200
        assert interim == []


@in_loop
async def test_37_fields_named_by_connection_end_here_in_both_directions() -> None:
    async def hops(call: Call) -> None:
        await call.answer(
            headers="Connection: X-Hop, keep-alive\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nProxy-Authenticate: x\r\nX-End: 2\r\n"
        )

    async with gateway(agent := Agent(hops)) as gw:
        answer = await (await gw.connect()).get(
            headers="Connection: x-private, close\r\nX-Private: 1\r\nTE: trailers\r\nProxy-Authorization: x\r\nX-Kept: 2\r\n"
        )
        (seen,) = agent.requests
        assert seen.header("x-kept") == "2"
        for name in ("x-private", "te", "proxy-authorization", "connection", "keep-alive"):
            assert seen.header(name) is None, name
        assert answer.header("x-end") == "2"
        for name in ("x-hop", "keep-alive", "proxy-authenticate"):
            assert answer.header(name) is None, name


@in_loop
async def test_37_a_connection_field_strips_nothing_that_the_gateway_says_or_reads() -> None:
    async with gateway(agent := Agent()) as gw:
        await (await gw.connect()).get(
            headers="Connection: host, x-forwarded-for, x-forwarded-host, x-request-id, content-length, authorization\r\n"
            "Authorization: Bearer x\r\n"
        )
        (seen,) = agent.requests
        assert seen.header("x-forwarded-for") == "127.0.0.1"
        assert seen.header("x-forwarded-host") == "test"
        assert seen.header("host") == f"127.0.0.1:{agent.port}"
        assert seen.header("x-request-id")


CLAIMS = (
    "X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: evil\r\nForwarded: for=6.6.6.6\r\n"
    "X-Real-IP: 6.6.6.6\r\n"
)


@in_loop
async def test_38_forwarded_fields_of_strangers_are_overwritten() -> None:
    async with gateway(agent := Agent()) as gw:
        await (await gw.connect()).get(headers=CLAIMS)
        (seen,) = agent.requests
        assert seen.header("x-forwarded-for") == "127.0.0.1"
        assert seen.header("x-forwarded-proto") == "http"
        assert seen.header("x-forwarded-host") == "test"
        assert "6.6.6.6" not in str(seen.headers)
        assert "evil" not in str(seen.headers)


@in_loop
async def test_38_forwarded_fields_of_trusted_proxies_are_extended() -> None:
    async with gateway(agent := Agent(), trusted_proxies=["127.0.0.0/8"]) as gw:
        wire = await gw.connect()
        await wire.get(headers=CLAIMS)
        await wire.get(headers="X-Forwarded-For: 7.7.7.7\r\n")
        first, second = agent.requests
        assert first.header("x-forwarded-for") == "6.6.6.6, 127.0.0.1"
        assert first.header("x-forwarded-proto") == "https"
        assert first.header("x-forwarded-host") == "evil"
        assert second.header("x-forwarded-for") == "7.7.7.7, 127.0.0.1"
        assert second.header("x-forwarded-host") == "test"


def access_lines(path: Path) -> list[dict[str, Any]]:
    return [msgspec.json.decode(line) for line in path.read_bytes().splitlines()]


@in_loop
async def test_39_a_client_that_leaves_while_queued_is_forgotten(tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    agent = await Agent(until_gone).start()
    config = f"services: {{default: {{versions: {{v1: {{endpoints: [{{url: '{agent.url}', slots: 1}}]}}}}}}}}\n"
    async with gateway(agent, config=config) as gw:
        gw.gateway.access_log = AccessLog(str(log), stats=gw.gateway.stats)
        busy = await gw.connect()
        await busy.send(GET)
        await agent.calls.get()
        wires = [await gw.connect() for _ in range(5)]
        for wire in wires:
            await wire.send(GET)
        await reaches(lambda: len([c for c in gw.gateway.clients if c.exchange]) == 6)
        for wire in wires:
            wire.reset()
        await reaches(lambda: len(gw.gateway.clients) == 1)
        assert gw.leases == 1
        assert gw.gateway.stats.service("default").queue_cancelled == 5
        gw.gateway.access_log.flush()
        assert [line["status"] for line in access_lines(log)] == [499] * 5
        busy.reset()
        await gw.settled()
        assert len(agent.requests) == 1


@in_loop
async def test_39_a_client_that_leaves_while_connecting_frees_its_slot_once() -> None:
    with deaf() as url:
        config = f"services: {{default: {{versions: {{v1: {{endpoints: [{{url: '{url}', slots: 1}}]}}}}}}}}"
        async with gateway(config=config) as gw:
            wire = await gw.connect()
            await wire.send(GET)
            await reaches(lambda: gw.leases == 1)
            wire.reset()
            await gw.settled()
            assert outcomes(gw) == {"cancelled": 1}
            assert gw.endpoint(url).inflight == 0


@in_loop
async def test_39_a_client_that_leaves_while_waiting_cancels_the_endpoint(tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    async with gateway(agent := Agent(until_gone), access_log=str(log)) as gw:
        wire = await gw.connect()
        await wire.send(GET)
        call = await agent.calls.get()
        wire.reset()
        await asyncio.wait_for(call.gone.wait(), PATIENCE)
        await gw.settled()
        gw.gateway.access_log.flush()
        (line,) = access_lines(log)
        assert (line["status"], line["outcome"]) == (499, "cancelled")


@in_loop
async def test_39_a_client_that_leaves_while_relaying_cancels_the_endpoint(tmp_path: Path) -> None:
    log = tmp_path / "access.log"

    async def streams(call: Call) -> None:
        await call.start_events()
        await call.chunk(b"data: 1\n\n")
        await until_gone(call)

    async with gateway(agent := Agent(streams), access_log=str(log)) as gw:
        wire = await gw.connect()
        await wire.send(GET)
        await wire.reader.readuntil(b"data: 1\n\n")
        call = await agent.calls.get()
        wire.reset()
        await asyncio.wait_for(call.gone.wait(), PATIENCE)
        await gw.settled()
        assert gw.gateway.stats.held == 0
        gw.gateway.access_log.flush()
        (line,) = access_lines(log)
        assert (line["status"], line["outcome"]) == (499, "cancelled")


@in_loop
async def test_39_a_client_that_leaves_while_uploading_cancels_the_endpoint() -> None:
    async with gateway(agent := Agent()) as gw:
        wire = await gw.connect()
        await wire.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\npart")
        await reaches(lambda: gw.gateway.stats.upstream_connects == 1)
        wire.reset()
        assert (await asyncio.wait_for(agent.lost.get(), PATIENCE)).body == b"part"
        await gw.settled()
        assert agent.requests == []
        assert outcomes(gw) == {"cancelled": 1}


@in_loop
async def test_39_a_client_that_closes_its_sending_side_has_left() -> None:
    """A FIN is all that a killed client sends: an agent must not work on for an hour for nobody."""
    async with gateway(agent := Agent(until_gone)) as gw:
        wire = await gw.connect()
        await wire.send(GET)
        call = await agent.calls.get()
        wire.writer.write_eof()
        await asyncio.wait_for(call.gone.wait(), PATIENCE)
        await gw.settled()
        assert outcomes(gw) == {"cancelled": 1}


@in_loop
async def test_39_the_slot_of_a_client_that_left_goes_to_who_waits() -> None:
    behaviours = {"/hold": until_gone, "/next": answers_ok}

    async def by_path(call: Call) -> None:
        await behaviours[call.seen.target](call)

    agent = await Agent(by_path).start()
    config = f"services: {{default: {{versions: {{v1: {{endpoints: [{{url: '{agent.url}', slots: 1}}]}}}}}}}}"
    async with gateway(agent, config=config) as gw:
        first, second = await gw.connect(), await gw.connect()
        await first.send(GET.replace(b"/ ", b"/hold "))
        await agent.calls.get()
        await second.send(GET.replace(b"/ ", b"/next "))
        await reaches(lambda: len([c for c in gw.gateway.clients if c.exchange]) == 2)
        first.reset()
        assert (await second.answer()).status == 200
        assert gw.leases == 0


@in_loop
async def test_40_redirects_are_passed_on_never_followed() -> None:
    async def elsewhere(call: Call) -> None:
        await call.answer(status=302, headers="Location: http://169.254.169.254/latest\r\nRefresh: 0; url=//x\r\n")

    async with gateway(agent := Agent(elsewhere)) as gw:
        answer = await (await gw.connect()).get()
        assert (answer.status, answer.header("location")) == (302, "http://169.254.169.254/latest")
        assert len(agent.requests) == 1


@in_loop
async def test_40_line_ends_in_a_redirect_are_refused() -> None:
    async def splits(call: Call) -> None:
        await call.write(b"HTTP/1.1 302 Found\r\nLocation: /a\rSet-Cookie: x\r\nContent-Length: 0\r\n\r\n")
        await until_gone(call)

    async with gateway(Agent(splits)) as gw:
        answer = await (await gw.connect()).get()
        assert answer.status == 502
        assert answer.header("location") is None


@in_loop
async def test_33_an_answer_before_the_body_is_sent_reaches_the_client() -> None:
    async def early(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(early, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    config = f"services: {{default: {{versions: {{v1: {{endpoints: ['http://127.0.0.1:{port}']}}}}}}}}"
    async with gateway(config=config) as gw:
        for _ in range(20):
            wire = await gw.connect()
            wire.writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3000000\r\n\r\n" + b"x" * 3_000_000)
            answer = await wire.answer("POST")
            assert (answer.status, answer.body, answer.whole) == (413, b"no", True)
            wire.reset()
        await gw.settled()
        assert outcomes(gw) == {"client_error": 20}
    server.close()
