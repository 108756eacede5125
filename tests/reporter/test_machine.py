"""What a machine is found to have, and who is found to use it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reporter.kernel import GIB, HYBRID, MIB, V1, Kernel
from unjam.reporter.machine import Machine
from unjam.reporter.reading import Reading
from unjam.reporter.system import Linux
from unjam.reporter.tree import Agent


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    return Kernel(tmp_path)


def machine(kernel: Kernel, pid: int | None = 7) -> Machine:
    agent = None if pid is None else Agent.of_pid(pid, str(kernel.proc), cost=lambda: 0.0)
    return Machine(agent, str(kernel.proc), str(kernel.cgroups), kernel.clock)


def shares(reading: Reading) -> tuple[float | None, float | None]:
    cpu, agent = reading.cpu, reading.agent_cpu
    return None if cpu is None else round(cpu, 3), None if agent is None else round(agent, 3)


# The whole machine


def test_the_first_reading_has_no_shares(kernel: Kernel) -> None:
    kernel.process(7)
    assert machine(kernel).read() == Reading(
        cores=4.0,
        memory=16 * GIB,
        memory_free=8 * GIB,
        agent_memory=6 * MIB,
        run_queue=2.0,
        open_files=4,
    )


def test_what_is_unknown_is_not_told() -> None:
    reading = Reading(cores=2.0, memory=GIB, cpu=0.123456)
    assert reading.to_load() == {"cores": 2.0, "memory": GIB, "cpu": 0.1235}


def test_the_agents_use_and_others_are_told_apart(kernel: Kernel) -> None:
    kernel.process(7)
    of = machine(kernel)
    of.read()
    kernel.process(7, cpu=2.0)
    kernel.pass_time(2.0, busy=(1.0, 1.0, 0.5, 0.0))  # the agent one core, somebody one and a half
    assert shares(of.read()) == (0.625, 0.25)


def test_without_an_agent_all_use_is_others(kernel: Kernel) -> None:
    of = machine(kernel, None)
    of.read()
    kernel.pass_time(2.0, busy=(1.0, 1.0, 0.5, 0.0))
    reading = of.read()
    assert shares(reading) == (0.625, None)
    assert (reading.agent_memory, reading.open_files) == (None, None)


def test_only_the_cpus_it_may_run_on_count(kernel: Kernel) -> None:
    kernel.process(7, cpus="0,2")
    of = machine(kernel)
    assert of.read().cores == 2.0
    kernel.pass_time(2.0, busy=(1.0, 1.0, 0.5, 1.0))
    assert shares(of.read()) == (0.75, 0.0)


def test_without_an_agent_our_own_cpus_count(kernel: Kernel) -> None:
    kernel.process("self", cpus="1")
    assert machine(kernel, None).read().cores == 1.0


def test_the_cpuset_narrows_the_mask(kernel: Kernel) -> None:
    kernel.process(7, cpus="0-3")
    kernel.put("cgroup/cpuset.cpus.effective", "1-2\n")
    assert machine(kernel).read().cores == 2.0


def test_a_container_that_is_shown_other_cpus_counts_those_it_sees(kernel: Kernel) -> None:
    kernel.process(7, cpus="40-41")
    of = machine(kernel)
    of.read()
    kernel.pass_time(2.0, busy=(1.0, 0.0, 0.0, 0.0))
    reading = of.read()
    assert (reading.cores, reading.cpu) == (4.0, 0.25)


def test_stolen_time_is_used_by_others(kernel: Kernel) -> None:
    kernel.process(7)
    of = machine(kernel)
    of.read()
    kernel.pass_time(2.0, busy=(0.1,) * 4, steal=0.4)
    assert shares(of.read()) == (0.5, 0.0)


def test_waiting_for_disks_is_idle(kernel: Kernel) -> None:
    kernel.process(7)
    of = machine(kernel)
    of.read()
    kernel.pass_time(2.0, busy=(0.1,) * 4, iowait=0.9)
    assert shares(of.read()) == (0.1, 0.0)


def test_counters_of_the_machine_may_jump_backwards(kernel: Kernel) -> None:
    kernel.process(7, cpu=100.0)
    of = machine(kernel)
    of.read()
    for ticks in kernel.ticks:
        ticks[0], ticks[1] = 0, 0
    kernel.process(7, cpu=0.0)
    kernel.pass_time(2.0)
    assert shares(of.read()) == (None, 0.0)
    kernel.pass_time(2.0, busy=(1.0, 1.0))
    assert shares(of.read()) == (0.5, 0.0)


@pytest.mark.parametrize("seconds", [0.0, 0.04])
def test_a_second_reading_at_once_is_the_same(kernel: Kernel, seconds: float) -> None:
    kernel.process(7)
    of = machine(kernel)
    of.read()
    kernel.process(7, cpu=2.0)
    kernel.pass_time(2.0, busy=(1.0, 1.0))
    first = of.read()
    kernel.at += seconds
    kernel.process(7, cpu=90.0)
    assert of.read() == first
    assert of.read() is not of.read()  # whoever holds one may do with it as they like


def test_the_run_queue_leaves_ourselves_out(kernel: Kernel) -> None:
    kernel.write_stat(running=9)
    assert machine(kernel, None).read().run_queue == 8.0


# Quotas


def test_a_quota_bounds_the_cores(kernel: Kernel) -> None:
    kernel.process(7)
    kernel.member(7, "0::/box/agent\n")
    kernel.group("box/agent", cpu_max="300000 100000")
    kernel.group("box", cpu_max="150000 100000")
    assert machine(kernel).read().cores == 1.5


def test_a_busy_machine_that_leaves_the_quota_is_not_busy_for_the_agent(kernel: Kernel) -> None:
    kernel.process(7)
    kernel.member(7, "0::/a\n")
    kernel.group("a", cpu_max="100000 100000", cpu_stat="usage_usec 0")
    of = machine(kernel)
    of.read()
    kernel.process(7, cpu=0.5)
    kernel.group("a", cpu_stat="usage_usec 500000")
    kernel.pass_time(2.0, busy=(1.0, 1.0, 0.25, 0.0))  # 1.75 CPUs are left, and it may have one
    assert shares(of.read()) == (0.25, 0.25)


def test_others_in_the_group_use_up_the_quota(kernel: Kernel) -> None:
    kernel.process(7)
    kernel.member(7, "0::/a\n")
    kernel.group("a", cpu_max="100000 100000", cpu_stat="usage_usec 7000000")
    of = machine(kernel)
    of.read()
    kernel.process(7, cpu=0.5)
    kernel.group("a", cpu_stat="usage_usec 8500000")  # of 1.5 s, 0.5 are the agent's; 2 would be the quota
    kernel.pass_time(2.0, busy=(0.75,))
    assert shares(of.read()) == (0.75, 0.25)


def test_others_in_a_group_above_use_up_its_quota(kernel: Kernel) -> None:
    kernel.process(7)
    kernel.member(7, "0::/pod/agent\n")
    kernel.group("pod/agent", cpu_max="100000 100000", cpu_stat="usage_usec 0")
    kernel.group("pod", cpu_max="200000 100000", cpu_stat="usage_usec 0")
    of = machine(kernel)
    of.read()
    kernel.group("pod", cpu_stat="usage_usec 3000000")  # 1.5 of the pod's 2 cores: half a core is left
    kernel.pass_time(2.0, busy=(1.0, 0.5))
    assert shares(of.read()) == (0.5, 0.0)


def test_a_machine_with_less_than_the_quota_left(kernel: Kernel) -> None:
    kernel.process(7)
    kernel.member(7, "0::/a\n")
    kernel.group("a", cpu_max="200000 100000", cpu_stat="usage_usec 0")
    of = machine(kernel)
    of.read()
    kernel.pass_time(2.0, busy=(1.0, 1.0, 1.0, 0.5))
    assert shares(of.read()) == (0.75, 0.0)


def test_a_group_of_its_own_counts_children_that_no_look_would_find(kernel: Kernel) -> None:
    kernel.process(7)
    kernel.member(7, "0::/a\n")
    kernel.group("a", cpu_max="max 100000", cpu_stat="usage_usec 0", cgroup_procs="7")
    kernel.group("a", memory_current=64 * MIB, memory_stat=f"inactive_file {4 * MIB}")
    of = machine(kernel)
    assert of.read().agent_memory == 60 * MIB
    kernel.group("a", cpu_stat="usage_usec 4000000")
    kernel.pass_time(2.0, busy=(1.0, 1.0))
    assert shares(of.read()) == (0.5, 0.5)


def test_a_stranger_that_comes_into_the_agents_group_is_told_apart_at_once(kernel: Kernel) -> None:
    kernel.process(7)
    kernel.process(8)
    kernel.member(7, "0::/a\n")
    kernel.group("a", cpu_stat="usage_usec 0", cgroup_procs="7", memory_current=64 * MIB)
    of = machine(kernel)
    assert of.read().agent_memory == 64 * MIB
    kernel.group("a", cpu_stat="usage_usec 4000000", cgroup_procs="7\n8")
    kernel.pass_time(2.0, busy=(1.0, 1.0))
    reading = of.read()
    assert shares(reading) == (0.5, 0.0)
    assert reading.agent_memory == 6 * MIB


def test_a_group_with_strangers_in_it_is_not_the_agents(kernel: Kernel) -> None:
    kernel.process(7)
    kernel.process(8)
    kernel.member(7, "0::/a\n")
    kernel.group("a", cpu_stat="usage_usec 0", cgroup_procs="7\n8", memory_current=64 * MIB)
    of = machine(kernel)
    assert of.read().agent_memory == 6 * MIB
    kernel.group("a", cpu_stat="usage_usec 4000000")
    kernel.pass_time(2.0, busy=(1.0, 1.0))
    assert shares(of.read()) == (0.5, 0.0)


@pytest.mark.parametrize("counted", [True, False])
def test_hybrid_systems(kernel: Kernel, counted: bool) -> None:
    kernel.mounts(HYBRID)
    kernel.process(7)
    kernel.member(7, f"4:memory:/m\n2:cpuacct:/{'a' if counted else ''}\n1:cpu:/a\n0::/\n")
    kernel.group("cpu/a", cpu_cfs_quota_us=100000, cpu_cfs_period_us=100000)
    kernel.group("cpuacct/a", cpuacct_usage=0)
    kernel.group("memory/m", memory_limit_in_bytes=GIB, memory_usage_in_bytes=700 * MIB)
    kernel.group("memory/m", memory_stat=f"total_inactive_file {100 * MIB}")
    of = machine(kernel)
    reading = of.read()
    assert (reading.cores, reading.memory, reading.memory_free) == (1.0, GIB, 424 * MIB)
    kernel.process(7, cpu=0.5)
    kernel.group("cpuacct/a", cpuacct_usage=1_000_000_000)
    kernel.pass_time(2.0, busy=(0.5,))
    # Where nobody counts for the group, the others in it can't be seen.
    assert shares(of.read()) == (0.5 if counted else 0.25, 0.25)


def test_limits_that_change_are_noticed(kernel: Kernel) -> None:
    kernel.process(7)
    kernel.member(7, "0::/a\n")
    kernel.group("a", cpu_max="100000 100000", memory_max=GIB)
    of = machine(kernel)
    of.read()
    kernel.group("a", cpu_max="300000 100000", memory_max=2 * GIB)
    kernel.pass_time(11.0)
    reading = of.read()
    assert (reading.cores, reading.memory) == (3.0, 2 * GIB)


# Memory


def test_free_memory_is_the_least_of_every_level(kernel: Kernel) -> None:
    kernel.process(7)
    kernel.member(7, "0::/pod/agent\n")
    kernel.group("pod/agent", memory_max=2 * GIB, memory_current=GIB)
    kernel.group("pod", memory_max=4 * GIB, memory_current=4 * GIB, memory_stat=f"inactive_file {GIB // 2}")
    reading = machine(kernel).read()
    assert (reading.memory, reading.memory_free) == (2 * GIB, GIB // 2)


def test_a_machine_short_of_memory_bounds_its_groups(kernel: Kernel) -> None:
    kernel.process(7)
    kernel.member(7, "0::/a\n")
    kernel.group("a", memory_max=2 * GIB, memory_current=MIB)
    kernel.memory(16 * GIB, 300 * MIB)
    assert machine(kernel).read().memory_free == 300 * MIB


def test_more_used_than_allowed_is_none_free(kernel: Kernel) -> None:
    kernel.process(7)
    kernel.member(7, "0::/a\n")
    kernel.group("a", memory_max="max", memory_high=GIB, memory_current=2 * GIB)
    reading = machine(kernel).read()
    assert (reading.memory, reading.memory_free) == (GIB, 0)


def test_no_more_is_free_than_there_is(kernel: Kernel) -> None:
    kernel.process(7)
    kernel.member(7, "0::/a\n")
    kernel.group("a", memory_max=GIB)  # and its use can't be read
    reading = machine(kernel).read()
    assert (reading.memory, reading.memory_free) == (GIB, GIB)


def test_a_limit_of_address_space_is_a_limit(kernel: Kernel) -> None:
    kernel.process(7, space=300 * MIB)
    kernel.process(8, parent=7, space=900 * MIB)
    kernel.limit_space(7, GIB)
    reading = machine(kernel).read()
    assert (reading.memory, reading.memory_free) == (GIB, 124 * MIB)


def test_our_own_limit_of_address_space_is_not_the_agents(kernel: Kernel) -> None:
    kernel.limit_space("self", GIB)
    assert machine(kernel, None).read().memory == 16 * GIB


# Pressure


def pressure(total: int) -> str:
    return f"some avg10=0.00 avg60=0.00 avg300=0.00 total={total}\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"


def test_pressure_of_the_machine(kernel: Kernel) -> None:
    kernel.put("proc/pressure/cpu", pressure(1_000_000))
    kernel.put("proc/pressure/memory", pressure(0))
    of = machine(kernel, None)
    assert of.read().pressure is None
    kernel.put("proc/pressure/cpu", pressure(1_500_000))
    kernel.put("proc/pressure/memory", pressure(9_000_000))
    kernel.pass_time(2.0)
    reading = of.read()
    assert (reading.pressure, reading.memory_pressure) == (0.25, 1.0)
    kernel.put("proc/pressure/cpu", pressure(0))  # it can't have shrunk: not the same counter
    kernel.pass_time(2.0)
    assert of.read().pressure is None


def test_pressure_of_the_group_comes_first(kernel: Kernel) -> None:
    kernel.process(7)
    kernel.member(7, "0::/a\n")
    kernel.put("proc/pressure/cpu", pressure(0))
    kernel.group("a", cpu_pressure=pressure(0))
    of = machine(kernel)
    of.read()
    kernel.group("a", cpu_pressure=pressure(1_000_000))
    kernel.pass_time(2.0)
    reading = of.read()
    assert (reading.pressure, reading.memory_pressure) == (0.5, None)


# Agents that come and go


def test_an_agent_that_is_started_again(kernel: Kernel) -> None:
    kernel.process(7, cpu=100.0)
    kernel.member(7, "0::/a\n")
    kernel.group("a", cpu_max="200000 100000", memory_max=GIB, memory_current=0)
    kernel.listen(7, 9000, 4711)
    agent = Agent.of_port(9000, str(kernel.proc), cost=lambda: 0.0)
    of = Machine(agent, str(kernel.proc), str(kernel.cgroups), kernel.clock)
    of.read()
    kernel.end(7)
    kernel.pass_time(2.0)
    gone = of.read()
    assert (gone.agent_cpu, gone.agent_memory, gone.open_files) == (None, None, None)
    assert (gone.cores, gone.memory, gone.cpu) == (2.0, GIB, 0.0)  # its limits wait for it
    kernel.pass_time(20.0)
    assert of.read().cores == 2.0
    kernel.process(9, cpu=1.0, start=kernel.at + 0.5)
    kernel.listen(9, 9000, 4711, own_row=False)
    kernel.member(9, "0::/b\n")
    kernel.group("b", cpu_max="100000 100000")
    kernel.pass_time(2.0, busy=(0.5,))
    again = of.read()
    assert (again.cores, shares(again)) == (1.0, (0.5, 0.5))


def test_a_stranger_with_the_agents_pid_does_not_give_its_limits(kernel: Kernel) -> None:
    kernel.process(7)
    kernel.member(7, "0::/a\n")
    kernel.group("a", cpu_max="200000 100000")
    kernel.group("b", cpu_max="100000 100000")
    of = machine(kernel)
    of.read()
    kernel.process(7, start=kernel.at)
    kernel.member(7, "0::/b\n")
    kernel.pass_time(11.0)
    of.read()
    kernel.pass_time(11.0)
    reading = of.read()
    assert (reading.cores, reading.agent_memory) == (2.0, None)


def test_an_agent_elsewhere_leaves_the_machines_figures(kernel: Kernel) -> None:
    kernel.process(7)
    kernel.member(7, "0::/../agent\n")
    of = machine(kernel)
    assert of.read().cores == 4.0
    assert of.unseen == ["unified:/../agent"]


# What is missing


@pytest.mark.parametrize(
    "missing",
    [
        "stat",
        "meminfo",
        "uptime",
        "self",
        "7/status",
        "7/limits",
        "7/cgroup",
        "7/statm",
        "7/fd",
        "7/stat",
        "7",
        "",
        "7/*",
    ],
)
@pytest.mark.parametrize("mounts", ["", HYBRID, V1])
def test_nothing_that_is_missing_does_harm(kernel: Kernel, missing: str, mounts: str) -> None:
    kernel.process(7)
    kernel.mounts(mounts)
    of = machine(kernel)
    of.read()
    where = kernel.proc / missing.removesuffix("/*")
    for entry in where.iterdir() if missing.endswith("/*") else [where]:
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    for _ in range(3):
        kernel.at += 11.0
        reading = of.read()
    match missing:
        case "stat":
            assert (reading.cores, reading.cpu, reading.run_queue) == (None, None, None)
        case "meminfo":
            assert (reading.memory, reading.memory_free) == (None, None)
        case "7/statm":
            assert (reading.agent_memory, reading.open_files) == (None, 4)
        case "7/fd":
            assert (reading.agent_memory, reading.open_files) == (6 * MIB, None)
        case "7" | "7/*" | "7/stat":
            assert (reading.agent_memory, reading.agent_cpu, reading.open_files) == (None, None, None)
        case "":
            assert reading == Reading()


@pytest.mark.parametrize(
    "text", ["", "\0\0", "cpu\ncpux 1 2 3 4 5\ncpu0 1 2\ncpu1 a b c d e f", "some total=", "-1", "x" * 5000]
)
def test_nothing_that_is_garbled_does_harm(kernel: Kernel, text: str) -> None:
    kernel.process(7)
    kernel.member(7, "0::/a\n")
    kernel.group("a", cpu_max="100000 100000", memory_max=GIB, cpu_stat="usage_usec 5", cpu_pressure=pressure(5))
    kernel.put("proc/pressure/cpu", pressure(5))
    of = machine(kernel)
    of.read()
    for path in [path for path in kernel.root.rglob("*") if path.is_file() and not path.is_symlink()]:
        path.write_text(text)
    kernel.at += 11.0
    of.read()


# What always holds


amounts = st.floats(min_value=0.0, max_value=40.0)
steps = st.lists(
    st.tuples(
        st.floats(min_value=0.0, max_value=5.0),  # seconds
        st.tuples(*[st.floats(min_value=0.0, max_value=1.0)] * 2),  # busy CPUs
        st.floats(min_value=0.0, max_value=1.0),  # stolen of the rest
        amounts,  # the agent's CPU time, whatever the machine says
        st.one_of(st.none(), amounts),  # a child's
        amounts,  # the group's
    ),
    min_size=2,
    max_size=6,
)


@settings(max_examples=20, deadline=None)
@given(steps=steps, quota=st.sampled_from(["max 100000", "30000 100000", "150000 100000"]))
def test_shares_are_shares_whatever_the_counters_say(
    tmp_path_factory: pytest.TempPathFactory,
    steps: list[tuple[float, tuple[float, ...], float, float, float | None, float]],
    quota: str,
) -> None:
    kernel = Kernel(tmp_path_factory.mktemp("kernel"), cpus=2)
    kernel.process(7)
    kernel.member(7, "0::/a\n")
    kernel.group("a", cpu_max=quota, cpu_stat="usage_usec 0")
    of = machine(kernel)
    of.read()
    for seconds, busy, steal, own, child, group in steps:
        kernel.process(7, cpu=own)
        if child is not None:
            kernel.process(8, parent=7, cpu=child)
        elif (kernel.proc / "8").exists():
            kernel.end(8)
        kernel.group("a", cpu_stat=f"usage_usec {round(group * 1e6)}")
        kernel.pass_time(seconds, busy=busy, steal=steal * (1.0 - max(busy)))
        reading = of.read()
        if reading.cpu is not None:
            assert 0.0 <= reading.cpu <= 1.0
        if reading.agent_cpu is not None:
            assert 0.0 <= reading.agent_cpu <= 1.0
            assert reading.cpu is None or reading.agent_cpu <= reading.cpu + 1e-9
        assert reading.memory is not None
        assert reading.memory_free is not None
        assert 0 <= reading.memory_free <= reading.memory


# This system

BURN = "import time\nprint(flush=True)\nend = time.monotonic() + 30\nwhile time.monotonic() < end: pass"


def test_this_system() -> None:
    of = Machine(Agent.of_pid(os.getpid()))
    of.read()
    time.sleep(0.1)
    reading = of.read()
    assert reading.cores is not None
    assert 0.0 < reading.cores <= (os.cpu_count() or 1)
    assert reading.memory is not None
    assert reading.memory_free is not None
    assert reading.agent_memory is not None
    assert 0 < reading.memory_free <= reading.memory
    assert reading.agent_memory > MIB
    assert reading.cpu is not None
    assert reading.agent_cpu is not None
    assert 0.0 <= reading.agent_cpu <= reading.cpu <= 1.0
    assert (reading.open_files or 0) > 0
    assert (reading.run_queue or 0.0) >= 0.0


def test_a_child_that_burns_is_the_agents_and_a_stranger_is_not() -> None:
    burning = subprocess.Popen([sys.executable, "-S", "-c", BURN], stdout=subprocess.PIPE)
    quiet = subprocess.Popen([sys.executable, "-S", "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    try:
        assert burning.stdout is not None
        burning.stdout.readline()
        ours, beside = Machine(Agent.of_pid(os.getpid())), Machine(Agent.of_pid(quiet.pid))
        for of in (ours, beside):
            of.read()
        began, before = time.monotonic(), Linux().process(burning.pid)
        time.sleep(0.6)
        after, elapsed = Linux().process(burning.pid), time.monotonic() - began
        seen, seen_beside = ours.read(), beside.read()
    finally:
        for process in (burning, quiet):
            process.kill()
            process.communicate()
    assert before is not None
    assert after is not None
    assert seen.cores is not None
    # Others may want the CPUs, too: what it got is told by the process itself.
    burnt = (after.own - before.own) / elapsed / seen.cores
    assert burnt > 0.0
    assert seen.agent_cpu is not None
    assert seen.agent_cpu > burnt / 2
    assert seen_beside.agent_cpu is not None
    assert seen_beside.cpu is not None
    assert seen_beside.agent_cpu < burnt / 2
    assert seen_beside.cpu > burnt / 2
