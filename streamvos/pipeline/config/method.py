"""What the networks are, and how they run: [method] and [extractor]."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, Strict, ValidationInfo, field_validator

from streamvos.pipeline.config.tables import Table, from_base


class MethodConfig(Table):
    """Which method segments, as `streamvos.load` takes it.

    Attributes:
        training: "inline" (a target model that trains does so within its frame; bit-identical to `Segmenter`)
            or "background" (the stream goes on with the old model until the new one is ready).
        threads: that torch uses within an operation, in each worker; None leaves it to torch.
    """

    name: str = "tvos"
    weights: str | None = "default"
    device: str = "auto"
    backend: str = "eager"
    options: dict[str, Any] = Field(default_factory=dict)
    training: Literal["inline", "background"] = "inline"
    threads: int | None = Field(None, ge=1, le=1024)

    @field_validator("weights")
    @classmethod
    def _place_weights(cls, weights: str | None, info: ValidationInfo) -> str | None:
        """TOML has no null: "none" stands for it."""
        if weights is None or weights.lower() == "none":
            return None
        return weights if weights == "default" else str(from_base(Path(weights), info))


class ExtractorConfig(Table):
    """Batching over streams.

    Attributes:
        batches: sizes that may run, ascending, from 1.
        measured: only those that prove faster, at the start, than their frames one by one.
    """

    batches: tuple[Annotated[int, Strict()], ...] = Field((1, 2, 4, 8), strict=False)
    measured: bool = True

    @field_validator("batches")
    @classmethod
    def _check(cls, batches: tuple[int, ...]) -> tuple[int, ...]:
        if not batches or batches[0] != 1 or list(batches) != sorted(set(batches)) or batches[-1] > 64:
            raise ValueError(f"expected sizes that ascend from 1 to at most 64, got {list(batches)}")
        return batches
