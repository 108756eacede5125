"""A user's verdict at any gateway of one state: whichever served the request counts it."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.runs.redis_servers import Server as Redis
from unjam.gateway import elsewhere as module
from unjam.gateway.elsewhere import BATCH, HELD, HELD_OF_ONE, LOOKED, Elsewhere, Unanswered, Vote
from unjam.kept.base import KeptAway
from unjam.kept.others import Others
from unjam.telemetry.metrics import GatewayStats

from .harness import Agent, Running, gateway, in_loop
from .processes import Process
from .test_changes import Admin, process
from .test_verdicts import KEYS, vote

LISTED = ", ".join(
    f"{{hash: 'sha256:{sha256(key.encode()).hexdigest()}', tenant: {name}}}" for name, key in KEYS.items()
)
KEYRING = f"keys: [{LISTED}]\n"


def config(state: str, agent: Agent, top: str = "", quality: str = "on") -> str:
    versions = ", ".join(f"{name}: {{weight: {weight}, endpoints: ['{agent.url}']}}" for name, weight in (("v7", 1),))
    return (
        f"listen: 127.0.0.1:0\nadmin: 127.0.0.1:0\naccess_log: off\nstate: '{state}'\n{top}services:\n  agent:\n"
        f"    breaker: {{error_rate: 5%, open: 60s}}\n    quality: {quality}\n    versions: {{{versions}}}\n"
    )


def said(answer: Any) -> tuple[int, Any]:
    body = json.loads(answer.body)
    return answer.status, body["error"]["code"] if "error" in body else body


TAKEN = {"service": "agent", "version": "v7", "verdict": "bad"}


def counted(gw: Running) -> tuple[dict[str, int], dict[str, int]]:
    return gw.gateway.stats.verdicts_handed_on, gw.gateway.stats.verdicts_asked


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked here is answered, however busy the machine is."""
    monkeypatch.setattr(module, "PATIENCE", 15.0)


# -- two gateways on one file ------------------------------------------------------------------------------------------


@in_loop
async def test_a_thumb_at_another_gateway_counts_where_the_request_was_served(tmp_path: Path) -> None:
    agent = await Agent().start()
    text = config(f"sqlite:{tmp_path / 'unjam.db'}", agent)
    async with gateway(config=text) as one, gateway(config=text) as other:
        here, there = await one.connect(), await other.connect()
        answer = await here.post()
        request_id, version = answer.header("x-request-id"), one.gateway.balancer.services["agent"].versions[0]
        assert answer.header("x-unjam-version") == "v7"
        assert said(await vote(there, request_id, "bad", reason="made up")) == (202, TAKEN)
        assert (version.bad, one.gateway.stats.service("agent").verdicts) == (1, {("user", "bad"): 1})
        assert other.gateway.balancer.services["agent"].versions[0].bad == 0
        assert other.gateway.stats.service("agent").verdicts == {}
        # The same again, a change of mind, and at the gateway that served it.
        assert said(await vote(there, request_id, "bad")) == (200, TAKEN)
        assert said(await vote(there, request_id, "good")) == (202, {**TAKEN, "verdict": "good"})
        assert said(await vote(here, request_id, "good")) == (200, {**TAKEN, "verdict": "good"})
        assert version.bad == 1
        assert said(await vote(there, "nobody-asked-this", "bad")) == (404, "unknown_request")
        assert said(await vote(there, "%C3%A4", "bad")) == (404, "unknown_request")
        assert counted(other) == ({"taken": 3, "unknown": 1}, {})
        assert counted(one) == ({}, {"known": 3, "unknown": 1})
    await agent.stop()


@in_loop
async def test_another_tenants_request_is_none_at_any_gateway(tmp_path: Path) -> None:
    agent = await Agent().start()
    text = config(f"sqlite:{tmp_path / 'unjam.db'}", agent, top=KEYRING)
    ours, theirs = (f"authorization: Bearer {key}\r\n" for key in KEYS.values())
    async with gateway(config=text) as one, gateway(config=text) as other:
        here, there = await one.connect(), await other.connect()
        request_id = (await here.post(headers=ours)).header("x-request-id")
        assert said(await vote(there, request_id, "bad", theirs)) == (404, "unknown_request")
        assert one.gateway.balancer.services["agent"].versions[0].bad == 0
        assert said(await vote(there, request_id, "bad", ours)) == (202, TAKEN)
    await agent.stop()


@in_loop
async def test_what_a_gateway_remembered_ends_with_it(tmp_path: Path) -> None:
    agent = await Agent().start()
    text = config(f"sqlite:{tmp_path / 'unjam.db'}", agent)
    async with gateway(config=text) as other:
        there = await other.connect()
        async with gateway(config=text) as one:
            request_id = (await (await one.connect()).post()).header("x-request-id")
        answer = await vote(there, request_id, "bad")
        assert said(answer) == (404, "unknown_request")
        assert b"the gateway that served it is gone" in answer.body
    await agent.stop()


