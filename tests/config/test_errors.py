"""Every kind of mistake is refused with its line, its key and what to do about it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from unjam.config import Config, ConfigError, Problem, from_urls, load, parse

Refused = Callable[..., list[Problem]]

#: A service that is right; `{}` takes one more line of it, on line 3.
SERVICE = "services:\n  a:\n    {}\n    versions: {{v: {{endpoints: [http://h:1]}}}}\n"
#: An endpoint, on line 4.
VERSION = "services:\n  a:\n    versions:\n      v: {}\n"
#: Line 1 of a configuration that is right otherwise.
TOP = "{}\nservices: {{a: {{versions: {{v: {{endpoints: [http://h:1]}}}}}}}}\n"


@pytest.mark.parametrize(
    ("text", "key", "message", "fix"),
    [
        ("lisen: 127.0.0.1:1", "lisen", "there is no key lisen here", "Did you mean listen?"),
        ("zzz: 1", "zzz", "there is no key zzz here", "Known here: listen, admin"),
        ("queue: {max: 1}", "queue", "there is no key queue here", "It belongs below services.<name>."),
        ("tls: {cert: x}", "tls", "there is no key tls", "listen: {address: 0.0.0.0:443, tls:"),
        ("admin_token: x", "admin_token", "there is no key", 'token: "${UNJAM_ADMIN_TOKEN}"'),
        ("listen: 8080", "listen", "which interface", "127.0.0.1:8080"),
        ("listen: []", "", "listens nowhere", "Write listen: 127.0.0.1:8080."),
        ("listen: [127.0.0.1:1, 127.0.0.1:x]", "listen[1]", "no port", "host:port"),
        ("listen: {port: 80}", "listen.address", "is required", "Add address: host:port"),
        (
            "listen: {address: '127.0.0.1:1', tls: {cert: c}}",
            "listen.tls.key",
            "is required",
            "tls: {cert: FILE, key: FILE}",
        ),
        (
            "listen: {address: '127.0.0.1:1', tls: yes}",
            "listen.tls",
            "must be a mapping of keys, not text",
            "cert: FILE",
        ),
        ("listen: [127.0.0.1:1, 127.0.0.1:1]", "listen[1]", "is listened on twice", "its own address"),
        ("listen: ['0.0.0.0:1', '127.0.0.1:1']", "listen[1]", "is listened on twice", "its own address"),
        ("listen: ['[::1]:1', '[::]:1', '0.0.0.0:1']", "listen[1]", "is listened on twice", "its own address"),
        ("listen: [unix:/a, unix:/a]", "listen[1]", "is listened on twice", "its own address"),
        ("listen: 0.0.0.0:8081", "admin", "is listened on twice", "its own address"),
        ("listen: 127.0.0.1:8081", "admin", "is listened on twice", "its own address"),
        ("admin: 0.0.0.0:8081", "admin", "has no token", "UNJAM_ADMIN_TOKEN"),
        ("admin: {listen: 10.0.0.1:8081}", "admin", "has no token", "or listen on 127.0.0.1"),
        ("admin: {token: short}", "admin.token", "too short", "at least 16"),
        ("admin: {token: 'sha256:abc'}", "admin.token", "sha256", "unjam hash-key"),
        ("admin: {hosts: [a/b]}", "admin.hosts[0]", "is not a host", "agents.example.com"),
        ("state: mysql://h", "state", "'mysql' is not a store", "sqlite:unjam.db"),
        ("state: 'sqlite:'", "state", "names no file", "sqlite:unjam.db"),
        ("state: redis:///0", "state", "names no host", "redis://host"),
        ("trusted_proxies: [10.0.0.1/8]", "trusted_proxies[0]", "bits set", "10.0.0.0/8"),
        ("trusted_proxies: proxy", "trusted_proxies", "is not a network", "10.0.0.0/8"),
        ("keys: {hash: x}", "keys", "must be a list, not a mapping", "Write keys: [{hash:"),
        ("keys: [{hash: x, tenant: t}]", "keys[0].hash", "not a hashed key", "unjam hash-key"),
        ("keys: [{tenant: t}]", "keys[0].hash", "is required", 'hash: "sha256:..."'),
        (
            "keys: [{key: sk-123, tenant: t}]",
            "keys[0].key",
            "there is no key key",
            "unjam hash-key",
        ),
        (f"keys: [{{hash: 'sha256:{'0' * 64}', tenant: 'a b'}}]", "keys[0].tenant", "is not a name", "letters"),
        (
            f"keys: [{{hash: 'sha256:{'0' * 64}', tenant: t, services: [b]}}]",
            "keys[0].services[0]",
            "no service b",
            "Known: a.",
        ),
        (f"keys: [{{hash: 'sha256:{'0' * 64}', tenant: t, services: []}}]", "keys[0]", "no service", "for all of them"),
        ("limits: {max_body: 10G}", "limits.max_body", "two sizes", "10GiB"),
        ("limits: {max_fields: 0}", "limits.max_fields", "too small", "more than 0"),
        ("limits: {max_fields: -5}", "limits.max_fields", "not a whole number", "100, 10k"),
        ("limits: {header_timeout: 10}", "limits.header_timeout", "has no unit", "10s"),
        ("limits: {max_line: 1MiB}", "limits", "larger than max_header_bytes", "Raise max_header_bytes"),
        ("limits: 5", "limits", "must be a mapping of keys, not text", "limits: {max_body: 64MiB}"),
        ("access_log: {to: stdout, format: xml}", "access_log.format", "'xml' is not known", "auto, json, console"),
        ("response_headers: maybe", "response_headers", "neither true nor false", "true or false"),
        ("drain_timeout: 0s", "drain_timeout", "too small", "more than 0s"),
        ("heartbeat: never", "heartbeat", "is not a duration", "60s"),
        ("regions: [us]", "regions", "must be a mapping of keys, not a list", "tokens_per_minute"),
        ("regions: {us: {tokens_per_minute: 2m}}", "regions.us.tokens_per_minute", "not a whole number", "Write 2M."),
        ("regions: {'us east': {}}", "regions.us east", "is not a name", "letters"),
    ],
)
def test_top_level(refused: Refused, text: str, key: str, message: str, fix: str) -> None:
    # Where a key is missing and another unknown, both are told.
    (problem,) = [found for found in refused(TOP.format(text)) if found.key == key]
    assert problem.line == 1
    assert message in problem.message
    assert fix in problem.fix


@pytest.mark.parametrize(
    ("text", "key", "message", "fix"),
    [
        ("polcy: random", "polcy", "there is no key polcy", "Did you mean policy?"),
        ("timeout: 5s", "timeout", "there is no key timeout", "lanes: {fast: {timeout: 5m}"),
        ("endpoints: [http://h]", "endpoints", "there is no key endpoints", "versions: {v1: {endpoints: [URL]}}"),
        ("policy: least-load", "policy", "'least-load' is not known", "Did you mean least_loaded?"),
        ("policy: best", "policy", "'best' is not known", "round_robin"),
        ("match: /agents", "match", "must be a mapping of keys, not text", "match: {path: /agents/auditor}"),
        ("match: {path: agents}", "match.path", "does not begin with /", "Write /agents."),
        ("match: {path: /a/../b}", "match.path", "not how the gateway sees", "Write /b."),
        ("match: {path: //a}", "match.path", "not how the gateway sees", "Write /a."),
        ("match: {path: /%61}", "match.path", "not how the gateway sees", "Write /a."),
        ("match: {path: /ü}", "match.path", "not how the gateway sees", "Write /%C3%BC."),
        ("match: {path: /a%2Fb}", "match.path", "gateway refuses", "/agents/auditor"),
        ("match: {path: '/a?b=1'}", "match.path", "query", "Only the path"),
        ("match: {host: 'h:80'}", "match.host", "is not a host", "without a port"),
        ("match: {host: 'a.*.com'}", "match.host", "is not a host", "*.example.com"),
        ("match: {header: {'x y': 1}}", "match.header.x y", "not a header name", "x-session-id"),
        ("match: {header: {authorization: x}}", "match.header.authorization", "credentials", "header of your own"),
        ('match: {header: {x-a: "1\\n2"}}', "match.header.x-a", "line break", "one line"),
        ('match: {header: {x-a: "1\\r2"}}', "match.header.x-a", "control character", "Remove it"),
        (
            "match: [{path: /a}, {path: /a}]",
            "match[1]",
            "takes the same requests, as an earlier match",
            "its own match:",
        ),
        ("match: {model: ''}", "match.model", "is empty", "remove the key"),
        ("load: on", "load", "must be a mapping of keys, not text", "load: {metrics: vllm}"),
        ("load: {metric: vllm}", "load.metric", "there is no key metric", "Did you mean metrics?"),
        ("load: {metrics: vlm}", "load.metrics", "'vlm' is not known", "Did you mean vllm?"),
        ("load: {metrics: {path: /m}}", "load.metrics", "names no metric to read", "Write metrics: vllm"),
        ("load: {metrics: {running: 'a b'}}", "load.metrics.running", "not the name of a metric", "queue_length"),
        ("load: {metrics: {engine: tgi, path: m}}", "load.metrics.path", "not a path to ask for", "/healthz"),
        ("load: {metrics: {engine: tgi, interval: 0s}}", "load.metrics.interval", "too small", "more than 0s"),
        ("load: {agent_check: {interval: 2s}}", "load.agent_check.port", "is required", "agent_check: 9100"),
        ("load: {agent_check: 65536}", "load.agent_check", "is not a port", "from 1 to 65535"),
        ("load: {agent_check: here}", "load.agent_check", "not a whole number", "Write a whole number"),
        ("lanes: {slow: {}}", "lanes.slow", "there is no key slow", "Known here: fast, heavy."),
        ("lanes: {fast: {share: 5%}}", "lanes.fast.share", "there is no key share", "heavy lane"),
        ("lanes: {fast: {up_to: 0s}}", "lanes.fast.up_to", "too small", "more than 0s"),
        ("lanes: {heavy: {share: 0}}", "lanes.heavy.share", "too small", "more than 0%"),
        ("lanes: {heavy: {share: 101%}}", "lanes.heavy.share", "more than the whole", "5% or 0.05"),
        ("lanes: {heavy: {share: 75}}", "lanes.heavy.share", "more than the whole", "Write 75%."),
        ("lanes: {heavy: {timeout: 1m, idle: 2m}}", "lanes.heavy", "idle is longer than timeout", "lower idle"),
        ("queue: {max: 1.5}", "queue.max", "not a whole number", "without a rest"),
        ("queue: {timeout: 1 m}", "queue.timeout", "is not a duration", "60s"),
        ("queue: {tenant_share: 0%}", "queue.tenant_share", "too small", "more than 0%"),
        ("session: {ttl: 1h}", "session", "one source", "header: or cookie:"),
        ("session: {header: a, cookie: b}", "session", "one source", "one of the two"),
        ("session: x-session-id", "session", "must be a mapping of keys, not text", "session: {header: x-session-id"),
        ("session: {header: 'a b'}", "session.header", "not a header name", "x-session-id"),
        ("session: {header: a, bound: 0.5}", "session.bound", "too small", "at least 1"),
        ("sticky: session", "sticky", "the service has none", "session: {header: x-session-id}"),
        ("sticky: 'x y'", "sticky", "not a header name", "x-session-id"),
        ("breaker: {error_rate: 60%}", "breaker", "above 50%", "up to 50%"),
        ("breaker: {rule: count}", "breaker.rule", "'count' is not known here", "cusum, window"),
        ("breaker: {window: 100}", "breaker", "window has no use with rule: cusum", "Write rule: window"),
        ("breaker: {rule: window, window: 10}", "breaker", "a single failure would trip", "Raise window"),
        ("breaker: {rule: window, window: 40, least: 50}", "breaker", "from 1 to window", "remove it"),
        ("breaker: {rule: window, window: 1M}", "breaker", "too large", "at most 100,000"),
        ("breaker: {baseline: 5%}", "breaker", "baseline is not below error_rate", "lower baseline"),
        ("breaker: {baseline: learnt}", "breaker.baseline", "not a share", "5% or 0.05"),
        ("breaker: 5%", "breaker", "must be a mapping of keys, not text", "or off"),
        ("quality: {sample: 5%}", "quality", "sample has no use without evaluators", "quality: on"),
        ("quality: {evaluators: [{}]}", "quality.evaluators[0]", "judges in no way", "one of schema, refusal"),
        (
            "quality: {evaluators: [{refusal: on, repetition: on}]}",
            "quality.evaluators[0]",
            "is refusal and repetition at once",
            "one of schema",
        ),
        (
            "quality: {evaluators: [{refusal: on}, {refusal: on}]}",
            "quality",
            "two evaluators are called refusal",
            "name: short",
        ),
        ("quality: {evaluators: [{refusal: on}], error_rate: 60%}", "quality", "above 50%", "up to 50%"),
        ("quality: {evaluators: [{refusal: on}], largest: 1GiB}", "quality", "too large", "at most 16MiB"),
        ("quality: {evaluators: [{length: {}}]}", "quality.evaluators[0].length", "lets everything pass", "least:"),
        (
            "quality: {evaluators: [{length: {least: 2, most: 1}}]}",
            "quality.evaluators[0].length",
            "less than least",
            "Raise most",
        ),
        (
            "quality: {evaluators: [{pattern: {}}]}",
            "quality.evaluators[0].pattern",
            "nothing to look for",
            "must:, never:",
        ),
        (
            "quality: {evaluators: [{pattern: {must: '(a'}}]}",
            "quality.evaluators[0].pattern.must",
            "not a regular expression",
            "Python",
        ),
        (
            "quality: {evaluators: [{python: judges}]}",
            "quality.evaluators[0].python",
            "not a function's name",
            "module:function",
        ),
        (
            "quality: {evaluators: [{http: 'ftp://h'}]}",
            "quality.evaluators[0].http",
            "not an http or https URL",
            "https://judge",
        ),
        (
            "quality: {evaluators: [{schema: /nowhere.json}]}",
            "quality.evaluators[0].schema",
            "cannot be read",
            "Check the path",
        ),
        ("quality: {evaluators: refusal}", "quality.evaluators", "must be a mapping", "[{schema: answer.json}"),
        ("ejection: {base: 1h}", "ejection", "max is shorter than base", "Raise max"),
        ("ejection: {failures: 0}", "ejection.failures", "too small", "more than 0"),
        ("warm_up: soon", "warm_up", "is not a duration", "60s"),
        ("retry: {attempts: 50}", "retry", "multiply an outage", "at most 10"),
        ("health: healthz", "health", "not a path to ask for", "/healthz"),
        ("health: {interval: 5s}", "health.path", "is required", "path"),
        ('health: "/x y"', "health", "not a path to ask for", "/healthz"),
        ("fallback: [b]", "fallback[0]", "there is no service b", "Known: a."),
        ("fallback: [a]", "fallback[0]", "round in a circle: a → a", "Remove one"),
        ("fallback: [{maintenance: x}, {maintenance: y}]", "fallback[0]", "nothing comes after", "end of the list"),
        ("fallback: [{status: 503}]", "fallback[0]", "neither a service nor a message", "maintenance"),
        ("fallback: [{maintenance: x, status: 302}]", "fallback[0].status", "302 is no status for it", "400 to 599"),
        ("fallback: [{service: a, status: 500}]", "fallback[0]", "belong to maintenance", "Remove"),
        ("fallback: [{redirect: 'http://x'}]", "fallback[0].redirect", "there is no key redirect", "maintenance"),
        ("fallback: [{maintenance: ''}]", "fallback[0].maintenance", "needs a message", "We are back soon"),
        ("strip_prefix: 2", "strip_prefix", "neither true nor false", "true or false"),
        ("inspect: all", "inspect", "'all' is not known", "none, body"),
        ("dialect: openapi", "dialect", "'openapi' is not known", "Did you mean openai?"),
        (
            "websocket: {origins: [app.example.com]}",
            "websocket.origins[0]",
            "is not an origin",
            "https://app.example.com",
        ),
        ("queue:", "queue", "has no value", "remove the key"),
        ("queue: {max: ${MAX}}", "queue.max", "variable MAX is not set", "${MAX:-value}"),
    ],
)
def test_services(refused: Refused, text: str, key: str, message: str, fix: str) -> None:
    if "${" in text:
        text = text.replace("${MAX}", "'${MAX}'")
    (problem,) = refused(SERVICE.format(text))
    assert (problem.line, problem.key) == (3, f"services.a.{key}")
    assert message in problem.message
    assert fix in problem.fix


@pytest.mark.parametrize(
    ("text", "key", "message", "fix"),
    [
        ("{}", ".endpoints", "is required", "endpoints: [http://127.0.0.1:9001]"),
        ("{endpoints: []}", "", "has no endpoints", "at least one URL"),
        ("[http://h]", "", "must be a mapping of keys, not a list", "v1: {endpoints:"),
        ("{weight: -1, endpoints: [http://h]}", ".weight", "is negative", "1, 8 or 0.5"),
        ("{weight: 90%, endpoints: [http://h]}", ".weight", "not a number", "1, 8 or 0.5"),
        ("{weight: 0, endpoints: [http://h]}", None, "every version has weight 0", "above 0"),
        ("{endpoints: [h:1]}", ".endpoints[0]", "no scheme", "Write http://h:1."),
        ("{endpoints: h:1}", ".endpoints", "no scheme", "Write http://h:1."),
        ("{endpoints: 9001}", ".endpoints", "no scheme", "Write http://127.0.0.1:9001."),
        ("{endpoints: [{cores: 8}]}", ".endpoints[0].url", "is required", "endpoints: [http://127.0.0.1:9001]"),
        (
            "{endpoints: [{url: http://h, cpu: 8}]}",
            ".endpoints[0].cpu",
            "there is no key cpu",
            "Known here: url, cores",
        ),
        ("{endpoints: [{url: http://h, cores: 0}]}", ".endpoints[0].cores", "too small", "more than 0"),
        ("{endpoints: [{url: http://h, slots: 1.5}]}", ".endpoints[0].slots", "whole number", "without a rest"),
        ("{endpoints: [{url: http://h, memory: lots}]}", ".endpoints[0].memory", "not a size", "16GiB"),
        ("{endpoints: [{url: http://h, weight: 0}]}", ".endpoints[0].weight", "too small", "more than 0"),
        ("{endpoints: [{url: http://h, region: us}]}", ".endpoints[0].region", "there is no region us", "regions:"),
        ("{endpoints: [http://h, 'http://H:80/']}", ".endpoints[1]", "http://h is given twice", "slots: or weight:"),
        ("{endpoints: [http://h/base]}", ".endpoints[0]", "has a path", "http://h"),
        ("{endpoints: [http://h], endpoint_tls: {verify: false}}", ".endpoint_tls", "only for https://", "https://"),
        ("{endpoints: [https://h], endpoint_tls: {verify: false, ca: x}}", ".endpoint_tls", "no use", "one of the two"),
        (
            "{endpoints: [https://h], endpoint_tls: {ca: nowhere.pem}}",
            ".endpoint_tls.ca",
            "no such file",
            "permissions",
        ),
        (
            "{endpoints: [{url: http://h, endpoint_tls: {}}]}",
            ".endpoints[0].endpoint_tls",
            "only for https://",
            "https://",
        ),
        (
            "{endpoints: [https://h], endpoint_tls: {server_name: '*.h'}}",
            ".endpoint_tls.server_name",
            "wildcard",
            "certificate",
        ),
    ],
)
def test_versions(refused: Refused, text: str, key: str | None, message: str, fix: str) -> None:
    (problem,) = refused(VERSION.format(text))
    assert problem.line in (3, 4)
    assert problem.key == ("services.a.versions" if key is None else f"services.a.versions.v{key}")
    assert message in problem.message
    assert fix in problem.fix


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("# only a comment\n", "is empty"),
        ("- a\n- b\n", "must be a mapping of keys, not a list"),
        ("just words", "must be a mapping of keys, not text"),
        ("listen: 127.0.0.1:1", "is required"),
        ("services: {}", "has no services"),
        ("services: []", "must be a mapping"),
        ("services: {a: {versions: {}}}", "has no versions"),
        ("services: {a: {}}", "is required"),
        ("services: {a: x}", "must be a mapping"),
        ("services: {'a b': {versions: {v: {endpoints: [http://h]}}}}", "is not a name"),
        ("services: {a: {versions: {'v 1': {endpoints: [http://h]}}}}", "is not a name"),
    ],
)
def test_what_is_no_configuration(refused: Refused, text: str, message: str) -> None:
    (problem,) = refused(text)
    assert problem.line == 1
    assert message in problem.message
    assert problem.fix


def test_several_mistakes_are_told_together_in_order(refused: Refused) -> None:
    text = """listen: 8080
