"""What a good configuration becomes: the gateway's settings and the core's topology."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from unjam.config import Config, ConfigError, from_urls, load, parse
from unjam.config.address import Address
from unjam.config.reference import every_key, models
from unjam.config.schema import parse_state
from unjam.core import spec
from unjam.core.policies import POLICIES

DESIGN = """
listen: 0.0.0.0:8080
admin: 127.0.0.1:8081
state: sqlite:unjam.db

services:
  auditor:
    match: {path: /agents/auditor}
    policy: least_loaded
    lanes: {fast: {up_to: 5s}, heavy: {share: 0.75, timeout: 1h}}
    queue: {max: 1000, timeout: 60s}
    session: {header: x-session-id, ttl: 1h}
    versions:
      v7: {weight: 90, endpoints: [{url: "http://10.0.0.1:9000", cores: 8, memory: 16GiB},
                                   {url: "http://10.0.0.2:9000", cores: 64, memory: 128GiB, slots: 128}]}
      v8: {weight: 10, endpoints: [{url: "http://10.0.0.3:9000"}]}
    breaker: {error_rate: 5%, open: 60s}
    fallback: [basic, {maintenance: "We are improving this agent. Please try again soon."}]
  basic:
    versions: {v1: {endpoints: [{url: "http://10.0.0.9:9000"}]}}

regions:
  us-east-1: {tokens_per_minute: 2M, requests_per_minute: 10k}
  eu-west-1: {tokens_per_minute: 2M, requests_per_minute: 10k}
