"""The description of an engine, in a file beside it.

manifest = Manifest.read(folder / "manifest.json")
manifest.parity.passed
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from streamvos.engines.keys import Plan
from streamvos.types import InputError

FILE = "manifest.json"

WORTHWHILE = 0.95
"""`auto` takes an engine that needs less than this share of eager's time; a smaller gain may be noise."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Parity(_Record):
    """How an engine compares with eager.

    Attributes:
        passed: whether the engine may be used.
        feature_error: the largest relative error of an output: norm of the difference over the norm.
        mask_overlap: J between the masks with the engine and those without, mean over frames and objects.
        worst_overlap: J of the frame and object where it is least.
        frames: length of the clip.
        clip: name of the clip.
        reason: why the engine did not pass; empty if it did.
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
        name: digest of the plan.
        plan: what was compiled, and how.
        frames: (H, W) of the frames of the clip.
        objects: how many were followed in the clip.
        artefact: file name; None = the parity gate refused it, and it is not built again.
        sha256, size: of the file; bytes.
        parity: how the engine compares with eager.
        layout: for extractors: name of each feature map, and whether it is the frames themselves.
        built_at: nanoseconds since 1970.
        seconds: duration of each step of the build.
        milliseconds: per call, of eager and of the engine, measured in turns.
    """

    name: str
    plan: Plan
    frames: tuple[int, int]
    objects: int
    artefact: str | None
    sha256: str
    size: int
    parity: Parity
    layout: list[tuple[str, bool]] | None
    built_at: int
    seconds: dict[str, float]
    milliseconds: dict[str, float]

    @property
    def is_faster(self) -> bool:
        """Whether `auto` may take it: it passed and is faster than eager on this machine."""
        return self.parity.passed and self.share < WORTHWHILE

    @property
    def share(self) -> float:
        """Time of the engine over the time of eager."""
        return self.milliseconds["engine"] / self.milliseconds["eager"]

    @property
    def title(self) -> str:
        """Method, part, shape of the first input, size of the frames if that differs, backend."""
        shape = str(self.plan.signature).partition(" ")[0]
        size, backend = "x".join(str(side) for side in self.frames), self.plan.backend
        name = f"{self.plan.method}/{self.plan.part} {shape}"
        return f"{name} {backend}" if shape.endswith(size) else f"{name} of {size} {backend}"

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Read the manifest from a file.

        Raises:
            InputError: the file is missing or no manifest.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            raise InputError(f"{path} is no manifest of an engine: {str(error).splitlines()[0]}") from None
