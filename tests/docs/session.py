"""Runs the sessions of a page as a reader would: one shell, the files of the page, real agents and a real gateway.

The ports that pages name (8080, 8081, 9001 …) are replaced by free ones. Of a command that ends in `&` the next waits
until its ports answer; everything that was started ends with the session.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from benchmarks.common.procs import free_port

from .pages import ROOT, Block, Command

_PORT = re.compile(r"\b(8080|8081|8082|8443|90[01]\d)\b")
_MARK = "@@done@@"
PATIENCE = 60.0


class Session:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports: dict[str, str] = {}
        (folder / "examples").symlink_to(ROOT / "examples")
        environment = {name: value for name, value in os.environ.items() if not name.startswith("UNJAM_")}
        environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
        environment["UNJAM_ADMIN"] = f"http://127.0.0.1:{self.port('8081')}"
        environment["COLUMNS"] = "140"
        # So that output of an agent in the background cannot be lost in a buffer.
        environment["PYTHONUNBUFFERED"] = "1"
        with (folder / "stderr.txt").open("wb") as errors:
            self.shell = subprocess.Popen(
                ["bash", "--norc", "--noprofile"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd=folder,
                env=environment,
                text=True,
                start_new_session=True,
            )

    def close(self) -> None:
        # The group may be gone; its number is not given away before `wait`.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.shell.pid, signal.SIGKILL)
        self.shell.wait()
        assert self.shell.stdin is not None
        assert self.shell.stdout is not None
        self.shell.stdin.close()
        self.shell.stdout.close()

    def port(self, written: str) -> str:
        if written not in self.ports:
            self.ports[written] = str(free_port())
        return self.ports[written]

    def here(self, text: str) -> str:
        """`text` with the ports of this session."""
        return _PORT.sub(lambda match: self.port(match.group()), text)

    def write(self, block: Block) -> None:
        (self.folder / block.name).write_text(self.here(block.text), encoding="utf-8")

    def run(self, command: Command) -> None:
        """Raises AssertionError when it fails or prints something else."""
        text = command.text
        if "unjam serve" in text and "--listen" not in text and "listen:" not in self._config(text):
            listen = "--listen 127.0.0.1:8080 --admin 127.0.0.1:8081"
            text = re.sub(r"unjam serve[^&>\n]*?(?= *(?:&|>|$))", lambda match: f"{match.group()} {listen}", text)
        text = self.here(text)
        background = text.endswith("&")
        if background:
            output = "2>>background.txt" if ">" in text else ">>background.txt 2>&1"
            text = f"{text[:-1]} {output} &"
        assert self.shell.stdin is not None
        self.shell.stdin.write(f"{{\n{text}\n}} </dev/null\nprintf '\\n%s %d\\n' {_MARK} $?\n")
        self.shell.stdin.flush()
        printed, status = self._answer()
        told = f"$ {text}\n" + "\n".join(printed)
        assert status == 0, f"exit status {status}\n{told}\n{(self.folder / 'stderr.txt').read_text()[-2000:]}"
        if background:
            self._wait_for(text)
        expected = [self.here(line) for line in command.expected]
        while expected and not expected[-1]:
            expected.pop()
        if expected:
            assert _alike(expected, printed), f"{told}\n\n-- expected --\n" + "\n".join(expected)

    def _config(self, text: str) -> str:
        found = re.search(r"(?:--config|-c) (\S+)", text)
        file = self.folder / (found.group(1) if found else "unjam.yaml")
        return file.read_text(encoding="utf-8") if file.exists() and "--to" not in text else ""

    def _answer(self) -> tuple[list[str], int]:
        assert self.shell.stdout is not None
        printed: list[str] = []
        hang = threading.Timer(PATIENCE, os.killpg, (self.shell.pid, signal.SIGKILL))
        hang.start()
        try:
            for line in self.shell.stdout:
                if line.startswith(_MARK):
                    while printed and not printed[-1]:
                        printed.pop()
                    return printed, int(line.split()[1])
                printed.append(line.rstrip())
        finally:
            hang.cancel()
        shown = "\n".join([*printed, (self.folder / "stderr.txt").read_text()[-2000:]])
        raise AssertionError(f"no end within {PATIENCE:g} s, or the shell ended:\n{shown}")

    def _wait_for(self, text: str) -> None:
        known = set(self.ports.values())
        wanted = {word for word in re.findall(r"\d+", text) if word in known}
        if "unjam serve" in text:
            wanted = {self.port("8080"), self.port("8081")}
        until = time.monotonic() + PATIENCE
        for port in wanted:
            while True:
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", int(port))) == 0:
                        break
                assert time.monotonic() < until, f"{text}\n" + (self.folder / "background.txt").read_text()[-2000:]
                time.sleep(0.02)


def _alike(expected: list[str], printed: list[str]) -> bool:
    """Line by line; white space counts once; `…` stands for anything, alone on a line for any lines."""
    pattern = ""
    for line in expected:
        words = re.sub(r"\s+", " ", line.strip())
        if words == "…":
            pattern += r"(?:.*\n)*?"
        else:
            pattern += ".*".join(re.escape(part) for part in words.split("…")) + r"\n"
    text = "".join(re.sub(r"\s+", " ", line.strip()) + "\n" for line in printed)
    return re.fullmatch(pattern, text) is not None
