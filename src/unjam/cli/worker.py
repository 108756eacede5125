"""`unjam worker`: shows the worker's options, and becomes the worker.

The process is replaced: what the command line is made of would otherwise stay in memory beside every worker.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand


class WorkerCommand(TyperCommand):
    """What is given goes to the worker as it is; only `--help` is answered here."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if "--help" in args or not args:
            return super().parse_args(ctx, ["--help"])
        become_worker(args)


def become_worker(arguments: Sequence[str]) -> NoReturn:
    """Never returns: this process is the worker from now on."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, "-m", "unjam.worker", *arguments])


def worker(
    where: Annotated[
        str,
        typer.Argument(metavar="module:object", help="Where the worker is; object is worker when not given."),
    ],
    target: Annotated[
        list[str] | None,
        typer.Option(
            "--target",
            metavar="URL",
            help="A gateway, or redis://…, in place of the worker's own; repeat it for gateways of one store.",
        ),
    ] = None,
    slots: Annotated[
        str | None, typer.Option("--slots", metavar="N", help="Runs at once, in place of the worker's own.")
    ] = None,
    grace: Annotated[
        str | None,
        typer.Option(
            "--grace",
            metavar="SECONDS",
            help="How long runs go on when the worker is to leave, in place of the worker's own.",
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="What the worker is called in the runs it has.")
    ] = None,
    version: Annotated[
        str | None,
        typer.Option(
            "--version",
            metavar="NAME",
            help="The service's version that this program is, in place of the worker's own.",
        ),
    ] = None,
) -> None:
    """Claim runs and work on them: the function of a worker in a Python module.

    SIGTERM and ctrl-C let runs end or come to their next checkpoint, then hand them back. A second one hurries.
    """
