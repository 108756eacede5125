"""`unjam report` as a process: its options, an agent as its child, signals, exit codes, and a real gateway."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from benchmarks.common.procs import free_port
from typer.main import get_command

from unjam.cli.main import app
from unjam.reporter.options import OPTIONS, UsageError, duration, parse, size

from ..gateway.harness import Agent, Call
from ..gateway.processes import Process, process
from ..gateway.reporting import TOKEN, Reported, reported
from ..gateway.test_process import certificate
from .gateways import fake_gateway
from .skipping import plain

ENV = {"UNJAM_REPORT_TOKEN": TOKEN}
GATEWAY = ("--gateway", "http://127.0.0.1:8082", "--service", "a", "--url", "http://10.0.0.1:9000")


@asynccontextmanager
async def report(*arguments: str, token: str = TOKEN) -> AsyncIterator[Process]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNJAM_REPORT_TOKEN", token)
        patch.delenv("UNJAM_REPORT_GATEWAY", raising=False)
        async with process("-m", "unjam.reporter", *arguments) as running:
            yield running


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.02)


# Options


def test_everything_can_be_told(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN + "\n", encoding="utf-8")
    given = (
        "--gateway=https://one/unjam --gateway http://two:8082 --service auditor --version v7 "
        f"--url http://10.0.0.1:9000/ --token-file {file} --slots 8 --region us-east-1 --weight 1.5 "
        "--interval 500ms --agent-check :9100 --cores 2.5 --memory 4GiB --drain-timeout 1h30m "
        "-- python agent.py --help -- x"
    )
    options = parse(given.split(), {})
    assert [each.url for each in options.gateways] == ["https://one/unjam", "http://two:8082"]
    assert (options.token, options.command) == (TOKEN, ("python", "agent.py", "--help", "--", "x"))
    assert options.about == {
        "service": "auditor",
        "version": "v7",
        "url": "http://10.0.0.1:9000",
        "region": "us-east-1",
        "slots": 8,
        "weight": 1.5,
    }
    assert (options.port, options.agent_check) == (9000, ("0.0.0.0", 9100))
    assert (options.cores, options.memory, options.interval, options.drain_timeout) == (2.5, 4 << 30, 0.5, 5400.0)


def test_gateways_and_token_come_from_the_environment() -> None:
    env = {**ENV, "UNJAM_REPORT_GATEWAY": "http://one:1 http://two:2"}
    options = parse(["--service", "a", "--url", "https://agent"], env)
    assert [each.port for each in options.gateways] == [1, 2]
    assert options.port == 443
    assert (options.interval, options.drain_timeout, options.weight) == (2.0, 3600.0, 1.0)


def test_a_renewed_token_file_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN, encoding="utf-8")
    options = parse([*GATEWAY, "--token-file", str(file)], {})
    file.write_text("another-token-of-some-length", encoding="utf-8")
    assert options.read_token() == "another-token-of-some-length"
    file.unlink()
    assert options.read_token() == TOKEN


WRONG = [
    ((), "nobody to report to"),
    (("--agent-check", "127.0.0.1:1"), "which process is the agent"),
    (("--agent-check", "9100", "--pid", "1"), "HOST:PORT"),
    (("--agent-check", "a:99999", "--pid", "1"), "HOST:PORT"),
    (GATEWAY[:2], "--service"),
    (GATEWAY[:4], "--url"),
    (("--gateway", "10.0.0.1:8082", *GATEWAY[2:]), "http://"),
    ((*GATEWAY, "--"), "no command behind --"),
    ((*GATEWAY, "--pid", "1", "--", "x"), "not both"),
    ((*GATEWAY, "--pid", "0"), "whole number"),
    ((*GATEWAY, "--pid", "x"), "whole number"),
    ((*GATEWAY, "--port", "70000"), "65535"),
    ((*GATEWAY, "--slots", "1.5"), "whole number"),
    ((*GATEWAY, "--weight", "nan"), "number from"),
    ((*GATEWAY, "--cores", "1e9"), "number from"),
    ((*GATEWAY, "--memory", "16 apples"), "16GiB"),
    ((*GATEWAY, "--interval", "2"), "unit"),
    ((*GATEWAY, "--interval", "1h"), "from 0.1 to 60"),
    ((*GATEWAY, "--drain-timeout", "soon"), "unit"),
    ((*GATEWAY, "--service", "a b"), "not a name"),
    ((*GATEWAY, "--url", "10.0.0.1:9000"), "agent's address"),
    ((*GATEWAY, "--url", "http://a/path"), "has a path"),
    ((*GATEWAY, "--url", "http://a:x"), "port must be a number"),
    ((*GATEWAY, "--ca", "/nowhere/at/all"), "No such file"),
    ((*GATEWAY, "--token-file", "/nowhere/at/all"), "No such file"),
    ((*GATEWAY, "--token", TOKEN), "--token"),
    ((*GATEWAY, "--gatewy", "x"), "unrecognized"),
]


@pytest.mark.parametrize(("arguments", "wrong"), WRONG)
def test_what_is_wrong_is_said(arguments: tuple[str, ...], wrong: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(arguments, ENV)
    assert wrong in str(caught.value)
    assert TOKEN not in str(caught.value) or "--token" in arguments


@pytest.mark.parametrize("token", ["", "short", "with a space in the middle", "not-ascii-ä-ä-ä-ä-ä-ä"])
def test_what_is_no_token(token: str) -> None:
    with pytest.raises(UsageError, match="token") as caught:
        parse(GATEWAY, {"UNJAM_REPORT_TOKEN": token})
    assert not token or token not in str(caught.value)


def test_quantities() -> None:
    assert duration("-", "1h30m", 0, 1e9) == 5400
    assert duration("-", "250ms", 0, 1e9) == 0.25
    assert (size("-", "1GiB"), size("-", "1Gi"), size("-", "1GB"), size("-", "512")) == (1 << 30, 1 << 30, 10**9, 512)


def test_both_commands_have_the_same_options() -> None:
    command = get_command(app).commands["report"]  # type: ignore[attr-defined]
    shown = {option for parameter in command.params for option in parameter.opts} - {"--help"}
    assert shown == {f"--{name}" for name, _, _ in OPTIONS}


def run(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("UNJAM_")}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=30, env={**clean, **env}, check=False
    )


@pytest.mark.parametrize("module", ["unjam.reporter", "unjam.cli.main"])
def test_help_and_mistakes(module: str) -> None:
    command = ("-m", module) if module == "unjam.reporter" else ("-m", module, "report")
    shown = run(*command, "--help", COLUMNS="160")
    assert shown.returncode == 0
    for name, _, _ in OPTIONS:
        assert f"--{name}" in shown.stdout
    wrong = run(*command, "--interval", "2")
    assert wrong.returncode == 2
    assert (
        wrong.stderr
        == "unjam report: --interval '2' is not a time: write it with its unit, such as 500ms, 2s or 1h30m.\n"
    )


# Processes

AGENT = """
import http.server, signal, sys, os
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(404 if "well-known" in self.path else 200)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"ok")
    def log_message(self, *args): pass
