"""CUDA graphs: the same numbers as without, and outputs that the next call leaves alone. Needs a GPU."""

from __future__ import annotations

import threading

import pytest
import torch

from streamvos.engines.cuda_graphs import graphed, graphed_when_called

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="NO GPU: CUDA graphs cannot be recorded"),
]


@pytest.fixture
def network() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU()).cuda().eval()


@torch.inference_mode()
def test_a_replay_gives_the_network_s_numbers_and_keeps_earlier_outputs(network):
    first, second = (torch.randn(1, 3, 16, 24, device="cuda") for _ in range(2))
    run = graphed(lambda x: (network(x),), (first,))
    (ours,) = run(first)
    kept = ours.clone()
    (other,) = run(second)
    assert torch.equal(ours, kept)
    # the same kernels; a library may choose another algorithm while it is recorded
    torch.testing.assert_close(ours, network(first), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(other, network(second), atol=1e-5, rtol=1e-4)


@torch.inference_mode()
def test_what_cannot_be_recorded_runs_as_it_is(caplog):
    run = graphed_when_called(lambda x: (x * float(x.sum()),))
    x = torch.ones(3, device="cuda")
    stream = torch.cuda.current_stream()
    assert run(x)[0].tolist() == [3.0, 3.0, 3.0]
    assert "no CUDA graph" in caplog.text
    # nothing of it is left behind: the next recording goes well
    assert torch.cuda.current_stream() == stream
    torch.cuda.empty_cache()
    run = graphed(lambda x: (x + 1,), (x,))
    assert run(x)[0].tolist() == [2.0, 2.0, 2.0]


def test_strides_stay_and_calls_may_come_in_any_mode():
    x = torch.randn(2, 8, 6, device="cuda")[:, ::2]
    with torch.inference_mode():
        run = graphed(lambda x: (x.transpose(1, 2)[..., :3],), (x,))
    (y,) = run(x)
    assert y.stride() == torch.empty_strided(x.shape, x.stride()).transpose(1, 2)[..., :3].stride()
    assert torch.equal(y, x.transpose(1, 2)[..., :3])
    with torch.inference_mode():
        assert torch.equal(run(2 * x.clone())[0], 2 * y)


def test_streams_in_threads_of_their_own_get_their_own_answers():
    """Decoders of several streams share one network, and so its recording."""
    run = graphed_when_called(lambda x: (x.cumsum(0) + x,))
    numbers = [torch.full((1 << 16,), float(k), device="cuda") for k in range(4)]
    wrong: list[int] = []

    def follow(k: int) -> None:
        with torch.inference_mode(), torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(200):
                if float(run(numbers[k])[0][0]) != 2 * k:
                    wrong.append(k)

    torch.cuda.synchronize()
    threads = [threading.Thread(target=follow, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
