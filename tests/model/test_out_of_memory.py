from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from fam_engine.data.packing import Entries
from fam_engine.model.out_of_memory import in_halves, memory_errors
from tests.model.shortages import OTHERS, SHORTAGES


@pytest.mark.parametrize("make", SHORTAGES)
def test_memory_that_runs_out_is_one_kind_of_error(make: Callable[[], Exception]) -> None:
    with pytest.raises(torch.OutOfMemoryError) as caught, memory_errors():
        raise make()
    assert str(caught.value) == str(make())


@pytest.mark.parametrize("make", OTHERS)
def test_other_errors_stay_what_they_are(make: Callable[[], Exception]) -> None:
    error = make()
    with pytest.raises(type(error)) as caught, memory_errors():
        raise error
    assert caught.value is error


def test_an_error_that_says_more_is_not_made_plain() -> None:
    class Ours(torch.OutOfMemoryError):
        pass

    with pytest.raises(Ours), memory_errors():
        raise Ours


def test_what_the_host_lacks_is_told_by_what_torch_says() -> None:
    """Of this torch, whose words they are."""
    with pytest.raises(torch.OutOfMemoryError), memory_errors():
        torch.empty(1 << 50, dtype=torch.uint8)


@pytest.mark.parametrize("make", SHORTAGES)
def test_what_does_not_fit_at_once_is_computed_in_parts(make: Callable[[], Exception]) -> None:
    tried = []

    def compute(entries: Entries) -> list[int]:
        tried.append(len(entries))
        if len(entries) > 2:
            raise make()
        return entries.tolist()

    assert in_halves(compute, np.arange(7)) == [[0], [1, 2], [3, 4], [5, 6]]
    assert tried == [7, 3, 1, 2, 4, 2, 2]


def test_one_that_does_not_fit_alone_is_an_error() -> None:
    def compute(entries: Entries) -> None:
        if 3 in entries:
            raise torch.OutOfMemoryError(f"{len(entries)} do not fit")

    with pytest.raises(torch.OutOfMemoryError, match="1 do not fit"):
        in_halves(compute, np.arange(5))
