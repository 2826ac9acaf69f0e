"""What a frame costs on its way between processes: rate, and the time from the memory to the decoder.

    python bench/placements.py                                       # tvos, frtm-fast and rgmp at 480p
    python bench/placements.py --methods tvos --placements tcp --size 240x428 --runs 5

split: every stage in a process of its own, evidence goes through shared memory. tcp: the decoder is a remote
stage on this machine, so that evidence and predictions are messages over TCP. One lossless stream of a
synthetic video with two objects; medians over the frames from `WARM_UP` on. "evidence" is what the memory
sends to the decoder for a frame, in bytes.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from pipelines import ROOT, about, serving, tell

import streamvos
from streamvos.sources import open_source

WARM_UP = 5
WEIGHTS: dict[str, dict[str, Any]] = {"rgmp": {"weights": None}, "joint": {"weights": None}}


def evidence_bytes(method: str, source: str) -> int:
    """Bytes of the arrays that the memory sends to the decoder for the second frame."""
    import torch

    from streamvos.pipeline.config.tables import MethodConfig
    from streamvos.pipeline.stages.method import make_method
    from streamvos.pipeline.stages.serialization import array_sizes, pack_question
    from streamvos.segmenter import Extraction, StreamState, check_mask, decide

    extract = Extraction(make_method(MethodConfig(name=method, **WEIGHTS.get(method, {}))), "cpu")
    state = StreamState(extract.method, extract.device)
    with open_source(source) as frames, torch.inference_mode():
        for t, frame in enumerate(frames):
            features = extract([torch.from_numpy(frame.image)])
            given = check_mask(frames.label_map(0), frame.size, extract.device) if t == 0 else None
            question = state.ask(features, given)
            if t:
                arrays, _ = pack_question(question)
                return sum(array_sizes(arrays))
            state.learn(features, question, decide(extract.method, question))
    raise ValueError("a video of two frames or more is needed")


def run(method: str, placement: str, source: str, folder: Path, threads: int) -> dict[str, float]:
    """Frames/s of one pipeline, and milliseconds from the memory to the decoder."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    config: dict[str, Any] = {
        "name": "bench",
        "placement": "split",
        "method": {"name": method, "device": "cpu", "threads": threads, **WEIGHTS.get(method, {})},
        "streams": [
            {"name": "cam", "source": source, "policy": "lossless", "sinks": [{"kind": "publish"}]},
        ],
        "supervision": {"standby": False},
    }
    remote = None
    if placement == "tcp":
        config |= {"host": "127.0.0.1", "port": port, "remote": {"decoder.cam": {"host": "127.0.0.1"}}}
        command = [sys.executable, "-m", "streamvos.cli", "stage", "decoder.cam"]
        command += ["--connect", f"tcp://127.0.0.1:{port}"]
        remote = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)})
    try:
        with serving(config, folder, threads=None) as pipeline:
            path = Path(pipeline.runtime) / "streamvos" / "bench" / "control.sock"
            pipeline.wait_for(path.exists)
            with streamvos.Client(f"ipc://{path}", timeout=10.0) as client:
                pipeline.wait_for(lambda: client.status()["streams"]["cam"]["seq"] is not None)
                stamps = [mask.stamps for mask in client.masks("cam", "raw")][WARM_UP:]
    finally:
        if remote is not None:
            remote.kill()
            remote.wait()
    seconds = (stamps[-1]["sinks"][0] - stamps[0]["sinks"][0]) / 1e9
    crossing = [(one["decoder"][1] - one["memory"][2]) / 1e6 for one in stamps]
    return {"fps": (len(stamps) - 1) / seconds, "to_decoder_ms": statistics.median(crossing)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--methods", nargs="+", default=["tvos", "frtm-fast", "rgmp"])
    parser.add_argument("--placements", nargs="+", choices=("split", "tcp"), default=["split", "tcp"])
    parser.add_argument("--size", default="480x854", help="HxW in pixels")
    parser.add_argument("--frames", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1, help="of torch, in each process")
    parser.add_argument("--runs", type=int, default=3, help="of each case; the median counts")
    parser.add_argument("--out", type=Path, help="write the figures there as JSON")
    given = parser.parse_args()
    source = f"synthetic:seed=4,objects=2,size={given.size},length={given.frames},leave=0"
    folder, rows = Path(tempfile.mkdtemp(prefix="bench")), []
    print(f"{'method':12}{'placement':>11}{'evidence':>12}{'to decoder':>13}{'rate':>12}")
    try:
        for method in given.methods:
            size = evidence_bytes(method, source)
            for placement in given.placements:
                runs = [
                    run(method, placement, source, folder / f"{method}-{placement}-{k}", given.threads)
                    for k in range(given.runs)
                ]
                fps, crossing = (statistics.median(one[n] for one in runs) for n in ("fps", "to_decoder_ms"))
                rows.append({"method": method, "placement": placement, "evidence_bytes": size, "runs": runs})
                print(
                    f"{method:12}{placement:>11}{size / 1e6:>9.2f} MB{crossing:>10.2f} ms{fps:>10.2f}/s",
                    flush=True,
                )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    tell({"benchmark": "placements", **about(), "size": given.size, "cases": rows}, given.out)


if __name__ == "__main__":
    main()
