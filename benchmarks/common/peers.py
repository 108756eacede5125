"""The balancers compared, each started with a configuration generated for the run.

All add X-Forwarded-For, keep connections to the endpoints alive, write no access log and wait an hour for an answer,
so that they do the same work. Where a peer can bound what an endpoint runs at once and queue the rest (HAProxy's
`maxconn`, unjam's slots), `hard_slots` sets it; the others have no such queue.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .procs import Process, free_port, wait_until_ready
from .results import ROOT, unjam_version

PEERS = ROOT / ".peers"
SYSTEM_PATH = "/usr/local/sbin:/usr/sbin:/sbin"


@dataclass(frozen=True)
class Setting:
    """What a balancer is to stand before. `endpoints` are ports on loopback; `folder` is its own, for its files."""

    endpoints: Sequence[int]
    folder: Path
    hard_slots: int | None = None
    #: Seconds of expected work from which unjam calls it heavy.
    up_to: float = 5.0
    access_log: bool = False


@dataclass
class Launch:
    """How to start it: `files` are written into the folder first."""

    port: int
    argv: list[str]
    files: dict[str, str] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)
    ready_path: str = "/health"


class Peer:
    """One balancer in one configuration."""

    name = ""
    #: What it can be measured on: json, sse, ws, slots (arbitrary paths before endpoints with slots).
    modes: frozenset[str] = frozenset({"json", "sse", "ws", "slots"})
    note = ""

    def missing(self) -> str | None:
        """Why it cannot run here; None when it can."""
        raise NotImplementedError

    def version(self) -> str:
        raise NotImplementedError

    def launch(self, s: Setting) -> Launch:
        raise NotImplementedError

    def start(self, s: Setting) -> Running:
        """Starts it and waits until it proxies. Raises RuntimeError with the end of its log when it doesn't."""
        s.folder.mkdir(parents=True, exist_ok=True)
        plan = self.launch(s)
        for name, text in plan.files.items():
            (s.folder / name).write_text(text)
        log = s.folder / "output.log"
        process = Process(self.name, plan.argv, log, plan.env, cwd=s.folder)
        try:
            wait_until_ready(process, plan.port, plan.ready_path, within=60.0)
        except BaseException:
            process.stop()
            raise
        return Running(self, process, plan.port)


@dataclass
class Running:
    peer: Peer
    process: Process
    port: int

    def stop(self) -> None:
        self.process.stop()


def _which(name: str) -> str | None:
    return shutil.which(name, path=os.environ.get("PATH", "") + ":" + SYSTEM_PATH)


def _first(pattern: str, argv: Sequence[str]) -> str:
    done = subprocess.run(list(argv), capture_output=True, text=True, timeout=30, check=False)
    found = re.search(pattern, done.stdout + done.stderr)
    return found[1] if found else "unknown"


class HAProxy(Peer):
    """`http-no-delay`: without it HAProxy 2.6 holds the chunks of a stream back for up to 200 ms, several events in one
    write, which is cheaper for each event and of no use to who waits for tokens."""

    name = "haproxy"
    note = "nbthread 1, leastconn, http-reuse always, http-no-delay"

    def missing(self) -> str | None:
        return None if _which("haproxy") else "not installed"

    def version(self) -> str:
        return _first(r"version ([\d.]+)", [_which("haproxy") or "haproxy", "-v"])

    def launch(self, s: Setting) -> Launch:
        port = free_port()
        limit = s.hard_slots or 20000
        servers = "\n".join(f"  server s{i} 127.0.0.1:{p} maxconn {limit}" for i, p in enumerate(s.endpoints))
        config = f"""\
global
  nbthread 1
  maxconn 9900
defaults
  mode http
  timeout connect 5s
  timeout client 1h
  timeout server 1h
  timeout queue 1h
  timeout tunnel 1h
  timeout http-request 1h
  timeout http-keep-alive 1h
  http-reuse always
  option forwardfor
  option http-no-delay
  no log
frontend in
  bind 127.0.0.1:{port} backlog 4096
  default_backend endpoints
backend endpoints
  balance leastconn
{servers}
"""
        return Launch(port, [_which("haproxy") or "haproxy", "-db", "-f", "haproxy.cfg"], {"haproxy.cfg": config})


