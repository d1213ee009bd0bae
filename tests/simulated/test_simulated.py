"""The simulated GPU does what a real one does where a program could go wrong."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl

from tests.simulated.gpu import is_simulated

pytestmark = pytest.mark.skipif(not is_simulated(), reason="needs the simulated GPU (make test)")


def on_gpu(*values: float) -> torch.Tensor:
    return torch.tensor(values, device="cuda")


def test_results_are_those_of_the_cpu_and_lie_on_the_gpu() -> None:
    x, y = torch.randn(3, 4), torch.randn(4)
    there = (x.cuda() * y.to("cuda")) @ x.t().to(device="cuda")
    assert there.is_cuda
    assert torch.equal(there.cpu(), (x * y) @ x.t())
    row = there[1]
    row += 1
    assert there[1].tolist() == row.tolist()


def test_operands_of_two_devices_are_refused() -> None:
    with pytest.raises(RuntimeError, match="expected all tensors to be on cuda:0"):
        on_gpu(1.0, 2.0) + torch.ones(2)
    assert (on_gpu(1.0, 2.0) + torch.tensor(1.0)).tolist() == [2.0, 3.0]


def test_a_copy_to_the_host_has_come_after_its_event_only() -> None:
    copy = on_gpu(1.0, 2.0).to("cpu", non_blocking=True)
    event = torch.cuda.Event()
    event.record()
    assert copy.isnan().all()
    event.synchronize()
    assert copy.tolist() == [1.0, 2.0]


@pytest.mark.parametrize("waits", [True, False])
def test_who_writes_over_what_is_being_copied_is_told(waits: bool) -> None:
    host = torch.ones(4, pin_memory=True)
    there = host.to("cuda", non_blocking=True)
    event = torch.cuda.Event()
    event.record()
    if waits:
        event.synchronize()
        host.zero_()
        torch.cuda.synchronize()
    else:
        host.zero_()
        with pytest.raises(RuntimeError, match="written to before its copy had ended"):
            torch.cuda.synchronize()
    assert there.tolist() == [1.0] * 4


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: x.tolist(),
        lambda x: x[x > 1],
        lambda x: x.nonzero(),
        lambda x: x + torch.ones(2).cuda(),
    ],
)
def test_what_waits_is_known(wait) -> None:  # type: ignore[no-untyped-def] # noqa: ANN001
    x = on_gpu(1.0, 2.0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        assert (x + 1).is_cuda
        with pytest.raises(RuntimeError, match="synchronizing"):
            wait(x)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    with (
        pytest.raises(RuntimeError, match="when stream is capturing"),
        torch.cuda.graph(torch.cuda.CUDAGraph()),
    ):
        wait(x)


def test_a_graph_is_noted_and_done_at_replay() -> None:
    total, step, by = on_gpu(0.0), on_gpu(1.0), 2
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        doubled = step * by
        total += doubled
    assert total.tolist() == [0.0]
    by = 3
    step.fill_(5.0)
    graph.replay()
    assert total.tolist() == [10.0]  # of the tensor as it is, and the number as it was
    graph.replay()
    assert total.tolist() == [20.0]
    assert doubled.isnan().all()  # other graphs may have used it by now


def test_a_graph_does_not_outlive_what_it_reads() -> None:
    total, step = on_gpu(0.0), on_gpu(1.0)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        total += step
    graph.replay()
    del step
    with pytest.raises(RuntimeError, match="memory that was given back"):
        graph.replay()


@triton.jit
def _double(x, count, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN202
    at = tl.arange(0, BLOCK)
    tl.store(x + at, 2 * tl.load(x + at, mask=at < count), mask=at < count)


def test_kernels_take_tensors_of_the_gpu_only() -> None:
    x = on_gpu(1.0, 2.0, 3.0)
    _double[(1,)](x, 2, BLOCK=4)
    assert x.tolist() == [2.0, 4.0, 3.0]
    with pytest.raises(ValueError, match="cpu tensor"):
        _double[(1,)](torch.ones(4), 2, BLOCK=4)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        _double[(1,)](x, 3, BLOCK=4)
    assert x.tolist() == [2.0, 4.0, 3.0]
    graph.replay()
    assert x.tolist() == [4.0, 8.0, 6.0]


@pytest.mark.parametrize("fault", [None, "early", "given back"])
def test_another_stream_copies_as_late_as_it_may(fault: str | None) -> None:
    host, x = torch.zeros(4, pin_memory=True), on_gpu(1.0, 2.0, 3.0, 4.0)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    if fault == "early":
        x += 1
        with torch.cuda.stream(side), pytest.raises(RuntimeError, match="not have computed yet"):
            host.copy_(x, non_blocking=True)
        return
    with torch.cuda.stream(side):
        for part, values in zip(host.split(2), x.split(2), strict=True):
            part.copy_(values, non_blocking=True)
        with pytest.raises(NotImplementedError, match="another stream"):
            x += 1
    x *= 2  # which comes before the copy, for all that the program has asked for
    if fault == "given back":
        del x, values
        with pytest.raises(RuntimeError, match="memory was given back"):
            torch.cuda.current_stream().wait_stream(side)
        return
    torch.cuda.current_stream().wait_stream(side)
    assert host.tolist() == [2.0, 4.0, 6.0, 8.0]


@pytest.mark.parametrize("is_shared", [True, False])
def test_graphs_of_one_stream_work_in_the_same_memory(is_shared: bool) -> None:
    x = on_gpu(1.0)
    streams = [torch.cuda.Stream() for _ in range(2)]
    kept, other = (torch.cuda.CUDAGraph() for _ in range(2))
    for graph, stream in ((kept, streams[0]), (other, streams[0 if is_shared else 1])):
        with torch.cuda.graph(graph, stream=stream):
            x += 1
    del graph, other
    if is_shared:
        with pytest.raises(RuntimeError, match="another one of its stream gave back"):
            kept.replay()
    else:
        kept.replay()
