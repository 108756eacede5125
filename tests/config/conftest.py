"""Configurations to start from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from unjam.config import Config, ConfigError, Problem, load, parse

PEM = "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"

Refused = Callable[..., list[Problem]]


@pytest.fixture
def refused() -> Refused:
    """The problems of a text that must be refused."""

    def problems(text: str, **env: str) -> list[Problem]:
        with pytest.raises(ConfigError) as caught:
            parse(text, env, "unjam.yaml")
        assert all(problem.message and "\n" not in str(problem) for problem in caught.value.problems)
        return caught.value.problems

    return problems


@pytest.fixture
def everything(tmp_path: Path) -> Config:
    """The configuration in which every key is given, none with its default."""
    for name in ("cert.pem", "key.pem", "ca.pem"):
        (tmp_path / name).write_text(PEM, encoding="ascii")
    (tmp_path / "answer.json").write_text("{}", encoding="ascii")
    text = (Path(__file__).parent / "everything.yaml").read_text(encoding="utf-8")
    (tmp_path / "unjam.yaml").write_text(text, encoding="utf-8")
    return load(tmp_path / "unjam.yaml", {"ADMIN_TOKEN": "a-token-of-some-length"})
