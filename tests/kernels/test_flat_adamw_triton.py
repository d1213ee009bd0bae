from __future__ import annotations

import pytest
import torch

from fam_engine.kernels import flat_adamw as reference
from fam_engine.kernels.flat_adamw_triton import flat_adamw
from tests.kernels.on import DEVICE

BETAS, EPS = (0.9, 0.999), 1e-8


# 1: a lone value; 1024: a program; 2049: two and one more.
@pytest.mark.parametrize("size", [1, 1024, 2049])
def test_twenty_steps_equal_those_in_float64(size: int) -> None:
    torch.manual_seed(0)
    truth = [torch.randn(size).double(), *torch.zeros(2, size).double().unbind()]
    mine = [buffer.to(DEVICE, torch.float32) for buffer in truth]
    moved = 0.0
    for step in range(1, 21):
        scalars = reference.step_scalars(step, 1e-2 / step, betas=BETAS, weight_decay=0.1)
        clip = torch.tensor([0.5 if step % 2 else 1.0])
        grads = torch.randn(size)
        settings = {"betas": BETAS, "eps": EPS}
        before = truth[0].clone()
        reference.flat_adamw(
            truth[0],
            grads.double(),
            *truth[1:],
            scalars=scalars,
            clip=clip.double(),
            **settings,
        )
        moved += (truth[0] - before).abs().max().item()
        flat_adamw(
            mine[0],
            grads.to(DEVICE),
            *mine[1:],
            scalars=scalars.to(DEVICE, torch.float32),
            clip=clip.to(DEVICE),
            **settings,
        )
    # A rounding of a parameter and a few of an update, each step.
    eps = torch.finfo(torch.float32).eps
    bounds = (20 * eps * 4 + 8 * eps * moved, 1e-6, 1e-6)
    for buffer, expected, bound in zip(mine, truth, bounds, strict=True):
        assert (buffer.cpu().double() - expected).abs().max() <= bound


def test_gradients_stay_and_nothing_beyond_the_end_is_touched() -> None:
    torch.manual_seed(0)
    room = torch.full((4, 64), 7.0, device=DEVICE)
    grads = room[1, :40]
    flat_adamw(
        room[0, :40],
        grads,
        room[2, :40],
        room[3, :40],
        scalars=torch.tensor([1.0, 0.1, 1.0], device=DEVICE),
        clip=torch.ones(1, device=DEVICE),
        betas=BETAS,
        eps=EPS,
    )
    assert (grads == 7).all()
    assert (room[:, 40:] == 7).all()
    assert (room[0, :40] < 7).all()