class Nginx(Peer):
    def __init__(self, balance: str = "least_conn") -> None:
        self.balance = balance
        self.name = "nginx" if balance == "least_conn" else "nginx rr"
        self.note = f"1 worker, {balance or 'round robin'}, keepalive 128"

    def missing(self) -> str | None:
        return None if _which("nginx") else "not installed"

    def version(self) -> str:
        return _first(r"nginx/([\d.]+)", [_which("nginx") or "nginx", "-v"])

    def launch(self, s: Setting) -> Launch:
        port = free_port()
        servers = "\n".join(f"    server 127.0.0.1:{p} max_fails=0;" for p in s.endpoints)
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        temporary = "\n".join(f"  {kind}_temp_path {s.folder}/{kind};" for kind in kinds)
        config = f"""\
{"user root;" if os.getuid() == 0 else ""}
worker_processes 1;
daemon off;
pid {s.folder}/nginx.pid;
error_log stderr error;
worker_rlimit_nofile 20000;
events {{ worker_connections 19900; }}
http {{
  access_log off;
{temporary}
  keepalive_timeout 1h;
  keepalive_requests 100000000;
  client_header_timeout 1h;
  client_body_timeout 1h;
  send_timeout 1h;
  map $http_upgrade $connection_upgrade {{ default upgrade; '' ''; }}
  upstream endpoints {{
    {self.balance}{";" if self.balance else ""}
{servers}
    keepalive 128;
    keepalive_requests 100000000;
    keepalive_timeout 1h;
  }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{
      proxy_pass http://endpoints;
      proxy_http_version 1.1;
      proxy_set_header Connection $connection_upgrade;
      proxy_set_header Upgrade $http_upgrade;
      proxy_set_header Host $host;
      proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
      proxy_buffering off;
      proxy_read_timeout 1h;
      proxy_send_timeout 1h;
      proxy_next_upstream off;
    }}
  }}
}}
"""
        binary = _which("nginx") or "nginx"
        argv = [binary, "-e", "stderr", "-p", str(s.folder), "-c", f"{s.folder}/nginx.conf"]
        return Launch(port, argv, {"nginx.conf": config})


class Envoy(Peer):
    name = "envoy"
    note = "--concurrency 1, LEAST_REQUEST, timeout 0s"

    def _binary(self) -> Path | None:
        return next(PEERS.glob("envoy/lib/python3*/site-packages/envoy/_bin/envoy"), None)

    def missing(self) -> str | None:
        return None if self._binary() else "not installed"

    def version(self) -> str:
        return _first(r"/(\d+\.\d+\.\d+)/", [str(self._binary()), "--version"])

    def launch(self, s: Setting) -> Launch:
        port = free_port()

        def address(p: int) -> dict[str, Any]:
            return {"address": {"socket_address": {"address": "127.0.0.1", "port_value": p}}}

        most = {"max_connections": 100000, "max_pending_requests": 100000, "max_requests": 100000, "max_retries": 0}
        extensions = "type.googleapis.com/envoy.extensions.filters"
        manager = {
            "@type": f"{extensions}.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "in",
            "stream_idle_timeout": "0s",
            "request_timeout": "0s",
            "use_remote_address": True,
            "upgrade_configs": [{"upgrade_type": "websocket"}],
            "http_filters": [
                {
                    "name": "envoy.filters.http.router",
                    "typed_config": {"@type": f"{extensions}.http.router.v3.Router"},
                }
            ],
            "route_config": {
                "virtual_hosts": [
                    {
                        "name": "all",
                        "domains": ["*"],
                        "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "endpoints", "timeout": "0s"}}],
                    }
                ]
            },
        }
        config = {
            "static_resources": {
                "listeners": [
                    {
                        "name": "in",
                        **address(port),
                        "filter_chains": [
                            {
                                "filters": [
                                    {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}
                                ]
                            }
                        ],
                    }
                ],
                "clusters": [
                    {
                        "name": "endpoints",
                        "type": "STATIC",
                        "lb_policy": "LEAST_REQUEST",
                        "connect_timeout": "5s",
                        "circuit_breakers": {"thresholds": [most]},
                        "load_assignment": {
                            "cluster_name": "endpoints",
                            "endpoints": [{"lb_endpoints": [{"endpoint": address(p)} for p in s.endpoints]}],
                        },
                    }
                ],
            }
        }
        argv = [str(self._binary()), "-c", "envoy.json", "--concurrency", "1", "--disable-hot-restart", "-l", "error"]
        return Launch(port, argv, {"envoy.json": json.dumps(config, indent=1)})