@in_loop
async def test_one_that_is_silent_makes_it_worth_another_try(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.2)
    agent = await Agent().start()
    text = config(f"sqlite:{tmp_path / 'unjam.db'}", agent)
    async with gateway(config=text) as one, gateway(config=text) as other:
        request_id = (await (await one.connect()).post()).header("x-request-id")
        one.server.quality.elsewhere._looks = -1e9  # it was asked so much that it answers no more
        answer = await vote(await other.connect(), request_id, "bad")
        assert said(answer) == (503, "verdict_unanswered")
        assert answer.header("retry-after") == "2"
        assert counted(one)[1] == {"dropped": 1}
    await agent.stop()


@in_loop
async def test_in_memory_there_is_nobody_to_ask() -> None:
    agent = await Agent().start()
    async with gateway(config=config("memory", agent)) as gw:
        assert said(await vote(await gw.connect(), "made-up", "bad")) == (404, "unknown_request")
        assert counted(gw) == ({}, {})
    await agent.stop()


# -- bounds ------------------------------------------------------------------------------------------------------------


class Stub(Others):
    """Others that answer when they are told to."""

    def __init__(self) -> None:
        super().__init__()
        self.asks: list[list[Any]] = []
        self.go = asyncio.Event()
        self.away = False

    def _begin(self) -> None:
        pass

    async def close(self) -> None:
        pass

    async def ask(self, question: bytes, patience: float, on_answer: Callable[[bytes], None]) -> bool:
        self.asks.append(json.loads(question))
        if self.away:
            raise KeptAway("it is away")
        await self.go.wait()
        on_answer(b"nonsense")
        on_answer(b'[[0, "agent", "v7", true], [99, "agent", "v7", true], [-1, "agent", "v7", true]]')
        on_answer(b'[[0, "agent", "v8", true]]')
        return True


class Asker:
    """As much of a gateway as it takes."""

    def __init__(self) -> None:
        self.stats = GatewayStats()
        self.log = None


def asking(others: Others) -> tuple[Elsewhere, GatewayStats]:
    asker = Asker()
    found = Elsewhere(others, lambda *asked: None, asker)  # type: ignore[arg-type]
    found.start()
    return found, asker.stats


