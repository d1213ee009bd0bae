from __future__ import annotations

import pytest
import torch
import transformers

from fam_engine.jobs.training.schedule import Schedule, ScheduleName, warmup_steps


@pytest.mark.parametrize("name", ["cosine", "linear", "constant"])
@pytest.mark.parametrize(("num_steps", "warmup"), [(10, 0), (10, 3), (1, 0), (4, 3)])
def test_rates_are_those_of_transformers(name: ScheduleName, num_steps: int, warmup: int) -> None:
    ours = Schedule(name, 0.5, num_steps, warmup)
    kind = "constant_with_warmup" if name == "constant" else name
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
    # Theirs begins a warm-up with a step at rate 0, which trains nothing: ours is theirs one later.
    theirs = transformers.get_scheduler(kind, optimizer, warmup, num_steps)
    rates = []
    for _ in range(num_steps + 1):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()
    for step in range(num_steps):
        expected = rates[step + 1] if step < warmup else rates[step]
        assert ours.learning_rate(step) == pytest.approx(expected)


def test_the_warm_up_is_a_share_rounded_up() -> None:
    assert warmup_steps(0.0, 100) == 0
    assert warmup_steps(0.03, 100) == 3
    assert warmup_steps(0.03, 10) == 1
    assert warmup_steps(0.99, 2) == 2
