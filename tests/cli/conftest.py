"""What the tests of the command line share: a tiny network's weights, small inputs, and a way to call it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

import streamvos
from streamvos.cli import main
from streamvos.masks.labelmap import write_label_map
from streamvos.synthetic.synthetic import SyntheticOptions, SyntheticVideo
from streamvos.weights import save_weights

NETWORK = {"depth": 18, "stages": 2, "planes": [16, 16], "embedding": 16, "normalize": True}
LENGTH, HEIGHT, WIDTH = 6, 48, 64


@dataclass(frozen=True)
class Answer:
    """What a command came to."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line that bad input is answered with."""
        lines = self.err.splitlines()
        assert (self.code, self.out, len(lines)) == (2, "", 1), self
        assert lines[0].startswith("streamvos: error: ")
        return lines[0]


Call = Callable[..., Answer]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """Run the command line in this process: call("run", "clip.mp4", ...)."""

    def run(*arguments: object) -> Answer:
        code = main([str(one) for one in arguments])
        captured = capsys.readouterr()
        return Answer(code, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weight file that loads at once and segments 48 x 64 pixels in milliseconds: random, but not blind."""
    torch.manual_seed(0)
    extractor = streamvos.load("tvos", None, device="cpu", network=NETWORK).method.extractor
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    options = {"network": NETWORK, "top_k": 5, "temperature": 20.0, "radius": 1, "keep_first": True}
    save_weights(path, extractor.state_dict(), "tvos", {"options": options})
    return path


@pytest.fixture(scope="session")
def video() -> SyntheticVideo:
    """Six frames with the objects 1 and 2, which are large."""
    options = SyntheticOptions(size=(HEIGHT, WIDTH), length=LENGTH, objects=2, leave=0.0, motion=0.5)
    return SyntheticVideo(13, options)


@pytest.fixture
def inputs(tmp_path: Path, video: SyntheticVideo, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory: clip.mp4 and frames/ show the same, first.png is their first label map."""
    folder = tmp_path / "inputs"
    (folder / "frames").mkdir(parents=True)
    images = [frame.image for frame in video]
    for index, image in enumerate(images):
        Image.fromarray(image).save(folder / "frames" / f"shot_{index + 1}.png")
    _write_video(folder / "clip.mp4", images)
    write_label_map(folder / "first.png", video[0].label_map)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="session")
def write_video() -> Callable[..., None]:
    """write_video(path, images, fps=12): an MP4 of RGB pictures."""
    return _write_video


@pytest.fixture
def davis(tmp_path: Path) -> Path:
    """A data set with the sequences "ant" and "bee", one object each."""
    root = tmp_path / "davis"
    for seed, name in ((8, "ant"), (33, "bee")):
        options = SyntheticOptions(size=(HEIGHT, WIDTH), length=5, objects=1, leave=0.0, motion=0.5)
        frames, labels = root / "JPEGImages/480p" / name, root / "Annotations/480p" / name
        frames.mkdir(parents=True)
        labels.mkdir(parents=True)
        for index, frame in enumerate(SyntheticVideo(seed, options)):
            Image.fromarray(frame.image).save(frames / f"{index:05d}.jpg", quality=95)
            Image.fromarray(frame.label_map * 255).save(labels / f"{index:05d}.png")
    return root


def _write_video(path: Path, images: list[np.ndarray], fps: int = 12) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