services:
  a:
    polcy: x
    queue:
    breaker: {error_rate: 5}
    versions:
      v1: {weight: -1, endpoints: [10.0.0.1:9000, "http://h/${NOWHERE}"]}
      v1: {endpoints: [http://h]}
"""
    problems = refused(text)
    assert [(problem.line, problem.key) for problem in problems] == [
        (1, "listen"),
        (4, "services.a.polcy"),
        (5, "services.a.queue"),
        (6, "services.a.breaker.error_rate"),
        (8, "services.a.versions.v1.endpoints[1]"),
        (8, "services.a.versions.v1.weight"),
        (8, "services.a.versions.v1.endpoints[0]"),
        (9, "services.a.versions.v1"),
    ]
    assert all(problem.fix for problem in problems)


def test_a_loop_of_fallbacks_is_shown(refused: Refused) -> None:
    service = "  {}: {{fallback: [{}], versions: {{v: {{endpoints: [http://h]}}}}}}\n"
    text = "services:\n" + service.format("a", "b") + service.format("b", "c") + service.format("c", "b")
    assert [(problem.line, problem.message) for problem in refused(text)] == [
        (3, "the fallbacks go round in a circle: b → c → b"),
        (4, "the fallbacks go round in a circle: c → b → c"),
    ]


def test_two_services_may_not_take_the_same_requests(refused: Refused) -> None:
    text = """services:
  a: {match: [{path: /x}, {path: /y, host: h}], versions: {v: {endpoints: [http://h]}}}
  b: {match: {host: H, path: /y/}, versions: {v: {endpoints: [http://h]}}}
"""
    (problem,) = refused(text)
    assert (problem.line, problem.key) == (3, "services.b.match")
    assert "as a does already" in problem.message


def test_two_services_may_not_both_take_everything(refused: Refused) -> None:
    text = "services:\n  a: {versions: {v: {endpoints: [http://h]}}}\n  b: {versions: {v: {endpoints: [http://i]}}}\n"
    (problem,) = refused(text)
    assert (problem.line, problem.key) == (3, "services.b")
    assert "takes every request, as a does already" in problem.message


def test_a_key_given_twice_to_two_tenants(refused: Refused) -> None:
    keys = "\n".join(f"  - {{hash: 'sha256:{'0' * 64}', tenant: {tenant}}}" for tenant in ("a", "b"))
    (problem,) = refused(f"keys:\n{keys}\nservices: {{a: {{versions: {{v: {{endpoints: [http://h]}}}}}}}}")
    assert (problem.line, problem.key) == (3, "keys[1].hash")


def test_matching_by_model_against_no_inspection(refused: Refused) -> None:
    (problem,) = refused(SERVICE.format("inspect: none\n    match: {model: m}"))
    assert (problem.line, problem.key) == (4, "services.a.match.model")


def test_secrets_are_never_echoed(refused: Refused) -> None:
    text = """admin: {listen: 0.0.0.0:1, token: "hunter2 hunter2 hunter2"}
state: "mysql://u:hunter2@h"
keys: [{hash: "hunter2", tenant: t}]
services: {a: {versions: {v: {endpoints: ["http://u:hunter2@h"]}}}}
"""
    problems = refused(text)
    assert len(problems) == 4
    assert all("hunter2" not in str(problem) for problem in problems)
    assert "hunter2" not in str(ConfigError(problems))


def test_certificates_are_read_before_anything_starts(tmp_path: Path) -> None:
    text = "listen: {address: '127.0.0.1:1', tls: {cert: c.pem, key: nowhere.pem}}\n" + TOP.format("")
    (tmp_path / "c.pem").write_text("no certificate", encoding="ascii")
    (tmp_path / "unjam.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / "unjam.yaml", {})
    cert, key = caught.value.problems
    assert (cert.line, cert.key) == (1, "listen.tls.cert")
    assert "is not a PEM file" in cert.message
    assert str(tmp_path / "nowhere.pem") in key.message


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file") as caught:
        load(tmp_path / "nowhere.yaml", {})
    assert str(caught.value).startswith(str(tmp_path / "nowhere.yaml"))
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path, {})
    (tmp_path / "latin.yaml").write_bytes(b"ok: 1\na: \xfc\n")
    with pytest.raises(ConfigError, match="is not UTF-8") as caught:
        load(tmp_path / "latin.yaml", {})
    assert caught.value.problems[0].line == 2


def test_urls_on_the_command_line_have_no_line() -> None:
    with pytest.raises(ConfigError) as caught:
        from_urls(["10.0.0.1:9000"], listen="8080")
    assert {problem.line for problem in caught.value.problems} == {0}
    with pytest.raises(ConfigError, match="no endpoint"):
        from_urls([])


def test_overrides_have_no_line_but_the_file_keeps_its_own() -> None:
    text = TOP.format("listen: 127.0.0.1:1\ndrain_timeout: 5")
    with pytest.raises(ConfigError) as caught:
        parse(text, {}, "unjam.yaml", overrides={"listen": "8080"})
    assert [(problem.line, problem.key) for problem in caught.value.problems] == [
        (0, "listen[0].address"),
        (2, "drain_timeout"),
    ]


def test_overrides_win_and_keep_what_they_do_not_say() -> None:
    text = TOP.format("admin: {listen: 127.0.0.1:1, hosts: [unjam.internal]}")
    config = parse(text, {}, overrides={"admin": {"listen": "127.0.0.1:2"}, "listen": ["127.0.0.1:3"]})
    assert config.admin is not None
    assert (config.admin.port, config.admin.hosts) == (2, ("unjam.internal",))
    assert config.listen[0].port == 3


@pytest.mark.parametrize(
    ("text", "key", "message"),
    [
        ("state: redis://cache:6379/0", "state", "without TLS"),
        ("admin: {listen: 0.0.0.0:1, token: 0123456789abcdef}", "admin", "crosses the network without TLS"),
        ("trusted_proxies: [10.0.0.0/8, 0.0.0.0/0]", "trusted_proxies[1]", "every client"),
        ("regions: {us: {}}", "regions.us", "no endpoint is in this region"),
    ],
)
def test_what_works_but_is_probably_not_meant(text: str, key: str, message: str) -> None:
    (warning,) = parse(TOP.format(text), {}).warnings
    assert (warning.line, warning.key) == (1, key)
    assert message in warning.message
    assert warning.fix


def test_unverified_endpoints_are_warned_of(everything: Config) -> None:
    assert [warning.key for warning in everything.warnings] == [
        "services.auditor.versions.v7.endpoints[1].endpoint_tls.verify"
    ]


@pytest.mark.parametrize("url", ["redis://127.0.0.1:6379/0", "redis://localhost", "rediss://cache", "memory"])
def test_no_warning_where_there_is_no_risk(url: str) -> None:
    assert parse(TOP.format(f"state: {url}"), {}).warnings == ()


REPORTERS = "reporters: {token: 0123456789abcdef}\n"


@pytest.mark.parametrize(
    ("text", "key", "message", "fix"),
    [
        ("reporters: {listen: 127.0.0.1:8082}", "reporters.token", "is required", "${UNJAM_REPORT_TOKEN}"),
        ("reporters: 127.0.0.1:8082", "reporters", "must be a mapping", "Write reporters: {listen:"),
        ("reporters: {token: short}", "reporters.token", "too short", "token: ${UNJAM_REPORT_TOKEN}"),
        ("reporters: {token: 'sha256:12'}", "reporters.token", "not 64 hex digits", "unjam hash-key"),
        ("reporters: {token: 0123456789abcdef, listen: 8082}", "reporters.listen", "which interface", "127.0.0.1:8082"),
        ("reporters: {token: 0123456789abcdef, expire: 2s}", "reporters", "shorter than 5s", "at least 5s"),
        ("reporters: {token: 0123456789abcdef, expires: 1m}", "reporters.expires", "no key expires", "expire?"),
        (
            "reporters: {token: 0123456789abcdef, listen: '127.0.0.1:8081'}",
            "reporters",
            "is listened on twice",
            "its own address",
        ),
        (
            "reporters: {token: 0123456789abcdef, tls: {cert: nowhere.pem, key: nowhere.pem}}",
            "reporters.tls.cert",
            "cannot be read",
            "relative to the configuration",
        ),
    ],
)
def test_reporters(refused: Refused, text: str, key: str, message: str, fix: str) -> None:
    problem = refused(TOP.format(text))[0]
    assert (problem.line, problem.key) == (1, key)
    assert message in problem.message
    assert fix in problem.fix
    assert "0123456789abcdef" not in str(problem)


@pytest.mark.parametrize(
    ("version", "key", "message", "fix"),
    [
        ("{discover: off}", ".endpoints", "is required", "discover: true"),
        ("{discover: 1.5}", ".discover", "must be a mapping", "networks: [10.0.0.0/8]"),
        ("{discover: {networks: []}}", ".discover", "allows no address", "discover: true"),
        ("{discover: {networks: [10.0.0.1/8]}}", ".discover.networks[0]", "bits set", "10.0.0.0/8"),
        ("{discover: {network: 10.0.0.0/8}}", ".discover.network", "no key network", "networks?"),
    ],
)
def test_discover(refused: Refused, version: str, key: str, message: str, fix: str) -> None:
    (problem,) = refused(f"{REPORTERS}services: {{a: {{versions: {{v: {version}}}}}}}\n")
    assert (problem.line, problem.key) == (2, f"services.a.versions.v{key}")
    assert message in problem.message
    assert fix in problem.fix


def test_nobody_may_report_what_could_be_discovered(refused: Refused) -> None:
    (problem,) = refused("services: {a: {versions: {v: {discover: true}}}}\n")
    assert (problem.line, problem.key) == (1, "services.a.versions.v.discover")
    assert "nobody may report" in problem.message
    assert "reporters: {listen:" in problem.fix


@pytest.mark.parametrize("version", ["{discover: true}", "{discover: on, endpoints: []}", "{discover: {}}"])
def test_endpoints_may_be_left_to_reporters(version: str) -> None:
    config = parse(f"{REPORTERS}services: {{a: {{versions: {{v: {version}}}}}}}\n", {})
    assert config.warnings == ()
    assert config.services["a"].versions["v"].discover is not None
    assert config.topology().services["a"].versions[0].endpoints == ()
    assert config.endpoint_tls("a", "v", "https://anything").verify is True


def test_a_token_that_crosses_the_network_is_warned_of() -> None:
    text = "reporters: {token: 0123456789abcdef, listen: '0.0.0.0:8082'}"
    (warning,) = parse(TOP.format(text), {}).warnings
    assert (warning.line, warning.key) == (1, "reporters")
    assert "without TLS" in warning.message