"""


def only(text: str, **env: str) -> spec.ServiceSpec:
    """The one service of a text."""
    (service,) = parse(text, env).topology().services.values()
    return service


def test_the_example_of_the_documentation() -> None:
    config = parse(DESIGN, {}, "unjam.yaml")
    assert [listen.address for listen in config.listen] == [Address("0.0.0.0", 8080)]
    topology = config.topology()
    auditor = topology.services["auditor"]
    assert auditor == spec.ServiceSpec(
        name="auditor",
        match=(spec.MatchSpec(path="/agents/auditor"),),
        session=spec.SessionSpec(header="x-session-id"),
        fallback=("basic", spec.Maintenance("We are improving this agent. Please try again soon.")),
        versions=(
            spec.VersionSpec(
                "v7",
                weight=90.0,
                endpoints=(
                    spec.EndpointSpec("http://10.0.0.1:9000", cores=8, memory=16 * 2**30),
                    spec.EndpointSpec("http://10.0.0.2:9000", cores=64, memory=128 * 2**30, slots=128),
                ),
            ),
            spec.VersionSpec("v8", weight=10.0, endpoints=(spec.EndpointSpec("http://10.0.0.3:9000"),)),
        ),
    )
    assert topology.regions["us-east-1"] == spec.RegionSpec("us-east-1", 2_000_000, 10_000)
    assert [warning.key for warning in config.warnings] == ["regions.us-east-1", "regions.eu-west-1"]
    assert config.warnings[0].line == 23


def test_what_is_not_said_is_what_the_core_says() -> None:
    config = from_urls(["http://127.0.0.1:9001", "http://127.0.0.1:9002"])
    endpoints = (spec.EndpointSpec("http://127.0.0.1:9001"), spec.EndpointSpec("http://127.0.0.1:9002"))
    assert config.topology() == spec.Topology(
        {"default": spec.ServiceSpec("default", (spec.VersionSpec("v1", endpoints),))}
    )


def test_optional_parts_have_the_defaults_of_the_core_too() -> None:
    service = only("services: {a: {session: {cookie: c}, health: /h, versions: {v: {endpoints: [http://h]}}}}")
    assert service.session == spec.SessionSpec(cookie="c")
    assert service.health == spec.HealthSpec("/h")
    region = (
        parse("services: {a: {versions: {v: {endpoints: [http://h]}}}}\nregions: {r: {}}", {}).topology().regions["r"]
    )
    assert region == spec.RegionSpec("r")


def test_only_this_machine_can_reach_a_gateway_that_was_told_nothing() -> None:
    config = from_urls(["http://h"])
    assert all(listen.address.loopback for listen in config.listen)
    assert config.admin is not None
    assert config.admin.listen.loopback


def test_every_key_reaches_the_gateway(everything: Config, tmp_path: Path) -> None:
    config = everything
    assert [(each.host, each.port, each.path) for each in config.listen] == [
        ("127.0.0.1", 9080, None),
        ("127.0.0.1", 9443, None),
        ("", 0, "/run/unjam.sock"),
    ]
    assert (config.listen[0].cert, config.listen[1].cert) == (None, str(tmp_path / "cert.pem"))
    assert config.listen[1].key == str(tmp_path / "key.pem")
    assert config.admin is not None
    assert (config.admin.host, config.admin.port) == ("127.0.0.1", 9081)
    assert config.admin.token == "a-token-of-some-length"
    assert config.admin.hosts == ("unjam.internal",)
    assert config.admin.tls is not None
    assert config.reporters is not None
    assert (config.reporters.listen.host, config.reporters.listen.port) == ("127.0.0.1", 9082)
    assert config.reporters.token == "a-report-token-of-some-length"
    assert config.reporters.tls is not None
    assert config.reporters.tls.cert == str(tmp_path / "cert.pem")
    assert config.reporters.expire == 30.0
    discover = config.services["last"].versions["v1"].discover
    assert discover is not None
    assert [str(network) for network in discover.networks or ()] == ["10.0.0.0/8"]
    assert (config.state.kind, config.state.hosts, config.state.tls) == ("redis", ("cache.internal",), True)
    assert [str(network) for network in config.trusted_proxies] == ["10.0.0.0/8", "192.0.2.1/32"]
    (key,) = config.keys
    assert key.digest.hex().startswith("9f86d081")
    assert (key.tenant, key.services) == ("acme", ("auditor",))
    assert config.limits.model_dump() == {
        "max_connections": 10_000,
        "max_line": 4096,
        "max_header_bytes": 16384,
        "max_fields": 50,
        "max_body": 64 * 2**20,
        "max_inspect": 256 * 2**10,
        "header_timeout": 5.0,
        "body_timeout": 20.0,
        "stalled_timeout": 120.0,
        "keepalive": 30.0,
    }
    assert config.access_log.to == str(tmp_path / "access.log")
    assert config.access_log.format == "json"
    assert config.access_log.enabled
    assert config.response_headers is False
    assert config.drain_timeout == 600.0
    assert config.heartbeat == 15.0
    assert config.origins("auditor") == ("https://app.example.com",)
    assert config.origins("basic") is None
    tls = config.endpoint_tls("auditor", "v7", "https://10.0.0.1:9000")
    assert (tls.verify, tls.ca, tls.server_name) == (True, str(tmp_path / "ca.pem"), "agents.internal")
    assert config.endpoint_tls("auditor", "v7", "https://10.0.0.2:9000").verify is False
    assert config.endpoint_tls("basic", "v1", "http://10.0.0.9:9000").verify is True
    with pytest.raises(KeyError):
        config.endpoint_tls("basic", "v1", "http://elsewhere")
    quality = config.services["auditor"].quality
    assert quality is not None
    assert (quality.sample, quality.queue, quality.timeout, quality.largest) == (0.25, 50, 3.0, 65536)
    schema, refusal, repetition, length, pattern, python, http = quality.evaluators
    assert schema.schema == str(tmp_path / "answer.json")
    assert (refusal.refusal, repetition.repetition) == (True, True)
    assert length.length is not None
    assert (length.length.least, length.length.most) == (5, 9000)
    assert pattern.pattern is not None
    assert (pattern.label, pattern.pattern.must, pattern.pattern.never) == ("cited", r"\[\d+\]", "(?i)lorem")
    assert (python.label, python.python) == ("python", "judges:grounded")
    assert http.http == "https://judge.internal/verdict?of=auditor"


def test_every_key_reaches_the_core(everything: Config) -> None:
    topology = everything.topology()
    assert topology.services["auditor"] == spec.ServiceSpec(
        name="auditor",
        match=(
            spec.MatchSpec("/agents/auditor", "*.example.com", {"x-agent": "*"}, "audit-1"),
            spec.MatchSpec("/v2/auditor"),
        ),
        policy="peak_ewma",
        lanes=spec.LanesSpec(
            2.0, 0.5, spec.Timeouts(1.0, 10.0, 20.0, 300.0), spec.Timeouts(2.0, 1800.0, 900.0, 7200.0)
        ),
        queue=spec.QueueSpec(200, 30.0, 0.25),
        session=spec.SessionSpec("x-session-id", None, 600.0, 1.5),
        sticky="tenant",
        breaker=spec.BreakerSpec(0.1, 30.0, rule="window", window=50, least=30, baseline=0.02),
        quality=spec.QualitySpec(0.08),
        ejection=spec.EjectionSpec(3, 5.0, 60.0, 0.25),
        warm_up=spec.WarmUpSpec(30.0, 2.0, 0.2),
        retry=spec.RetrySpec(1, 0.1, 1.0, "always"),
        health=spec.HealthSpec("/healthz?deep=1", 10.0, 1.0, 3, 1),
        load=spec.LoadSpec(
            False,
            spec.MetricsSpec("/metrics/engine", ("r",), ("w",), ("engine:cache",), ("s",), 5.0),
            spec.AgentCheckSpec(9100, 3.0, "auditor"),
        ),
        fallback=("basic", "last", spec.Maintenance("Back soon.", 529, 300.0)),
        strip_prefix=True,
        inspect="body",
        dialect="openai",
        versions=(
            spec.VersionSpec(
                "v7",
                (
                    spec.EndpointSpec("https://10.0.0.1:9000", 8.0, 16 * 2**30, 12, "us-east-1", 2.0),
                    spec.EndpointSpec("https://10.0.0.2:9000"),
                ),
                90.0,
            ),
            spec.VersionSpec("v8", (spec.EndpointSpec("http://10.0.0.3:9000"),), 10.0, spec.OverflowSpec("v7", 2.0)),
        ),
        rollout=spec.RolloutSpec("v8", (0.05, 1.0), 600.0, 50),
        split=(spec.SplitSpec({"v7": 3.0, "v8": 1.0}, spec.HEAVY, "acme", {"x-tier": "premium"}),),
    )
    basic = topology.services["basic"]
    assert basic.session == spec.SessionSpec(cookie="sid")
    assert not basic.breaker.enabled
    assert basic.retry.attempts == 0
    assert basic.queue.max == 0
    assert basic.warm_up.window == 10.0
    assert basic.health == spec.HealthSpec("/")
    assert topology.services["last"].versions[0].endpoints == (spec.EndpointSpec("unix:/run/last.sock"),)
    assert topology.regions == {"us-east-1": spec.RegionSpec("us-east-1", 2_000_000, 10_000, 30.0)}


def test_the_file_with_every_key_has_every_key() -> None:
    """So that the two tests above can't forget one."""
    text = (Path(__file__).parent / "everything.yaml").read_text(encoding="utf-8")
    given = set(_keys_in(yaml.safe_load(text)))
    # `verify` and its kin are given once, at the version or at the endpoint.
    missing = {key.rpartition(".")[2] for key in every_key()} - given
    assert not missing


