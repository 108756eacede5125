"""A short run of the fuzzer; `make fuzz` runs the long one."""

from __future__ import annotations

import importlib.util
from pathlib import Path

FUZZER = Path(__file__).parents[2] / "benchmarks" / "fuzz_wire.py"


def test_twenty_thousand_hostile_inputs() -> None:
    spec = importlib.util.spec_from_file_location("fuzz_wire", FUZZER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    verdicts = module.fuzz(20_000, seed=20)
    assert sum(verdicts.values()) == 20_000
    # The mutations must reach both sides of the fence.
    assert verdicts["read"] > 2_000
    assert len(verdicts) > 25
