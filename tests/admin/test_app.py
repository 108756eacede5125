"""The admin API over a real socket: what it says, what it changes, and what it writes down about it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import structlog
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from starlette.applications import Starlette

from unjam.admin import app as admin_app
from unjam.admin.app import MAX_ACTIVE, create_app
from unjam.admin.auth import hosts_for
from unjam.admin.body import MAX_BODY
from unjam.admin.control import ControlRefused

from .fleet import KEPT, URL, Fleet, Rolled
from .served import TOKEN, in_loop, served


@in_loop
async def test_state_is_the_snapshot_and_readiness() -> None:
    async with served() as admin:
        admin.fleet.why = "draining"
        answer = await admin.client.get("/api/state")
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "application/json"
        assert answer.json() == {"ready": False, "why": "draining", **admin.fleet.state}


@in_loop
async def test_metrics_in_both_formats() -> None:
    async with served() as admin:
        answer = await admin.client.get("/metrics")
        assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert "unjam_connections" in {family.name for family in parse_text(answer.text)}
        answer = await admin.client.get(
            "/metrics", headers={"accept": "application/openmetrics-text;version=1.0.0,*/*"}
        )
        assert answer.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
        assert "unjam_connections" in {family.name for family in parse_openmetrics(answer.text)}


@in_loop
async def test_probes() -> None:
    async with served() as admin:
        assert (await admin.client.get("/healthz")).text == "ok\n"
        assert (await admin.client.get("/readyz")).status_code == 200
        admin.fleet.why = "no service has a healthy endpoint"
        answer = await admin.client.get("/readyz")
        assert answer.status_code == 503
        assert answer.text == "not ready: no service has a healthy endpoint\n"
        assert (await admin.client.get("/healthz")).status_code == 200


@in_loop
async def test_running_requests_up_to_a_limit() -> None:
    async with served() as admin:
        assert len((await admin.client.get("/api/active")).json()["active"]) == 3
        found = (await admin.client.get("/api/active", params={"limit": 1})).json()["active"]
        assert found == admin.fleet.active(1)
        for limit in ("0", "-1", "x", str(MAX_ACTIVE + 1), "1e3", "\u0661", "", "9" * 5000):
            answer = await admin.client.get("/api/active", params={"limit": limit})
            assert answer.status_code == 400
            assert answer.json()["error"]["code"] == "bad_limit"


def control_lines(logs: list[Any]) -> list[dict[str, Any]]:
    keys = ("who", "action", "target", "from", "to")
    return [{key: line[key] for key in keys} for line in logs if line["event"] == "control"]


@in_loop
async def test_drain_and_back_are_done_and_written_down() -> None:
    with structlog.testing.capture_logs() as logs:
        async with served() as admin:
            answer = await admin.client.post("/api/drain", json={"endpoint": URL})
            assert answer.json() == {"endpoint": URL, "draining": True, "before": False, **KEPT}
            assert admin.fleet.state["services"]["auditor"]["versions"]["v7"]["endpoints"][0]["draining"] is True
            await admin.client.post("/api/drain", json={"endpoint": URL, "draining": False})
    who = "loopback@127.0.0.1"
    assert control_lines(logs) == [
        {"who": who, "action": "drain", "target": URL, "from": False, "to": True},
        {"who": who, "action": "undrain", "target": URL, "from": True, "to": False},
    ]


@in_loop
async def test_weight_is_set_and_written_down() -> None:
    with structlog.testing.capture_logs() as logs:
        async with served() as admin:
            answer = await admin.client.post("/api/weight", json={"service": "auditor", "version": "v8", "weight": 0})
            asked = {"service": "auditor", "version": "v8", "weight": 0.0}
            assert answer.json() == {**asked, "before": 10.0, **KEPT}
            assert admin.fleet.state["services"]["auditor"]["versions"]["v8"]["weight"] == 0
    (line,) = control_lines(logs)
    assert (line["target"], line["from"], line["to"]) == ("auditor/v8", 10.0, 0.0)


@in_loop
async def test_weights_of_several_versions_are_set_at_once_and_each_is_written_down() -> None:
    with structlog.testing.capture_logs() as logs:
        async with served() as admin:
            body = {"service": "auditor", "weights": {"v7": 50, "v8": 50}}
            answer = await admin.client.post("/api/weight", json=body)
            assert answer.json() == {**body, "before": {"v7": 90.0, "v8": 10.0}, **KEPT}
            assert admin.fleet.changes == [("loopback@127.0.0.1", "auditor", {"v7": 50.0, "v8": 50.0})]
            unknown = {"service": "auditor", "weights": {"v7": 1, "v9": 1}}
            assert (await admin.client.post("/api/weight", json=unknown)).status_code == 404
            assert len(admin.fleet.changes) == 1
    assert [(line["target"], line["from"], line["to"]) for line in control_lines(logs)] == [
        ("auditor/v7", 90.0, 50.0),
        ("auditor/v8", 10.0, 50.0),
    ]


@in_loop
async def test_who_is_the_token_where_there_is_one() -> None:
    async with served(token=TOKEN) as admin:
        body = {"service": "auditor", "version": "v7", "weight": 1}
        headers = {"authorization": f"Bearer {TOKEN}"}
        assert (await admin.client.post("/api/weight", json=body, headers=headers)).status_code == 200
    ((who, _, _),) = admin.fleet.changes
    assert re.fullmatch(r"token:[0-9a-f]{8}@127\.0\.0\.1", who)


@in_loop
async def test_the_audit_log_is_read_in_pages() -> None:
    async with served() as admin:
        assert (await admin.client.get("/api/audit")).json() == {
            "changes": [{"n": n, "key": None, "before": None} for n in (20, 19, 18)],
            "next": None,
        }
        found = (await admin.client.get("/api/audit", params={"limit": 2, "before": 33, "key": "weight/a"})).json()
        assert found == {"changes": [{"n": n, "key": "weight/a", "before": 33} for n in (20, 19)], "next": 19}
        for query in ({"limit": "0"}, {"limit": "1001"}, {"before": "x"}, {"before": "-1"}):
            answer = await admin.client.get("/api/audit", params=query)
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, f"bad_{next(iter(query))}")


@in_loop
async def test_rollouts_are_looked_at_and_steered() -> None:
    with structlog.testing.capture_logs() as logs:
        async with served() as admin:
            for answer in (
                await admin.client.get("/api/rollout"),
                await admin.client.post("/api/rollout", json={"service": "auditor", "action": "start"}),
            ):
                assert (answer.status_code, answer.json()["error"]["code"]) == (409, "rollouts_off")
            admin.fleet.rolled = rolled = Rolled()
            assert (await admin.client.get("/api/rollout")).json() == {"rollouts": rolled.status()}
            one = await admin.client.get("/api/rollout", params={"service": "auditor"})
            assert one.json() == {"service": "auditor", "version": "v8", "share": 0.1}
            refused = await admin.client.get("/api/rollout", params={"service": "nobody"})
            assert refused.status_code == 404
            assert "There is one of: auditor." in refused.text
            for action in ("start", "pause", "resume", "promote", "abort"):
                body = {"service": "auditor", "action": action}
                assert (await admin.client.post("/api/rollout", json=body)).json() == {
                    "service": "auditor",
                    "share": 0.5,
                }
            body = {"service": "auditor", "action": "start", "version": "v9"}
            assert (await admin.client.post("/api/rollout", json=body)).status_code == 200
            answer = await admin.client.post("/api/rollout", json={**body, "action": "abort"})
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, "bad_body")
    who = "loopback@127.0.0.1"
    assert rolled.did == [
        *[(action, "auditor", None, who) for action in ("start", "pause", "resume", "promote", "abort")],
        ("start", "auditor", "v9", who),
    ]
    assert [line["action"] for line in control_lines(logs)] == [f"rollout {each[0]}" for each in rolled.did]


@in_loop
async def test_breakers_are_tripped_reset_and_written_down() -> None:
    with structlog.testing.capture_logs() as logs:
        async with served() as admin:
            for action, before, after in (("trip", "closed", "open"), ("reset", "open", "closed")):
                body = {"service": "auditor", "version": "v7", "action": action}
                answer = await admin.client.post("/api/breaker", json=body)
                assert (answer.json()["before"], answer.json()["breaker"]) == (before, after)
    assert [(line["action"], line["from"], line["to"]) for line in control_lines(logs)] == [
        ("breaker trip", "closed", "open"),
        ("breaker reset", "open", "closed"),
    ]


@in_loop
async def test_reload_says_what_is_wrong() -> None:
    with structlog.testing.capture_logs() as logs:
        async with served() as admin:
            assert (await admin.client.post("/api/reload", json={})).json() == {"reloaded": True}
            admin.fleet.problems = ["unjam.yaml:3: services.auditor.weight: must not be negative. Write 0 or more."]
            answer = await admin.client.post("/api/reload", json={})
            assert answer.status_code == 422
            assert answer.json()["problems"] == admin.fleet.problems
            assert answer.json()["error"]["code"] == "bad_configuration"
    assert [line["to"] for line in control_lines(logs)] == ["reloaded", "refused"]


@pytest.mark.parametrize(
    ("path", "body", "code"),
    [
        ("/api/drain", {"endpoint": "http://nowhere"}, "unknown_endpoint"),
        ("/api/weight", {"service": "nobody", "version": "v7", "weight": 1}, "unknown_version"),
        ("/api/weight", {"service": "auditor", "version": "v9", "weight": 1}, "unknown_version"),
        ("/api/breaker", {"service": "auditor", "version": "v9", "action": "trip"}, "unknown_version"),
    ],
)
@in_loop
async def test_what_does_not_exist_is_404_and_not_written_down(path: str, body: dict[str, Any], code: str) -> None:
    with structlog.testing.capture_logs() as logs:
        async with served() as admin:
            answer = await admin.client.post(path, json=body)
            assert answer.status_code == 404
            assert answer.json()["error"]["code"] == code
            assert "/api/state" in answer.json()["error"]["message"]
    assert control_lines(logs) == []


@in_loop
async def test_what_cannot_be_done_now_says_why() -> None:
    async with served() as admin:
        admin.fleet.refuse = ControlRefused("last_endpoint", "Draining the last endpoint needs force.", 409)
        answer = await admin.client.post("/api/drain", json={"endpoint": URL})
        assert answer.status_code == 409
        assert answer.json() == {
            "error": {"code": "last_endpoint", "message": "Draining the last endpoint needs force."}
        }


MISFITS: list[tuple[str, bytes]] = [
    ("/api/drain", b"{}"),
    ("/api/drain", b'{"endpoint": 7}'),
    ("/api/drain", b'{"endpoint": ""}'),
    ("/api/drain", b'{"endpoint": "x", "force": true}'),
    ("/api/drain", b'{"endpoint": "x", "draining": "yes"}'),
    ("/api/drain", b"[]"),
    ("/api/drain", b""),
    ("/api/drain", b"\xff\xfe"),
    ("/api/drain", b"[" * 10_000),
    ("/api/weight", b'{"service": "auditor", "version": "v7", "weight": -1}'),
    ("/api/weight", b'{"service": "auditor", "version": "v7", "weight": 1e999}'),
    ("/api/weight", b'{"service": "auditor", "version": "v7", "weight": NaN}'),
    ("/api/weight", b'{"service": "auditor", "version": "v7", "weight": "1"}'),
    ("/api/weight", b'{"service": "auditor", "version": "v7"}'),
    ("/api/weight", b'{"service": "auditor"}'),
    ("/api/weight", b'{"service": "auditor", "weights": {}}'),
    ("/api/weight", b'{"service": "auditor", "weights": {"v7": -1}}'),
    ("/api/weight", b'{"service": "auditor", "weights": {"v7": 1}, "version": "v7", "weight": 1}'),
    ("/api/rollout", b'{"service": "auditor"}'),
    ("/api/rollout", b'{"service": "auditor", "action": "finish"}'),
    ("/api/breaker", b'{"service": "auditor", "version": "v7", "action": "explode"}'),
    ("/api/reload", b'{"now": true}'),
]


@in_loop
async def test_bodies_that_do_not_fit_change_nothing() -> None:
    async with served() as admin:
        before = str(admin.fleet.state)
        for path, content in MISFITS:
            answer = await admin.client.post(path, content=content, headers={"content-type": "application/json"})
            assert answer.status_code == 400, content
            assert answer.json()["error"]["code"] in ("bad_body", "bad_json")
        assert str(admin.fleet.state) == before
        assert admin.fleet.reloads == 0


@pytest.mark.parametrize(
    "kind", [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"]
)
@in_loop
async def test_what_a_form_of_a_foreign_page_can_send_is_refused(kind: str | None) -> None:
    async with served() as admin:
        headers = {"content-type": kind} if kind else {}
        answer = await admin.client.post("/api/reload", content=b"{}", headers=headers)
        assert answer.status_code == 415
        assert answer.json()["error"]["code"] == "not_json"
        assert admin.fleet.reloads == 0


@in_loop
async def test_a_large_body_is_refused() -> None:
    async with served() as admin:
        content = b'{"endpoint": "' + b"x" * MAX_BODY + b'"}'
        answer = await admin.client.post("/api/drain", content=content, headers={"content-type": "application/json"})
        assert answer.status_code == 413
        assert answer.json()["error"]["code"] == "body_too_large"


@in_loop
async def test_other_paths_and_methods_say_so_in_json() -> None:
    async with served() as admin:
        for path in ("/nope", "/api", "/api/state/", "/metrics/../api"):
            answer = await admin.client.get(path)
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found"), path
        for method, path in (("GET", "/api/drain"), ("POST", "/api/state"), ("DELETE", "/metrics")):
            answer = await admin.client.request(method, path)
            assert (answer.status_code, answer.json()["error"]["code"]) == (405, "method_not_allowed")
            assert answer.headers["allow"]


@in_loop
async def test_a_failure_of_ours_is_500_without_details(caplog: pytest.LogCaptureFixture) -> None:
    async with served() as admin:
        admin.fleet.break_with = RuntimeError("internal detail")
        answer = await admin.client.get("/api/state")
        assert answer.status_code == 500
        assert answer.json()["error"]["code"] == "internal"
        assert "detail" not in answer.text
        admin.fleet.break_with = None
        assert (await admin.client.get("/api/state")).status_code == 200


@in_loop
async def test_every_answer_is_hardened() -> None:
    async with served() as admin:
        for path in ("/", "/metrics", "/api/state", "/healthz", "/nope"):
            answer = await admin.client.get(path)
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["x-frame-options"] == "DENY"
            assert answer.headers["cache-control"] == "no-store"
            assert "default-src 'none'" in answer.headers["content-security-policy"]
            assert "server" not in answer.headers


def test_every_route_is_documented() -> None:
    guard = create_app(Fleet(), None, hosts_for("127.0.0.1"))
    app = guard._app
    assert isinstance(app, Starlette)
    page = (Path(__file__).parents[2] / "docs" / "observability.md").read_text()
    documented = re.findall(r"^\| `((?:GET|POST) /\S*)` \|", page, re.MULTILINE)
    served_routes = [
        f"{next(iter(route.methods - {'HEAD'}))} {route.path}"  # type: ignore[attr-defined]
        for route in app.routes
    ]
    assert sorted(documented) == sorted(served_routes)


@in_loop
async def test_a_page_that_costs_much_refreshes_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([0.0, 0.065] + [1.0] * 10)
    monkeypatch.setattr(admin_app, "perf_counter", lambda: next(ticks))
    async with served() as admin:
        assert 'http-equiv="refresh" content="2"' in (await admin.client.get("/")).text
        assert 'http-equiv="refresh" content="13"' in (await admin.client.get("/")).text
        assert "http-equiv" not in (await admin.client.get("/", params={"refresh": "0"})).text
