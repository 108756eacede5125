"""What asking the other gateways of one state does: `unjam.kept.others`, promise by promise."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.runs.redis_servers import Server
from tests.runs.test_redis_failover import Watched
from unjam.kept import make, redis_others
from unjam.kept.base import KeptAway
from unjam.kept.others import LARGEST, Others, Respond

from .conftest import Harness


def silent(question: bytes) -> None:
    return None


def echo(word: bytes) -> Respond:
    return lambda question: word + b" " + question


@asynccontextmanager
async def another(url: str, respond: Respond) -> AsyncIterator[Others]:
    """One more gateway of the state, which has heard of itself."""
    kept = make(url)
    others = kept.others()
    assert others is not None
    await kept.open()
    others.listen(respond, print)
    try:
        async with asyncio.timeout(20):
            while await heard_of_nobody(others):
                pass
        yield others
    finally:
        await others.close()
        await kept.close()


async def heard_of_nobody(others: Others) -> bool:
    try:
        await others.ask(b"", 0.1, lambda answer: None)
    except KeptAway:
        return True
    return False


async def asked(others: Others, question: bytes, patience: float = 5.0) -> tuple[bool, list[bytes]]:
    answers: list[bytes] = []
    complete = await others.ask(question, patience, answers.append)
    return complete, sorted(answers)


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder whose path is short, as that of a socket must be."""
    with tempfile.TemporaryDirectory(prefix="r") as folder:
        yield Path(folder)


def sockets(folder: Path) -> list[Path]:
    return list(folder.glob("*.sock"))


@pytest.fixture
def shared(kind: str) -> None:
    if kind == "memory":
        pytest.skip("nobody shares it")


async def test_memory_has_no_others() -> None:
    assert make("memory").others() is None


@pytest.mark.usefixtures("shared")
async def test_all_others_answer_and_nobody_else(h: Harness) -> None:
    async with another(h.url, silent) as one:
        assert await asked(one, b"anybody?") == (True, [])
        async with another(h.url, echo(b"two")) as two, another(h.url, echo(b"three")) as three:
            assert await asked(one, b"a\nb\x00") == (True, [b"three a\nb\x00", b"two a\nb\x00"])
            assert await asked(two, b"?", 0.3) == (False, [b"three ?"])  # one says nothing
            assert await asked(three, b"?", 0.3) == (False, [b"two ?"])
        assert await asked(one, b"anybody?") == (True, [])


@pytest.mark.usefixtures("shared")
async def test_many_questions_at_once_each_have_their_own_answers(h: Harness) -> None:
    async with another(h.url, silent) as one, another(h.url, echo(b"two")):
        found = await asyncio.gather(*(asked(one, b"%d" % n) for n in range(40)))
        assert found == [(True, [b"two %d" % n]) for n in range(40)]


@pytest.mark.usefixtures("shared")
async def test_a_large_question_and_a_large_answer(h: Harness) -> None:
    async with another(h.url, silent) as one, another(h.url, lambda question: question[::-1]):
        question = os.urandom(100_000)
        assert await asked(one, question) == (True, [question[::-1]])


@pytest.mark.usefixtures("shared")
async def test_one_whose_answer_fails_is_one_that_has_not_answered(h: Harness) -> None:
    def fails(question: bytes) -> bytes:
        raise RuntimeError("a fault")

    told: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context))
    async with another(h.url, silent) as one, another(h.url, fails) as two:
        assert await asked(one, b"?", 0.3) == (False, [])
        assert await asked(two, b"?", 0.3) == (False, [])


