"""Nothing is missing and nothing leads nowhere: links, policies, reasons, header names, log events, dependencies."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from unjam.core.model import Outcome, Reason
from unjam.core.policies import POLICIES
from unjam.wire.errors import REASONS

from .pages import DOCS, ROOT, anchors, links, name_of, pages, readmes

SOURCE = ROOT / "src" / "unjam"


def source() -> str:
    return "\n".join(file.read_text(encoding="utf-8") for file in sorted(SOURCE.rglob("*.py")))


def page(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", [name_of(each) for each in (*pages(), *readmes())])
def test_links_lead_somewhere(name: str) -> None:
    here = DOCS / name
    for link in links(here):
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (here.parent / file).resolve() if file else here
        assert target.exists(), f"{name}: {link}"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), f"{name}: {link}"


def test_every_page_is_in_the_index() -> None:
    listed = {(DOCS / link.partition("#")[0]).resolve() for link in links(DOCS / "README.md")}
    for each in pages():
        if each.parent == DOCS and each.name != "README.md":
            assert each.resolve() in listed, f"docs/README.md does not lead to {each.name}"


def test_every_policy_has_its_page() -> None:
    index = set(links(DOCS / "policies" / "README.md"))
    names = {file.stem for file in (DOCS / "policies").glob("*.md")} - {"README"}
    assert names == set(POLICIES)
    for name in names:
        assert f"{name}.md" in index
        assert re.search(rf"policy: {name}\b", page(f"policies/{name}.md")), f"{name} shows no configuration"


def test_every_shed_reason_is_in_the_table() -> None:
    text = page("lanes-and-queueing.md")
    for reason in Reason:
        assert re.search(rf"^\| `{reason}` \|", text, re.MULTILINE), reason


def test_every_refusal_and_outcome_is_documented() -> None:
    text = "\n".join(each.read_text(encoding="utf-8") for each in pages())
    codes = set(REASONS) | {str(outcome) for outcome in Outcome}
    # Codes that the gateway gives in answers of its own.
    gateway = "\n".join(file.read_text(encoding="utf-8") for file in (SOURCE / "gateway").glob("*.py"))
    codes |= set(re.findall(r'\b(?:40[0-9]|42[0-9]|50[0-9]),\s+"([a-z_]+)"', gateway))
    codes |= set(re.findall(r'_timed_out\("([a-z_]+)"', gateway))
    codes |= set(re.findall(r'return "([a-z]+_limit)"', gateway))
    codes |= set(re.findall(r'reason = (?:self\.reason or )?"([a-z_]+)"', gateway))
    codes |= set(re.findall(r'"(connect_[a-z]+)"', gateway))
    for code in sorted(codes):
        assert f"`{code}`" in text, code


def test_every_header_of_ours_is_documented() -> None:
    names = set(re.findall(r"x-unjam-[a-z]+(?:-[a-z]+)*", source()))
    assert {"x-unjam-endpoint", "x-unjam-lane", "x-unjam-deadline"} <= names
    text = page("compatibility.md")
    for name in sorted(names):
        assert f"`{name}`" in text, name


def test_every_log_event_is_documented() -> None:
    events = set(re.findall(r"\.(?:info|warning|error)\(\s*\"([a-z_]+)\"", source()))
    assert {"starting", "reloaded", "draining"} <= events
    text = page("operations.md")
    for event in sorted(events):
        assert f"`{event}`" in text, event


def test_every_line_of_hostile_input_has_its_tests() -> None:
    tested = "\n".join(file.read_text(encoding="utf-8") for file in (ROOT / "tests" / "hostile").glob("test_*.py"))
    numbers = {int(number) for number in re.findall(r"def test_(\d\d)_", tested)}
    claimed: set[int] = set()
    for first, last in re.findall(r"^\| (\d+)(?:-(\d+))? \|", page("security.md"), re.MULTILINE):
        claimed.update(range(int(first), int(last or first) + 1))
    assert len(claimed) > 45
    assert claimed <= numbers, f"no test for {sorted(claimed - numbers)}"


def test_every_dependency_has_its_reason() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["examples"], *extras["dev"]]
    names = {re.split(r"[^A-Za-z0-9_.-]", requirement)[0] for requirement in wanted}
    listed = set(re.findall(r"^\| `([^`]+)` \|", page("dependencies.md"), re.MULTILINE))
    assert names == listed


def test_files_that_pages_name_exist() -> None:
    for each in pages():
        text = each.read_text(encoding="utf-8")
        for path in re.findall(r"`((?:core|wire|gateway|config|telemetry|admin|cli)/[a-z0-9_/]+\.py)`", text):
            assert (SOURCE / path).exists(), f"{name_of(each)}: {path}"
        for path in re.findall(r"`((?:tests|benchmarks|examples|src)/[a-zA-Z0-9_/.]+)`", text):
            assert Path(ROOT / path).exists(), f"{name_of(each)}: {path}"
