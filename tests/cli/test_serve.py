"""`unjam serve`: from options and files to a gateway, and its life as a process."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from unjam.cli.serve import Choices, configuration
from unjam.cli.trouble import CliError
from unjam.config import ConfigError

Unjam = Callable[..., Result]

FILE = """listen: 127.0.0.1:9080
admin: {listen: 127.0.0.1:9081, token: from-the-file-itself, hosts: [unjam.internal]}
services: {a: {versions: {v: {endpoints: ["http://10.0.0.1:9000"]}}}}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "unjam.yaml"
    path.write_text(FILE, encoding="utf-8")
    return path


def test_urls_are_enough(tmp_path: Path) -> None:
    config, reload = configuration(Choices(to=("http://127.0.0.1:9001", "http://127.0.0.1:9002")), {}, tmp_path)
    assert reload is None
    (version,) = config.topology().services["default"].versions
    assert [endpoint.url for endpoint in version.endpoints] == ["http://127.0.0.1:9001", "http://127.0.0.1:9002"]
    assert str(config.listen[0].address) == "127.0.0.1:8080"


def test_a_file_may_be_named_without_an_option(unjam: Unjam, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("services: {a: {versions: {v: {endpoints: [h]}}}}")
    assert f"{wrong}:1: services.a.versions.v.endpoints[0]: 'h' has no scheme" in unjam("serve", str(wrong)).stderr
    result = unjam("serve", str(wrong), "--config", "other.yaml")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "two configuration files: give one" in result.stderr


def test_urls_with_everything_else() -> None:
    choices = Choices(
        to=("http://127.0.0.1:9001",),
        listen=("127.0.0.1:1", "unix:/run/u.sock"),
        admin="0.0.0.0:2",
        policy="round_robin",
        slots=4,
        access_log="off",
    )
    config, _ = configuration(choices, {"UNJAM_ADMIN_TOKEN": "a-token-of-some-length"})
    assert [str(listen.address) for listen in config.listen] == ["127.0.0.1:1", "unix:/run/u.sock"]
    assert config.admin is not None
    assert (config.admin.port, config.admin.token) == (2, "a-token-of-some-length")
    service = config.topology().services["default"]
    assert service.policy == "round_robin"
    assert service.versions[0].endpoints[0].slots == 4
    assert not config.access_log.enabled


def test_the_file_here_is_read_and_read_again(file: Path) -> None:
    config, reload = configuration(Choices(), {}, file.parent)
    assert config.listen[0].port == 9080
    assert reload is not None
    file.write_text(FILE.replace("9080", "9090"), encoding="utf-8")
    assert reload().listen[0].port == 9090
    file.write_text("nonsense", encoding="utf-8")
    with pytest.raises(ConfigError):
        reload()


def test_options_win_over_the_file_and_keep_the_rest_of_it(file: Path) -> None:
    config, reload = configuration(Choices(config=file, listen=("127.0.0.1:1",), admin="127.0.0.1:2"), {})
    assert config.listen[0].port == 1
    assert config.admin is not None
    assert (config.admin.port, config.admin.token, config.admin.hosts) == (
        2,
        "from-the-file-itself",
        ("unjam.internal",),
    )
    assert reload is not None
    assert reload().listen[0].port == 1
    off, _ = configuration(Choices(config=file, admin="off"), {})
    assert off.admin is None


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        (Choices(), "there is no unjam.yaml here"),
        (Choices(config=Path("x"), to=("http://h",)), "not both"),
        (Choices(config=Path("x"), policy="random"), "--policy goes with --to"),
        (Choices(config=Path("x"), slots=1), "--slots goes with --to"),
        (Choices(to=("h:1",)), "--to: 'h:1' has no scheme. Write http://h:1."),
        (Choices(to=("http://h",), listen=("80",)), "--listen: '80' does not say"),
        (Choices(to=("http://h",), admin="0.0.0.0:1"), "--admin: 0.0.0.0:1 can be reached"),
        (Choices(to=("http://h",), policy="best"), "--policy: 'best' is not known"),
    ],
)
def test_what_cannot_be_served(choices: Choices, message: str, tmp_path: Path) -> None:
    with pytest.raises(CliError) as refused:
        configuration(choices, {}, tmp_path)
    assert message in refused.value.message
    assert refused.value.code == 2


def test_a_bad_file_ends_with_its_lines(unjam: Unjam, file: Path) -> None:
    file.write_text(FILE + "zzz: 1\n", encoding="utf-8")
    result = unjam("serve", "--config", str(file))
    assert result.exit_code == 1
    assert f"{file}:4: zzz: there is no key zzz here." in result.stderr


