"""That the interpreter, hastened, replaces what a launch needs, once, and leaves nothing replaced."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.errors import InterpreterError

from fam_engine.kernels.launching import INTERPRETED
from tests.kernels import on

pytestmark = pytest.mark.skipif(not INTERPRETED, reason="Triton's interpreter is not used")


@triton.jit
def _sum_of_largest(x, out, TIMES: tl.constexpr, REFUSED: tl.constexpr):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN202
    row = tl.arange(0, 8)
    total = 0.0
    for _ in range(TIMES):
        total += tl.max(tl.load(x + row), 0)
        row += 8
    if REFUSED:
        tl.load(total)
    tl.store(out, total)


def largest(times: int, *, refused: bool = False) -> None:
    x = torch.randn(times, 8, generator=torch.Generator().manual_seed(0))
    out = torch.zeros(1)
    _sum_of_largest[(1,)](x, out, TIMES=times, REFUSED=refused)
    assert out.item() == pytest.approx(x.amax(1).sum().item())


def test_a_launch_looks_for_what_to_replace_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert on.DTYPES
    largest(1)  # what is called for the first time is rewritten, and sees more from then on
    patch, seen = interpreter._patch_builtin, []
    monkeypatch.setattr(
        interpreter, "_patch_builtin", lambda module, *rest: (seen.append(1), patch(module, *rest))
    )
    numbers = []
    for times in (2, 20):
        seen.clear()
        largest(times)
        numbers.append(len(seen))
    assert 0 < numbers[0] == numbers[1]


def test_nothing_stays_replaced_and_a_failed_launch_does_not_spoil_the_next() -> None:
    for _ in range(2):
        with pytest.raises(InterpreterError):
            largest(2, refused=True)
        assert tl.core.is_builtin(tl.load)
        largest(2)
        assert tl.core.is_builtin(tl.load)


def test_types_are_numpy_s() -> None:
    for scalar, name in (
        (tl.int1, "bool"),
        (tl.int32, "int32"),
        (tl.float32, "float32"),
        (tl.bfloat16, "uint16"),
        (tl.pointer_type(tl.float16), "uint64"),
    ):
        for of in (scalar, tl.block_type(scalar, [4])):
            assert interpreter._get_np_dtype(of) == np.dtype(name)
