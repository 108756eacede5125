"""The control groups that limit a process, on every kind of system."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.reporter.kernel import GIB, HYBRID, MIB, V1, V2, Kernel
from unjam.reporter.cgroup import Groups, Hierarchy, Quota, holds_only

NO_LIMIT = 0x7FFFFFFFFFFFF000


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    return Kernel(tmp_path)


def groups(kernel: Kernel, pid: int = 7) -> Groups:
    return Groups(pid, str(kernel.proc), str(kernel.cgroups))


def cores(of: Groups) -> list[float]:
    return [quota.cores for quota in of.quotas()]


def test_version_2_counts_the_own_group_and_every_one_above(kernel: Kernel) -> None:
    kernel.member(7, "0::/machine/agent\n")
    kernel.group("machine/agent", cpu_max="150000 100000", memory_max=2 * GIB, memory_high="max")
    kernel.group("machine", cpu_max="100000 100000", memory_max="max", memory_high=GIB)
    kernel.group("machine/agent", cpu_stat="usage_usec 2500000\nuser_usec 1")
    kernel.group("machine/agent", memory_current=900 * MIB, memory_stat=f"anon 5\ninactive_file {100 * MIB}")
    seen = groups(kernel)
    own, above = f"{kernel.cgroups}/machine/agent", f"{kernel.cgroups}/machine"
    assert seen.quotas() == [Quota(1.5, own), Quota(1.0, above)]
    assert seen.cpu_time(own) == 2.5
    assert seen.cpu_time(above) is None
    assert seen.memory_limits(16 * GIB) == [(own, 2 * GIB), (above, GIB)]
    assert seen.memory_used(own) == 800 * MIB
    assert seen.memory_used(above) is None
    assert seen.unseen == []


def test_max_is_no_limit(kernel: Kernel) -> None:
    kernel.member(7, "0::/agent\n")
    kernel.group("agent", cpu_max="max 100000", memory_max="max", memory_high="max")
    assert (groups(kernel).quotas(), groups(kernel).memory_limits(16 * GIB)) == ([], [])


def test_a_container_sees_its_own_group_as_the_root(kernel: Kernel) -> None:
    kernel.member(7, "0::/\n")
    kernel.group(".", cpu_max="50000 100000", memory_max=GIB)
    assert cores(groups(kernel)) == [0.5]
    assert groups(kernel).memory_limits(16 * GIB) == [(str(kernel.cgroups), GIB)]


def test_version_1_in_a_container_without_a_namespace_of_its_own(kernel: Kernel) -> None:
    # The container's part of the tree is mounted; the paths are still the host's.
    kernel.mounts(V1.replace(" / /sys", " /docker/abc /sys"))
    kernel.member(7, "4:cpu,cpuacct:/docker/abc\n3:memory:/docker/abc/inner\n0::/\n")
    kernel.group("cpu,cpuacct", cpu_cfs_quota_us=200000, cpu_cfs_period_us=100000, cpuacct_usage=3_500_000_000)
    kernel.group("memory/inner", memory_limit_in_bytes=NO_LIMIT, memory_usage_in_bytes=500 * MIB)
    kernel.group("memory/inner", memory_stat=f"hierarchical_memory_limit {NO_LIMIT}\ntotal_inactive_file {50 * MIB}")
    kernel.group("memory", memory_limit_in_bytes=GIB)
    seen = groups(kernel)
    assert cores(seen) == [2.0]
    assert seen.cpu_time(str(kernel.cgroups / "cpu,cpuacct")) == 3.5
    assert seen.memory_limits(16 * GIB) == [(str(kernel.cgroups / "memory"), GIB)]
    assert seen.memory_used(str(kernel.cgroups / "memory/inner")) == 450 * MIB


def test_version_1_knows_of_limits_above_what_can_be_seen(kernel: Kernel) -> None:
    kernel.mounts(V1)
    kernel.member(7, "3:memory:/\n")
    kernel.group("memory", memory_limit_in_bytes=NO_LIMIT, memory_stat=f"hierarchical_memory_limit {3 * GIB}")
    assert groups(kernel).memory_limits(16 * GIB) == [(str(kernel.cgroups / "memory"), 3 * GIB)]


def test_version_1_levels_that_do_not_count_what_is_below_do_not_limit_it(kernel: Kernel) -> None:
    kernel.mounts(V1)
    kernel.member(7, "3:memory:/a/b\n")
    kernel.group("memory/a/b", memory_limit_in_bytes=2 * GIB)
    kernel.group("memory/a", memory_limit_in_bytes=GIB, memory_use_hierarchy=0)
    assert groups(kernel).memory_limits(16 * GIB) == [(str(kernel.cgroups / "memory/a/b"), 2 * GIB)]


def test_no_quota_in_version_1_is_minus_one(kernel: Kernel) -> None:
    kernel.mounts(V1)
    kernel.member(7, "4:cpu,cpuacct:/a\n")
    kernel.group("cpu,cpuacct/a", cpu_cfs_quota_us=-1, cpu_cfs_period_us=100000)
    assert groups(kernel).quotas() == []


def test_hybrid_takes_each_controller_where_it_is(kernel: Kernel) -> None:
    kernel.mounts(HYBRID)
    kernel.member(7, "9:name=systemd:/\n4:memory:/box\n2:cpuacct:/box\n1:cpu:/box\n0::/elsewhere\n")
    kernel.group("cpu/box", cpu_cfs_quota_us=70000, cpu_cfs_period_us=100000)
    kernel.group("cpuacct/box", cpuacct_usage=1_000_000_000)
    kernel.group("memory/box", memory_limit_in_bytes=GIB)
    kernel.group("unified/elsewhere", cpu_max="10000 100000", memory_max=MIB)
    seen = groups(kernel)
    assert seen.quotas() == [Quota(0.7, f"{kernel.cgroups}/cpuacct/box")]
    assert seen.cpu_time(f"{kernel.cgroups}/cpuacct/box") == 1.0
    assert [limit for _, limit in seen.memory_limits(16 * GIB)] == [GIB]
    assert seen.pressure("cpu") == f"{kernel.cgroups}/unified/elsewhere/cpu.pressure"


def test_nobody_counts_for_a_group_that_another_hierarchy_does_not_have(kernel: Kernel) -> None:
    kernel.mounts(HYBRID)
    kernel.member(7, "2:cpuacct:/\n1:cpu:/box\n")
    kernel.group("cpu/box", cpu_cfs_quota_us=70000, cpu_cfs_period_us=100000)
    assert groups(kernel).quotas() == [Quota(0.7, None)]


def test_hierarchies_are_found_where_they_are_mounted(kernel: Kernel) -> None:
    elsewhere = kernel.root / "else where"
    kernel.mounts(f"9 1 0:5 / {str(elsewhere).replace(' ', chr(92) + '040')} rw shared:4 - cgroup2 none rw\n")
    kernel.member(7, "0::/a\n")
    kernel.put("else where/a/cpu.max", "25000 100000\n")
    assert groups(kernel).quotas() == [Quota(0.25, f"{elsewhere}/a")]


def test_the_hierarchies_that_were_asked_for_come_before_our_own(kernel: Kernel) -> None:
    # A sidecar that watches its host has its own container's view at the usual place, too.
    host = kernel.root / "host"
    kernel.mounts(V2.replace("/sys/fs/cgroup", "/elsewhere/cgroup") + f"9 1 0:5 / {host} rw - cgroup2 none rw\n")
    kernel.member(7, "0::/a\n")
    kernel.put("host/a/cpu.max", "25000 100000\n")
    assert cores(Groups(7, str(kernel.proc), str(host))) == [0.25]


@pytest.mark.parametrize("path", ["/../other", "/../../x"])
def test_a_group_outside_of_our_own_namespace_is_unseen(kernel: Kernel, path: str) -> None:
    kernel.member(7, f"0::{path}\n")
    kernel.group(".", cpu_max="50000 100000", memory_max=GIB)
    seen = groups(kernel)
    assert (seen.quotas(), seen.memory_limits(None), seen.cpus(), seen.own_count) == ([], [], None, None)
    assert seen.unseen == [f"unified:{path}"]


def test_a_mount_from_outside_shows_groups_beside_ours(kernel: Kernel) -> None:
    kernel.mounts(V2.replace(" / /sys", " /.. /sys"))
    kernel.member(7, "0::/../agent\n")
    kernel.group("agent", cpu_max="50000 100000")
    assert cores(groups(kernel)) == [0.5]


def test_the_cpuset_of_either_version(kernel: Kernel) -> None:
    kernel.member(7, "0::/a\n")
    kernel.put("cgroup/a/cpuset.cpus.effective", "0-1,3\n")
    assert groups(kernel).cpus() == {0, 1, 3}
    kernel.mounts(V1)
    kernel.member(7, "4:cpuset:/a\n")
    kernel.group("cpuset/a", cpuset_effective_cpus="2")
    assert groups(kernel).cpus() == {2}
    kernel.group("cpuset/a", cpuset_effective_cpus="")
    assert groups(kernel).cpus() is None


@pytest.mark.parametrize(
    ("mounts", "member"),
    [
        ("", "0::/\n"),
        (V2, ""),
        (V2, "nonsense\n\n::\n0:\n"),
        ("nonsense\n - \n1 2 3 4 5 - cgroup2\n", "0::/a\n"),
        (V1, "4:cpu,cpuacct:/gone (deleted)\n3:memory:/gone (deleted)\n"),
    ],
)
def test_what_is_missing_is_unknown(kernel: Kernel, mounts: str, member: str) -> None:
    kernel.mounts(mounts)
    kernel.member(7, member)
    seen = groups(kernel)
    assert (seen.quotas(), seen.memory_limits(GIB), seen.cpus()) == ([], [], None)


@pytest.mark.parametrize("value", ["", "0 0", "x y", "100000", "-5 100000", "100000 0", "1 2 3"])
def test_a_quota_that_is_none_is_none(kernel: Kernel, value: str) -> None:
    kernel.member(7, "0::/a\n")
    kernel.group("a", cpu_max=value)
    assert groups(kernel).quotas() == []


def test_whose_group_it_is(kernel: Kernel) -> None:
    kernel.put("cgroup/a/cgroup.procs", "7\n8\n")
    folder = str(kernel.cgroups / "a")
    assert holds_only(folder, {7, 8, 9})
    assert not holds_only(folder, {7})
    (kernel.cgroups / "a/below").mkdir()
    assert not holds_only(folder, {7, 8})
    assert not holds_only(str(kernel.cgroups / "none"), {7})


def test_levels_go_from_the_own_group_upwards() -> None:
    assert Hierarchy(2, "/top", "/a/b").levels() == ("/top/a/b", "/top/a", "/top")
    assert Hierarchy(2, "/top", "").levels() == ("/top",)


def test_this_system() -> None:
    seen = Groups("self")
    assert all(quota.cores > 0 for quota in seen.quotas())
    assert all(limit >= 0 for _, limit in seen.memory_limits(None))
    assert seen.cpus() is None or len(seen.cpus() or ()) > 0
