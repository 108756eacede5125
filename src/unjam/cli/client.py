"""The admin API as the commands call it: one request per command, JSON both ways."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import urllib.parse
from typing import Any

from unjam.cli.trouble import REFUSED, UNREACHABLE, USAGE, CliError
from unjam.config.address import is_loopback
from unjam.telemetry.escape import printable

TIMEOUT = 10.0
#: Bytes of an answer that are read: the state of 10,000 endpoints is about 5 MB.
MOST = 256 * 2**20


class AdminClient:
    """`url`: http://host:port, https://host:port, host:port or unix:/path. `token`: None where the listener needs none.

    Raises `CliError` from every call: `UNREACHABLE` when nobody answers, `REFUSED` with the gateway's own words.
    """

    def __init__(self, url: str, token: str | None = None) -> None:
        self._socket = url.removeprefix("unix:") if url.startswith("unix:/") else None
        whole = "http://localhost" if self._socket else url if "://" in url else f"http://{url}"
        try:
            parts = urllib.parse.urlsplit(whole)
            self._host, self._port = parts.hostname or "", parts.port
        except ValueError:
            self._host, self._port = "", None
        if not self._host or parts.scheme not in ("http", "https") or parts.path not in ("", "/") or parts.username:
            raise CliError("--admin takes http://host:port or unix:/path of the admin listener.", USAGE)
        if token is not None and not (token.isascii() and token.isprintable() and " " not in token):
            raise CliError("the admin token has white space or unprintable characters.", USAGE)
        self._tls = parts.scheme == "https"
        self._token = token
        self.url = url if self._socket else f"{parts.scheme}://{parts.netloc}"

    @property
    def bare_token(self) -> bool:
        """The token would cross a network without TLS."""
        return self._token is not None and not self._tls and not is_loopback(self._host)

    def get(self, path: str) -> Any:
        return self._call("GET", path, None)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        return self._call("POST", path, body)

    def _call(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        headers = {"Accept": "application/json"}
        data = None
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        if body is not None:
            headers["Content-Type"] = "application/json"
            data = json.dumps(body).encode()
        connection = self._connection()
        try:
            connection.request(method, path, data, headers)
            answer = connection.getresponse()
            status, raw = answer.status, answer.read(MOST)
        except (OSError, http.client.HTTPException) as error:
            raise CliError(
                f"no answer from {self.url}: {_why(error)}. Is a gateway running there?", UNREACHABLE
            ) from None
        finally:
            connection.close()
        try:
            decoded = json.loads(raw)
        except ValueError:
            decoded = None
        if status == 200 and decoded is not None:
            return decoded
        raise CliError(self._refusal(status, decoded), REFUSED)

    def _connection(self) -> http.client.HTTPConnection:
        if self._socket:
            return _UnixConnection(self._socket, timeout=TIMEOUT)
        if self._tls:
            context = ssl.create_default_context()
            return http.client.HTTPSConnection(self._host, self._port, timeout=TIMEOUT, context=context)
        return http.client.HTTPConnection(self._host, self._port, timeout=TIMEOUT)

    def _refusal(self, status: int, decoded: Any) -> str:
        if status == 401 and self._token:
            return (
                f"{self.url} refuses this admin token: see --token, UNJAM_ADMIN_TOKEN and admin: in its configuration."
            )
        if status == 401:
            return f"{self.url} needs the admin token: give --token, or set UNJAM_ADMIN_TOKEN."
        error = decoded.get("error") if isinstance(decoded, dict) else None
        if isinstance(error, dict) and "request_id" in error:
            return (
                f"{self.url} is where clients connect: --admin, or UNJAM_ADMIN, must say where operators do, which is "
                "admin: of its configuration (127.0.0.1:8081 when that says nothing)."
            )
        if isinstance(error, dict) and isinstance(error.get("message"), str):
            problems = decoded.get("problems")
            details = (
                [f"  {printable(str(problem), 500)}" for problem in problems] if isinstance(problems, list) else []
            )
            return "\n".join([printable(error["message"], 500), *details])
        return f"{self.url} answered {status}, which is not an admin listener of unjam."


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _why(error: Exception) -> str:
    if isinstance(error, socket.gaierror):
        return "the name is not known"
    if isinstance(error, TimeoutError):
        return "it took too long"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed ({error.reason or 'no reason given'})"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return "what answered does not speak HTTP"