def say(number, frame):
    print("got", signal.Signals(number).name, flush=True)
    if number == signal.SIGTERM: os._exit(int(sys.argv[2]))
for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1): signal.signal(number, say)
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def child(port: int, code: int = 0) -> tuple[str, ...]:
    return ("--url", f"http://127.0.0.1:{port}", "--", sys.executable, "-c", AGENT, str(port), str(code))


@plain
async def test_a_command_becomes_an_agent_with_signals_and_exit_code() -> None:
    port = free_port()
    async with (
        fake_gateway() as gateway,
        report("--gateway", gateway.url, "--service", "s", *child(port, 3)) as running,
    ):
        first = await gateway.report(0)
        assert (first["state"], first["url"]) == ("ready", f"http://127.0.0.1:{port}")
        _, writer = await asyncio.open_connection("127.0.0.1", port)  # it listened before it was registered
        writer.close()
        await writer.wait_closed()
        running.send(signal.SIGHUP)
        await running.says("got SIGHUP")
        running.send(signal.SIGUSR1)
        await running.says("got SIGUSR1")
        gateway.inflight = 1
        running.send(signal.SIGTERM)
        await gateway.says(state="draining")
        assert "got SIGTERM" not in running.said
        gateway.inflight = 0
        await running.says("got SIGTERM")
        assert await running.exit_code() == 3
        assert gateway.states[-1] == "leaving"


