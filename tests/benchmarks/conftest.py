"""Benchmarks are not part of the package; their pure parts are tested from the checkout."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
