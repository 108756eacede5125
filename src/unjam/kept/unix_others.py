"""The other gateways on one file, of one machine: a datagram socket of each beside it, for our own user only.

Who is there is who has a socket that takes what is sent. One that nobody holds any more, as its gateway was killed, is
removed by whoever finds it.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
import socket
from pathlib import Path
from typing import Final

from unjam.kept.base import KeptAway
from unjam.kept.others import LARGEST, Others, Round

#: The first byte of what is sent.
_QUESTION: Final = b"?"
_ANSWER: Final = b"!"
#: Datagrams taken in one turn of the loop.
_TURN: Final = 16
#: Those that another has no room for (Linux gives it 10 by default) are tried again: so many, seconds apart, times.
_LATER: Final = 64
_AGAIN: Final = 0.01
_TRIES: Final = 100


class UnixOthers(Others):
    """`path`: of the file; the sockets are `PATH-NAME.sock`."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._socket: socket.socket | None = None
        self._folder = -1
        self._later: list[tuple[str, bytes, int]] = []
        self._sockets: Final = re.compile(re.escape(path.name) + r"-([0-9a-f]{16})\.sock").fullmatch

    async def close(self) -> None:
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
            self._socket = None
            self._remove(self.name)
        if self._folder >= 0:
            os.close(self._folder)
            self._folder = -1

    def _begin(self) -> None:
        made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        made.setblocking(False)
        try:
            # Before it has a name: who may send to it is settled when others see it.
            os.fchmod(made.fileno(), 0o600)
            self._folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            made.bind(self._address(self.name))
        except OSError as error:
            made.close()
            self._warn(f"{self._path}: gateways on this file can't ask each other ({error.strerror or error})")
            return
        self._socket = made
        for name in self._names():
            self._tell(name, b"")  # nobody understands it; for the sockets that nobody holds
        asyncio.get_running_loop().add_reader(made, self._readable)

    async def _send(self, frame: bytes, round_: Round) -> int:
        if self._socket is None:
            return 0
        try:
            names = self._names()
        except OSError as error:
            raise KeptAway(f"{self._path.parent}: {error.strerror}") from error
        return sum(self._tell(name, _QUESTION + frame) for name in names)

    def _names(self) -> list[str]:
        found = filter(None, map(self._sockets, os.listdir(self._path.parent)))
        return [each[1] for each in found if each[1] != self.name]

    def _tell(self, name: str, data: bytes, tries: int = _TRIES) -> bool:
        """Whether there is somebody; who takes nothing for a while is, and stays silent."""
        assert self._socket is not None
        try:
            self._socket.sendto(data, self._address(name))
        except BlockingIOError:
            if tries and len(self._later) < _LATER:
                if not self._later:
                    asyncio.get_running_loop().call_later(_AGAIN, self._again)
                self._later.append((name, data, tries - 1))
        except OSError as error:
            if error.errno == errno.ECONNREFUSED:
                self._remove(name)
            return error.errno not in (errno.ECONNREFUSED, errno.ENOENT)
        return True

    def _again(self) -> None:
        later, self._later = self._later, []
        if self._socket is not None:
            for name, data, tries in later:
                self._tell(name, data, tries)

    def _readable(self) -> None:
        for _ in range(_TURN):
            if self._socket is None:
                return
            try:
                data = self._socket.recv(LARGEST)
            except OSError:
                return  # nothing more
            if data[:1] == _ANSWER:
                self._answered(data[1:])
            elif data[:1] == _QUESTION:
                reply = self._asked(data[1:])
                if reply is not None:
                    self._tell(reply[0], _ANSWER + reply[1])

    def _address(self, name: str) -> str:
        address = f"{self._path}-{name}.sock"
        # The address of a socket has room for 107 bytes; a longer path is reached by the folder's descriptor.
        return (
            address
            if len(os.fsencode(address)) <= 100
            else f"/proc/self/fd/{self._folder}/{self._path.name}-{name}.sock"
        )

    def _remove(self, name: str) -> None:
        try:
            os.unlink(f"{self._path.name}-{name}.sock", dir_fd=self._folder)
        except OSError:
            pass  # somebody else did