@plain
async def test_an_agent_behind_a_shell_is_ended_too() -> None:
    port = free_port()
    *given, _, program, _, agent, number, code = child(port)
    shell = f'"$0" -c "$1" {number} {code}; true'
    async with (
        fake_gateway() as gateway,
        report("--gateway", gateway.url, "--service", "s", *given, "--", "sh", "-c", shell, program, agent) as running,
    ):
        await gateway.report(0)
        running.send(signal.SIGTERM)
        await running.says("got SIGTERM")
        assert await running.exit_code() == 0


@plain
@pytest.mark.parametrize(
    ("script", "code"), [("import sys; sys.exit(7)", 7), ("import os; os.kill(os.getpid(), 9)", 137), ("", 0)]
)
async def test_the_agents_end_is_the_reporters(script: str, code: int) -> None:
    async with report("--agent-check", "127.0.0.1:0", "--", sys.executable, "-c", script) as running:
        assert await running.exit_code() == code


@plain
async def test_an_agent_that_is_killed_leaves_first() -> None:
    port = free_port()
    async with (
        fake_gateway() as gateway,
        report("--gateway", gateway.url, "--service", "s", *child(port)) as running,
    ):
        await gateway.report(0)
        pid = int((await running.says(r"the agent is process (\d+)")).group(1))
        os.kill(pid, signal.SIGKILL)
        assert await running.exit_code() == 128 + signal.SIGKILL
        assert gateway.states[-1] == "leaving"


def pending(running: Process, number: signal.Signals) -> bool:
    try:
        status = of_process(running, "status").decode()
    except (FileNotFoundError, ProcessLookupError):
        return False
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    return bool((int(fields.get("SigPnd", "0"), 16) | int(fields.get("ShdPnd", "0"), 16)) >> (number - 1) & 1)


@plain
async def test_three_signals_end_an_agent_that_will_not() -> None:
    script = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
    )
    async with report("--agent-check", "127.0.0.1:0", "--", sys.executable, "-c", script) as running:
        await running.says("deaf")
        await running.says("the agent is process")
        for _ in range(3):
            running.send(signal.SIGINT)
            # While one is pending, others of its number are that one.
            await until(lambda: not pending(running, signal.SIGINT))
        assert await running.exit_code() == 128 + signal.SIGKILL


@plain
@pytest.mark.parametrize(("command", "code"), [("/nowhere/at/all", 127), ("/", 126)])
async def test_a_command_that_cannot_be_started(command: str, code: int) -> None:
    async with report("--agent-check", "127.0.0.1:0", "--", command) as running:
        assert await running.exit_code() == code
        assert f"cannot start {command}" in running.said


@plain
async def test_what_cannot_work_is_said_and_ends() -> None:
    async with report("--agent-check", "127.0.0.1:0", "--pid", str(2**22 + 1)) as running:
        assert await running.exit_code() == 1
        assert "there is no process" in running.said
    agent = await Agent().start()
    async with report("--agent-check", f"127.0.0.1:{agent.port}", "--port", str(agent.port)) as running:
        assert await running.exit_code() == 1
        assert "cannot listen on 127.0.0.1" in running.said
    await agent.stop()


def of_process(running: Process, name: str) -> bytes:
    return Path(f"/proc/{running.child.pid}/{name}").read_bytes()


@plain
async def test_unjam_report_is_replaced_by_the_reporter() -> None:
    agent = await Agent().start()
    arguments = ("report", "--agent-check", "127.0.0.1:0", "--port", str(agent.port))
    async with process("-m", "unjam.cli.main", *arguments) as running:
        await running.says("agent-check is answered")
        assert b"unjam.reporter" in of_process(running, "cmdline").split(b"\0")
        assert not re.search(rb"pydantic|uvloop|yaml", of_process(running, "maps"))
        assert running.resident() < 40 << 20
        running.send(signal.SIGTERM)
        assert await running.exit_code() == 0
    await agent.stop()


# With a real gateway

SERVICE = "{s: {match: {path: /}, versions: {v: {discover: true}}}}"


def to(gw: Reported) -> tuple[str, ...]:
    return ("--gateway", f"http://127.0.0.1:{gw.port}", "--service", "s")


