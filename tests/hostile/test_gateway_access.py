"""Hostile input 47 to 52 through a real gateway: keys, targets, paths, escapes, and a planted secret."""

# ruff: noqa: E501

from __future__ import annotations

import asyncio
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import msgspec
from structlog.testing import capture_logs

from unjam.telemetry import logs
from unjam.telemetry.accesslog import AccessLog

from ..gateway.harness import PATIENCE, Agent, Call, gateway, in_loop
from .test_gateway_limits import admin_get

KEY, OTHER = "key-of-tenant-one", "key-of-tenant-two"


def digest(key: str) -> str:
    return "sha256:" + sha256(key.encode()).hexdigest()


def keys() -> str:
    return (
        f"keys:\n- {{hash: '{digest(KEY)}', tenant: one}}\n- {{hash: '{digest(OTHER)}', tenant: two, services: [b]}}\n"
    )


def services(a: str, b: str) -> str:
    return (
        "services:\n"
        f"  a: {{match: {{path: /a}}, versions: {{v: {{endpoints: ['{a}']}}}}}}\n"
        f"  b: {{match: {{path: /b}}, versions: {{v: {{endpoints: ['{b}']}}}}}}\n"
    )


async def reaches(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.002)


@in_loop
async def test_47_every_wrong_key_gets_the_same_401() -> None:
    a, b = await Agent().start(), await Agent().start()
    async with gateway(a, b, config=keys() + services(a.url, b.url)) as gw:
        wire = await gw.connect()
        wrong = [
            "",
            "Authorization: Bearer wrong\r\n",
            f"Authorization: Bearer {KEY}x\r\n",
            f"Authorization: Bearer {KEY[:-1]}\r\n",
            f"Authorization: Basic {KEY}\r\n",
            f"Authorization: {KEY}\r\n",
            "Authorization: Bearer\r\n",
            "x-api-key: wrong\r\n",
            f"Cookie: key={KEY}\r\n",
            f"Connection: authorization\r\nAuthorization: Bearer {KEY}x\r\n",
            f"Authorization: Bearer {digest(KEY)}\r\n",
        ]
        bodies = set()
        for number, headers in enumerate(wrong):
            for path in ("/a", "/b", "/nowhere"):
                answer = await wire.get(path, headers + "x-request-id: same\r\n")
                assert answer.status == 401, (number, path)
                assert answer.header("www-authenticate") == 'Bearer realm="unjam"'
                bodies.add(answer.body)
        assert len(bodies) == 1
        assert a.requests == b.requests == []
        assert gw.gateway.stats.rejects == {"unauthorized": 3 * len(wrong)}
        good = [f"Authorization: Bearer {KEY}\r\n", f"authorization: bearer  {KEY}\r\n", f"X-API-Key: {KEY}\r\n"]
        good.append(f"Connection: Authorization\r\nAuthorization: Bearer {KEY}\r\n")
        for headers in good:
            assert (await wire.get("/a", headers)).status == 200
        assert all(seen.header("authorization") is None and seen.header("x-api-key") is None for seen in a.requests)
        assert KEY not in str(a.requests)


@in_loop
async def test_47_a_key_reaches_only_its_services() -> None:
    a, b = await Agent().start(), await Agent().start()
    async with gateway(a, b, config=keys() + services(a.url, b.url)) as gw:
        wire = await gw.connect()
        assert (await wire.get("/a", f"x-api-key: {OTHER}\r\n")).status == 403
        assert (await wire.get("/b", f"x-api-key: {OTHER}\r\n")).status == 200
        for path in ("/b/../a", "/b/%2e%2e/a", "//a", "/./a", "/%61"):
            assert (await wire.get(path, f"x-api-key: {OTHER}\r\n")).status == 403, path
        assert a.requests == []


