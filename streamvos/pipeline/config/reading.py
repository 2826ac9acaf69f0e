"""From a file, a mapping or options to a pipeline's configuration.

config = read_config("pipeline.toml")
config = make_config({"streams": [{"name": "front", "source": "camera:0"}]})
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from streamvos.pipeline.config.errors import explain
from streamvos.pipeline.config.pipeline import PipelineConfig
from streamvos.pipeline.config.streams import SinkConfig, StreamConfig
from streamvos.pipeline.config.supervision import ObserveConfig, SupervisionConfig
from streamvos.pipeline.config.tables import ExtractorConfig, MethodConfig, RemoteConfig, SecurityConfig
from streamvos.types import InputError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_TABLES: dict[tuple[int | str, ...], type[BaseModel]] = {
    (): PipelineConfig,
    ("method",): MethodConfig,
    ("streams", "*"): StreamConfig,
    ("streams", "*", "sinks", "*"): SinkConfig,
    ("supervision",): SupervisionConfig,
    ("extractor",): ExtractorConfig,
    ("observe",): ObserveConfig,
    ("security",): SecurityConfig,
    ("remote", "*"): RemoteConfig,
}
"""The tables of a pipeline.toml, for messages about keys."""


def read_config(path: str | Path, changes: Mapping[str, Any] | None = None) -> PipelineConfig:
    """Read a pipeline.toml. Relative paths in it are relative to the file's folder; "~" is the home folder.

    Args:
        path: of the file.
        changes: laid over what the file says, key by key; paths in it should be absolute.

    Raises:
        InputError: it cannot be read, is no TOML, or says what cannot be; the message names the key.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            values = tomllib.load(file)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; expected a pipeline.toml") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is no TOML; a video or camera is given with --source") from None
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path} is no TOML: {error} (docs/pipeline.md)") from None
    return make_config(_laid_over(values, changes or {}), str(path), path.parent)


def make_config(
    values: Mapping[str, Any], where: str = "the pipeline", base: Path | None = None
) -> PipelineConfig:
    """Check a pipeline's description.

    Args:
        values: as TOML has them; or as `config.model_dump(mode="json")` gives them.
        where: what messages call it.
        base: folder that relative paths start from; None = the current one.

    Raises:
        InputError: it says what cannot be.
    """
    try:
        context = None if base is None else {"base": base}
        return PipelineConfig.model_validate(dict(values), context=context)
    except ValidationError as error:
        raise InputError(explain(error, values, where, _TABLES)) from None


def config_from_options(
    source: str,
    *,
    mask: Path | None = None,
    boxes: Sequence[str] = (),
    out: Path | None = None,
    publish: bool = True,
    stream: Mapping[str, Any] | None = None,
    changes: Mapping[str, Any] | None = None,
) -> PipelineConfig:
    """A pipeline of one stream, without a file; the stream bears the pipeline's name.

    Args:
        source, mask, boxes: of the stream.
        out: folder for label maps, overlay and lines of JSON; None = they are not written.
        publish: the masks on a socket.
        stream: further keys of the stream; those that are None are left out.
        changes: further keys of the pipeline (name, placement, method, observe, ...).

    Raises:
        InputError: it says what cannot be.
    """
    sinks: list[dict[str, Any]] = []
    if out is not None:
        files = {"labels": "labels", "overlay": "overlay.mp4", "json": "results.jsonl"}
        sinks += [{"kind": kind, "path": str(out / name)} for kind, name in files.items()]
    if publish:
        sinks.append({"kind": "publish"})
    name = (changes or {}).get("name", "default")
    keys: dict[str, Any] = {"name": name, "source": source, "boxes": list(boxes), "sinks": sinks}
    if mask is not None:
        keys["mask"] = str(mask)
    keys |= {key: value for key, value in (stream or {}).items() if value is not None}
    return make_config({**(changes or {}), "streams": [keys]}, "the options")


def _laid_over(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(values)
    for key, value in changes.items():
        below = result.get(key)
        both = isinstance(below, Mapping) and isinstance(value, Mapping)
        result[key] = _laid_over(below, value) if both else value  # type: ignore[arg-type]
    return result