@plain
async def test_an_agent_that_is_reported_serves_and_drains() -> None:
    let_go = asyncio.Event()

    async def slow(call: Call) -> None:
        if call.seen.target == "/slow":
            await let_go.wait()
        await call.answer(b"done", status=404 if "well-known" in call.seen.target else 200)

    agent = await Agent(slow).start()
    async with reported(SERVICE, agent) as gw, report(*to(gw), "--url", agent.url, "--slots", "4") as running:
        await running.says("registered with")
        assert gw.urls() == [agent.url]
        client = await gw.running.connect()
        assert (await client.get("/quick")).status == 200
        await until(lambda: gw.shown(agent.url)["load"]["sources"]["reporter"].get("cpu") is not None)
        shown = gw.shown(agent.url)
        assert shown["discovered"]
        assert shown["cores"] > 0
        assert shown["memory"] > 1 << 20
        assert shown["load"]["problem"] == ""

        pending = asyncio.create_task(client.get("/slow"))
        await until(lambda: any(seen.target == "/slow" for seen in agent.requests))
        running.send(signal.SIGTERM)
        await until(lambda: "draining" in str(gw.shown(agent.url)["why"]))
        assert running.child.returncode is None
        let_go.set()
        assert (await pending).body == b"done"
        assert await running.exit_code() == 0
        assert gw.urls() == []


@plain
async def test_a_wrong_token_is_refused_counted_and_said() -> None:
    agent = await Agent().start()
    wrong = "a-wrong-token-of-some-length"
    async with reported(SERVICE, agent) as gw, report(*to(gw), "--url", agent.url, token=wrong) as running:
        await running.says(r"refuses the token \(401\)")
        assert gw.results["unauthorized"] >= 1
        assert gw.urls() == []
        running.send(signal.SIGTERM)
        assert await running.exit_code() == 0
        assert wrong not in running.said


@plain
async def test_what_a_gateway_does_not_know_is_said_in_its_words() -> None:
    agent = await Agent().start()
    async with reported(SERVICE, agent) as gw:
        arguments = ("--gateway", f"http://127.0.0.1:{gw.port}", "--service", "nobody", "--url", agent.url)
        async with report(*arguments) as running:
            await running.says(r"refuses this endpoint \(404\): .*nobody")


@plain
async def test_gateways_with_tls(tmp_path: Path) -> None:
    agent = await Agent().start()
    cert, key = certificate(tmp_path, "gateway")
    async with reported(SERVICE, agent, reporters=f", tls: {{cert: '{cert}', key: '{key}'}}") as gw:
        arguments = ("--gateway", f"https://localhost:{gw.port}", "--service", "s", "--url", agent.url)
        async with report(*arguments) as running:
            await running.says(r"certificate that is not trusted \(.*\): --ca FILE")
        assert gw.urls() == []
        async with report(*arguments, "--ca", str(cert)) as running:
            await running.says("registered with https://localhost")
            assert gw.urls() == [agent.url]


@plain
async def test_several_gateways_and_one_that_is_not_there() -> None:
    one, other = await Agent().start(), await Agent().start()
    async with reported(SERVICE, one) as first, reported(SERVICE, other) as second:
        nobody = ("--gateway", f"http://127.0.0.1:{free_port()}")
        async with report(*nobody, *to(first), "--gateway", f"http://127.0.0.1:{second.port}", "--url", one.url) as run:
            await until(lambda: first.urls() == second.urls() == [one.url])
            await run.says("cannot be reached: Connection refused")
            run.send(signal.SIGTERM)
            assert await run.exit_code() == 0
        assert first.urls() == second.urls() == []


HOG = "import os, time; [os.fork() for _ in range(3)]; end = time.time() + 60\nwhile time.time() < end: pass"


@plain
async def test_a_neighbour_that_takes_the_cpu_is_told() -> None:
    port = free_port()
    async with reported(SERVICE) as gw, report(*to(gw), *child(port)) as running:
        await running.says("registered with")
        url = f"http://127.0.0.1:{port}"

        def others() -> float:
            told = gw.shown(url)["load"]["sources"]["reporter"]
            return float(told.get("cpu", 0.0)) - float(told.get("agent_cpu", 0.0))

        hogs = await asyncio.create_subprocess_exec(sys.executable, "-c", HOG, process_group=0)
        try:
            await until(lambda: others() > 0.6)
        finally:
            os.killpg(hogs.pid, signal.SIGKILL)
            await hogs.wait()
        running.send(signal.SIGTERM)
        assert await running.exit_code() == 0
