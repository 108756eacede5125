"""`unjam serve`: from the command line and the file to a running gateway."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unjam.cli.trouble import USAGE, CliError
from unjam.config import Config, ConfigError, from_urls, load
from unjam.telemetry import logs


@dataclass(frozen=True, slots=True)
class Choices:
    """What the command line said; None and () where it said nothing."""

    config: Path | None = None
    to: tuple[str, ...] = ()
    listen: tuple[str, ...] = ()
    admin: str | None = None
    policy: str | None = None
    slots: int | None = None
    access_log: str | None = None


def configuration(
    choices: Choices, env: Mapping[str, str], here: Path = Path()
) -> tuple[Config, Callable[[], Config] | None]:
    """The configuration, and how to read it again (None where there is no file).

    Raises `ConfigError`, or `CliError` when the options contradict each other.
    """
    overrides = _overrides(choices, env)
    if choices.to:
        if choices.config is not None:
            raise CliError("give --config or --to, not both: a file lists its own endpoints.", USAGE)
        if choices.policy is not None:
            overrides["policy"] = choices.policy
        sized = {} if choices.slots is None else {"slots": choices.slots}
        try:
            return from_urls([{"url": url, **sized} for url in choices.to], **overrides), None
        except ConfigError as error:
            raise _in_options(error) from None
    for option, value in (("--policy", choices.policy), ("--slots", choices.slots)):
        if value is not None:
            raise CliError(f"{option} goes with --to; in a file it is a key of the service or endpoint.", USAGE)
    path = choices.config or here / "unjam.yaml"
    if choices.config is None and not path.exists():
        raise CliError(
            "there is no unjam.yaml here: give --config FILE, or --to URL for each endpoint, "
            "such as unjam serve --to http://127.0.0.1:9001.",
            USAGE,
        )

    def read() -> Config:
        return load(path, env, overrides)

    return read(), read


def _overrides(choices: Choices, env: Mapping[str, str]) -> dict[str, Any]:
    overrides: dict[str, Any] = {}
    if choices.listen:
        overrides["listen"] = list(choices.listen)
    if choices.admin is not None:
        if choices.admin.lower() == "off":
            overrides["admin"] = "off"
        else:
            overrides["admin"] = {"listen": choices.admin}
            if env.get("UNJAM_ADMIN_TOKEN"):
                overrides["admin"]["token"] = env["UNJAM_ADMIN_TOKEN"]
    if choices.access_log is not None:
        overrides["access_log"] = choices.access_log
    return overrides


#: Keys of the made-up configuration behind `--to`, as the options that set them.
_OPTIONS = {"listen": "--listen", "admin": "--admin", "access_log": "--access-log", "services": "--to"}


def _in_options(error: ConfigError) -> CliError:
    """What is wrong with a configuration nobody wrote, in terms of the options that made it."""
    sentences = []
    for problem in error.problems:
        option = (
            "--policy" if problem.key.endswith(".policy") else _OPTIONS.get(problem.key.split(".")[0].split("[")[0])
        )
        sentences.append(f"{option or problem.key}: {problem.message}. {problem.fix}".strip())
    return CliError("\nunjam: ".join(sentences), USAGE)


def run(choices: Choices, env: Mapping[str, str]) -> int:
    """The exit code of the gateway. What the configuration probably does not mean is logged, at each reload too."""
    from unjam.gateway.server import run as run_gateway

    config, read = configuration(choices, env)
    logs.setup()
    warn(config)
    if read is None:
        return run_gateway(config, None)

    def read_and_warn() -> Config:
        again = read()
        warn(again)
        return again

    return run_gateway(config, read_and_warn)


def warn(config: Config) -> None:
    log = logs.get("config")
    for found in config.warnings:
        log.warning("check", file=config.name, line=found.line, config_key=found.key, why=found.message, fix=found.fix)