def test_the_version(unjam: Unjam) -> None:
    from unjam import __version__

    assert unjam("--version").stdout == f"unjam {__version__}\n"


def test_every_command_helps(unjam: Unjam) -> None:
    shown = unjam("--help").stdout
    for command in ("serve", "check", "status", "drain", "undrain", "weight", "breaker", "reload", "hash-key", "demo"):
        assert command in shown
        assert unjam(command, "--help").exit_code == 0


def test_an_interrupted_command_is_quiet(unjam: Unjam, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("unjam.cli.client.AdminClient.get", interrupted)
    result = unjam("status")
    assert (result.exit_code, result.output) == (130, "")


class _UnixConnection(HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=20)
        self._path = str(path)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(20)
        self.sock.connect(self._path)


def ask(path: Path, target: str) -> tuple[HTTPResponse, bytes]:
    connection = _UnixConnection(path)
    with contextlib.closing(connection):
        connection.request("GET", target)
        answer = connection.getresponse()
        return answer, answer.read()


@pytest.fixture
def gateway(tmp_path: Path, admin: Any) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """A real gateway in front of the fake admin, which will do as an endpoint; everything on Unix sockets."""
    file = tmp_path / "unjam.yaml"
    file.write_text(
        f"listen: unix:{tmp_path}/data.sock\nadmin: unix:{tmp_path}/admin.sock\naccess_log: access.log\n"
        f"services: {{echo: {{versions: {{v1: {{endpoints: ['{admin.url}']}}}}}}}}\n",
        encoding="utf-8",
    )
    command = [sys.executable, "-m", "unjam.cli.main", "serve", "--config", str(file)]
    with (tmp_path / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            deadline = time.monotonic() + 30
            while not (tmp_path / "admin.sock").exists():
                assert process.poll() is None, (tmp_path / "log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.02)
            yield process, tmp_path
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()


def test_a_gateway_is_served_steered_reloaded_and_stopped(
    unjam: Unjam, gateway: tuple[subprocess.Popen[bytes], Path], admin: Any
) -> None:
    process, folder = gateway
    admin.answer = {"hello": "world"}
    answer, body = ask(folder / "data.sock", "/x")
    assert (answer.status, body) == (200, b'{"hello": "world"}')

    at = ["--admin", f"unix:{folder}/admin.sock"]
    assert "echo" in unjam("status", *at).stdout
    assert unjam("drain", admin.url + "/", *at).exit_code == 0
    assert "draining" in unjam("status", *at).stdout
    assert unjam("undrain", admin.url, *at).exit_code == 0
    assert "weight 5 (was 1)" in unjam("weight", "echo", "v1", "5", *at).stdout
    assert unjam("breaker", "echo", "v1", "trip", *at).exit_code == 0
    assert "breaker open" in unjam("status", *at).stdout
    assert unjam("breaker", "echo", "v1", "reset", *at).exit_code == 0
    assert "No endpoint has this URL" in unjam("drain", "http://h", *at).stderr

    file = folder / "unjam.yaml"
    good = file.read_text()
    file.write_text(good + "zzz: 1\n", encoding="utf-8")
    refused = unjam("reload", *at)
    assert refused.exit_code == 1
    assert f"{file}:5: zzz: there is no key zzz here." in refused.stderr
    assert ask(folder / "data.sock", "/x")[0].status == 200
    file.write_text(good.replace("echo", "renamed"), encoding="utf-8")
    assert unjam("reload", *at).exit_code == 0
    assert "renamed" in unjam("status", *at).stdout

    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 0
    assert len((folder / "access.log").read_text().splitlines()) == 2


@pytest.mark.parametrize("of_admin", [False, True])
def test_an_address_that_is_taken(tmp_path: Path, of_admin: bool) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        taken_port = taken.getsockname()[1]
        address = f"127.0.0.1:{taken_port}"
        command = [
            sys.executable,
            "-m",
            "unjam.cli.main",
            "serve",
            "--to",
            "http://h",
            "--listen",
            f"unix:{tmp_path}/data.sock" if of_admin else address,
            "--admin",
            address if of_admin else "off",
        ]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path, env={**os.environ}
        )
    assert done.returncode == 1
    assert "could_not_start" in done.stderr
    assert str(taken_port) in done.stderr
    assert "choose another address" in done.stderr
    assert "Traceback" not in done.stderr
