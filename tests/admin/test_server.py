"""The admin listener inside a loop that belongs to somebody else."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import signal
import socket
import ssl
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from unjam.admin import body
from unjam.admin import server as admin_server
from unjam.admin.app import create_app
from unjam.admin.auth import AdminExposed, Guard, hosts_for
from unjam.admin.server import AdminServer

from .fleet import Fleet
from .served import TOKEN, in_loop, served

REQUEST = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"


def app() -> Guard:
    return create_app(Fleet(), None, hosts_for("127.0.0.1"))


@in_loop
async def test_the_os_picks_the_port() -> None:
    async with served() as admin:
        assert admin.server.port > 0
        assert admin.server.host == "127.0.0.1"


@in_loop
async def test_signals_stay_with_the_gateway() -> None:
    caught = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: caught.append(number))
    try:
        handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
        async with served() as admin:
            assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers
            signal.raise_signal(signal.SIGTERM)
            assert (await admin.client.get("/healthz")).status_code == 200
        assert caught == [signal.SIGTERM]
        assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers
    finally:
        signal.signal(signal.SIGTERM, before)


@in_loop
async def test_stop_closes_the_port_and_kept_connections_soon() -> None:
    loop = asyncio.get_running_loop()
    server = AdminServer(app())
    await server.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(REQUEST)
    await reader.readuntil(b"ok\n")
    start = loop.time()
    await server.stop()
    assert loop.time() - start < 10
    assert await reader.read() == b""
    writer.close()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", server.port)
    await server.stop()


@in_loop
async def test_a_server_starts_once() -> None:
    server = AdminServer(app())
    await server.start()
    with pytest.raises(RuntimeError, match="started before"):
        await server.start()
    await server.stop()


@in_loop
async def test_an_address_in_use_is_an_os_error() -> None:
    async with served() as admin:
        with pytest.raises(OSError, match="in use"):
            await AdminServer(app()).start("127.0.0.1", admin.server.port)


@in_loop
async def test_beyond_loopback_it_refuses_to_start_without_token() -> None:
    with pytest.raises(AdminExposed):
        await AdminServer(app()).start("0.0.0.0", 0)
    with socket.socket() as wide:
        wide.bind(("0.0.0.0", 0))
        with pytest.raises(AdminExposed):
            await AdminServer(app()).start(sockets=[wide])
    guarded = AdminServer(create_app(Fleet(), TOKEN, hosts_for("0.0.0.0")), token=TOKEN)
    await guarded.start("0.0.0.0", 0)
    async with httpx.AsyncClient(trust_env=False) as client:
        url = f"http://127.0.0.1:{guarded.port}/api/state"
        assert (await client.get(url)).status_code == 401
        assert (await client.get(url, headers={"x-unjam-token": TOKEN})).status_code == 200
    await guarded.stop()


@in_loop
async def test_a_bound_socket_can_be_handed_over() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    server = AdminServer(app())
    await server.start(sockets=[listener])
    assert server.port == port
    async with httpx.AsyncClient(trust_env=False) as client:
        assert (await client.get(f"http://127.0.0.1:{port}/healthz")).text == "ok\n"
    await server.stop()


@in_loop
async def test_a_unix_socket_needs_no_token(tmp_path: Path) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "admin.sock"))
    server = AdminServer(create_app(Fleet(), None, hosts_for("")))
    await server.start(sockets=[listener])
    transport = httpx.AsyncHTTPTransport(uds=str(tmp_path / "admin.sock"))
    async with httpx.AsyncClient(transport=transport) as client:
        assert (await client.get("http://localhost/api/state")).status_code == 200
        assert (await client.get("http://evil.example/api/state")).status_code == 403
    await server.stop()


@in_loop
async def test_tls(tmp_path: Path) -> None:
    certificate, key = _certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = AdminServer(create_app(Fleet(), None, hosts_for("127.0.0.1")), tls=context)
    await server.start()
    trusting = ssl.create_default_context(cafile=str(certificate))
    async with httpx.AsyncClient(verify=trusting, trust_env=False) as client:
        answer = await client.get(f"https://localhost:{server.port}/api/state")
        assert answer.status_code == 200
    await server.stop()


@in_loop
async def test_the_loop_is_left_alone_when_idle() -> None:
    async with served() as admin:
        await admin.client.get("/healthz")
        tasks = {task.get_name() for task in asyncio.all_tasks()}
        assert "unjam-admin" in tasks
    assert "unjam-admin" not in {task.get_name() for task in asyncio.all_tasks()}


def _certificate(folder: Path) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    certificate_file, key_file = folder / "cert.pem", folder / "key.pem"
    certificate_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return certificate_file, key_file


@in_loop
async def test_malformed_requests_are_counted_and_closed() -> None:
    async with served() as admin:
        for junk in (
            b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost localhost\r\n\r\n",
            b"\x00" * 70_000,
        ):
            reader, writer = await asyncio.open_connection("127.0.0.1", admin.server.port)
            writer.write(junk)
            answer = await reader.read()
            assert answer.startswith(b"HTTP/1.1 400 ")
            writer.close()
        assert admin.rejected == [("admin_malformed", "127.0.0.1")] * 3


@in_loop
async def test_a_connection_that_asks_for_nothing_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin_server, "HEAD_TIMEOUT", 0.0)
    async with served() as admin:
        for begun, again in ((b"", False), (b"GET /healthz HTTP/1.1\r\n", False), (REQUEST, True)):
            reader, writer = await asyncio.open_connection("127.0.0.1", admin.server.port)
            writer.write(begun)
            if again:
                await reader.readuntil(b"ok\n")
                writer.write(b"GET")
            with contextlib.suppress(ConnectionResetError):
                assert await reader.read() == b""
            writer.close()
        assert admin.rejected == [("admin_head_timeout", "127.0.0.1")] * 3
        assert (await admin.client.get("/healthz")).status_code == 200


@in_loop
async def test_idle_strangers_do_not_keep_an_operator_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin_server, "MAX_CONNECTIONS", 4)
    async with served() as admin:
        strangers = [await asyncio.open_connection("127.0.0.1", admin.server.port) for _ in range(12)]
        for _, writer in strangers[::2]:
            writer.write(REQUEST)  # and then idle
        assert (await admin.client.get("/healthz")).status_code == 200
        assert admin.rejected == [("admin_connections", "127.0.0.1")] * 9
        for _, writer in strangers:
            writer.close()


@in_loop
async def test_a_body_that_does_not_come_is_408(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body, "BODY_TIMEOUT", 0.05)
    async with served() as admin:
        reader, writer = await asyncio.open_connection("127.0.0.1", admin.server.port)
        writer.write(
            b"POST /api/reload HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: 2\r\n\r\n{"
        )
        assert (await reader.readline()).startswith(b"HTTP/1.1 408 ")
        writer.close()
        assert admin.fleet.reloads == 0
