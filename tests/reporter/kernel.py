"""A kernel made of files: /proc and /sys/fs/cgroup as the tests want them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

TICK = 1.0 / os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
MIB = 1 << 20
GIB = 1 << 30

V2 = "31 23 0:28 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n"
HYBRID = (
    "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n"
    "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"
    "33 31 0:30 / /sys/fs/cgroup/cpuacct rw - cgroup cgroup rw,cpuacct\n"
    "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
)
V1 = (
    "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
    "34 31 0:31 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n"
    "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
)


class Kernel:
    """`at`: the time, seconds since boot, and the measuring clock's. Nothing happens unless a test says so."""

    def __init__(self, folder: Path, cpus: int = 4, memory: int = 16 * GIB) -> None:
        self.root = folder
        self.proc = folder / "proc"
        self.cgroups = folder / "cgroup"
        self.cgroups.mkdir(parents=True)
        self.at = 1000.0
        self.ticks = [[0, 0] for _ in range(cpus)]  # busy, idle
        self.steal = [0] * cpus
        self.iowait = [0] * cpus
        self.used: dict[int, float] = {}
        self.mounts(V2)
        self.process("self", parent=1)
        self.member("self", "0::/\n")
        self.memory(memory, memory // 2)
        self.pass_time(10.0)

    def clock(self) -> float:
        return self.at

    def put(self, path: str | Path, text: str) -> None:
        where = self.root / path
        where.parent.mkdir(parents=True, exist_ok=True)
        where.write_text(text)

    def group(self, path: str, **values: object) -> None:
        """Files of a control group; `cpu_max=` is the file cpu.max."""
        for name, value in values.items():
            controller, _, rest = name.partition("_")
            self.put(f"cgroup/{path}/{controller}.{rest}", f"{value}\n")

    def mounts(self, text: str) -> None:
        self.put("proc/self/mountinfo", text)

    def member(self, pid: int | str, text: str) -> None:
        self.put(f"proc/{pid}/cgroup", text)

    def memory(self, total: int, available: int) -> None:
        self.put("proc/meminfo", f"MemTotal: {total // 1024} kB\nMemAvailable: {available // 1024} kB\n")

    def pass_time(self, seconds: float, busy: tuple[float, ...] = (), steal: float = 0.0, iowait: float = 0.0) -> None:
        """`busy`: share of each CPU that is used; what isn't used, stolen or waited away is idle."""
        self.at += seconds
        whole = round(seconds / TICK)
        for cpu, ticks in enumerate(self.ticks):
            used = round(whole * (busy[cpu] if cpu < len(busy) else 0.0))
            stolen, waited = round(whole * steal), round(whole * iowait)
            ticks[0] += used
            ticks[1] += whole - used - stolen - waited
            self.steal[cpu] += stolen
            self.iowait[cpu] += waited
        self.write_stat()
        self.put("proc/uptime", f"{self.at:.2f} 1.0\n")

    def write_stat(self, running: int = 3) -> None:
        lines = ["cpu  1 2 3 4 5 6 7 8 0 0"]
        for cpu, (busy, idle) in enumerate(self.ticks):
            lines.append(f"cpu{cpu} {busy} 0 0 {idle} {self.iowait[cpu]} 0 0 {self.steal[cpu]} 0 0")
        self.put("proc/stat", "\n".join([*lines, "intr 5 0 0", f"procs_running {running}", "procs_blocked 0", ""]))

    def process(
        self,
        pid: int | str,
        parent: int = 1,
        cpu: float = 0.0,
        reaped: float = 0.0,
        start: float = 500.0,
        state: str = "S",
        resident: int = 8 * MIB,
        shared: int = 2 * MIB,
        space: int = 100 * MIB,
        files: int = 4,
        cpus: str = "0-63",
        name: str = "an (odd) name",
    ) -> None:
        own, children, began = round(cpu / TICK), round(reaped / TICK), round(start / TICK)
        self.put(
            f"proc/{pid}/stat",
            f"{1 if pid == 'self' else pid} ({name}) {state} {parent} 1 1 0 -1 4194304 104 0 0 0 {own} 0 {children} 0"
            f" 20 0 1 0 {began} {space} 425 18446744073709551615 0 0 0 0 0 0\n",
        )
        self.put(f"proc/{pid}/statm", f"{space // PAGE} {resident // PAGE} {shared // PAGE} 1 0 1 0\n")
        self.put(f"proc/{pid}/status", f"Name:\tx\nCpus_allowed:\tff\nCpus_allowed_list:\t{cpus}\n")
        self.put(f"proc/{pid}/comm", f"{name}\n")
        self.limit_space(pid, "unlimited")
        folder = self.proc / str(pid) / "fd"
        if not folder.exists():
            folder.mkdir()
            for number in range(files):
                os.symlink(f"pipe:[{number}]", folder / str(number))
        if not (self.proc / str(pid) / "cgroup").exists():
            self.member(pid, "0::/\n")

    def limit_space(self, pid: int | str, limit: int | str) -> None:
        self.put(
            f"proc/{pid}/limits",
            "Limit                     Soft Limit           Hard Limit           Units     \n"
            f"Max address space         {limit:<20} unlimited            bytes     \n",
        )

    def end(self, pid: int) -> None:
        shutil.rmtree(self.proc / str(pid))

    def listen(self, pid: int, port: int, inode: int, own_row: bool = True) -> None:
        """`pid` holds the listening socket `inode`; `own_row` False: one that the table shows already."""
        if own_row:
            old = (self.proc / "net/tcp").read_text() if (self.proc / "net/tcp").exists() else "  sl  local_address\n"
            row = f"   0: 0100007F:{port:04X} 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 {inode} 1\n"
            self.put("proc/net/tcp", old + row)
        os.symlink(f"socket:[{inode}]", self.proc / str(pid) / "fd" / str(inode))
