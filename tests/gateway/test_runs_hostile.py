"""What clients of runs get by asking in odd ways, or by going on after they lost the right to."""

from __future__ import annotations

from .durable import Api, runs_gateway
from .harness import in_loop


@in_loop
async def test_a_head_of_a_stream_is_answered_without_a_body() -> None:
    """What came behind the head would be taken for the next answer, by a proxy perhaps for somebody else's."""
    async with runs_gateway() as running:
        api = await Api.connect(running)
        run = await api.create()
        for path in (f"/v1/responses/resp_{run['id'][4:]}?stream=true", f"/v1/runs/{run['id']}/events"):
            await api.wire.send(f"HEAD {path} HTTP/1.1\r\nHost: t\r\nAccept: text/event-stream\r\n\r\n".encode())
            answer = await api.wire.answer("HEAD")
            assert (answer.status, answer.header("content-type"), answer.body) == (200, "text/event-stream", b"")
        status, found = await api.call("GET", f"/v1/runs/{run['id']}")
        assert (status, found["status"]) == (200, "queued")
        assert running.server.gateway.stats.held == 0
