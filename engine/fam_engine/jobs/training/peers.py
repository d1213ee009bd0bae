"""The processes that train one adapter together: which of them this is, what they tell each other, sums.

In: a process group that somebody else has made, or torchrun's environment. Out: `Peers`; a run of one process has
`ALONE`, whose methods do nothing. Every process holds the whole model, computes its part of each step's micro-batches
and moves its own copy of the parameters by the same sum, so that all stay equal to the bit without being told.

Why no `DistributedDataParallel`: it averages gradients by process while the backward pass runs, bucket by bucket. Ours
are a few megabytes, to be added once a step, after however many micro-batches each process had, none included. And the
order of an all-reduce is its library's affair. `sum_` adds in the order of the processes: each gets its slice of every
buffer, adds, and hands the sum back, which moves as many bytes as a ring does and gives the same bits in every run with
as many processes.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from fam_engine.config import Device
from fam_engine.errors import DeviceError, UsageError
from fam_engine.model.devices import choose_device

# Others wait while the first reads records. A process that dies is noticed by its connections, not by time.
_PATIENCE = datetime.timedelta(days=1)

T = TypeVar("T")


class PeerLostError(DeviceError):
    """Another process of the run has ended; whoever started them knows which and why."""


class Peers:
    """The processes of a run, seen from one of them.

    Args:
        rank: Which one this is; the first, 0, reads the input and writes the output.
        size: How many there are.
        control: A group of theirs for small things on the CPU; None: there is only one.

    Attributes:
        rank: As above.
        size: As above.
    """

    def __init__(self, rank: int, size: int, control: dist.ProcessGroup | None) -> None:
        self.rank = rank
        self.size = size
        self._control = control

    def own(self, items: Sequence[T]) -> Sequence[T]:
        """Give the items that are this process's to compute."""
        return items[self.rank :: self.size]

    def share(self, value: Any) -> Any:  # noqa: ANN401 - any JSON value
        """Give what the first process gave, which JSON can hold.

        Raises:
            PeerLostError: Another process has ended.
        """
        if self.size == 1:
            return value
        text = json.dumps(value).encode() if self.rank == 0 else b""
        with _lost_peers():
            length = torch.tensor([len(text)])
            dist.broadcast(length, src=0, group=self._control)
            data = torch.frombuffer(bytearray(text.ljust(int(length))), dtype=torch.uint8)
            dist.broadcast(data, src=0, group=self._control)
        return json.loads(data.numpy().tobytes())

    def gather(self, values: Sequence[float]) -> list[list[float]]:
        """Give the numbers of every process, the same list on all.

        Raises:
            PeerLostError: Another process has ended.
        """
        own = torch.tensor(values, dtype=torch.float64)
        rows = own.new_empty(self.size, len(values))
        if self.size == 1:
            return [own.tolist()]
        with _lost_peers():
            dist.all_gather_into_tensor(rows.view(-1), own, group=self._control)
        return [list(map(float, row)) for row in rows.tolist()]

    def sum_(self, tensors: Sequence[torch.Tensor]) -> None:
        """Replace tensors of one dtype by their sums over all processes, in the order of these.

        Raises:
            PeerLostError: Another process has ended.
        """
        if self.size == 1:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        padded = flat.new_zeros(self.size, -(-len(flat) // self.size))
        padded.view(-1)[: len(flat)] = flat
        with _lost_peers():
            slices = torch.empty_like(padded)
            dist.all_to_all_single(slices, padded)
            total = slices[0].clone()
            for other in slices[1:]:
                total += other
            dist.all_gather_into_tensor(padded.view(-1), total)
        parts = padded.view(-1)[: len(flat)].split([tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))


ALONE = Peers(0, 1, None)


@contextlib.contextmanager
def joined(device: Device) -> Iterator[Peers]:
    """Give the processes this one belongs to: those of a group that is there, or of torchrun; else `ALONE`.

    Raises:
        DeviceError: There is no such device.
        UsageError: There are more processes on this machine than GPUs.
    """
    is_ours = not dist.is_initialized() and "TORCHELASTIC_RUN_ID" in os.environ
    if is_ours:
        use_own_gpu(device, int(os.environ["LOCAL_RANK"]))
        dist.init_process_group(backend(device))
    if not dist.is_initialized():
        yield ALONE
        return
    control = dist.new_group(backend="gloo", timeout=_PATIENCE)
    assert isinstance(control, dist.ProcessGroup), "this process is one of them"
    yield Peers(dist.get_rank(), dist.get_world_size(), control)
    if is_ours:
        dist.destroy_process_group()


def backend(device: Device) -> str:
    """Give the library by which processes of a device add their gradients."""
    return "nccl" if choose_device(device).type == "cuda" else "gloo"


def use_own_gpu(device: Device, number: int) -> None:
    """Make the number-th GPU the one of this process, if it is to compute on one.

    Raises:
        UsageError: There is no such GPU.
    """
    if choose_device(device).type != "cuda":
        return
    if number >= torch.cuda.device_count():
        raise UsageError(
            f"this is process {number + 1} of its machine, which has "
            f"{torch.cuda.device_count()} GPUs",
            code="E_NPROC",
            hint="start no more processes than GPUs, or use --device cpu",
        )
    torch.cuda.set_device(number)


@contextlib.contextmanager
def _lost_peers() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # torch has no class of its own for it
        raise PeerLostError(
            "another process of the run has ended",
            code="E_PEER",
            hint="see what it said; the same command goes on from the newest checkpoint",
        ) from error