@in_loop
async def test_47_a_key_reaches_only_its_services_where_the_body_says_which() -> None:
    a, b = await Agent().start(), await Agent().start()
    config = (
        keys() + "services:\n"
        f"  a: {{match: {{model: small}}, versions: {{v: {{endpoints: ['{a.url}']}}}}}}\n"
        f"  b: {{match: {{model: large}}, versions: {{v: {{endpoints: ['{b.url}']}}}}}}\n"
    )
    async with gateway(a, b, config=config) as gw:
        wire = await gw.connect()
        two = f"x-api-key: {OTHER}\r\n"
        assert (await wire.post("/x", b'{"model": "large"}', two)).status == 200
        assert (await wire.post("/x", b'{"model": "small"}', two)).status == 403
        assert (await wire.post("/x", b'{"model": "small"}', f"x-api-key: {KEY}\r\n")).status == 200
        assert (len(a.requests), len(b.requests)) == (1, 1)
        for body in (b'{"model": "unknown"}', b"{}", b"not json", b'{"model": 7}', b"[" * 2000):
            assert (await wire.post("/x", body, two)).status == 404, body[:20]
        assert (len(a.requests), len(b.requests)) == (1, 1)
        head = f"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\n{two}\r\n"
        await wire.send(head.encode() + b'{"model": "' + b"x" * 1_100_000)
        answer = await wire.answer("POST")
        assert (answer.status, answer.header("connection")) == (413, "close")
        assert (len(a.requests), len(b.requests)) == (1, 1)


