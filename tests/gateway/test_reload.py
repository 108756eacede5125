"""A reload puts all of a configuration in force, or nothing of it; listeners, health and connections keep up."""

from __future__ import annotations

import asyncio
import socket
import ssl
from pathlib import Path

import pytest
from benchmarks.common.procs import free_port

from unjam.config import parse
from unjam.gateway import listeners

from .harness import Agent, Call, Running, Wire, gateway, in_loop, until
from .test_process import certificate


class File:
    """A configuration as it stands on disk: what a reload reads."""

    def __init__(self, *endpoints: str, listen: str = "127.0.0.1:0", service: str = "", version: str = "") -> None:
        self.write(*endpoints, listen=listen, service=service, version=version)

    def write(self, *endpoints: str, listen: str = "127.0.0.1:0", service: str = "", version: str = "") -> None:
        urls = ", ".join(f"'{url}'" for url in endpoints)
        self.text = (
            f"listen: {listen}\nadmin: off\naccess_log: off\n"
            f"services: {{s: {{{service} versions: {{v: {{{version} endpoints: [{urls}]}}}}}}}}\n"
        )

    def read(self) -> object:
        return parse(self.text, {})


def tls_listen(address: str, pair: tuple[Path, Path]) -> str:
    return f"{{address: '{address}', tls: {{cert: {pair[0]}, key: {pair[1]}}}}}"


def in_force(gw: Running) -> list[str]:
    return [
        endpoint.url
        for service in gw.gateway.balancer.services.values()
        for version in service.versions
        for endpoint in version.endpoints.values()
    ]


# -- listeners ---------------------------------------------------------------------------------------------------------


@in_loop
async def test_a_refused_reload_leaves_every_listener_as_it_was(tmp_path: Path) -> None:
    agent, other = await Agent().start(), await Agent().start()
    good = certificate(tmp_path, "good")
    halves = good[0], certificate(tmp_path, "else")[1]
    kept = f"127.0.0.1:{free_port()}"
    fresh = f"127.0.0.1:{free_port()}"
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        taken = f"127.0.0.1:{busy.getsockname()[1]}"
        file = File(agent.url, listen=kept)
        async with gateway(agent, other, config=file.text, reload=file.read) as gw:
            idle = await gw.connect()
            assert (await idle.get()).status == 200
            for listen in (
                f"[{tls_listen(kept, good)}, '{taken}']",
                f"['{fresh}', {tls_listen(kept, halves)}]",
                f"['{fresh}', '{taken}']",
                f"'{taken}'",
            ):
                file.write(other.url, listen=listen)
                assert await gw.server.reload(), listen
                assert list(gw.server.listeners) == [kept]
                assert in_force(gw) == [agent.url]
                assert (await idle.get()).status == 200
                assert (await (await gw.connect()).get()).status == 200
                with pytest.raises(ConnectionRefusedError):
                    await asyncio.open_connection("127.0.0.1", int(fresh.rpartition(":")[2]))
            assert other.requests == []


@in_loop
async def test_tls_is_switched_on_and_off_on_the_same_socket(tmp_path: Path) -> None:
    pair = certificate(tmp_path, "gateway")
    trust = ssl.create_default_context(cafile=pair[0])
    agent = await Agent().start()
    file = File(agent.url)
    async with gateway(agent, config=file.text, reload=file.read) as gw:
        port = gw.port
        before = await gw.connect()
        assert (await before.get()).status == 200
        for secure in (True, True, False, True):
            file.write(agent.url, listen=tls_listen("127.0.0.1:0", pair) if secure else "127.0.0.1:0")
            assert await gw.server.reload() == []
            assert gw.port == port
            wire = await gw.connect(trust if secure else None)
            assert (await wire.get()).status == 200
        assert (await before.get()).status == 200  # accepted then, served on


