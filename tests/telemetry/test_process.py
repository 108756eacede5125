"""What the system says of this process."""

from __future__ import annotations

import os

import pytest

from unjam.telemetry.process import max_fds, open_fds


def test_file_descriptors_are_counted() -> None:
    before = open_fds()
    if before is None:
        pytest.skip("this system does not tell")
    held = [os.open(os.devnull, os.O_RDONLY) for _ in range(5)]
    try:
        assert open_fds() == before + 5
    finally:
        for fd in held:
            os.close(fd)
    assert max_fds() > before
