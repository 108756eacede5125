"""A failover loses what was not replicated: the log says so, and no seq or fence is given twice. And TLS."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from unjam.runs.store.base import Fenced, StoreAway
from unjam.runs.store.redis import RedisStore

from .redis_faults import in_loop, log, new_run, progress
from .redis_servers import Server, until

_AUTH = ("requirepass secret", "masterauth secret")


class Watched:
    """A master, its replica, and the sentinel that watches them."""

    def __init__(self, place: Path) -> None:
        self.master = Server(place / "master", "appendonly yes", "repl-diskless-sync-delay 0", *_AUTH)
        self.replica = Server(
            place / "replica", "appendonly yes", f"replicaof 127.0.0.1 {self.master.port}", "replica-priority 1", *_AUTH
        )
        self.sentinel = Server(
            place / "sentinel",
            f"sentinel monitor main 127.0.0.1 {self.master.port} 1",
            "sentinel auth-pass main secret",
            "sentinel down-after-milliseconds main 1500",
            "sentinel failover-timeout main 3000",
            sentinel=True,
        )
        for server in (self.master, self.replica):
            server.admin["password"] = "secret"
        self.url = f"redis+sentinel://:secret@127.0.0.1:{self.sentinel.port}/main?patience=20"

    def start(self) -> Watched:
        self.master.start()
        self.replica.start()
        until(lambda: self.replica.ask("INFO", "replication")["master_link_status"] == "up")
        self.sentinel.start()
        until(lambda: self.sentinel.raw("SENTINEL", "REPLICAS", "main"))
        return self

    def replicated(self) -> None:
        def same() -> bool:
            offsets = [
                server.ask("INFO", "replication")["master_repl_offset"] for server in (self.master, self.replica)
            ]
            return offsets[0] == offsets[1]

        until(same)

    def part(self) -> None:
        """From now on the replica gets nothing more."""
        self.replica.ask("CONFIG", "SET", "masterauth", "wrong")
        self.master.ask("CLIENT", "KILL", "TYPE", "replica")

    def kill(self) -> None:
        for server in (self.sentinel, self.replica, self.master):
            server.kill()


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    servers = Watched(tmp_path)
    try:
        yield servers.start()
    finally:
        servers.kill()


@in_loop
async def test_56_a_failover_that_lost_a_tail_shows_a_gap_and_gives_no_seq_twice(watched: Watched) -> None:
    warnings: list[str] = []
    owner, other = RedisStore(watched.url, on_warning=warnings.append), RedisStore(watched.url)
    await owner.open()
    await other.open()
    try:
        for service in ("known", "stolen", "cancelled"):
            await owner.create(new_run(service=service))
        known, stolen = [await owner.claim([service], "w", pull=True) for service in ("known", "stolen")]
        assert known is not None
        assert stolen is not None
        await owner.append(known.run.id, 1, 1, [progress(1)])
        await asyncio.to_thread(watched.replicated)
        watched.part()
        # What is acknowledged from here on is lost, after somebody has seen it.
        lost = await owner.append(known.run.id, 1, 2, [progress(2), progress(3)])
        assert (lost.first, lost.next) == (3, 5)
        released = await owner.release(stolen.run.id, 1)
        assert released.changed
        again = await owner.claim(["stolen"], "w", pull=True)
        assert again is not None
        seen = {event.seq for event in await log(owner, again.run.id)}
        watched.master.kill()
        # The owner goes on where it was.
        appended = await owner.append(known.run.id, 1, 3, [progress(4)])
        assert appended.first == 6
        events = await log(other, known.run.id)
        assert [(event.seq, event.type) for event in events[2:]] == [(2, "progress"), (5, "run.gap"), (6, "progress")]
        assert msgspec.json.decode(events[3].data) == {"from": 3, "to": 4}
        # Nobody can know how far the other went: it goes on well after that, and its old owner is refused.
        assert (await other.cancel(stolen.run.id)).changed
        with pytest.raises(Fenced):
            await owner.append(again.run.id, again.run.fence, 1, [progress(1)])
        await other.release(stolen.run.id, 1)
        events = await log(other, stolen.run.id)
        assert [event.type for event in events[-2:]] == ["run.gap", "run.cancelled"]
        assert not seen & {event.seq for event in events[2:]}
        assert any("was a replica before" in warning for warning in warnings)
    finally:
        await owner.close()
        await other.close()


@in_loop
async def test_what_too_few_replicas_have_is_not_acknowledged(watched: Watched) -> None:
    store = RedisStore(watched.url + "&replicas=1")
    await store.open()
    try:
        run, _ = await store.create(new_run())
        claim = await store.claim(["auditor"], "w", pull=True)
        assert claim is not None
        await store.append(run.id, 1, 1, [progress(1)])
        watched.part()
        with pytest.raises(StoreAway, match="0 replicas"):
            await store.append(run.id, 1, 2, [progress(2)])
    finally:
        await store.close()


def _certificate(place: Path) -> Path:
    """For 127.0.0.1, signed by itself; key and certificate in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=2))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    file = place / "redis.pem"
    file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + built.public_bytes(serialization.Encoding.PEM)
    )
    return file


@in_loop
async def test_tls_and_a_user_and_who_is_not_trusted(tmp_path: Path) -> None:
    file = _certificate(tmp_path)
    server = Server(tmp_path / "data")
    server.options = (
        "port 0",
        f"tls-port {server.port}",
        f"tls-cert-file {file}",
        f"tls-key-file {file}",
        "tls-auth-clients no",
        "user agent on >secret ~unjam:* &unjam:* +@all -@dangerous +info",
    )
    server.admin.update(ssl=True, ssl_ca_certs=str(file))
    server.start()
    try:
        store = RedisStore(f"rediss://agent:secret@127.0.0.1:{server.port}?ssl_ca_certs={file}")
        await store.open()
        run, _ = await store.create(new_run())
        told = asyncio.Event()
        store.on_growth = lambda grown, seq: told.set()
        store.watch(run.id)
        await asyncio.wait_for(told.wait(), 20)
        await store.close()
        with pytest.raises(StoreAway, match="certificate"):
            await RedisStore(f"rediss://agent:secret@127.0.0.1:{server.port}?patience=0.3").open()
    finally:
        server.kill()