@in_loop
async def test_verdicts_go_in_batches_and_no_more_wait_than_may() -> None:
    others = Stub()
    elsewhere, stats = asking(others)
    votes = [asyncio.create_task(elsewhere.vote(f"t{n % 3}", b"id%d" % n, True, "")) for n in range(HELD + 20)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    refused = [task for task in votes if task.done()]
    assert len(refused) == 20
    assert all(isinstance(task.exception(), Unanswered) for task in refused)
    others.go.set()
    found = await asyncio.gather(*votes, return_exceptions=True)
    assert [len(ask) for ask in others.asks] == [BATCH] * (HELD // BATCH)
    assert others.asks[0][1] == ["t1", "id1", True, ""]
    # The first of each batch is known; what else was said made no sense, or came too late.
    assert found.count(Vote("agent", "v7", True)) == HELD // BATCH
    assert stats.verdicts_handed_on == {"refused": 20, "taken": HELD // BATCH, "unknown": HELD - HELD // BATCH}
    assert not elsewhere._held
    await elsewhere.stop()


@in_loop
async def test_one_tenant_does_not_take_all_the_room() -> None:
    others = Stub()
    elsewhere, stats = asking(others)
    votes = [asyncio.create_task(elsewhere.vote("loud", b"id", True, "")) for _ in range(HELD)]
    votes.append(asyncio.create_task(elsewhere.vote("quiet", b"id", True, "")))
    others.go.set()
    found = await asyncio.gather(*votes, return_exceptions=True)
    assert (
        sum(isinstance(each, Unanswered) for each in found) == HELD - HELD_OF_ONE == stats.verdicts_handed_on["refused"]
    )
    assert not isinstance(found[-1], Unanswered)
    await elsewhere.stop()


@in_loop
async def test_a_place_that_is_away_is_said_and_a_caller_who_left_is_nobodys_fault() -> None:
    others = Stub()
    others.away = True
    elsewhere, stats = asking(others)
    left = asyncio.create_task(elsewhere.vote("", b"other", True, ""))
    stays = asyncio.create_task(elsewhere.vote("", b"id", True, ""))
    await asyncio.sleep(0)
    left.cancel()
    (found,) = await asyncio.gather(stays, return_exceptions=True)
    assert isinstance(found, Unanswered)
    assert str(found) == module.AWAY
    assert stats.verdicts_handed_on == {"unanswered": 1}
    await elsewhere.stop()


@in_loop
async def test_who_is_asked_looks_up_so_many_and_no_nonsense() -> None:
    looked: list[bytes] = []

    def remember(tenant: str, request_id: bytes, bad: bool, reason: str) -> Vote | None:
        looked.append(request_id)
        return Vote("agent", "v7", bad) if request_id == b"id0" else None

    asker = Asker()
    elsewhere = Elsewhere(Stub(), remember, asker)  # type: ignore[arg-type]
    batch = json.dumps([["", f"id{n}", True, "why"] for n in range(BATCH)]).encode()
    assert elsewhere._asked(batch) == b'[[0,"agent","v7",true]]'
    assert elsewhere._asked(b"[") is None
    assert elsewhere._asked(b'[["", 1, true, ""]]') is None
    assert elsewhere._asked(json.dumps([["", "id", True, ""]] * (BATCH + 1)).encode()) is None
    assert len(looked) == BATCH
    answered = 1 + sum(elsewhere._asked(batch) is not None for _ in range(1000))
    assert LOOKED / BATCH - 1 <= answered < 1000
    assert len(looked) == answered * BATCH
    assert asker.stats.verdicts_asked["dropped"] == 1001 - answered


# -- real processes on a real Redis ------------------------------------------------------------------------------------


class User:
    """Of one gateway."""

    def __init__(self, port: int) -> None:
        self._client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20, trust_env=False)

    async def ask(self) -> str:
        answer = await self._client.get("/")
        assert (answer.status_code, answer.headers["x-unjam-version"]) == (200, "v7")
        return str(answer.headers["x-request-id"])

    async def vote(self, request_id: str, word: str = "bad") -> tuple[int, Any]:
        answer = await self._client.post(f"/v1/requests/{request_id}/verdict", json={"verdict": word})
        body = answer.json()
        return answer.status_code, body["error"]["code"] if "error" in body else body

    async def taken(self, request_id: str) -> None:
        """A bad verdict, given again while that is what is said: the other gateway may be slow on a busy machine."""
        first = True
        while (found := await self.vote(request_id))[0] == 503:
            first = False
        assert found == (202, TAKEN) or (found == (200, TAKEN) and not first)

    async def close(self) -> None:
        await self._client.aclose()


async def breaker(admin: Admin) -> str:
    return str((await admin.version("v7"))["breaker"]["state"])


def cpu(child: Process) -> float:
    """Seconds of CPU that a process has had."""
    fields = Path(f"/proc/{child.child.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


async def made_up(port: int, number: int) -> set[int]:
    """Give so many verdicts on ids that nobody has; the statuses of the answers."""
    found: set[int] = set()

    async def some(first: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        body = b'{"verdict": "bad"}'
        more = b"host: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
        for n in range(first, number, 50):
            writer.write(b"POST /v1/requests/made-up-%d/verdict HTTP/1.1\r\n%b" % (n, more))
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            await reader.readexactly(int(head.partition(b"content-length: ")[2].partition(b"\r")[0]))
            found.add(int(head[9:12]))
        writer.close()

    await asyncio.gather(*(some(first) for first in range(50)))
    return found


@in_loop
async def test_two_gateways_of_a_redis_take_verdicts_for_each_other(tmp_path: Path) -> None:
    agent, redis = await Agent().start(), Redis(tmp_path / "redis").start()
    path = tmp_path / "unjam.yaml"
    path.write_text(config(redis.url(), agent))
    try:
        async with process(path) as (first, one, port), process(path) as (second, other, other_port):
            here, there = User(port), User(other_port)
            ids = [await here.ask() for _ in range(11)]
            # A flood of made-up ids costs the other one little, and nobody memory.
            await made_up(other_port, 100)
            memory, took = (first.resident(), second.resident()), cpu(first)
            assert await made_up(other_port, 1000) <= {404, 503}
            # 0.02 s in truth, and what an idle gateway takes meanwhile.
            assert cpu(first) - took < 1.0
            for before, child in zip(memory, (first, second), strict=True):
                assert child.resident() - before < 16 << 20
            assert not [key for key in redis.ask("KEYS", "*") if b"ask" in key or b"told" in key]
            # Each thumb counts where its request was served; the version that they trip is tripped at both.
            await there.taken(ids[0])
            assert (await there.vote(ids[0]))[0] in (200, 503)
            assert [(await gw.version("v7"))["bad"] for gw in (one, other)] == [1, 0]
            for request_id in ids[1:]:
                await there.taken(request_id)
            for gw in (one, other):
                async with asyncio.timeout(15):
                    while await breaker(gw) != "open":
                        await asyncio.sleep(0.02)
            # Killed: what it remembered is gone, and that is said at once rather than waited for.
            first.send(signal.SIGKILL)
            await first.exit_code()
            async with asyncio.timeout(15):
                while (found := await there.vote(ids[0]))[0] == 503:
                    pass
            assert found == (404, "unknown_request")
            redis.kill()
            assert await there.vote(ids[0]) == (503, "verdict_unanswered")
            await here.close()
            await there.close()
    finally:
        redis.kill()
        await agent.stop()
