"""What `unjam report` is told: options, environment, and the sentences that say what is wrong with them.

Everything is checked before anything starts. The token is never an option, where other users of the machine could see
it.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, NoReturn
from urllib.parse import urlsplit

from unjam.reporter.link import Gateway

GATEWAYS_ENV: Final = "UNJAM_REPORT_GATEWAY"
TOKEN_ENV: Final = "UNJAM_REPORT_TOKEN"  # noqa: S105 (the name of a variable)
#: As the gateway wants it; shorter ones can be guessed.
SHORTEST_TOKEN: Final = 16

#: Option, what stands for its value, help. The one list: `unjam report` shows the same.
OPTIONS: Final[tuple[tuple[str, str, str], ...]] = (
    ("gateway", "URL", f"Where a gateway listens for reporters. Repeat for more; {GATEWAYS_ENV} has them with spaces."),
    ("token-file", "FILE", f"File with the registration token; without it, it is in {TOKEN_ENV}."),
    ("ca", "FILE", "Certificates (PEM) that https gateways are checked against, in place of the system's."),
    ("service", "NAME", "The service the agent belongs to."),
    ("version", "NAME", "Its version; may be left out where the service has one."),
    ("url", "URL", "The agent's address, as the gateways should dial it."),
    ("pid", "N", "The agent's process, in place of whoever listens on the port of --url."),
    ("port", "N", "The port that the agent listens on here, where it is not that of --url."),
    ("slots", "N", "Most concurrent requests for the agent; the gateway finds out when this is left out."),
    ("region", "NAME", "Region of the gateway's configuration that the agent's provider quota comes from."),
    ("weight", "X", "Share beside other endpoints of its size, 1 when left out."),
    ("cores", "N", "Cores to be said, in place of those that are found."),
    ("memory", "SIZE", "Memory to be said, such as 16GiB, in place of what is found."),
    ("interval", "TIME", "Time between reports, 2s when left out."),
    ("agent-check", "HOST:PORT", "Answer HAProxy's agent-check here."),
    ("drain-timeout", "TIME", "How long the agent's work may take to end after SIGTERM, 1h when left out."),
)

_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES = {"": 1, "B": 1}
_BYTES |= {f"{unit}{end}": 1000**power for power, unit in enumerate("kMGT", 1) for end in ("B",)}
_BYTES |= {f"{unit}{end}": 1024**power for power, unit in enumerate("KMGT", 1) for end in ("i", "iB")}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}\Z")


class UsageError(ValueError):
    """What is wrong with the command line, and what to write instead."""


@dataclass(frozen=True, slots=True)
class Options:
    """None: not told. Times in seconds, sizes in bytes. `port`: that the agent listens on here."""

    gateways: tuple[Gateway, ...] = ()
    token: str = ""
    token_file: Path | None = None
    ca: Path | None = None
    service: str | None = None
    version: str | None = None
    url: str | None = None
    pid: int | None = None
    port: int | None = None
    command: tuple[str, ...] = ()
    slots: int | None = None
    region: str | None = None
    weight: float = 1.0
    cores: float | None = None
    memory: int | None = None
    interval: float = 2.0
    agent_check: tuple[str, int] | None = None
    drain_timeout: float = 3600.0

    @property
    def about(self) -> dict[str, Any]:
        """What a report says of the endpoint, beside its state and load."""
        told = {
            "service": self.service,
            "version": self.version,
            "url": self.url,
            "region": self.region,
            "slots": self.slots,
            "weight": self.weight,
        }
        return {name: value for name, value in told.items() if value is not None}

    def read_token(self) -> str:
        """Of now: a file may have been renewed. What can no longer be read is the token as it was."""
        if self.token_file is None:
            return self.token
        try:
            return token_in(self.token_file)
        except UsageError:
            return self.token


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def parser() -> argparse.ArgumentParser:
    """For `--help`; `parse` for everything else."""
    made = _Parser(
        prog="unjam report",
        usage="unjam report [OPTIONS] [-- COMMAND ...]",
        description="Tell gateways, or HAProxy, how busy the machine of an agent is. With a COMMAND, the agent is "
        "started as a child: signals are handed on, and its exit code is taken.",
        epilog="SIGTERM and ctrl-C drain: gateways send nothing new, and what runs at the agent ends first. A second "
        "one hurries.",
        allow_abbrev=False,
    )
    for name, metavar, words in OPTIONS:
        made.add_argument(
            f"--{name}", metavar=metavar, help=words, action="append" if name == "gateway" else "store", default=None
        )
    return made


def parse(arguments: Sequence[str], env: Mapping[str, str]) -> Options:
    """Raises `UsageError`; `--help` prints and raises SystemExit(0)."""
    words = list(arguments)
    command: tuple[str, ...] = ()
    if "--" in words:
        cut = words.index("--")
        words, command = words[:cut], tuple(words[cut + 1 :])
        if not command:
            raise UsageError("there is no command behind --: give the agent's, or leave the -- out.")
    given = vars(parser().parse_args(words))
    gateways = given["gateway"] or env.get(GATEWAYS_ENV, "").split()
    options = Options(
        gateways=tuple(_gateway(url) for url in dict.fromkeys(gateways)),
        ca=_file("--ca", given["ca"]),
        service=_name("--service", given["service"]),
        version=_name("--version", given["version"]),
        url=None if given["url"] is None else _url(given["url"]),
        pid=_whole("--pid", given["pid"], 1, 2**31 - 1),
        port=_whole("--port", given["port"], 1, 65535),
        command=command,
        slots=_whole("--slots", given["slots"], 1, 1_000_000),
        region=_name("--region", given["region"]),
        weight=1.0 if given["weight"] is None else _number("--weight", given["weight"], 0.001, 1000.0),
        cores=None if given["cores"] is None else _number("--cores", given["cores"], 0.01, 4096.0),
        memory=None if given["memory"] is None else size("--memory", given["memory"]),
        interval=duration("--interval", given["interval"] or "2s", 0.1, 60.0),
        agent_check=None if given["agent_check"] is None else _address("--agent-check", given["agent_check"]),
        drain_timeout=duration("--drain-timeout", given["drain_timeout"] or "1h", 0.0, 7 * 86400.0),
    )
    return _whole_sense(options, given, env)


def _whole_sense(options: Options, given: dict[str, Any], env: Mapping[str, str]) -> Options:
    if options.pid is not None and options.command:
        raise UsageError("give --pid or a COMMAND, not both: both name the agent's process.")
    if not options.gateways and options.agent_check is None:
        raise UsageError("there is nobody to report to: give --gateway URL, or --agent-check HOST:PORT for HAProxy.")
    if options.gateways:
        for name, value in (("--service NAME", options.service), ("--url URL", options.url)):
            if value is None:
                raise UsageError(f"a gateway needs to know where the agent belongs: give {name}.")
    changes: dict[str, Any] = {}
    if options.url is not None and options.port is None:
        changes["port"] = _port_of(options.url)
    if options.url is None and options.pid is None and options.port is None and not options.command:
        raise UsageError("which process is the agent? Give --url or --port (who listens there), --pid, or -- COMMAND.")
    if options.gateways:
        if given["token_file"] is not None:
            changes["token_file"] = Path(given["token_file"])
            changes["token"] = token_in(changes["token_file"])
        elif env.get(TOKEN_ENV):
            changes["token"] = _checked_token(env[TOKEN_ENV], TOKEN_ENV)
        else:
            raise UsageError(f"there is no registration token: set {TOKEN_ENV}, or give --token-file FILE.")
    return replace(options, **changes)


def token_in(file: Path) -> str:
    """The token in a file, without the end of the line. Raises `UsageError`."""
    try:
        text = file.read_text(encoding="ascii").strip()
    except OSError as error:
        raise UsageError(f"--token-file {file}: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise UsageError(f"--token-file {file}: a token consists of visible ASCII characters.") from None
    return _checked_token(text, f"--token-file {file}")


def _checked_token(token: str, where: str) -> str:
    if not token.isascii() or not token.isprintable() or " " in token or '"' in token:
        raise UsageError(f"{where}: a token consists of visible ASCII characters, without spaces.")
    if len(token) < SHORTEST_TOKEN:
        raise UsageError(f"{where}: the token must have at least {SHORTEST_TOKEN} characters.")
    return token


def _gateway(url: str) -> Gateway:
    try:
        return Gateway.at(url)
    except ValueError as error:
        raise UsageError(f"--gateway {error}.") from None


def _url(text: str) -> str:
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise UsageError(f"--url {text!r}: the port must be a number up to 65535.") from None
    fine = parts.scheme in ("http", "https") and parts.hostname and text.isascii() and text.isprintable()
    if not fine or " " in text or parts.username is not None or parts.query or parts.fragment or port == 0:
        raise UsageError(f"--url {text!r} is not an agent's address: write it like http://10.0.0.1:9000.")
    if parts.path not in ("", "/"):
        raise UsageError(f"--url {text!r} has a path: the gateway sends the one of each request.")
    return text.rstrip("/")


def _port_of(url: str) -> int:
    parts = urlsplit(url)
    return parts.port or (443 if parts.scheme == "https" else 80)


def _address(option: str, text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not port.isascii() or not port.isdecimal() or int(port) > 65535:
        raise UsageError(f"{option} {text!r} is not HOST:PORT: write it like 127.0.0.1:9100.")
    return host or "0.0.0.0", int(port)


def _name(option: str, text: str | None) -> str | None:
    if text is not None and not _NAME.match(text):
        raise UsageError(f"{option} {text!r} is not a name: letters, digits, dot, dash and underscore.")
    return text


def _file(option: str, text: str | None) -> Path | None:
    if text is None:
        return None
    try:
        with open(text, "rb"):
            return Path(text)
    except OSError as error:
        raise UsageError(f"{option} {text}: {error.strerror}.") from None


def _whole(option: str, text: str | None, least: int, most: int) -> int | None:
    if text is None:
        return None
    if not text.isascii() or not text.isdecimal() or len(text) > 12 or not least <= int(text) <= most:
        raise UsageError(f"{option} {text!r} must be a whole number from {least} to {most}.")
    return int(text)


def _number(option: str, text: str, least: float, most: float) -> float:
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text) or not least <= float(text) <= most:
        raise UsageError(f"{option} {text!r} must be a number from {least:g} to {most:g}.")
    return float(text)


def duration(option: str, text: str, least: float, most: float) -> float:
    """Seconds from `2s`, `500ms`, `1h30m`; always with a unit. Raises `UsageError`."""
    parts = re.findall(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(ms|s|m|h|d)", text)
    if not parts or "".join(amount + unit for amount, unit in parts) != text:
        raise UsageError(f"{option} {text!r} is not a time: write it with its unit, such as 500ms, 2s or 1h30m.")
    seconds = sum(float(amount) * _SECONDS[unit] for amount, unit in parts)
    if not least <= seconds <= most:
        raise UsageError(f"{option} {text!r} must be from {least:g} to {most:g} seconds.")
    return seconds


def size(option: str, text: str) -> int:
    """Bytes from `16GiB`, `512Mi`, `8GB`. Raises `UsageError`."""
    match = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,9})?) ?([A-Za-z]*)", text)
    if (
        match is None
        or match[2] not in _BYTES
        or not 0 < (amount := int(float(match[1]) * _BYTES[match[2]])) <= 1 << 47
    ):
        raise UsageError(f"{option} {text!r} is not a size of memory: write it like 16GiB or 512MiB.")
    return amount
