"""A simulated NVIDIA GPU for a whole run of pytest: `pytest -p tests.simulated.plugin tests/gpu`."""

from __future__ import annotations

from tests.simulated import gpu

gpu.install()
