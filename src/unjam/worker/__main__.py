"""`python -m unjam.worker module:object`: a worker as a process of its own. `unjam worker` becomes this."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
from collections.abc import Mapping, Sequence

from unjam import exits
from unjam.exits import USAGE
from unjam.worker.worker import Worker, check_name

#: (option, metavar, what it does): `unjam worker --help` says the same.
OPTIONS = (
    ("target", "URL", "A gateway, or redis://…, in place of the worker's own; repeat it for gateways of one store."),
    ("slots", "N", "Runs at once, in place of the worker's own."),
    ("grace", "SECONDS", "How long runs go on when the worker is to leave, in place of the worker's own."),
    ("name", "NAME", "What the worker is called in the runs it has."),
    ("version", "NAME", "The service's version that this program is, in place of the worker's own."),
)


class UsageError(Exception):
    """What is wrong with the command line, in words."""


def main(arguments: Sequence[str], env: Mapping[str, str]) -> int:
    """The exit code: 0 after it has left, 1 when it can't begin, 2 for a wrong command line."""
    logging.basicConfig(format="%(asctime)s unjam worker: %(message)s", level=logging.INFO, stream=sys.stderr)
    try:
        options = _parse(arguments)
        worker = find(options.worker)
        _override(worker, options, env)
    except UsageError as error:
        sys.stderr.write(f"unjam worker: {error}\n")
        return USAGE
    return worker.main()


def find(name: str) -> Worker:
    """The worker at `module:object`, the module looked for in the current folder too. Raises UsageError."""
    module, _, path = name.partition(":")
    if not module:
        raise UsageError(f"{name!r}: say module:object, such as audit:worker")
    if module.startswith(".") or "/" in module:
        raise UsageError(f"{module!r} is a path: go to its folder and say the module, such as audit:worker")
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: object = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and (module == error.name or module.startswith(f"{error.name}.")):
            meant = module.removesuffix(".py")
            hint = f": say {meant}, as import does" if meant != module else ""
            raise UsageError(f"there is no module {module!r} here or among what is installed{hint}") from None
        raise
    for part in (path or "worker").split("."):
        if not hasattr(found, part):
            raise UsageError(f"{module} has no {path or 'worker'}")
        found = getattr(found, part)
    if not isinstance(found, Worker):
        raise UsageError(f"{module}:{path or 'worker'} is no unjam.worker.Worker")
    return found


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="unjam worker", description="Claim runs and work on them until SIGTERM.")
    parser.add_argument("worker", metavar="module:object", help="Where the worker is; object is worker when not given.")
    for name, metavar, words in OPTIONS:
        action = "append" if name == "target" else "store"
        parser.add_argument(f"--{name}", metavar=metavar, help=words, action=action)
    return parser.parse_args(arguments)


def _override(worker: Worker, options: argparse.Namespace, env: Mapping[str, str]) -> None:
    if options.target:
        worker.target = options.target
    elif target := env.get("UNJAM_WORKER_TARGET"):
        worker.target = target.split(",")
    if options.slots is not None:
        if not options.slots.isdecimal() or int(options.slots) < 1:
            raise UsageError("--slots must be a whole number from 1")
        worker.slots = int(options.slots)
    if options.grace is not None:
        try:
            worker.grace = float(options.grace)
        except ValueError:
            worker.grace = -1.0
        if not 0 <= worker.grace < 86400:
            raise UsageError("--grace must be a number of seconds")
    if options.name is not None:
        try:
            check_name(options.name)
        except ValueError as error:
            raise UsageError(str(error)) from None
        worker.name = options.name
    if options.version is not None:
        if not options.version:
            raise UsageError("--version must name one")
        worker.version = options.version


if __name__ == "__main__":
    exits.run(main)
