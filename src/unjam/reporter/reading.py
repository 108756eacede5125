"""One measurement of a machine, in the words a report uses."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(slots=True)
class Reading:
    """None: not known. Sizes in bytes, shares 0 .. 1.

    `cores`, `memory`: what may be used here (a container's limits, if it is in one). `cpu`: share of the cores in use
    by anybody; `agent_cpu`: by the agent's own processes, a part of it. `memory_free`: bytes that could still be used;
    `agent_memory`: bytes the agent's processes use. `pressure`, `memory_pressure`: share of the time in which some task
    was held up for want of CPU or memory. `run_queue`: tasks that run or could run, ourselves not counted.
    `open_files`: descriptors that the agent's processes hold.
    """

    cores: float | None = None
    memory: int | None = None
    cpu: float | None = None
    agent_cpu: float | None = None
    memory_free: int | None = None
    agent_memory: int | None = None
    pressure: float | None = None
    memory_pressure: float | None = None
    run_queue: float | None = None
    open_files: int | None = None

    def to_load(self) -> dict[str, float]:
        """The `load` object of a report: what is known, and nothing else; shares to a hundredth of a percent."""
        load: dict[str, float] = {}
        for name in _NAMES:
            value = getattr(self, name)
            if value is not None:
                load[name] = round(value, 4) if isinstance(value, float) else value
        return load


_NAMES = tuple(field.name for field in fields(Reading))
