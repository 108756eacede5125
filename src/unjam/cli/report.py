"""`unjam report`: shows the reporter's options, and becomes the reporter.

The process is replaced: what the command line is made of would otherwise stay in memory beside every agent.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand

from unjam.reporter.options import OPTIONS

_SHOWN = {name: (metavar, words) for name, metavar, words in OPTIONS}


def _option(name: str) -> Any:
    metavar, words = _SHOWN[name]
    return typer.Option(f"--{name}", metavar=metavar, help=words)


class ReportCommand(TyperCommand):
    """What is given goes to the reporter as it is; only `--help` is answered here."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        own = args[: args.index("--")] if "--" in args else args
        if "--help" in own:
            return super().parse_args(ctx, ["--help"])
        become_reporter(args)


def become_reporter(arguments: Sequence[str]) -> NoReturn:
    """Never returns: this process is the reporter from now on."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, "-m", "unjam.reporter", *arguments])


def report(
    gateway: Annotated[list[str] | None, _option("gateway")] = None,
    token_file: Annotated[str | None, _option("token-file")] = None,
    ca: Annotated[str | None, _option("ca")] = None,
    service: Annotated[str | None, _option("service")] = None,
    version: Annotated[str | None, _option("version")] = None,
    url: Annotated[str | None, _option("url")] = None,
    pid: Annotated[str | None, _option("pid")] = None,
    port: Annotated[str | None, _option("port")] = None,
    slots: Annotated[str | None, _option("slots")] = None,
    region: Annotated[str | None, _option("region")] = None,
    weight: Annotated[str | None, _option("weight")] = None,
    cores: Annotated[str | None, _option("cores")] = None,
    memory: Annotated[str | None, _option("memory")] = None,
    interval: Annotated[str | None, _option("interval")] = None,
    agent_check: Annotated[str | None, _option("agent-check")] = None,
    drain_timeout: Annotated[str | None, _option("drain-timeout")] = None,
) -> None:
    """Run beside an agent: tell gateways, or HAProxy, how busy its machine is.

    With a COMMAND the agent is started as a child: signals are handed on, and its exit code is taken. SIGTERM and
    ctrl-C drain: gateways send nothing new, and what runs at the agent ends first. A second one hurries.
    """
