"""What the bodies of the console's requests may hold."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from streamvos.types import MAX_OBJECT_ID


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Runs(_Model):
    """One mask: COCO's compressed run lengths."""

    size: tuple[int, int] = Field(description="[H, W] in pixels")
    counts: str = Field(max_length=2**20)


Coordinate = Annotated[float, Field(ge=-65536, le=65536)]
Sign = Literal[1, -1]


class Freeze(_Model):
    """Which frame to freeze; without seq the one that is shown now."""

    seq: int | None = Field(None, ge=0)
    incarnation: int | None = Field(None, ge=0)


class Select(_Model):
    """What points at an object in a frame."""

    frame: str | None = Field(None, max_length=64, description="a frozen frame; without it the newest one")
    points: list[tuple[Coordinate, Coordinate, Sign]] = Field(
        default=[], max_length=100, description="[x, y, 1 on the object or -1 beside it] in pixels"
    )
    box: tuple[Coordinate, Coordinate, Coordinate, Coordinate] | None = Field(
        None, description="left, top, right, bottom in pixels"
    )
    mask: Runs | None = Field(None, description="an earlier mask of the object, to be improved")


class GivenObject(_Model):
    """An object and its mask."""

    id: int = Field(ge=1, le=MAX_OBJECT_ID)
    rle: Runs
    name: str | None = Field(None, max_length=200)


class Annotate(_Model):
    """Masks that start or correct objects."""

    frame: str | None = Field(
        None, max_length=64, description="the frozen frame of the masks, which are carried to the newest one"
    )
    objects: list[GivenObject] = Field(min_length=1, max_length=MAX_OBJECT_ID)


class Rename(_Model):
    """A new name; "" takes it away."""

    name: str = Field(max_length=200)


class AddStream(_Model):
    """A stream to be added to the running pipeline."""

    name: str = Field(max_length=64, description="its name, which no other stream has")
    source: str = Field(max_length=4096, description="where its frames come from, as in pipeline.toml")
    method: str | None = Field(None, max_length=200, description="instead of the pipeline's")
    height: int | None = Field(None, description="resize its frames to this many rows")
    realtime: bool | None = Field(None, description="play a video at its own rate, as if it were a camera")
