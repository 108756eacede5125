"""Clients that people really use: the openai SDK, httpx, curl, websockets, a browser's EventSource by its rules."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest
from benchmarks.common.procs import free_port
from openai import AsyncOpenAI, AuthenticationError, NotFoundError, RateLimitError

from .harness import Agent, Call, gateway, in_loop, until_gone
from .processes import process

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
MODEL = "harbour-1"
ASK = [{"role": "user", "content": "Tell me of ships"}]


def chat_config(url: str, more: str = "", keys: str = "") -> str:
    return f"{keys}services: {{chat: {{dialect: openai, {more} versions: {{v1: {{endpoints: [{{url: '{url}'}}]}}}}}}}}"


async def answering(port: int) -> None:
    async with asyncio.timeout(20):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.05)
                continue
            writer.close()
            return


@in_loop
async def test_the_openai_sdk_streams_and_does_not_through_the_gateway() -> None:
    port = free_port()
    async with process(str(EXAMPLES / "chat.py"), "--port", str(port), "--pace", "0.001", cwd=EXAMPLES):
        await answering(port)
        config = chat_config(f"http://127.0.0.1:{port}", "inspect: body,")
        async with (
            gateway(config=config) as gw,
            AsyncOpenAI(base_url=f"http://127.0.0.1:{gw.port}/v1", api_key="unused", max_retries=0) as client,
        ):
            whole = await client.chat.completions.create(model=MODEL, messages=ASK, seed=3)  # type: ignore[call-overload]
            said = ""
            usage = None
            stream = await client.chat.completions.create(  # type: ignore[call-overload]
                model=MODEL, messages=ASK, seed=3, stream=True, stream_options={"include_usage": True}
            )
            async for chunk in stream:
                usage = chunk.usage or usage
                for choice in chunk.choices:
                    said += choice.delta.content or ""
            assert said == whole.choices[0].message.content
            assert usage is not None
            assert usage.total_tokens == whole.usage.total_tokens
            assert [model.id async for model in client.models.list()] == [MODEL]
            with pytest.raises(NotFoundError):
                await client.chat.completions.create(model="other", messages=ASK)  # type: ignore[arg-type]
            results = await asyncio.gather(
                *(client.chat.completions.create(model=MODEL, messages=ASK, seed=n) for n in range(8))  # type: ignore[call-overload]
            )
            assert len({result.choices[0].message.content for result in results}) > 1
            await gw.settled()
            assert gw.gateway.stats.held == 0
            assert gw.gateway.stats.service("chat").total == 12


@in_loop
async def test_the_openai_sdk_understands_our_errors() -> None:
    agent = await Agent(until_gone).start()
    keys = "keys: [{hash: 'sha256:2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b', tenant: t}]\n"
    config = chat_config(agent.url, "queue: {max: 2, tenant_share: 50%},", keys).replace("}]}}}}", ", slots: 1}]}}}}")
    async with gateway(agent, config=config) as gw:
        base = f"http://127.0.0.1:{gw.port}/v1"
        async with AsyncOpenAI(base_url=base, api_key="wrong", max_retries=0) as client:
            with pytest.raises(AuthenticationError) as refused:
                await client.chat.completions.create(model=MODEL, messages=ASK)  # type: ignore[arg-type]
            assert refused.value.code == "unauthorized"
        async with AsyncOpenAI(base_url=base, api_key="secret", max_retries=0) as client:
            waiting = [
                asyncio.create_task(client.chat.completions.create(model=MODEL, messages=ASK))  # type: ignore[arg-type]
                for _ in range(6)
            ]
            done, left = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            errors = [task.exception() for task in done]
            assert all(isinstance(error, RateLimitError) or getattr(error, "status_code", 0) == 503 for error in errors)
            assert all(int(error.response.headers["retry-after"]) > 0 for error in errors)  # type: ignore[union-attr]
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)
        await gw.settled()  # cancelled calls reach the endpoint and free their places


async def ships(call: Call) -> None:
    await call.start_events()
    for number in range(3):
        await call.chunk(b"id: %d\ndata: ship %d\n\n" % (number, number))
    await call.last_chunk()


@in_loop
async def test_httpx_pools_posts_and_streams() -> None:
    async def by_path(call: Call) -> None:
        await (ships(call) if call.seen.target == "/events" else call.answer(call.seen.body))

    async with gateway(Agent(by_path)) as gw, httpx.AsyncClient(base_url=f"http://127.0.0.1:{gw.port}") as client:
        answers = await asyncio.gather(*(client.post("/", content=b"%d" % n) for n in range(50)))
        assert [answer.content for answer in answers] == [b"%d" % n for n in range(50)]

        async def pieces() -> object:
            for n in range(5):
                yield b"piece %d " % n

        assert (await client.post("/", content=pieces())).content == b"".join(b"piece %d " % n for n in range(5))
        async with client.stream("GET", "/events") as stream:
            lines = [line async for line in stream.aiter_lines() if line.startswith("data:")]
        assert lines == [f"data: ship {n}" for n in range(3)]
        assert gw.leases == 0


async def curl(*arguments: str) -> tuple[int, str]:
    child = await asyncio.create_subprocess_exec(
        "curl", "-sS", *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    said, _ = await asyncio.wait_for(child.communicate(), 20)
    return child.returncode or 0, said.decode("utf-8", "replace")


@in_loop
async def test_curl_uploads_with_100_continue_and_sees_a_cut(tmp_path: Path) -> None:
    async def by_path(call: Call) -> None:
        match call.seen.target:
            case "/events":
                await ships(call)
            case "/dies":
                await call.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
                call.abort()
            case "/dies-chunked":
                await call.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n")
                call.abort()
            case _:
                await call.answer(b"%d bytes" % len(call.seen.body))

    big = tmp_path / "big"
    big.write_bytes(b"x" * 3_000_000)
    async with gateway(Agent(by_path)) as gw:
        base = f"http://127.0.0.1:{gw.port}"
        assert await curl(base + "/", "-d", "hello") == (0, "5 bytes")
        assert await curl(base + "/", "-T", str(big), "-H", "Expect: 100-continue") == (0, "3000000 bytes")
        assert await curl(base + "/", "-T", str(big), "-H", "Transfer-Encoding: chunked") == (0, "3000000 bytes")
        code, said = await curl("-N", base + "/events")
        assert (code, said.count("data: ship")) == (0, 3)
        assert (await curl(base + "/dies"))[0] == 18  # CURLE_PARTIAL_FILE
        assert (await curl(base + "/dies-chunked"))[0] in (18, 56)
        assert await curl("-I", "-o", "/dev/null", "-w", "%{http_code}", base + "/healthz") == (0, "200")
        assert await curl("--http1.0", base + "/", "-d", "old") == (0, "3 bytes")
        code, said = await curl("--http2-prior-knowledge", "-o", "/dev/null", "-w", "%{http_code}", base + "/")
        assert code != 0 or said != "200"
