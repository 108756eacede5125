"""docs/configuration.md says everything the schema knows, and its examples work."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from unjam.config import ConfigError, parse
from unjam.config.reference import every_key, fill, models
from unjam.config.schema import Config

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "configuration.md"
#: Documented once, at the version.
SAME_AS = {"services.<name>.versions.<name>.endpoints[].endpoint_tls": "services.<name>.versions.<name>.endpoint_tls"}

BASIC = "  basic: {match: {path: /b}, versions: {v: {endpoints: [http://i]}}}\n"


def test_the_tables_are_those_of_the_schema() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert fill(page) == page, "run: python -m unjam.config.reference docs/configuration.md"


def test_every_key_is_documented() -> None:
    page = PAGE.read_text(encoding="utf-8")
    blocks = dict(re.findall(r"<!-- keys: (\S+) -->\n(.*?)<!-- end -->", page, re.DOTALL))
    for path, model in models().items():
        table = blocks.get(SAME_AS.get(path, path), "")
        for key in model.model_fields:
            assert f"| `{key}` |" in table, f"{path}.{key} is not in docs/configuration.md"
    assert len(list(every_key())) > 100


def test_a_page_that_names_what_is_not_there_is_refused() -> None:
    with pytest.raises(KeyError):
        fill("<!-- keys: services.nonsense -->\n<!-- end -->")


@pytest.mark.parametrize("text", re.findall(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL))
def test_examples_work(text: str) -> None:
    """Whole ones as they are; parts of one below the others they need."""
    if text.startswith(("fallback:", "load:")):
        text = f"services:\n  auditor:\n    versions: {{v: {{endpoints: [http://h]}}}}\n    {text}" + BASIC
    elif not re.search(r"^services:", text, re.MULTILINE):
        text = f"{text}services:\n  auditor: {{versions: {{v: {{endpoints: [http://h]}}}}}}\n" + BASIC
    try:
        parse(text, {"UNJAM_ADMIN_TOKEN": "0123456789abcdef", "UNJAM_REPORT_TOKEN": "0123456789abcdef"})
    except ConfigError as error:
        # The certificates of the example are not on this machine.
        assert all("cannot be read: no such file" in found.message for found in error.problems), str(error)  # noqa: PT017


def test_the_errors_it_shows_are_real() -> None:
    shown = re.findall(r"^  unjam\.yaml:\d+: (.*)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    text = """services:
  auditor:
    polcy: x
    queue: {timeout: 60}
    versions: {v: {endpoints: [http://h]}}
"""
    with pytest.raises(ConfigError) as caught:
        parse(text, {})
    assert [str(problem) for problem in caught.value.problems] == shown


def test_every_command_is_documented() -> None:
    from typer.main import get_command

    from unjam.cli.main import app

    page = (DOCS / "cli.md").read_text(encoding="utf-8")
    command = get_command(app)
    for name, sub in command.commands.items():  # type: ignore[attr-defined]
        assert f"`unjam {name}`" in page
        if name == "demo":
            continue  # docs/demo.md
        for each in getattr(sub, "commands", {name: sub}).values():
            for parameter in each.params:
                for option in parameter.opts:
                    if option.startswith("--") and option not in ("--help",):
                        assert option in page, f"{name} {option} is not in docs/cli.md"


def test_the_top_level_is_the_contract() -> None:
    assert {"listen", "admin", "state", "services", "regions"} <= set(Config.model_fields)
