"""Who gets in (hostile-input 50): the token, the Host, the Origin; and what is written down about those who do not."""

from __future__ import annotations

import asyncio
import hashlib
from base64 import b64encode

import pytest
import structlog

from unjam.admin.auth import AdminExposed, Hosts, Token, check_exposure, hosts_for

from .fleet import URL, Fleet
from .served import TOKEN, in_loop, served

ROUTES = [
    ("GET", "/"),
    ("GET", "/metrics"),
    ("GET", "/api/state"),
    ("GET", "/api/active"),
    ("POST", "/api/drain"),
    ("POST", "/api/weight"),
    ("POST", "/api/breaker"),
    ("POST", "/api/reload"),
    ("GET", "/nope"),
    ("DELETE", "/api/state"),
    ("OPTIONS", "/api/drain"),
]


def basic(user: str, password: str) -> str:
    return "Basic " + b64encode(f"{user}:{password}".encode()).decode()


WRONG = [
    {},
    {"authorization": "Bearer wrong"},
    {"authorization": "Bearer"},
    {"authorization": f"Bearer {TOKEN}x"},
    {"authorization": f"Bearer {TOKEN[:-1]}"},
    {"authorization": f"Bearer {TOKEN.lower()}"},
    {"authorization": TOKEN},
    {"authorization": f"Digest {TOKEN}"},
    {"authorization": basic(TOKEN, "")},
    {"authorization": "Basic not-base64!"},
    {"x-unjam-token": ""},
    {"x-unjam-token": hashlib.sha256(TOKEN.encode()).hexdigest()},
    {"x-unjam-token": "sha256:" + hashlib.sha256(TOKEN.encode()).hexdigest()},
    {"cookie": f"token={TOKEN}"},
]
RIGHT = [
    {"authorization": f"Bearer {TOKEN}"},
    {"authorization": f"bearer   {TOKEN}"},
    {"x-unjam-token": TOKEN},
    {"authorization": basic("anybody", TOKEN)},
]


@in_loop
async def test_without_the_token_every_route_gives_the_same_401() -> None:
    async with served(token=TOKEN) as admin:
        answers = set()
        for method, path in ROUTES:
            answer = await admin.client.request(method, path)
            answers.add((answer.status_code, answer.text, answer.headers["www-authenticate"]))
        for headers in WRONG:
            answer = await admin.client.get("/api/state", headers=headers)
            answers.add((answer.status_code, answer.text, answer.headers["www-authenticate"]))
        assert len(answers) == 1
        assert answers.pop()[0] == 401
        assert set(admin.rejected) == {("admin_unauthorized", "127.0.0.1")}
        assert len(admin.rejected) == len(ROUTES) + len(WRONG)


@in_loop
async def test_with_the_token_they_get_in() -> None:
    async with served(token=TOKEN) as admin:
        for headers in RIGHT:
            assert (await admin.client.get("/api/state", headers=headers)).status_code == 200
        assert (await admin.client.get("/api/state", params={"token": TOKEN})).status_code == 401


@in_loop
async def test_a_token_may_be_configured_as_a_digest() -> None:
    digest = "sha256:" + hashlib.sha256(TOKEN.encode()).hexdigest()
    async with served(token=digest) as admin:
        assert (await admin.client.get("/api/state", headers={"x-unjam-token": TOKEN})).status_code == 200
        assert (await admin.client.get("/api/state", headers={"x-unjam-token": digest})).status_code == 401


@pytest.mark.parametrize("token", ["sha256:", "sha256:abcd", "sha256:zz"])
def test_a_broken_digest_is_refused(token: str) -> None:
    with pytest.raises(ValueError, match="hex"):
        Token(token)


@in_loop
async def test_probes_need_no_token_and_tell_strangers_nothing() -> None:
    async with served(token=TOKEN) as admin:
        admin.fleet.why = "auditor has no healthy endpoint"
        for headers in ({}, {"host": "10.1.2.3:8081"}, {"host": "probe.cluster.local"}):
            assert (await admin.client.get("/healthz", headers=headers)).status_code == 200
            answer = await admin.client.get("/readyz", headers=headers)
            assert (answer.status_code, answer.text) == (503, "not ready\n")
        answer = await admin.client.get("/readyz", headers={"x-unjam-token": TOKEN})
        assert "auditor has no healthy endpoint" in answer.text


FOREIGN = [
    "evil.example",
    "evil.example:8081",
    "localhost.evil.example",
    "127.0.0.1.evil.example",
    "127.0.0.1@evil.example",
    "localhost:80:80",
    "localhost:x",
    "[::1",
    "[::1]x",
    "10.0.0.1",
    "0x7f000001",
    "2130706433",
]


