from __future__ import annotations

import pytest
import torch

from fam_engine.kernels.nf4_linear import nf4_linear
from tests.kernels.on import rounding
from tests.kernels.test_nf4_linear_triton import assert_near_truth, random_lora, random_nf4
