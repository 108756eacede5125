"""The `unjam` command. Each subcommand is a thin function here; the work is in the modules it imports when called."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from unjam import __version__
from unjam.cli import versions
from unjam.cli.client import AdminClient
from unjam.cli.options import LOCAL_ADMIN, AdminToken, AdminUrl, admin_client
from unjam.cli.report import ReportCommand, report
from unjam.cli.runs import app as runs
from unjam.cli.trouble import REFUSED, USAGE, CliError, in_sentences, say
from unjam.cli.worker import WorkerCommand, worker

app = typer.Typer(
    name="unjam",
    help="The load balancer for long-running AI agents.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

#: What `unjam serve` reads when it is told nothing else.
DEFAULT_FILE = Path("unjam.yaml")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"unjam {__version__}")
        raise typer.Exit()


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
@in_sentences
def serve(
    file: Annotated[Path | None, typer.Argument(help="Configuration file, as with --config.")] = None,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="Configuration file; unjam.yaml when it is here.")
    ] = None,
    to: Annotated[
        list[str] | None, typer.Option("--to", help="An endpoint, in place of a file. Repeat for more.", metavar="URL")
    ] = None,
    listen: Annotated[
        list[str] | None, typer.Option("--listen", help="Where clients connect, over the file's.", metavar="ADDRESS")
    ] = None,
    admin: Annotated[
        str | None, typer.Option("--admin", help="Where operators connect, or off, over the file's.", metavar="ADDRESS")
    ] = None,
    policy: Annotated[str | None, typer.Option("--policy", help="With --to: how to order endpoints.")] = None,
    slots: Annotated[
        int | None, typer.Option("--slots", help="With --to: concurrent requests per endpoint; more wait.", min=1)
    ] = None,
    access_log: Annotated[
        str | None,
        typer.Option("--access-log", help="off, stdout, stderr or a file, over the file's.", metavar="WHERE"),
    ] = None,
) -> None:
    """Run a gateway.

    SIGHUP reloads the file, SIGTERM and ctrl-C drain, a second one stops at once.
    """
    from unjam.cli.serve import Choices, run

    if file is not None and config is not None:
        raise CliError(f"{file} and --config {config} are two configuration files: give one.", USAGE)
    code = run(
        Choices(
            config=config or file,
            to=tuple(to or ()),
            listen=tuple(listen or ()),
            admin=admin,
            policy=policy,
            slots=slots,
            access_log=access_log,
        ),
        os.environ,
    )
    raise typer.Exit(code)


@app.command()
@in_sentences
def check(
    file: Annotated[Path, typer.Argument(help="Configuration file.")] = DEFAULT_FILE,
    request: Annotated[
        str | None,
        typer.Option("--request", "-r", help='Say what happens to a request, e.g. "POST /agents/auditor/x".'),
    ] = None,
    header: Annotated[
        list[str] | None, typer.Option("--header", "-H", help='With --request: "Name: value".', metavar="HEADER")
    ] = None,
    model: Annotated[str | None, typer.Option("--model", help="With --request: the model in its JSON body.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only problems and warnings.")] = False,
) -> None:
    """Read a configuration, say what is wrong with it, and explain what it does."""
    from unjam.cli.explain import explain
    from unjam.cli.match import explain_request
    from unjam.config import load

    if request is None and (header or model):
        raise CliError("--header and --model describe a request: give --request too.", USAGE)
    loaded = load(file, os.environ)
    for warning in loaded.warnings:
        say(f"warning: {file}:{warning.line}: {warning}")
    if request is not None:
        lines, taken = explain_request(loaded, request, header or [], model)
        typer.echo("\n".join(lines))
        if not taken:
            raise typer.Exit(REFUSED)
    elif not quiet:
        typer.echo("\n".join(explain(loaded)))


@app.command()
@in_sentences
def status(
    admin: AdminUrl = LOCAL_ADMIN,
    token: AdminToken = None,
    as_json: Annotated[bool, typer.Option("--json", help="The state as the gateway tells it.")] = False,
    why: Annotated[
        str | None,
        typer.Option("--why", help="All that is known of one endpoint or worker, in sentences.", metavar="URL"),
    ] = None,
) -> None:
    """Show what runs where, who waits, and why."""
    import json

    from unjam.cli.status import show
    from unjam.cli.why import explain

    if as_json and why is not None:
        raise CliError("--json prints the whole state and --why one endpoint: give one of them.", USAGE)
    state = admin_client(admin, token).get("/api/state")
    if why is not None:
        explain(state, why)
    elif as_json:
        typer.echo(json.dumps(state, indent=2))
    else:
        show(state)


@app.command()
@in_sentences
def drain(
    url: Annotated[str, typer.Argument(help="URL of the endpoint, or name of the worker.")],
    admin: AdminUrl = LOCAL_ADMIN,
    token: AdminToken = None,
) -> None:
    """Let an endpoint or a worker finish what it runs and give it nothing new."""
    _drain(url, True, admin_client(admin, token))


@app.command()
@in_sentences
def undrain(
    url: Annotated[str, typer.Argument(help="URL of the endpoint, or name of the worker.")],
    admin: AdminUrl = LOCAL_ADMIN,
    token: AdminToken = None,
) -> None:
    """Give a drained endpoint or worker work again."""
    _drain(url, False, admin_client(admin, token))


for command in (versions.weight, versions.breaker, versions.rollout, versions.audit):
    app.command()(command)


@app.command()
@in_sentences
def reload(admin: AdminUrl = LOCAL_ADMIN, token: AdminToken = None) -> None:
    """Have the gateway read its configuration file again, as SIGHUP does."""
    admin_client(admin, token).post("/api/reload", {})
    typer.echo("The new configuration is in force.")


app.add_typer(runs, name="runs")
app.command(cls=ReportCommand, options_metavar="[OPTIONS] [-- COMMAND ...]")(report)
app.command(cls=WorkerCommand)(worker)


@app.command("hash-key")
@in_sentences
def hash_key(
    generate: Annotated[bool, typer.Option("--generate", help="Make a new key and print it with its hash.")] = False,
) -> None:
    """Hash an API key for `keys:` of the configuration.

    The key is asked for, or read from standard input; never given as an argument, where other users could see it.
    """
    from unjam.cli.keys import hash_of, new_key, read_key

    if generate:
        key = new_key()
        typer.echo(f"key:  {key}")
        typer.echo(f"hash: {hash_of(key)}")
        say("keep the key: only its hash goes into the configuration, and it is not shown again.")
        return
    key = read_key()
    typer.echo(hash_of(key))


@app.command()
@in_sentences
def demo(
    seconds: Annotated[float, typer.Option("--seconds", help="How long requests are sent.", min=2)] = 45.0,
    once: Annotated[
        bool, typer.Option("--once", help="End after the summary; fail unless every request was answered.")
    ] = False,
    port: Annotated[int, typer.Option("--port", help="Of the gateway that you can try.", min=0, max=65535)] = 8080,
    admin_port: Annotated[int, typer.Option("--admin-port", help="Of its operators.", min=0, max=65535)] = 8081,
    seed: Annotated[int, typer.Option("--seed", help="The same seed sends the same requests.")] = 7,
    examples: Annotated[
        Path | None, typer.Option("--examples", help="Folder of the example agents.", show_default="found by itself")
    ] = None,
) -> None:
    """Start agents, gateways and mixed traffic, and compare round robin with least_loaded."""
    from unjam.cli.demo import run

    raise typer.Exit(run(seconds, seed, not once, port, admin_port, examples))


def _drain(url: str, draining: bool, client: AdminClient) -> None:
    from unjam.config.address import parse_url
    from unjam.config.quantities import BadValue

    try:
        name = parse_url(url).url
    except BadValue as error:
        if ":" in url or "/" in url:
            raise CliError(f"{error.message}. {error.fix}", USAGE) from None
        name = url  # a worker's
    answer = client.post("/api/drain", {"endpoint": name, "draining": draining})
    typer.echo(f"{name} {'finishes what it runs and takes nothing new' if draining else 'takes new requests'}.")
    versions.warn(answer)


def main() -> None:
    """The console script."""
    app()


if __name__ == "__main__":
    main()
