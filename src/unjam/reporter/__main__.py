"""`python -m unjam.reporter`: the sidecar as a process of its own. `unjam report` becomes this."""

from __future__ import annotations

import asyncio
import logging
import signal
import ssl
import sys
from collections.abc import Mapping, Sequence

from unjam import exits
from unjam.exits import FAILED, USAGE
from unjam.reporter.child import Child, NoChild
from unjam.reporter.link import Link
from unjam.reporter.meter import HostMeter
from unjam.reporter.options import Options, UsageError, parse
from unjam.reporter.sidecar import CannotListen, Sidecar

log = logging.getLogger("unjam.reporter")


def main(arguments: Sequence[str], env: Mapping[str, str]) -> int:
    """The exit code: 0 after draining, 1 when it cannot work, 2 for a wrong command line, the agent's own when it ran
    as a child and ended by itself."""
    logging.basicConfig(format="%(asctime)s unjam report: %(message)s", level=logging.INFO, stream=sys.stderr)
    try:
        options = parse(arguments, env)
        tls = _tls(options)
    except UsageError as error:
        sys.stderr.write(f"unjam report: {error}\n")
        return USAGE
    for gateway in options.gateways:
        if not gateway.secure and not gateway.on_this_machine:
            log.warning(f"the token crosses the network to {gateway.url} without TLS")
    return asyncio.run(_run(options, tls))


async def _run(options: Options, tls: ssl.SSLContext | None) -> int:
    child = None
    try:
        if options.command:
            child = Child(options.command)
        meter = HostMeter(None if child is None else child.pid, options.pid, options.port)
        links = [
            Link(gateway, options.read_token, options.about, options.interval, tls if gateway.secure else None)
            for gateway in options.gateways
        ]
        sidecar = Sidecar(options, meter, links, child)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, sidecar.stop)
        return await sidecar.run()
    except NoChild as error:
        log.error(str(error))
        return error.code
    except ProcessLookupError:
        if child is not None:
            await child.ended.wait()
            return child.code
        log.error(f"there is no process {options.pid}")
        return FAILED
    except CannotListen as error:
        log.error(str(error))
        if child is not None:
            child.send(signal.SIGTERM)
            await child.ended.wait()
        return FAILED
    finally:
        if child is not None:
            child.close()


def _tls(options: Options) -> ssl.SSLContext | None:
    """None where nobody needs it: certificates of the system take memory."""
    if not any(gateway.secure for gateway in options.gateways):
        return None
    try:
        return ssl.create_default_context(cafile=None if options.ca is None else str(options.ca))
    except ssl.SSLError:
        raise UsageError(f"--ca {options.ca} holds no certificates in PEM form.") from None


if __name__ == "__main__":
    exits.run(main)
