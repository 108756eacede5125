"""What reporters send: one JSON object, read strictly. `docs/discovery.md` has its keys."""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec

from unjam.core.load import DRAINING, READY, LoadReport

#: `LoadReport.source`.
SOURCE: Final = "reporter"


class Load(msgspec.Struct, forbid_unknown_fields=True):
    """The figures, as `LoadReport` has them. All as floats: a size may be written 9e9."""

    cores: float | None = None
    memory: float | None = None
    cpu: float | None = None
    agent_cpu: float | None = None
    memory_free: float | None = None
    agent_memory: float | None = None
    in_flight: float | None = None
    waiting: float | None = None
    pressure: float | None = None
    memory_pressure: float | None = None
    run_queue: float | None = None
    open_files: float | None = None


class Report(msgspec.Struct, forbid_unknown_fields=True):
    """One report, as it is sent."""

    service: str
    url: str
    version: str | None = None
    region: str | None = None
    slots: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] | None = None
    weight: Annotated[float, msgspec.Meta(ge=0.001, le=1_000)] = 1.0
    state: Literal["ready", "draining", "leaving"] = "ready"
    load: Load | None = None
    echo: str | None = None
    held: Annotated[float, msgspec.Meta(ge=0)] = 0.0


#: Raises msgspec.ValidationError for what is no report, and for what is no JSON msgspec.DecodeError, UnicodeDecodeError
#: or RecursionError.
decode: Final = msgspec.json.Decoder(Report).decode
FIGURES: Final = Load.__struct_fields__


def load_of(report: Report, age: float) -> LoadReport:
    """For the core. `age`: seconds since it was measured."""
    state = DRAINING if report.state == "draining" else READY
    load = report.load
    if load is None:
        return LoadReport(state=state, age=age, source=SOURCE)
    return LoadReport(
        cores=load.cores,
        memory=_whole(load.memory),
        cpu=load.cpu,
        agent_cpu=load.agent_cpu,
        memory_free=_whole(load.memory_free),
        agent_memory=_whole(load.agent_memory),
        in_flight=_whole(load.in_flight),
        waiting=_whole(load.waiting),
        pressure=load.pressure,
        memory_pressure=load.memory_pressure,
        run_queue=load.run_queue,
        open_files=_whole(load.open_files),
        state=state,
        age=age,
        source=SOURCE,
    )


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)
