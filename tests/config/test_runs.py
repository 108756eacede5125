"""The keys of durable runs: short forms, bounds, where the store's file is, and what `unjam check` says of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from unjam.cli.explain import explain
from unjam.config import Config, ConfigError, load, parse
from unjam.config import runs as limits
from unjam.runs.store import base

SERVICES = "services: {a: {versions: {v1: {endpoints: ['http://h:1']}}}}\n"


def read(text: str) -> Config:
    return parse(text + SERVICES, {})


def test_there_are_none_unless_they_are_asked_for() -> None:
    assert read("").runs is None
    assert read("runs: off\n").runs is None
    assert read("runs: on\n").runs == limits.Runs()
    assert read("runs: {keep: 2h}\n").runs == limits.Runs(keep=7200.0)


def test_a_service_may_have_none() -> None:
    text = "runs: on\nservices: {a: {runs: off, versions: {v1: {endpoints: ['http://h:1']}}}}\n"
    assert not parse(text, {}).services["a"].runs.enabled
    assert read("runs: on\n").services["a"].runs == limits.ServiceRuns()


def test_the_limits_are_those_of_the_stores() -> None:
    """Written down twice, as neither may import the other."""
    assert limits.LARGEST == base.LARGEST
    assert limits.KEPT_AT_LEAST == base.KEPT_AT_LEAST
    assert limits.Runs().lease == base.LEASE


@pytest.mark.parametrize(
    ("runs", "why"),
    [
        ("{max_result: 17MiB}", "max_result is more than the stores take"),
        ("{max_input: 1GiB}", "max_input is more than the stores take"),
        ("{keep: 59m}", "keep is shorter than clients may be away"),
        ("{lease: 1s}", "lease is out of range"),
        ("{lease: 2h}", "lease is out of range"),
        ("{max_queued: 0}", "'0' is too small"),
        ("{keap: 2h}", "Did you mean keep?"),
        ("maybe", "must be a mapping of keys"),
    ],
)
def test_what_could_not_work_is_refused(runs: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why.replace("?", r"\?")):
        read(f"runs: {runs}\n")


@pytest.mark.parametrize(
    ("runs", "why"),
    [
        ("{execute: shove}", "'shove' is not known here"),
        ("{retry: never}", "'never' is not known here"),
        ("{max_attempts: 101}", "max_attempts above 100"),
        ("{path: work}", "'work' is not a path to ask for"),
    ],
)
def test_what_could_not_work_for_a_service_is_refused(runs: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        parse(f"services: {{a: {{runs: {runs}, versions: {{v1: {{endpoints: ['http://h:1']}}}}}}}}\n", {})


def test_runs_in_memory_are_warned_of() -> None:
    assert [found.key for found in read("runs: on\n").warnings] == ["runs"]
    assert not read("runs: on\nstate: sqlite:unjam.db\n").warnings
    assert not read("").warnings


@pytest.mark.parametrize(
    ("written", "path"),
    [
        ("sqlite:runs.db", "{here}/runs.db"),
        ("sqlite:///runs.db", "{here}/runs.db"),
        ("sqlite:data/runs.db", "{here}/data/runs.db"),
        ("sqlite:/var/lib/runs.db", "/var/lib/runs.db"),
        ("sqlite:////var/lib/runs.db", "/var/lib/runs.db"),
    ],
)
def test_the_file_is_beside_the_configuration(tmp_path: Path, written: str, path: str) -> None:
    """Or a gateway that is started elsewhere would begin with an empty one."""
    file = tmp_path / "unjam.yaml"
    file.write_text(f"runs: on\nstate: {written}\n{SERVICES}")
    state = load(file, {}).state
    assert state.path == path.format(here=tmp_path)
    assert state.url == f"sqlite:{state.path}"


WORKERS = "services: {a: {runs: {execute: pull}, versions: {v1: {}}}, b: {versions: {v1: {endpoints: [http://h]}}}}\n"


def test_a_service_that_workers_serve_needs_no_endpoints_and_takes_no_requests() -> None:
    config = parse(f"runs: on\n{WORKERS}", {})
    topology = config.topology()
    assert topology.services["a"].versions[0].endpoints == ()
    assert (topology.services["a"].match, len(topology.services["b"].match)) == ((), 1)
    assert "a: takes runs alone, which workers claim" in "\n".join(explain(config))


@pytest.mark.parametrize("text", [WORKERS, "runs: on\n" + WORKERS.replace("execute: pull", "execute: push")])
def test_endpoints_are_required_where_no_worker_claims(text: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse(text, {})
    assert "services.a.versions.v1.endpoints" in [problem.key for problem in refused.value.problems]


def test_they_are_explained() -> None:
    said = "\n".join(explain(read("runs: on\nstate: redis://:planted-password@localhost\n")))
    assert "kept in Redis" in said
    assert "pushed to its endpoints" in said
    assert "planted" not in said
    assert "pushed" not in "\n".join(explain(read("")))
