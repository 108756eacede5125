"""What only the agent knows: `GET /.well-known/unjam/load`, asked on this machine.

An agent without the route is asked once and not again until it is another process. One that is slow is left alone: no
report waits for it, and a figure that is old is not passed on.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from typing import Any, Final

from unjam.http.connection import Answer, BadAnswer, Connection

#: Seconds for an answer; an agent that is busy with one request at a time answers none.
PATIENCE: Final = 1.0
_MOST: Final = 10_000_000
#: Each question has its own connection: a server with a thread per connection would lose one to us for good.
_HEAD: Final = (
    b"GET /.well-known/unjam/load HTTP/1.1\r\nhost: localhost\r\naccept: application/json\r\n"
    b"user-agent: unjam-reporter\r\nconnection: close\r\n"
)


class AgentLoad:
    """`port`: the agent's, on this machine; `secure`: it speaks TLS there, with whatever certificate."""

    def __init__(self, port: int, secure: bool = False) -> None:
        tls = None
        if secure:
            # Loopback, and a certificate made for another name.
            tls = ssl.create_default_context()
            tls.check_hostname = False
            tls.verify_mode = ssl.CERT_NONE
        self._connection = Connection("127.0.0.1", port, tls)
        self._figures: dict[str, int] = {}
        self._at = 0.0
        #: It has no such route.
        self._silent = False
        #: Somebody accepts connections there.
        self.reached = False

    @property
    def tells(self) -> bool:
        """Whether it says how many requests it works on."""
        return "in_flight" in self._figures

    def again(self) -> None:
        """The agent is another process, or none: what was known is not known."""
        self._silent = self.reached = False
        self._figures = {}

    def figures(self, since: float) -> dict[str, int]:
        """`in_flight` and `waiting` as asked at `since` (the loop's clock) or later; empty when not known."""
        return self._figures if self._figures and self._at >= since else {}

    async def ask(self, knock: bool = False) -> None:
        """`knock`: also where the route is known to be missing, to see whether anybody is there. Never raises for what
        the agent does."""
        if self._silent and not knock:
            return
        asked_at = asyncio.get_running_loop().time()
        try:
            answer = await self._connection.request(_HEAD, timeout=PATIENCE)
        except (TimeoutError, ConnectionResetError, BrokenPipeError):
            self.reached = True
            return
        except OSError:
            self.reached = False
            return
        except BadAnswer:
            self.reached = self._silent = True
            return
        finally:
            self._connection.close()
        self.reached = True
        if answer.status >= 500 or answer.status == 429:
            return
        self._figures, self._at = _figures(answer), asked_at
        self._silent = not self._figures


def _figures(answer: Answer) -> dict[str, int]:
    if answer.status != 200:
        return {}
    try:
        told: Any = json.loads(answer.body)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(told, dict):
        return {}
    found = {name: told[name] for name in ("in_flight", "waiting") if _count(told.get(name))}
    if found.get("waiting", 0) > found.get("in_flight", _MOST):
        del found["waiting"]
    return found


def _count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MOST