OTHER = """
import asyncio, sys
from unjam.kept import make

async def main():
    kept = make(sys.argv[1])
    others = kept.others()
    await kept.open()
    others.listen(lambda question: b"other", print)
    await others.ask(b"", 5, lambda answer: None)
    print("there", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.mark.usefixtures("shared")
async def test_one_that_is_killed_is_not_waited_for_and_one_that_hangs_is_told_of(h: Harness, tmp_path: Path) -> None:
    other = await asyncio.create_subprocess_exec(sys.executable, "-c", OTHER, h.url, stdout=asyncio.subprocess.PIPE)
    assert other.stdout is not None
    try:
        async with another(h.url, lambda question: b"we") as one:
            assert await other.stdout.readline() == b"there\n"
            assert await asked(one, b"?") == (True, [b"other"])
            other.send_signal(signal.SIGSTOP)
            assert await asked(one, b"?", 0.3) == (False, [])
            other.send_signal(signal.SIGKILL)
            await other.wait()
            # Redis reads the end of the connection in its own time.
            async with asyncio.timeout(15):
                while (found := await asked(one, b"?", 0.3)) != (True, []):
                    assert found == (False, [])
    finally:
        if other.returncode is None:
            other.kill()
        await other.wait()
    assert not sockets(tmp_path)


async def test_a_killed_ones_socket_is_removed_by_who_comes_next(short: Path) -> None:
    url = f"sqlite:{short / 'unjam.db'}"
    left = short / f"unjam.db.kept-{'0' * 16}.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as gone:
        gone.bind(str(left))
    async with another(url, silent):
        assert not left.exists()
        (ours,) = sockets(short)
        assert ours.stat().st_mode & 0o777 == 0o600


async def test_a_file_with_a_long_path_has_others_too(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 40)
    folder.mkdir()
    url = f"sqlite:{folder / 'unjam.db'}"
    async with another(url, silent) as one, another(url, echo(b"two")):
        assert await asked(one, b"?") == (True, [b"two ?"])
    assert not sockets(folder)


async def test_where_no_socket_can_be_it_is_told_and_there_are_no_others(tmp_path: Path) -> None:
    others = make(f"sqlite:{tmp_path / 'nowhere' / 'unjam.db'}").others()
    assert others is not None
    told: list[str] = []
    others.listen(silent, told.append)
    assert await asked(others, b"?") == (True, [])
    assert re.search("can't ask each other .No such file", told[0])
    await others.close()


async def test_what_is_not_understood_is_passed_over(short: Path) -> None:
    url = f"sqlite:{short / 'unjam.db'}"
    heard: list[bytes] = []

    def respond(question: bytes) -> bytes:
        heard.append(question)
        return b"answer"

    async with another(url, respond) as one:
        (theirs,) = sockets(short)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stranger:
            for said in (b"", b"?", b"!", b"x", b"?nonsense", b"!0123456789abcdef 1\nlate", b"?../../etc/passwd 1\n"):
                stranger.sendto(said, str(theirs))
            stranger.sendto(b"?0123456789abcdef 7\nfrom nobody", str(theirs))
        async with another(url, silent) as two:
            assert await asked(two, b"?") == (True, [b"answer"])
        assert heard == [b"from nobody", b"", b"?"]
        assert await asked(one, b"?") == (True, [])


async def test_redis_away_is_said_within_the_patience_and_others_are_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert redis_others.SETTLING == 5
    monkeypatch.setattr(redis_others, "SETTLING", 60.0)
    server = Server(tmp_path).start()
    url = server.url(patience=0.5)
    try:
        async with another(url, silent) as one, another(url, echo(b"two")):
            assert await asked(one, b"?") == (True, [b"two ?"])
            server.kill()
            start = time.monotonic()
            with pytest.raises(KeptAway):
                await asked(one, b"?", 1)
            assert time.monotonic() - start < 10
            server.start()
            async with asyncio.timeout(20):
                while b"two ?" not in (await _anyhow(one))[1]:
                    pass
            # Both are back, and all there are have answered; it isn't taken for certain yet that there are no more.
            assert await asked(one, b"?") == (False, [b"two ?"])
    finally:
        server.kill()


async def _anyhow(others: Others) -> tuple[bool, list[bytes]]:
    try:
        return await asked(others, b"?", 0.3)
    except KeptAway:
        return False, []


async def test_nobody_hears_what_was_said_to_another_prefix_or_database(tmp_path: Path) -> None:
    server = Server(tmp_path).start()
    try:
        async with (
            another(server.url(prefix="a:"), silent) as one,
            another(server.url(prefix="b:"), echo(b"b")),
            another(server.url(prefix="a:", db=1), echo(b"db 1")) as two,
            another(server.url(prefix="a:", db=1), silent) as three,
        ):
            assert await asked(one, b"?") == (True, [])
            assert await asked(three, b"?") == (True, [b"db 1 ?"])
            assert await asked(two, b"?", 0.1) == (False, [])
    finally:
        server.kill()


async def test_redis_keeps_nothing_of_it_and_what_it_says_falsely_is_passed_over(tmp_path: Path) -> None:
    server = Server(tmp_path).start()
    try:
        async with another(server.url(prefix="a:"), silent) as one, another(server.url(prefix="a:"), echo(b"two")):
            for said in ("", "nonsense", f"{'0' * 16} 1\n{'x' * LARGEST}"):
                server.ask("PUBLISH", "a:{kept}:ask", said)
                server.ask("PUBLISH", f"a:{{kept}}:told:{one.name}", said)
            assert await asked(one, b"?") == (True, [b"two ?"])
            assert not server.ask("KEYS", "*")
    finally:
        server.kill()


async def test_behind_sentinels_they_meet_again_at_the_new_master(tmp_path: Path) -> None:
    servers = Watched(tmp_path).start()
    try:
        async with another(servers.url, silent) as one, another(servers.url, echo(b"two")):
            assert await asked(one, b"?") == (True, [b"two ?"])
            servers.replicated()
            servers.master.kill()
            async with asyncio.timeout(20):
                while b"two ?" not in (await _anyhow(one))[1]:
                    pass
    finally:
        servers.kill()
