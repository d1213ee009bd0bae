from __future__ import annotations

import numpy as np
import pytest

from fam_engine.jobs.training.order import StepOrder, count_steps, dropout_seed


@pytest.mark.parametrize(("count", "batch_size"), [(1, 1), (1, 4), (7, 3), (8, 4), (5, 100)])
def test_every_epoch_takes_every_entry_once(count: int, batch_size: int) -> None:
    entries = np.arange(count, dtype=np.int64) * 3
    order = StepOrder(entries, batch_size=batch_size, seed=1)
    epochs = []
    for epoch in range(3):
        first = epoch * order.steps_per_epoch
        steps = [order.step_entries(first + i) for i in range(order.steps_per_epoch)]
        assert all(len(step) == batch_size for step in steps[:-1])
        epochs.append(np.concatenate(steps).tolist())
        assert sorted(epochs[-1]) == entries.tolist()
    if count > 4:
        assert epochs[0] != epochs[1]


def test_a_step_is_a_function_of_its_number() -> None:
    entries = np.arange(50, dtype=np.int64)
    one, two = (StepOrder(entries, batch_size=8, seed=3) for _ in range(2))
    forward = [one.step_entries(step).tolist() for step in range(20)]
    backward = [two.step_entries(step).tolist() for step in reversed(range(20))]
    assert forward == backward[::-1]
    other = StepOrder(entries, batch_size=8, seed=4)
    assert other.step_entries(0).tolist() != forward[0]


def test_the_shuffle_is_the_same_on_every_machine() -> None:
    # Literal values: a resumed run under another numpy must go on in the same order.
    order = StepOrder(np.arange(10, dtype=np.int64), batch_size=10, seed=0)
    assert order.step_entries(0).tolist() == [9, 2, 4, 7, 5, 0, 8, 6, 3, 1]
    assert dropout_seed(0, 1, 2) == 9090832018011073417


def test_dropout_seeds_differ_and_fit_torch() -> None:
    seeds = {dropout_seed(0, step, batch) for step in range(20) for batch in range(20)}
    assert len(seeds) == 400
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_steps_of_a_run() -> None:
    assert count_steps(10, 4, epochs=None, steps=None) == 9
    assert count_steps(10, 4, epochs=0.5, steps=None) == 2
    assert count_steps(10, 4, epochs=0.01, steps=None) == 1
    assert count_steps(10, 4, epochs=None, steps=5) == 5
    # What is begun is done, as in transformers; and rounding begins nothing.
    assert count_steps(5, 1, epochs=0.5, steps=None) == 3
    assert count_steps(10, 2, epochs=0.7, steps=None) == 4
    assert 0.07 * 100 > 7
    assert count_steps(100, 1, epochs=0.07, steps=None) == 7
    assert count_steps(3, 1, epochs=1 / 3, steps=None) == 1


@pytest.mark.parametrize("count", [1, 7, 8])
def test_what_is_taken_before_a_step_is_counted_by_epochs(count: int) -> None:
    order = StepOrder(np.arange(count, dtype=np.int64), batch_size=4, seed=1)
    for step in range(9):
        epochs, begun = order.taken_before(step)
        taken = [entry for number in range(step) for entry in order.step_entries(number)]
        assert epochs * count + len(begun) == len(taken)
        assert begun.tolist() == taken[epochs * count :]