@pytest.mark.parametrize("token", [None, TOKEN])
@in_loop
async def test_a_foreign_host_is_403_even_with_the_token(token: str | None) -> None:
    async with served(token=token) as admin:
        for host in FOREIGN:
            answer = await admin.client.get("/api/state", headers={"host": host, "x-unjam-token": TOKEN})
            assert (answer.status_code, answer.json()["error"]["code"]) == (403, "foreign_host"), host
        assert admin.rejected == [("admin_foreign_host", "127.0.0.1")] * len(FOREIGN)


@in_loop
async def test_hosts_of_loopback_are_allowed() -> None:
    async with served() as admin:
        for host in ("localhost", "LOCALHOST:1", "127.0.0.1:9", "[::1]:8081", f"127.0.0.1:{admin.server.port}"):
            assert (await admin.client.get("/api/state", headers={"host": host})).status_code == 200, host


@in_loop
async def test_a_request_without_host_is_refused() -> None:
    async with served() as admin:
        reader, writer = await asyncio.open_connection("127.0.0.1", admin.server.port)
        writer.write(b"GET /api/state HTTP/1.0\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 403 ")
        writer.close()
        await writer.wait_closed()


def test_which_hosts_go_with_which_listener() -> None:
    loopback = hosts_for("127.0.0.1", ["lb.example.com"])
    assert loopback.allows("lb.example.com")
    assert not loopback.allows("192.0.2.1")
    public = hosts_for("0.0.0.0", ["*.example.com"])
    assert public.allows("192.0.2.1")
    assert public.allows("2001:db8::1")
    assert public.allows("admin.example.com")
    assert not public.allows("example.com")
    assert not public.allows("a.b.example.com")
    assert not public.allows("evil.example")
    assert not public.allows("")
    assert hosts_for("").allows("localhost")
    assert hosts_for("Admin.Internal").allows("admin.internal")
    assert Hosts(frozenset()).allows("localhost") is False


@in_loop
async def test_a_foreign_origin_is_403_and_changes_nothing() -> None:
    async with served() as admin:
        own = f"127.0.0.1:{admin.server.port}"
        foreign = [
            "https://evil.example",
            "null",
            f"http://127.0.0.1:{admin.server.port + 1}",
            "http://localhost",
            own,
            "",
        ]
        for origin in foreign:
            for method, path in (("POST", "/api/drain"), ("GET", "/api/state")):
                answer = await admin.client.request(method, path, json={"endpoint": URL}, headers={"origin": origin})
                assert (answer.status_code, answer.json()["error"]["code"]) == (403, "foreign_origin"), origin
        headers = {"sec-fetch-site": "cross-site"}
        assert (await admin.client.post("/api/drain", json={"endpoint": URL}, headers=headers)).status_code == 403
        assert admin.fleet.snapshot() == Fleet().snapshot()
        answer = await admin.client.post("/api/drain", json={"endpoint": URL}, headers={"origin": f"http://{own}"})
        assert answer.status_code == 200


@in_loop
async def test_an_origin_behind_tls_is_our_own() -> None:
    async with served(hosts=hosts_for("127.0.0.1", ["lb.example.com"])) as admin:
        headers = {"host": "lb.example.com", "origin": "https://lb.example.com"}
        assert (await admin.client.post("/api/drain", json={"endpoint": URL}, headers=headers)).status_code == 200


@in_loop
async def test_the_audit_names_the_token_by_a_fingerprint_only() -> None:
    with structlog.testing.capture_logs() as logs:
        async with served(token=TOKEN) as admin:
            answer = await admin.client.post("/api/drain", json={"endpoint": URL}, headers={"x-unjam-token": TOKEN})
            assert answer.status_code == 200
    (line,) = [line for line in logs if line["event"] == "control"]
    assert line["who"] == f"token:{Token(TOKEN).fingerprint}@127.0.0.1"
    assert TOKEN not in str(logs)
    assert hashlib.sha256(TOKEN.encode()).hexdigest()[:8] not in line["who"]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "[::]", "192.0.2.1", "admin.example.com", "10.0.0.1", "*"])
def test_beyond_loopback_a_token_is_needed(host: str) -> None:
    with pytest.raises(AdminExposed, match="has no token: set one"):
        check_exposure(host, None)
    with pytest.raises(AdminExposed):
        check_exposure(host, "")
    check_exposure(host, TOKEN)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost", ""])
def test_on_loopback_it_is_not(host: str) -> None:
    check_exposure(host, None)
