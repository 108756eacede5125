"""The examples of the pages work: sessions are run, configurations are read, programs compile."""

from __future__ import annotations

import configparser
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from unjam.cli.main import app
from unjam.config import parse
from unjam.config.schema import Config
from unjam.config.services import Service

from .pages import DOCS, Block, all_blocks, blocks, commands, name_of, pages
from .session import Session

#: The pages that have tests of their own for what is in their blocks.
ELSEWHERE = {"configuration.md"}

ENVIRONMENT = {
    "UNJAM_ADMIN_TOKEN": "a-token-of-some-length",
    "UNJAM_REPORT_TOKEN": "a-token-of-some-length",
    "HOOK_SECRET": "a-secret-of-some-length",
    "AUDITOR_URL": "http://10.0.0.1:9000",
}


def pages_with_sessions() -> list[str]:
    return [name_of(page) for page in pages() if any(block.language == "console" for block in blocks(page))]


@pytest.mark.parametrize("page", pages_with_sessions())
def test_sessions_go_as_they_are_shown(page: str, tmp_path: Path) -> None:
    session = Session(tmp_path)
    try:
        for block in blocks(DOCS / page):
            if block.name:
                session.write(block)
            elif block.language == "console":
                for command in commands(block):
                    session.run(command)
    finally:
        session.close()


def own(language: str) -> list[Block]:
    return [block for block in all_blocks(language) if block.page not in ELSEWHERE]


@pytest.mark.parametrize("block", own("yaml"), ids=str)
def test_configurations_are_accepted(block: Block) -> None:
    """Whole ones, parts of the top level, and parts of a service."""
    found = yaml.safe_load(block.text)
    if not set(found) & (set(Config.model_fields) | set(Service.model_fields)):
        return  # another program's; it is YAML
    text = block.text
    if set(found) <= set(Service.model_fields):
        text = re.sub(r"^(?=.)", "    ", text, flags=re.MULTILINE)
        versions = "" if "versions" in found else "    versions: {v1: {endpoints: ['http://10.0.0.1:9000']}}\n"
        text = f"services:\n  auditor:\n{text}{versions}"
    elif "services" not in found:
        text += "services: {auditor: {versions: {v1: {endpoints: ['http://10.0.0.1:9000']}}}}\n"
    for name in re.findall(r"(?:cert|key|ca): (/[^\s,}]+)", text):
        text = text.replace(name, str(Path(__file__).parent / "any.pem"))
    parse(text, ENVIRONMENT)


@pytest.mark.parametrize("block", own("python"), ids=str)
def test_programs_run(block: Block) -> None:
    """Those that are files of a session run there; here they only have to compile."""
    code = compile(block.text, str(block), "exec")
    if not block.name:
        exec(code, {"__name__": "__main__"})


@pytest.mark.parametrize("block", [*own("sh"), *own("console")], ids=str)
def test_commands_exist(block: Block) -> None:
    """No shell is confused by them, and `unjam` has the commands and options they use."""
    text = block.text
    if block.language == "console":
        text = "\n".join(command.text for command in commands(block))
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    known = get_command(app).commands  # type: ignore[attr-defined]
    for line in re.sub(r"\\\n", " ", text).splitlines():
        for call in re.findall(r"(?:^|[|;&] ?|\$\()unjam ([^|;&)]*)", line):
            words = shlex.split(call, comments=True)
            command = known[words[0]]
            if hasattr(command, "commands"):
                command = command.commands[words[1]]
            options = {option for parameter in command.params for option in parameter.opts}
            for word in words[1:]:
                if word == "--":
                    break  # what follows is another program's
                if word.startswith("-"):
                    assert word.partition("=")[0] in options, f"{block}: unjam {call}"


@pytest.mark.parametrize("block", own("ini"), ids=str)
def test_units_are_well_formed(block: Block) -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.read_string(block.text)
    assert set(unit.sections()) == {"Unit", "Service", "Install"}
