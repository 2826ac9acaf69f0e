"""Where a frame's time goes: its most expensive operators, and how much of the machine's peak they reach.

    told = explain(stream.frame, device)
    write_trace(stream.frame, "trace.json", device)         # for Perfetto

On a processor every operator is timed on its own, on one thread: what it computes (operations of products and
convolutions) and moves (bytes of the tensors that it reads and writes) over its time, against the fastest
product of matrices and the fastest copy that this process manages right now. On a GPU the profiler's kernels
are listed, and the frame as a whole is compared.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, flop_registry

FRAMES, TRACED_FRAMES, MOST = 3, 5, 10
SIDE, BUFFER_MIB, ROUNDS = 768, 64, 5
"""Of the matrices and of the copy whose best of some rounds is the peak."""


@dataclass
class _Cost:
    seconds: float = 0.0
    calls: int = 0
    operations: float = 0.0
    moved: float = 0.0
    half: bool = False  # whether products are in bfloat16 or float16


class _Meter(TorchDispatchMode):
    """Adds up what every operator costs, by its name."""

    def __init__(self) -> None:
        super().__init__()
        self.costs: dict[str, _Cost] = defaultdict(_Cost)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func._overloadpacket not in flop_registry:
            with self:  # what it consists of is counted instead
                answer = func.decompose(*args, **kwargs)
            if answer is not NotImplemented:
                return answer
        started = time.perf_counter()
        answer = func(*args, **kwargs)
        took = time.perf_counter() - started
        cost = self.costs[str(func._overloadpacket).removeprefix("aten.")]
        cost.seconds += took
        cost.calls += 1
        tensors = [one for one in tree_leaves((args, kwargs, answer)) if isinstance(one, torch.Tensor)]
        if not func.is_view:
            cost.moved += sum(one.nbytes for one in tensors)
        if func._overloadpacket in flop_registry:
            cost.operations += flop_registry[func._overloadpacket](*args, **kwargs, out_val=answer)
            cost.half |= any(one.dtype in (torch.bfloat16, torch.float16) for one in tensors)
        return answer


def explain(frame: Callable[[], Any], device: torch.device) -> dict[str, Any]:
    """The ten most expensive operators.

    Args:
        frame: runs the next frame of a stream.
        device: where.

    Returns:
        "about", a line for people; "gemm_gflops" and "half_gemm_gflops" (10^9 operations a second),
        "gigabytes_per_second"; "operators": {"name", "calls" and "ms" a frame, "share" of the frame,
        "of_gemm", "of_bandwidth": what part of these peaks it reaches, or None}.
    """
    return _on_gpu(frame, device) if device.type == "cuda" else _on_processor(frame)


def _on_processor(frame: Callable[[], Any]) -> dict[str, Any]:
    with _one_thread():
        gemm, half = gemm_rate(torch.float32), gemm_rate(torch.bfloat16)
        bandwidth = copy_rate()
        frame()
        meter = _Meter()
        with torch.inference_mode(), meter:
            for _ in range(FRAMES):
                frame()
    total = sum(cost.seconds for cost in meter.costs.values())
    operators = []
    for name, cost in sorted(meter.costs.items(), key=lambda item: -item[1].seconds)[:MOST]:
        peak = half if cost.half else gemm
        operators.append(
            {
                "name": name,
                "calls": cost.calls / FRAMES,
                "ms": 1e3 * cost.seconds / FRAMES,
                "share": cost.seconds / total,
                "of_gemm": cost.operations / cost.seconds / peak if cost.operations else None,
                "of_bandwidth": cost.moved / cost.seconds / bandwidth if cost.moved else None,
            }
        )
    about = f"operators on one thread, {1e3 * total / FRAMES:.1f} ms a frame; peaks of this thread: GEMM "
    about += f"{gemm / 1e9:.0f} and {half / 1e9:.0f} GFLOP/s (float32, bfloat16), "
    about += f"memory {bandwidth / 1e9:.1f} GB/s"
    return {
        "about": about,
        "gemm_gflops": gemm / 1e9,
        "half_gemm_gflops": half / 1e9,
        "gigabytes_per_second": bandwidth / 1e9,
        "operators": operators,
    }


def _on_gpu(frame: Callable[[], Any], device: torch.device) -> dict[str, Any]:
    gemm, half = gemm_rate(torch.float32, device), gemm_rate(torch.bfloat16, device)
    bandwidth = copy_rate(device)
    frame()
    with FlopCounterMode(display=False) as counter:
        frame()
    torch.cuda.synchronize(device)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        started = time.perf_counter()
        for _ in range(FRAMES):
            frame()
        torch.cuda.synchronize(device)
        took = (time.perf_counter() - started) / FRAMES
    kernels = [one for one in found.key_averages() if one.self_device_time_total > 0]
    total = sum(one.self_device_time_total for one in kernels)
    operators = [
        {
            "name": one.key,
            "calls": one.count / FRAMES,
            "ms": one.self_device_time_total / 1e3 / FRAMES,
            "share": one.self_device_time_total / total,
            "of_gemm": None,
            "of_bandwidth": None,
        }
        for one in sorted(kernels, key=lambda one: -one.self_device_time_total)[:MOST]
    ]
    reached = counter.get_total_flops() / took / half
    about = f"kernels of the GPU, {total / 1e3 / FRAMES:.2f} ms a frame of {1e3 * took:.2f}; products and "
    about += f"convolutions reach {reached:.1%} of GEMM in bfloat16 ({half / 1e12:.1f} TFLOP/s), memory "
    about += f"{bandwidth / 1e9:.0f} GB/s"
    return {
        "about": about,
        "gemm_gflops": gemm / 1e9,
        "half_gemm_gflops": half / 1e9,
        "gigabytes_per_second": bandwidth / 1e9,
        "operators": operators,
    }


def gemm_rate(dtype: torch.dtype, device: torch.device | str = "cpu", side: int | None = None) -> float:
    """Operations a second of the best of some products of square matrices."""
    cuda = torch.device(device).type == "cuda"
    side = side or (8 * SIDE if cuda else SIDE)
    left, right = (torch.rand(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / _best(lambda: left @ right, cuda)


def copy_rate(device: torch.device | str = "cpu") -> float:
    """Bytes a second of the best of some copies, read and written ones together."""
    cuda = torch.device(device).type == "cuda"
    source = torch.zeros(BUFFER_MIB * (16 if cuda else 1) * 2**20 // 4, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _best(lambda: target.copy_(source), cuda)


def _best(work: Callable[[], Any], cuda: bool) -> float:
    least = math.inf
    for _ in range(ROUNDS):
        started = time.perf_counter()
        work()
        if cuda:
            torch.cuda.synchronize()
        least = min(least, time.perf_counter() - started)
    return least


def write_trace(frame: Callable[[], Any], path: str, device: torch.device) -> None:
    """A Chrome trace of some frames: stages, operators with their shapes, and kernels and copies of a GPU."""
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    everywhere = torch._C._profiler._ExperimentalConfig(profile_all_threads=True)
    with profile(activities=activities, record_shapes=True, experimental_config=everywhere) as found:
        for _ in range(TRACED_FRAMES):
            frame()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    found.export_chrome_trace(path)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Other threads would run out of the meter's sight."""
    earlier = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(earlier)
