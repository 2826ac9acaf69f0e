"""What all tables of a pipeline.toml have in common."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Strict, ValidationInfo

from streamvos.addresses import redact

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


class Table(BaseModel):
    """A table: keys that it does not have are refused, and it does not change."""

    # strict: `queue = true` is no number, and "480" is none either
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def from_base(path: Path, info: ValidationInfo) -> Path:
    """A path of a file, which starts from the file's folder; of anything else, as it is."""
    return path if info.context is None else info.context["base"] / path.expanduser()


ConfigPath = Annotated[Path, Strict(False), AfterValidator(from_base)]
"""A path; a relative one starts from the folder of the file that it stands in."""


def checked_name(name: str) -> str:
    """A name that fits into topics, logs and names of files.

    Raises:
        ValueError: it does not.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(
            "expected 1 to 64 letters, digits, '_', '.' or '-', beginning with a letter or a digit, "
            f'got "{redact(name)[:80]}"'
        )
    return name