@in_loop
async def test_a_certificate_of_another_kind_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    """OpenSSL keeps a certificate for each kind of key: one loaded beside another would leave both in use."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    new = certificate(tmp_path, "new", "new")
    key = rsa.generate_private_key(65537, 2048)
    template = x509.load_pem_x509_certificate(certificate(tmp_path, "template", "old")[0].read_bytes())
    builder = x509.CertificateBuilder(
        template.issuer,
        template.subject,
        key.public_key(),
        template.serial_number,
        template.not_valid_before_utc,
        template.not_valid_after_utc,
    )
    for extension in template.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    old = tmp_path / "old.pem", tmp_path / "old.key"
    old[0].write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    old[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    agent = await Agent().start()
    file = File(agent.url, listen=tls_listen("127.0.0.1:0", old))
    async with gateway(agent, config=file.text, reload=file.read) as gw:

        def knows(kind: str) -> ssl.SSLContext:
            context = ssl.create_default_context()
            context.maximum_version = ssl.TLSVersion.TLSv1_2
            context.set_ciphers(f"ECDHE-{kind}-AES128-GCM-SHA256")
            for cert, _ in (old, new):
                context.load_verify_locations(cert)
            return context

        await gw.connect(knows("RSA"))
        file.write(agent.url, listen=tls_listen("127.0.0.1:0", new))
        assert await gw.server.reload() == []
        await gw.connect(knows("ECDSA"))
        with pytest.raises((ssl.SSLError, ConnectionResetError)):  # by an alert, or by the reset that overtakes it
            await gw.connect(knows("RSA"))


@in_loop
async def test_the_path_of_a_unix_socket_lives_as_long_as_its_listener(tmp_path: Path) -> None:
    agent = await Agent().start()
    path = tmp_path / "gateway.sock"
    pair = certificate(tmp_path, "gateway")
    trust = ssl.create_default_context(cafile=pair[0])

    async def answered(context: ssl.SSLContext | None) -> int:
        reader, writer = await asyncio.open_unix_connection(
            str(path), ssl=context, server_hostname="localhost" if context else None
        )
        status = (await Wire(reader, writer).get()).status
        writer.close()
        return status

    file = File(agent.url, listen=f"['127.0.0.1:0', 'unix:{path}']")
    async with gateway(agent, config=file.text, reload=file.read) as gw:
        assert await answered(None) == 200
        file.write(agent.url, listen=f"['127.0.0.1:0', {tls_listen(f'unix:{path}', pair)}]")
        assert await gw.server.reload() == []
        assert await answered(trust) == 200
        file.write(agent.url)
        assert await gw.server.reload() == []
        assert not path.exists()
        file.write(agent.url, listen=f"['127.0.0.1:0', 'unix:{path}']")
        assert await gw.server.reload() == []
        assert await answered(None) == 200
        await gw.server.drain()
        async with gateway(config=file.text):  # the next one, while the first comes to its end
            await gw.server.stop()
            assert await answered(None) == 200
        assert not path.exists()


# -- one after another -------------------------------------------------------------------------------------------------


@in_loop
async def test_of_two_reloads_at_once_the_later_file_stays_in_force(tmp_path: Path) -> None:
    one, two = await Agent().start(), await Agent().start()
    file = File(one.url)
    async with gateway(one, two, config=file.text, reload=file.read) as gw:
        file.write(one.url, listen=f"['127.0.0.1:0', 'unix:{tmp_path}/gateway.sock']")  # binding it takes a while
        first = asyncio.create_task(gw.server.reload())
        await asyncio.sleep(0)
        file.write(two.url)
        second = asyncio.create_task(gw.server.reload())
        assert (await first, await second) == ([], [])
        assert in_force(gw) == [two.url]
        assert list(gw.server.listeners) == ["127.0.0.1:0"]


@in_loop
async def test_a_gateway_that_drains_opens_nothing_more() -> None:
    agent = await Agent().start()
    file = File(agent.url)
    fresh = free_port()
    async with gateway(agent, config=file.text, reload=file.read) as gw:
        await gw.server.drain()
        file.write(agent.url, listen=f"['127.0.0.1:0', '127.0.0.1:{fresh}']")
        assert await gw.server.reload() == ["the gateway is stopping"]
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", fresh)


@in_loop
async def test_an_idle_tls_client_that_does_not_read_does_not_hold_up_a_drain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listeners, "TLS_FAREWELL", 0.2)
    pair = certificate(tmp_path, "gateway")
    agent = await Agent().start()
    file = File(agent.url, listen=tls_listen("127.0.0.1:0", pair))
    async with gateway(agent, config=file.text) as gw:

        def ask() -> ssl.SSLSocket:
            trust = ssl.create_default_context(cafile=pair[0])
            made = socket.create_connection(("127.0.0.1", gw.port), timeout=20)
            connection = trust.wrap_socket(made, server_hostname="localhost")
            connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            connection.recv(4096)
            return connection

        with await asyncio.to_thread(ask):
            async with asyncio.timeout(15):
                await gw.server.drain()
            assert not gw.gateway.clients


# -- health ------------------------------------------------------------------------------------------------------------


def checked(interval: str) -> str:
    return f"health: {{path: /h, interval: {interval}, unhealthy_after: 1, healthy_after: 1}},"


@pytest.mark.parametrize("then", [checked("200ms"), "health: off,"], ids=["other checks", "no checks"])
@in_loop
async def test_an_endpoint_that_failed_its_checks_comes_back_after_they_are_changed(then: str) -> None:
    well = False

    async def by_health(call: Call) -> None:
        await call.answer(status=200 if well or call.seen.target != "/h" else 500)

    ill, other = await Agent(by_health).start(), await Agent().start()
    file = File(ill.url, other.url, service=checked("100ms"))
    async with gateway(ill, other, config=file.text, reload=file.read) as gw:
        endpoint = gw.endpoint(ill.url)
        await until(lambda: not endpoint.healthy)
        file.write(ill.url, other.url, service=then)
        assert await gw.server.reload() == []
        if "off" in then:
            assert endpoint.healthy
        else:
            assert not endpoint.healthy  # no check has passed yet
            well = True
            await until(lambda: endpoint.healthy)


# -- connections to endpoints ------------------------------------------------------------------------------------------


@in_loop
async def test_an_endpoint_that_returns_while_it_works_keeps_its_connections() -> None:
    go = asyncio.Event()

    async def waits(call: Call) -> None:
        await go.wait()
        await call.answer()

    one, two = await Agent(waits).start(), await Agent().start()
    file = File(one.url)
    async with gateway(one, two, config=file.text, reload=file.read) as gw:
        wires = [await gw.connect() for _ in range(3)]
        for wire in wires:
            await wire.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        for _ in wires:
            await one.calls.get()
        for url in (two.url, one.url):
            file.write(url)
            assert await gw.server.reload() == []
        go.set()
        for wire in wires:
            assert (await wire.answer()).status == 200
        assert (await wires[0].get()).status == 200
        assert one.connections == 3
        file.write(two.url)  # and lets go of them when it leaves for good
        assert await gw.server.reload() == []
        await until(lambda: not one.open)


@in_loop
async def test_connections_made_under_other_tls_settings_are_not_used_again(tmp_path: Path) -> None:
    pair = certificate(tmp_path, "endpoint")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*pair)
    go = asyncio.Event()

    async def by_path(call: Call) -> None:
        if call.seen.target == "/slow":
            await go.wait()
        await call.answer()

    agent = await Agent(by_path).start(ssl=context)
    url = f"https://localhost:{agent.port}"
    loose = "endpoint_tls: {verify: false},"
    file = File(url, version=loose)
    async with gateway(agent, config=file.text, reload=file.read) as gw:
        slow, wire = await gw.connect(), await gw.connect()
        await slow.send(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
        await agent.calls.get()
        assert (await wire.get()).status == 200
        assert await gw.server.reload() == []  # nothing changed: nothing is closed
        assert (await wire.get()).status == 200
        assert agent.connections == 2
        file.write(url)  # from now on it has to be verified, and can't be
        assert await gw.server.reload() == []
        assert (await wire.get()).status == 502
        go.set()
        assert (await slow.answer()).status == 200  # sent before
        assert (await wire.get()).status == 502
        assert {seen.target for seen in agent.requests} == {"/slow", "/"}
        assert len(agent.requests) == 3
