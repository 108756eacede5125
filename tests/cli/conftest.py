"""The command line as a user has it, and an admin listener that answers what a test wants."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from unjam.cli.main import app

Unjam = Callable[..., Result]


@pytest.fixture
def unjam(monkeypatch: pytest.MonkeyPatch) -> Unjam:
    """Runs a command; nothing of the caller's environment reaches it."""
    for name in ("UNJAM_ADMIN", "UNJAM_ADMIN_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    runner = CliRunner()

    def run(*args: str, stdin: str | None = None, **env: str) -> Result:
        result = runner.invoke(app, [*args], input=stdin, env=dict(env))
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        assert "Traceback" not in result.output
        return result

    return run


@dataclass
class FakeAdmin:
    """`status` and `answer` are what it says; `asked` is what it was asked: (method, path, body, headers)."""

    url: str
    status: int = 200
    answer: Any = field(default_factory=dict)
    asked: list[tuple[str, str, Any, dict[str, str]]] = field(default_factory=list)


@pytest.fixture
def admin() -> Iterator[FakeAdmin]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.respond(None)

        def do_POST(self) -> None:
            self.respond(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def respond(self, body: Any) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            fake.asked.append((self.command, self.path, body, headers))
            data = fake.answer if isinstance(fake.answer, bytes) else json.dumps(fake.answer).encode()
            self.send_response(fake.status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    fake = FakeAdmin(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield fake
    server.shutdown()
    thread.join()
    server.server_close()