def _keys_in(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield str(key)
            yield from _keys_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _keys_in(inner)


def test_everything_is_frozen_and_closed() -> None:
    assert all(model.model_config["frozen"] and model.model_config["extra"] == "forbid" for model in models().values())
    config = from_urls(["http://h"])
    with pytest.raises(Exception, match="frozen"):
        config.listen = ()  # type: ignore[misc]


def test_policies_are_those_of_the_core() -> None:
    for policy in POLICIES:
        assert from_urls(["http://h"], policy=policy).topology().services["default"].policy == policy


def test_a_service_without_match_takes_everything_unless_it_is_a_fallback() -> None:
    assert only("services: {a: {versions: {v: {endpoints: [http://h]}}}}").match == (spec.MatchSpec(),)
    topology = parse(DESIGN, {}).topology()
    assert topology.services["basic"].match == ()


def test_the_root_path_is_no_condition() -> None:
    assert only("services: {a: {match: {path: /}, versions: {v: {endpoints: [http://h]}}}}").match == (
        spec.MatchSpec(),
    )


def test_matching_by_model_reads_the_body() -> None:
    assert only("services: {a: {match: {model: m}, versions: {v: {endpoints: [http://h]}}}}").inspect == "body"


def test_first_byte_and_idle_follow_the_timeout_of_their_lane() -> None:
    service = only("services: {a: {lanes: {heavy: {timeout: 3h}}, versions: {v: {endpoints: [http://h]}}}}")
    assert service.lanes.heavy == spec.Timeouts(5.0, 10800.0, 10800.0, 10800.0)
    assert service.lanes.fast == spec.LanesSpec().fast


def test_a_header_value_stays_as_it_is_written() -> None:
    service = only(
        "services: {a: {match: {header: {X-Version: 1.10, x-on: on}}, versions: {v: {endpoints: [http://h]}}}}"
    )
    assert service.match[0].headers == {"x-version": "1.10", "x-on": "on"}


def test_a_maintenance_message_may_have_lines() -> None:
    text = 'services: {a: {versions: {v: {endpoints: [http://h]}}, fallback: [{maintenance: "One.\\nTwo.\\n"}]}}'
    assert only(text).fallback == (spec.Maintenance("One.\nTwo."),)


@pytest.mark.parametrize(
    ("given", "to"),
    [
        ("off", "off"),
        ("no", "off"),
        ("stdout", "stdout"),
        ("stderr", "stderr"),
        ("x.log", "FOLDER/x.log"),
        ("/x", "/x"),
    ],
)
def test_access_log(tmp_path: Path, given: str, to: str) -> None:
    text = f"access_log: {given}\nservices: {{a: {{versions: {{v: {{endpoints: [http://h]}}}}}}}}"
    log = parse(text, {}, base=tmp_path).access_log
    assert log.to == to.replace("FOLDER", str(tmp_path))
    assert log.enabled is (to != "off")


def test_operators_may_connect_by_a_unix_socket() -> None:
    admin = from_urls(["http://h"], admin="unix:/run/admin.sock").admin
    assert admin is not None
    assert admin.path == "/run/admin.sock"
    assert admin.listen.loopback


def test_things_can_be_off() -> None:
    config = from_urls(["http://h"], admin="off", heartbeat="off", session="off", health="off")
    assert config.admin is None
    assert config.heartbeat is None
    service = config.topology().services["default"]
    assert service.session is None
    assert service.health is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("off", spec.LoadSpec(headers=False)),
        ("{headers: off}", spec.LoadSpec(headers=False)),
        ("{metrics: off, agent_check: off}", spec.LoadSpec()),
        ("{agent_check: 9100}", spec.LoadSpec(agent_check=spec.AgentCheckSpec(9100))),
        (
            "{metrics: tgi}",
            spec.LoadSpec(metrics=spec.MetricsSpec(running=("tgi_batch_current_size",), waiting=("tgi_queue_size",))),
        ),
        ("{metrics: {waiting: jobs}}", spec.LoadSpec(metrics=spec.MetricsSpec(waiting=("jobs",)))),
    ],
)
def test_short_forms_of_load(text: str, expected: spec.LoadSpec) -> None:
    assert only(f"services: {{a: {{load: {text}, versions: {{v: {{endpoints: [http://h]}}}}}}}}").load == expected


