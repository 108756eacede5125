"""`kill -9` of a real endpoint process: the client can tell, the outcome says so, the lease is gone."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest

from unjam.core.model import Outcome

from ..gateway.harness import PATIENCE, Agent, Answer, Wire, gateway, in_loop
from ..gateway.processes import process

ENDPOINT = str(Path(__file__).with_name("endpoint.py"))


@pytest.mark.parametrize("kind", ["length", "chunked", "events", "closing"])
@pytest.mark.parametrize("version", ["1.1", "1.0"])
@in_loop
async def test_an_endpoint_killed_in_its_answer(kind: str, version: str) -> None:
    async with process(ENDPOINT, kind) as endpoint:
        port = (await endpoint.says(r"port (\d+)")).group(1)
        config = f"services: {{a: {{versions: {{v: {{endpoints: ['http://127.0.0.1:{port}']}}}}}}}}"
        async with gateway(config=config) as gw:
            reader, writer = await asyncio.open_connection("127.0.0.1", gw.port)
            writer.write(f"GET / HTTP/{version}\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            data = await reader.readuntil(b"2\n")
            assert gw.leases == 1
            endpoint.send(signal.SIGKILL)
            reset = False
            try:
                while more := await asyncio.wait_for(reader.read(65536), PATIENCE):
                    data += more
            except ConnectionResetError:
                reset = True
            writer.close()
            head, _, body = data.partition(b"\r\n\r\n")
            await gw.settled()
            assert gw.leases == 0
            outcomes = gw.gateway.stats.service("a").lane(False).outcomes
            if kind == "closing":
                # Its kernel closes it as a finished one would be: nothing tells this death from an end.
                assert outcomes[Outcome.OK] + outcomes[Outcome.TRUNCATED] == 1
                return
            assert outcomes[Outcome.TRUNCATED] == 1
            if kind == "events":
                assert b"event: error\ndata: {" in body
            if b"transfer-encoding: chunked" in head.lower():
                assert not body.endswith(b"0\r\n\r\n")
            elif b"content-length" in head.lower():
                assert len(body) < 1_000_000
            elif kind != "events":
                assert reset


@in_loop
async def test_an_endpoint_killed_before_its_answer_is_replaced_where_that_is_safe() -> None:
    other = await Agent().start()
    async with process(ENDPOINT, "silent") as endpoint:
        port = (await endpoint.says(r"port (\d+)")).group(1)
        config = (
            "services: {a: {policy: round_robin, versions: {v: {endpoints: "
            f"['http://127.0.0.1:{port}', '{other.url}']}}}}}}}}"
        )
        async with gateway(other, config=config) as gw:
            get, post = await gw.connect(), await gw.connect()
            url = f"http://127.0.0.1:{port}"

            async def land(wire: Wire, method: str, count: int) -> asyncio.Task[Answer]:
                """Ask until the request is at the endpoint that will die."""
                while True:
                    await wire.send(f"{method} / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi".encode())
                    answer = asyncio.create_task(wire.answer(method))
                    while gw.endpoint(url).inflight < count:
                        if answer.done():
                            break
                        await asyncio.sleep(0.002)
                    else:
                        return answer

            getting = await land(get, "GET", 1)
            posting = await land(post, "POST", 2)
            await endpoint.says("began.*\n(.*\n)*began")
            endpoint.send(signal.SIGKILL)
            assert (await getting).status == 200
            answer = await posting
            assert answer.status == 502
            assert b"endpoint_lost" in answer.body
            await gw.settled()
            assert gw.leases == 0


@in_loop
async def test_a_gateway_is_not_hurt_by_an_endpoint_that_comes_and_goes() -> None:
    """Killed and started anew on the same port, three times: its requests fail while it is away, then succeed."""
    agent = await Agent().start()
    port = agent.port
    spec = f"breaker: off, ejection: {{failures: 1000}}, retry: off, versions: {{v: {{endpoints: ['{agent.url}']}}}}"
    config = f"services: {{a: {{{spec}}}}}"
    async with gateway(agent, config=config) as gw:
        wire = await gw.connect()
        for _ in range(3):
            assert (await wire.get()).status == 200
            await agent.stop()
            async with asyncio.timeout(PATIENCE):
                while (await wire.get()).status != 502:
                    pass
            await agent.start(port=port)
            async with asyncio.timeout(PATIENCE):
                while (await wire.get()).status != 200:
                    await asyncio.sleep(0.01)
        assert gw.leases == 0
