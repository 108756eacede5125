"""A real `unjam serve` process: drain, stop, reload, certificates, Unix sockets."""

from __future__ import annotations

import asyncio
import datetime
import signal
import socket
import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from .harness import PATIENCE, Agent, Call, Wire, gateway, in_loop, until_gone
from .processes import served

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


def config_of(*urls: str, more: str = "") -> str:
    endpoints = ", ".join(f"'{url}'" for url in urls)
    return (
        f"listen: 127.0.0.1:0\nadmin: off\naccess_log: off\n{more}\n"
        f"services:\n  default:\n    versions:\n      v1:\n        endpoints: [{endpoints}]\n"
    )


def certificate(folder: Path, name: str, common_name: str = "localhost") -> tuple[Path, Path]:
    """A self-signed certificate for localhost and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    cert_file, key_file = folder / f"{name}.pem", folder / f"{name}.key"
    cert_file.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return cert_file, key_file


class Held:
    """An endpoint whose answers wait until they are let go."""

    def __init__(self) -> None:
        self.go = asyncio.Event()

    async def __call__(self, call: Call) -> None:
        if call.seen.target == "/quick":
            return await call.answer()
        await call.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n")
        await self.go.wait()
        await call.write(b"4\r\nrest\r\n0\r\n\r\n")


@in_loop
async def test_sigterm_lets_what_runs_finish_and_takes_nothing_new(tmp_path: Path) -> None:
    held = Held()
    agent = await Agent(held).start()
    (tmp_path / "unjam.yaml").write_text(config_of(agent.url))
    async with served("--config", "unjam.yaml", cwd=tmp_path) as (process, port):
        running, idle = await Wire.connect(port), await Wire.connect(port)
        assert (await idle.get("/quick")).status == 200
        await running.send(GET)
        await running.reader.readuntil(b"half\r\n")
        process.send(signal.SIGTERM)
        await process.says("draining")
        assert await idle.closed() == b""
        with pytest.raises(ConnectionRefusedError):
            await Wire.connect(port)
        held.go.set()
        assert await running.reader.readuntil(b"0\r\n\r\n") == b"4\r\nrest\r\n0\r\n\r\n"
        assert await running.closed() == b""
        assert await process.exit_code() == 0
        assert "stopped" in process.said
        running.close()
        idle.close()
    await agent.stop()


@in_loop
async def test_a_second_signal_stops_at_once(tmp_path: Path) -> None:
    agent = await Agent(Held()).start()
    (tmp_path / "unjam.yaml").write_text(config_of(agent.url))
    async with served("--config", "unjam.yaml", cwd=tmp_path) as (process, port):
        running = await Wire.connect(port)
        await running.send(GET)
        await running.reader.readuntil(b"half\r\n")
        process.send(signal.SIGTERM)
        await process.says("draining")
        process.send(signal.SIGTERM)
        assert await process.exit_code() == 0
        assert b"0\r\n\r\n" not in await running.closed()
        running.close()
    await agent.stop()


@in_loop
async def test_reloads_under_load_with_endpoints_added_and_removed_lose_no_request(tmp_path: Path) -> None:
    async def works(call: Call) -> None:
        await asyncio.sleep(0.01)
        await call.answer(call.seen.body)

    agents = [await Agent(works).start() for _ in range(4)]
    file = tmp_path / "unjam.yaml"
    file.write_text(config_of(agents[0].url))
    sets = [agents[1:2], agents[0:4], agents[2:4], agents[0:1], agents[1:4]] * 3
    over = False
    answered = 0

    async def client(port: int) -> None:
        nonlocal answered
        wire = await Wire.connect(port)
        while not over:
            body = b"%d" % answered
            answer = await wire.post(body=body)
            assert (answer.status, answer.body, answer.whole) == (200, body, True)
            answered += 1
        wire.close()

    async with served("--config", "unjam.yaml", cwd=tmp_path) as (process, port):
        clients = [asyncio.create_task(client(port)) for _ in range(8)]
        for chosen in sets:
            file.write_text(config_of(*(agent.url for agent in chosen)))
            before = len(process.said)
            process.send(signal.SIGHUP)
            await process.says("reloaded", before)
            counts = [len(agent.requests) for agent in agents]
            async with asyncio.timeout(PATIENCE):
                while any(len(a.requests) <= n + 3 for a, n in zip(agents, counts, strict=True) if a in chosen):
                    await asyncio.sleep(0.005)
        over = True
        await asyncio.gather(*clients)
        assert answered == sum(len(agent.requests) for agent in agents)
        # A file that is wrong: the old one stays, and the message names line, key and fix.
        file.write_text(config_of(agents[0].url).replace("endpoints:", "endpionts:"))
        before = len(process.said)
        process.send(signal.SIGHUP)
        said = (await process.says(".*reload_refused.*", before)).group()
        assert "unjam.yaml:" in said or "line" in said
        assert "endpionts" in said
        assert "endpoints" in said
        wire = await Wire.connect(port)
        assert (await wire.post(body=b"still")).body == b"still"
        wire.close()
        process.send(signal.SIGTERM)
        assert await process.exit_code() == 0
    for agent in agents:
        await agent.stop()


@in_loop
async def test_a_certificate_is_renewed_by_a_reload_and_a_broken_one_is_not(tmp_path: Path) -> None:
    agent = await Agent().start()
    one, two = certificate(tmp_path, "one", "one"), certificate(tmp_path, "two", "two")
    live_cert, live_key = tmp_path / "live.pem", tmp_path / "live.key"

    def install(cert: Path, key: Path) -> None:
        live_cert.write_bytes(cert.read_bytes())
        live_key.write_bytes(key.read_bytes())

    install(*one)
    text = config_of(agent.url).replace(
        "listen: 127.0.0.1:0", "listen: {address: '127.0.0.1:0', tls: {cert: live.pem, key: live.key}}"
    )
    (tmp_path / "unjam.yaml").write_text(text)
    trust = ssl.create_default_context()
    for cert, _ in (one, two):
        trust.load_verify_locations(cert)

    async def served_name(port: int) -> str:
        wire = await Wire.connect(port, trust)
        assert (await wire.get()).status == 200
        shown = wire.writer.get_extra_info("peercert")
        wire.close()
        return str(dict(pair[0] for pair in shown["subject"])["commonName"])

    async with served("--config", "unjam.yaml", cwd=tmp_path) as (process, port):
        assert await served_name(port) == "one"
        install(*two)
        process.send(signal.SIGHUP)
        await process.says("reloaded")
        assert await served_name(port) == "two"
        for cert, key in ((one[0], two[1]), (two[0], one[1])):  # halves of two pairs
            install(cert, key)
            before = len(process.said)
            process.send(signal.SIGHUP)
            await process.says("reload_refused", before)
            assert await served_name(port) == "two"
        live_cert.write_text("nothing of the sort")
        before = len(process.said)
        process.send(signal.SIGHUP)
        await process.says("reload_refused", before)
        assert await served_name(port) == "two"
    await agent.stop()


@in_loop
async def test_a_reload_with_authorities_that_do_not_load_changes_nothing(tmp_path: Path) -> None:
    agent = await Agent().start()
    (tmp_path / "junk.pem").write_text("nothing of the sort")
    file = tmp_path / "unjam.yaml"
    file.write_text(config_of(agent.url))
    async with served("--config", "unjam.yaml", cwd=tmp_path) as (process, port):
        wire = await Wire.connect(port)
        assert (await wire.get()).status == 200
        file.write_text(config_of("https://127.0.0.1:1") + "        endpoint_tls: {ca: junk.pem}\n")
        process.send(signal.SIGHUP)
        await process.says("reload_refused")
        for _ in range(3):
            assert (await wire.get()).status == 200
        assert len(agent.requests) == 4
        wire.close()
    await agent.stop()


@in_loop
async def test_a_configuration_that_cannot_be_served_exits_1(tmp_path: Path) -> None:
    agent = await Agent().start()
    text = config_of(agent.url).replace("127.0.0.1:0", f"127.0.0.1:{agent.port}")
    (tmp_path / "unjam.yaml").write_text(text)
    from .processes import process

    async with process("-m", "unjam.cli.main", "serve", "--config", "unjam.yaml", cwd=tmp_path) as gateway:
        assert await gateway.exit_code() == 1
        assert "could_not_start" in gateway.said
    await agent.stop()


@in_loop
async def test_endpoints_over_tls_are_verified_unless_told_otherwise(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path, "endpoint")
    server_side = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server_side.load_cert_chain(cert, key)
    agent = await Agent().start(ssl=server_side)
    url = f"https://localhost:{agent.port}"
    for tls, status in (
        ("", 502),
        (f"endpoint_tls: {{ca: {cert}}},", 200),
        (f"endpoint_tls: {{ca: {cert}, server_name: other.example}},", 502),
        ("endpoint_tls: {verify: false},", 200),
    ):
        config = f"services: {{a: {{versions: {{v: {{{tls} endpoints: ['{url}']}}}}}}}}"
        async with gateway(config=config) as gw:
            wire = await gw.connect()
            answer = await wire.post(body=b"secret")
            assert answer.status == status, tls
            assert gw.leases == 0
    assert len(agent.requests) == 2
    await agent.stop()


@in_loop
async def test_unix_sockets_on_both_sides(tmp_path: Path) -> None:
    agent = await Agent().start(path=str(tmp_path / "agent.sock"))
    front = tmp_path / "front.sock"
    config = (
        f"listen: 'unix:{front}'\n"
        f"services: {{a: {{versions: {{v: {{endpoints: ['unix:{tmp_path / 'agent.sock'}']}}}}}}}}"
    )
    async with gateway(config=config) as gw:
        wire = Wire(*await asyncio.open_unix_connection(str(front)))
        answer = await wire.post(body=b"over files")
        assert answer.status == 200
        (seen,) = agent.requests
        assert (seen.body, seen.header("host")) == (b"over files", "localhost")
        assert gw.leases == 0
        wire.close()
    assert not front.exists()
    await agent.stop()


@in_loop
async def test_a_tls_listener_relays_and_cuts_like_any_other(tmp_path: Path) -> None:
    async def behaves(call: Call) -> None:
        if call.seen.target == "/dies":
            await call.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
            call.abort()
        elif call.seen.target == "/hold":
            await until_gone(call)
        else:
            await call.answer(call.seen.body)

    agent = await Agent(behaves).start()
    cert, key = certificate(tmp_path, "front")
    trust = ssl.create_default_context(cafile=cert)
    config = (
        f"listen: {{address: '127.0.0.1:0', tls: {{cert: {cert}, key: {key}}}}}\n"
        f"services: {{a: {{versions: {{v: {{endpoints: ['{agent.url}']}}}}}}}}"
    )
    async with gateway(agent, config=config) as gw:
        wire = await gw.connect(trust)
        body = bytes(range(256)) * 4096
        answer, _ = await asyncio.gather(
            wire.answer("POST"),
            wire.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body),
        )
        assert answer.body == body
        assert agent.requests[0].header("x-forwarded-proto") == "https"
        assert not (await wire.get("/dies")).whole
        bad = await gw.connect(trust)
        await bad.send(b"GET / HTTP/1.1\r\nHost : x\r\n\r\n")
        assert (await bad.answer()).status == 400
        leaver = await gw.connect(trust)
        await leaver.send(GET.replace(b"/ ", b"/hold "))
        async with asyncio.timeout(PATIENCE):
            while gw.leases != 1:
                await asyncio.sleep(0.002)
        leaver.reset()
        await gw.settled()
        # Plain HTTP on a TLS port, and a handshake that stops half way.
        plain = await gw.connect()
        await plain.send(GET)
        assert b"200" not in await plain.closed()


@in_loop
async def test_a_tls_handshake_that_stops_half_way_is_given_up(tmp_path: Path) -> None:
    agent = await Agent().start()
    cert, key = certificate(tmp_path, "front")
    config = (
        f"listen: {{address: '127.0.0.1:0', tls: {{cert: {cert}, key: {key}}}}}\nlimits: {{header_timeout: 300ms}}\n"
        f"services: {{a: {{versions: {{v: {{endpoints: ['{agent.url}']}}}}}}}}"
    )
    async with gateway(agent, config=config) as gw:
        start = asyncio.get_running_loop().time()
        wire = await gw.connect()
        await wire.send(b"\x16\x03\x01")
        await wire.closed()
        assert asyncio.get_running_loop().time() - start < 5


@in_loop
async def test_a_unix_socket_in_use_is_not_taken_over_and_a_stale_one_is(tmp_path: Path) -> None:
    agent = await Agent().start()
    path = tmp_path / "front.sock"
    config = f"listen: 'unix:{path}'\nservices: {{a: {{versions: {{v: {{endpoints: ['{agent.url}']}}}}}}}}"
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(path))
    stale.close()
    async with gateway(config=config):
        with pytest.raises(OSError, match="listens on"):
            async with gateway(config=config):
                pass
        wire = Wire(*await asyncio.open_unix_connection(str(path)))
        assert (await wire.get()).status == 200
        wire.close()
    await agent.stop()