@in_loop
async def test_48_the_client_never_chooses_where_a_request_goes() -> None:
    victim, agent = await Agent().start(), await Agent().start()
    config = f"services: {{a: {{match: {{host: a.example}}, versions: {{v: {{endpoints: ['{agent.url}']}}}}}}}}"
    async with gateway(agent, victim, config=config) as gw:
        target = f"http://127.0.0.1:{victim.port}"
        tries = [
            (f"GET {target}/ HTTP/1.1\r\nHost: a.example\r\n\r\n", 404),
            (f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{victim.port}\r\n\r\n", 404),
            (f"GET http://a.example@127.0.0.1:{victim.port}/ HTTP/1.1\r\nHost: a.example\r\n\r\n", 400),
            (f"GET /{target}/ HTTP/1.1\r\nHost: a.example\r\n\r\n", 200),
            (f"GET / HTTP/1.1\r\nHost: a.example\r\nX-Forwarded-Host: 127.0.0.1:{victim.port}\r\n\r\n", 200),
            (f"GET / HTTP/1.1\r\nHost: a.example:{victim.port}\r\n\r\n", 200),
            ("GET http://A.EXAMPLE/ HTTP/1.1\r\nHost: b\r\n\r\n", 200),
            ("GET / HTTP/1.1\r\nHost: a.example.evil.example\r\n\r\n", 404),
        ]
        for raw, status in tries:
            wire = await gw.connect()
            await wire.send(raw.encode())
            assert (await wire.answer()).status == status, raw
        assert victim.requests == []
        assert all(seen.header("host") == f"127.0.0.1:{agent.port}" for seen in agent.requests)


@in_loop
async def test_49_what_is_forwarded_is_what_was_routed_on() -> None:
    a, b = await Agent().start(), await Agent().start()
    async with gateway(a, b, config=services(a.url, b.url)) as gw:
        wire = await gw.connect()
        paths = {
            "/a/../b/x": "/b/x",
            "/a/%2e%2e/b/x": "/b/x",
            "/a/%2E./b/x": "/b/x",
            "//b//x": "/b/x",
            "/./b/./x": "/b/x",
            "/%62/x": "/b/x",
            "/b/x?y=/../a": "/b/x?y=/../a",
            "/b/%252e%252e/a": "/b/%252e%252e/a",
        }
        for path, forwarded in paths.items():
            assert (await wire.get(path)).status == 200, path
            assert b.requests[-1].target == forwarded
        assert a.requests == []
        assert (await wire.get("/ab")).status == 404
        for path in ("/a%2f..%2fb", "/b%00", "/b%0d%0aX: y", "/b%5c..%5ca", "/b\\..\\a", "/b/..;/a", "/b%zz", "/b#x"):
            hostile = await gw.connect()
            answer = await hostile.get(path.replace(" ", "%20"))
            assert (answer.status, answer.header("connection")) == (400, "close"), path
        assert len(b.requests) == len(paths)


@in_loop
async def test_50_admin_paths_on_the_data_port_are_404_and_admin_is_guarded() -> None:
    a, b = await Agent().start(), await Agent().start()
    async with gateway(a, b, config=services(a.url, b.url)) as gw:
        wire = await gw.connect()
        for path in ("/metrics", "/api/state", "/api/v1/state", "/state", "/admin", "/drain", "/reload", "/"):
            assert (await wire.get(path)).status == 404, path
        for path in ("/healthz", "/readyz"):
            assert (await wire.get(path)).status == 200
            await wire.send(f"HEAD {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            answer = await wire.answer("HEAD")
            assert (answer.status, answer.body) == (200, b"")
        assert (await wire.get("/nowhere")).status == 404  # nothing of the HEADs' answers is left over
        assert a.requests == b.requests == []


@in_loop
async def test_52_hostile_text_is_escaped_in_the_access_log(tmp_path: Path) -> None:
    agent = await Agent().start()
    for style in ("json", "console"):
        log = tmp_path / style
        async with gateway(agent) as gw:
            gw.gateway.access_log = AccessLog(str(log), stats=gw.gateway.stats, style=style)  # type: ignore[arg-type]
            wire = await gw.connect()
            await wire.get("/%1b%5b31mred".replace("%1b", "%C2%9B") + "'\"<script>", "User-Agent: \xe9\t<b>\r\n")
            await wire.get("/x", 'x-request-id: "};{"\r\ntraceparent: 00-zz\xffzz-1-01\r\n')
            gw.gateway.access_log.flush()
        raw = log.read_bytes()
        assert raw.count(b"\n") == 2
        assert not any((byte < 0x20 and byte != 0x0A) or byte == 0x7F for byte in raw)
        assert b"\x9b" not in raw
        if style == "json":
            assert [msgspec.json.decode(line)["status"] for line in raw.splitlines()] == [200, 200]
        agent = await Agent().start()
    await agent.stop()


SECRET = "planted-5f1c-secret"


@in_loop
async def test_52_a_planted_secret_turns_up_nowhere(tmp_path: Path) -> None:
    async def by_path(call: Call) -> None:
        if "die" in call.seen.target:
            call.abort()
        elif "bad" in call.seen.target:
            await call.write(b"HTTP/1.1 200 OK\r\nBad Header: " + SECRET.encode() + b"\r\n\r\n")
        else:
            await call.answer(status=500 if "fail" in call.seen.target else 200)

    agent = await Agent(by_path).start()
    log = tmp_path / "access.log"
    config = (
        f"admin: 127.0.0.1:0\nkeys: [{{hash: '{digest(SECRET)}', tenant: one}}]\n"
        "services:\n"
        f"  a: {{match: {{path: /a}}, session: {{cookie: sid}}, versions: {{v: {{endpoints: ['{agent.url}']}}}}}}\n"
    )
    with capture_logs() as lines:
        async with gateway(agent, config=config) as gw:
            gw.gateway.access_log = AccessLog(str(log), stats=gw.gateway.stats, style="json")
            gw.gateway.rejections = logs.Rejections(gw.gateway.stats, per_second=1e9)
            answers = b""
            with_key = f"Authorization: Bearer {SECRET}\r\nCookie: sid={SECRET}; x={SECRET}\r\nX-Token: {SECRET}\r\nReferer: http://x/?{SECRET}\r\n"
            for path in ("/a/ok", "/a/fail", "/a/die", "/a/bad", "/nowhere"):
                wire = await gw.connect()
                answer = await wire.get(f"{path}?key={SECRET}", with_key)
                answers += answer.body + str(answer.headers).encode()
            for raw in (
                f"GET /a?{SECRET} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {SECRET}\r\nX-{SECRET} : 1\r\n\r\n",
                f"GET /a?{SECRET} HTTP/1.1\r\nHost: {SECRET},x\r\n\r\n",
                f"GET /a?{SECRET} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {SECRET}wrong\r\n\r\n",
                f"GET /a?{SECRET} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {SECRET}\r\nx-unjam-deadline: {SECRET}\r\n\r\n",
                f"{SECRET} / HTTP/1.1\r\nHost: x\r\n\r\n",
            ):
                wire = await gw.connect()
                await wire.send(raw.encode())
                answer = await wire.answer()
                assert 400 <= answer.status < 502
                answers += answer.body + str(answer.headers).encode()
            await gw.settled()
            gw.gateway.access_log.flush()
            told = answers + str(lines).encode() + log.read_bytes()
            for path in ("/metrics", "/api/state", "/api/active", "/", "/api/endpoints", "/api/sessions"):
                told += await admin_get(gw.server, path)
            told += str(gw.gateway.balancer.snapshot(0.0)).encode() + repr(vars(gw.gateway)).encode()
    assert len(log.read_bytes().splitlines()) >= 7
    assert b"unjam_" in told
    assert SECRET.encode() not in told
    assert digest(SECRET).encode() not in told