class SglangRouter(Peer):
    name = "sglang-router"
    modes = frozenset({"json", "sse", "slots"})
    note = "power_of_two; Rust, one thread a core; forwards only LLM paths"

    def missing(self) -> str | None:
        return None if (PEERS / "sglang-router" / ".complete").exists() else "not installed"

    def version(self) -> str:
        python = str(PEERS / "sglang-router/bin/python")
        return _first(
            r"(\d[\w.]+)", [python, "-c", "from importlib.metadata import version as v; print(v('sglang-router'))"]
        )

    def launch(self, s: Setting) -> Launch:
        port = free_port()
        urls = [f"http://127.0.0.1:{p}" for p in s.endpoints]
        argv = [
            str(PEERS / "sglang-router/bin/python"),
            *("-m", "sglang_router.launch_router", "--host", "127.0.0.1", "--port", str(port)),
            *("--prometheus-port", str(free_port()), "--policy", "power_of_two", "--log-level", "error"),
            *("--request-timeout-secs", "3600", "--max-concurrent-requests", "20000", "--disable-retries"),
            *("--disable-circuit-breaker", "--worker-urls", *urls),
        ]
        return Launch(port, argv)


class LiteLLM(Peer):
    name = "litellm"
    modes = frozenset({"json"})
    note = "--num_workers 1, least-busy"

    def missing(self) -> str | None:
        return None if (PEERS / "litellm" / ".complete").exists() else "not installed"

    def version(self) -> str:
        python = str(PEERS / "litellm/bin/python")
        return _first(r"(\d[\w.]+)", [python, "-c", "from importlib.metadata import version as v; print(v('litellm'))"])

    def launch(self, s: Setting) -> Launch:
        port = free_port()
        entries = "".join(
            f"  - model_name: bench\n    litellm_params:\n      model: openai/bench\n"
            f"      api_base: http://127.0.0.1:{p}/v1\n      api_key: sk-none\n"
            for p in s.endpoints
        )
        config = (
            f"model_list:\n{entries}router_settings:\n  routing_strategy: least-busy\n"
            "litellm_settings:\n  telemetry: false\n  request_timeout: 3600\n"
        )
        binary = str(PEERS / "litellm/bin/litellm")
        argv = [binary, "--config", "config.yaml", "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
        env = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR", "DO_NOT_TRACK": "1"}
        # Without keys it answers loopback callers only if told so.
        env["LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY"] = "true"
        return Launch(port, argv, {"config.yaml": config}, env, "/health/liveliness")


class Unjam(Peer):
    note = "lanes, estimator, breaker, metrics on"

    def __init__(self, access_log: bool = False) -> None:
        self.access_log = access_log
        self.name = "unjam, log on" if access_log else "unjam"
        self._binary = ROOT / ".venv" / "bin" / "unjam"

    def missing(self) -> str | None:
        return None if self._binary.exists() or _which("unjam") else "not installed"

    def version(self) -> str:
        return unjam_version()

    def launch(self, s: Setting) -> Launch:
        port = free_port()
        slots = f", slots: {s.hard_slots}" if s.hard_slots else ""
        endpoints = "\n".join(f'          - {{url: "http://127.0.0.1:{p}"{slots}}}' for p in s.endpoints)
        config = f"""\
listen: 127.0.0.1:{port}
admin: 127.0.0.1:{free_port()}
state: "memory:"
access_log: {{to: "{s.folder / "access.log"}", format: json}}
limits: {{keepalive: 1h}}
services:
  bench:
    lanes: {{fast: {{up_to: {s.up_to:g}s}}, heavy: {{share: 0.75}}}}
    queue: {{max: 100000, timeout: 1h}}
    breaker: {{error_rate: 5%}}
    versions:
      v1:
        endpoints:
{endpoints}
"""
        if not s.access_log:
            config = re.sub("(?m)^access_log: .*$", "access_log: off", config)
        binary = self._binary if self._binary.exists() else Path(_which("unjam") or "unjam")
        return Launch(port, [str(binary), "serve", "--config", "unjam.yaml"], {"unjam.yaml": config})


def all_peers() -> list[Peer]:
    """Every balancer, in the order of the tables."""
    return [
        Unjam(),
        Unjam(access_log=True),
        HAProxy(),
        Nginx(),
        Nginx(balance=""),
        Envoy(),
        SglangRouter(),
        LiteLLM(),
    ]
