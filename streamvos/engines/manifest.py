"""What is known of an engine, in a file beside it.

manifest = Manifest.read(folder / "manifest.json")
manifest.parity.passed
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from streamvos.types import InputError

FILE = "manifest.json"


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Parity(_Record):
    """How an engine compares with eager.

    Attributes:
        passed: whether it may be used.
        feature_error: the largest of its outputs' relative errors: norm of the difference over the norm.
        mask_overlap: J between the masks with the engine and those without, mean over frames and objects.
        worst_overlap: of the frame and object where it is least.
        frames: of the clip.
        clip: what it was.
        reason: why it did not pass; empty if it did.
    """

    passed: bool
    feature_error: float
    mask_overlap: float
    worst_overlap: float
    frames: int
    clip: str
    reason: str = ""

    def __str__(self) -> str:
        numbers = (
            f"feature error {self.feature_error:.2g}, J with eager's masks {self.mask_overlap:.4f} "
            f"(worst {self.worst_overlap:.4f}) over {self.frames} frames"
        )
        return numbers if self.passed else f"REFUSED, {self.reason}: {numbers}"


class Manifest(_Record):
    """One engine.

    Attributes:
        format: see `streamvos.engines.keys.FORMAT`.
        key: its name.
        plan: digest of its plan.
        about: the plan in full.
        frames: (H, W) of the clip's frames.
        objects: that were followed in the clip.
        artefact: file name; None = refused by the parity gate, kept so that nobody builds it again.
        sha256, size: of the file, in bytes.
        parity: see `Parity`.
        layout: of the features that an extractor gives: name, and whether it is the frames themselves.
        outputs: shape, dtype and strides of every output, as the signature of inputs has them.
        built_at: nanoseconds since 1970.
        seconds: that each step of building took.
        milliseconds: per call, eager's and the engine's, measured in turns.
    """

    format: int
    key: str
    plan: str
    about: dict[str, Any]
    frames: tuple[int, int]
    objects: int
    artefact: str | None
    sha256: str
    size: int
    parity: Parity
    layout: list[tuple[str, bool]] | None
    outputs: list[dict[str, Any]]
    built_at: int
    seconds: dict[str, float]
    milliseconds: dict[str, float]

    @property
    def backend(self) -> str:
        """That built it."""
        return str(self.about["backend"])

    @property
    def title(self) -> str:
        """For people: method, part, frames, what it is called with, backend."""
        shape = "x".join(str(side) for side in self.about["inputs"][0]["shape"])
        size = "x".join(str(side) for side in self.frames)
        name = f"{self.about['method']}/{self.about['part']} {shape}"
        return f"{name} {self.backend}" if shape.endswith(size) else f"{name} of {size} {self.backend}"

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """From a file.

        Raises:
            InputError: it is not there, or no manifest.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            raise InputError(f"{path} is no manifest of an engine: {str(error).splitlines()[0]}") from None


class Choice(_Record):
    """What `auto` found to be the fastest on this machine.

    Attributes:
        question: digest of what was to be decided.
        backend: the answer; "eager" where no engine is faster and equal.
        milliseconds: backend -> per call.
        left_out: backend -> why.
        decided_at: nanoseconds since 1970.
    """

    question: str
    backend: str
    milliseconds: dict[str, float]
    left_out: dict[str, str]
    decided_at: int

    def __str__(self) -> str:
        times = ", ".join(
            f"{n} {ms:.1f} ms" for n, ms in sorted(self.milliseconds.items(), key=lambda item: item[1])
        )
        out = "; ".join(f"{name} left out: {why}" for name, why in sorted(self.left_out.items()))
        return f"{self.backend} is the fastest that agrees with eager ({times}{'; ' + out if out else ''})"