def test_an_engine_is_short_for_its_names_and_others_can_be_given_beside_it() -> None:
    load = "load: {metrics: {engine: vllm, waiting: mine}}"
    metrics = only(f"services: {{a: {{{load}, versions: {{v: {{endpoints: [http://h]}}}}}}}}").load.metrics
    assert metrics is not None
    assert (metrics.running, metrics.waiting) == (("vllm:num_requests_running",), ("mine",))
    assert metrics.cache == ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc")


def test_an_agent_check_needs_a_host() -> None:
    with pytest.raises(ConfigError) as caught:
        only('services: {a: {load: {agent_check: 1}, versions: {v: {endpoints: ["unix:/run/a"]}}}}')
    assert [found.key for found in caught.value.problems] == ["services.a.versions.v.endpoints[0]"]


def test_python_numbers_are_seconds_and_bytes() -> None:
    config = from_urls(["http://h"], drain_timeout=1.5, limits={"max_body": 100}, queue={"timeout": 2})
    assert (config.drain_timeout, config.limits.max_body) == (1.5, 100)
    assert config.topology().services["default"].queue.timeout == 2.0


@pytest.mark.parametrize(
    ("url", "kind", "path", "hosts", "tls"),
    [
        ("memory", "memory", None, (), False),
        ("memory:", "memory", None, (), False),
        ("sqlite:unjam.db", "sqlite", "unjam.db", (), False),
        ("sqlite:/var/lib/unjam.db", "sqlite", "/var/lib/unjam.db", (), False),
        ("sqlite:////var/lib/unjam.db", "sqlite", "/var/lib/unjam.db", (), False),
        ("redis://h:6379/0", "redis", None, ("h",), False),
        ("rediss://u:p@h:6379/0", "redis", None, ("h",), True),
        ("redis+sentinel://a:26379,b:26379/main", "redis", None, ("a", "b"), False),
        ("redis+cluster://[fd00::1]:7000", "redis", None, ("fd00::1",), False),
    ],
)
def test_state(url: str, kind: str, path: str | None, hosts: tuple[str, ...], tls: bool) -> None:
    state = parse_state(url)
    assert (state.kind, state.path, state.hosts, state.tls) == (kind, path, hosts, tls)


def test_secrets_are_not_in_any_repr(everything: Config) -> None:
    assert "a-token-of-some-length" not in repr(everything)
    assert "a-report-token-of-some-length" not in repr(everything)
    assert "hunter2" not in repr(from_urls(["http://h"], state="rediss://u:hunter2@h"))


def test_a_thousand_endpoints_load_quickly(tmp_path: Path) -> None:
    """Also that lines and files need no quadratic time: 10,000 take ten times as long."""
    endpoints = "\n".join(f"          - http://10.0.{n // 250}.{n % 250}:9000" for n in range(1000))
    file = tmp_path / "big.yaml"
    file.write_text(f"services:\n  a:\n    versions:\n      v:\n        endpoints:\n{endpoints}\n", encoding="utf-8")
    config = load(file, {})
    assert len(config.topology().services["a"].versions[0].endpoints) == 1000


def test_models_describe_every_key() -> None:
    for path, model in models().items():
        assert issubclass(model, BaseModel)
        for key, info in model.model_fields.items():
            assert info.description, f"{path}.{key}"
