"""Reads a pipeline's configuration from a file, a mapping or options.

config = read_config("pipeline.toml")
config = make_config({"streams": [{"name": "front", "source": "camera:0"}]})

An error is one line: the place, the value, what was expected, and the probable intention.

pipeline.toml: [[streams]] "front": unknown key "sorce"; did you mean "source"? (docs/pipeline.md)
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from streamvos.addresses import is_url, redact
from streamvos.files import read_toml
from streamvos.pipeline.config.files import read_by, written_by
from streamvos.pipeline.config.pipeline import PipelineConfig
from streamvos.pipeline.config.streams import SinkConfig, StreamConfig
from streamvos.pipeline.config.tables import (
    ExtractorConfig,
    MethodConfig,
    ObserveConfig,
    RemoteConfig,
    SecurityConfig,
    SupervisionConfig,
)
from streamvos.sinks.conflicts import refuse_conflicts
from streamvos.sources.kind import ask
from streamvos.sources.live_address import is_live
from streamvos.types import InputError

Location = tuple[int | str, ...]

_TABLES: dict[Location, type[BaseModel]] = {
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
"""Path of a table, with "*" for numbers in arrays and names that users choose -> its model."""

_RANK = {"extra_forbidden": 0, "missing": 2}  # a mistyped key is both; the first says more
_EXPECTED = {
    "string_type": "a text",
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "tuple_type": "an array",
    "path_type": "a path",
    "model_type": "a table",
    "dict_type": "a table",
}
_WORDS = {
    "Input should be ": "",
    "greater than or equal to": "at least",
    "less than or equal to": "at most",
    "greater than": "more than",
    "'": '"',
}


def read_config(path: str | Path, changes: Mapping[str, Any] | None = None) -> PipelineConfig:
    """Read a pipeline.toml. Relative paths in it are relative to the file's folder; "~" is the home folder.

    Args:
        path: path of the file.
        changes: values that override the file's, key by key; paths in them should be absolute.

    Raises:
        InputError: the file cannot be read, is no TOML, or is not valid; the message names the key.
    """
    path = Path(path)
    if not os.path.lexists(path):
        raise InputError(f"cannot read {path}: No such file or directory; expected a pipeline.toml")
    try:
        values = read_toml(path, "the pipeline's file")
    except InputError as error:
        raise InputError(f"{error}; a video or camera is given with --source (docs/pipeline.md)") from None
    return make_config(_merged(values, changes or {}), str(path), path.parent, path)


def make_config(
    values: Mapping[str, Any],
    where: str = "the pipeline",
    base: Path | None = None,
    file: Path | None = None,
) -> PipelineConfig:
    """Check a pipeline's description.

    Args:
        values: as read from TOML, or from `config.model_dump(mode="json")`.
        where: name of the description in error messages.
        base: folder that relative paths start from; None = the current one.
        file: the file that the description was read from.

    Raises:
        InputError: the description is not valid, or an output would replace an input.
    """
    try:
        context = None if base is None else {"base": base}
        config = PipelineConfig.model_validate(dict(values), context=context)
    except ValidationError as error:
        raise InputError(_explain(error, values, where)) from None
    try:
        refuse_conflicts(written_by(config), read_by(config, file))
    except InputError as error:
        raise InputError(f"{where}: {error} (docs/pipeline.md)") from None
    return config


def make_stream(
    table: Mapping[str, Any],
    method: Mapping[str, Any] | None = None,
    where: str = "the stream",
    base: Path | None = None,
) -> tuple[StreamConfig, MethodConfig | None]:
    """Check the description of one stream, as far as that is possible without its pipeline.

    Args:
        table: a table of [[streams]].
        method: the table [method] that is used for this stream; None = the pipeline's.
        where, base: as for `make_config`.

    Raises:
        InputError: the description is not valid.
    """
    context = None if base is None else {"base": base}
    at: Location = ()
    try:
        at = ("streams", 0)
        stream = StreamConfig.model_validate(dict(table), context=context)
        at = ("method",)
        return stream, None if method is None else MethodConfig.model_validate(dict(method), context=context)
    except ValidationError as error:
        raise InputError(_explain(error, {"streams": [table], "method": method}, where, at)) from None


def with_kinds_known(config: PipelineConfig) -> PipelineConfig:
    """The configuration with `finite` filled in, for sources that only opening them can tell.

    What cannot be opened now counts as live. A source that another host opens is not looked at.

    Raises:
        InputError: the configuration is not valid for a source of this kind.
    """
    unknown = [
        one
        for one in config.streams
        if one.finite is None and is_live(one.source) is None and f"source.{one.name}" not in config.remote
    ]
    if not unknown:
        return config
    found = ask({one.source: one.open_timeout for one in unknown})
    values = config.model_dump(mode="json")
    for number, stream in enumerate(config.streams):
        if stream in unknown:
            values["streams"][number]["finite"] = found[stream.source]
    return make_config(values)


def config_from_options(
    source: str,
    *,
    mask: Path | None = None,
    boxes: Sequence[str] = (),
    points: Sequence[str] = (),
    out: Path | None = None,
    publish: bool = True,
    stream: Mapping[str, Any] | None = None,
    changes: Mapping[str, Any] | None = None,
) -> PipelineConfig:
    """A pipeline of one stream, without a file; the stream has the pipeline's name.

    Args:
        source, mask, boxes, points: the stream's.
        out: folder for label maps, overlay and JSON lines; None writes none.
        publish: whether masks are published on a socket.
        stream: further keys of the stream; None values are ignored.
        changes: further keys of the pipeline (name, placement, method, observe, ...).

    Raises:
        InputError: the description is not valid.
    """
    name = (changes or {}).get("name", "default")
    keys = stream_table(
        name, source, mask=mask, boxes=boxes, points=points, out=out, publish=publish, more=stream
    )
    return make_config({**(changes or {}), "streams": [keys]}, "the options")


def stream_table(
    name: str,
    source: str,
    *,
    mask: Path | None = None,
    boxes: Sequence[str] = (),
    points: Sequence[str] = (),
    out: Path | None = None,
    publish: bool = True,
    more: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """A table of [[streams]], not checked; the arguments are those of `config_from_options`."""
    sinks: list[dict[str, Any]] = []
    if out is not None:
        files = {"labels": "labels", "overlay": "overlay.mp4", "json": "results.jsonl"}
        sinks += [{"kind": kind, "path": str(out / file)} for kind, file in files.items()]
    if publish:
        sinks.append({"kind": "publish"})
    pointing = {"boxes": list(boxes), "points": list(points)}
    keys: dict[str, Any] = {"name": name, "source": source, **pointing, "sinks": sinks}
    if mask is not None:
        keys["mask"] = str(mask)
    return keys | {key: value for key, value in (more or {}).items() if value is not None}


def _merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(values)
    for key, value in changes.items():
        old = result.get(key)
        tables = isinstance(old, Mapping) and isinstance(value, Mapping)
        result[key] = _merged(old, value) if tables else value  # type: ignore[arg-type]
    return result


def _explain(error: ValidationError, values: Any, where: str, at: Location = ()) -> str:
    """The first error in the values of `where`, such as a file, as one line; `at`: the table it is in."""
    found = sorted(error.errors(), key=lambda one: _RANK.get(one["type"], 1))
    first = found[0]
    location, kind = (*at, *first["loc"]), first["type"]
    last = len(location) - (kind in _RANK)  # an unknown or missing key is not part of the place
    end = next(n for n in range(last, -1, -1) if _path(location[:n]) in _TABLES)
    if kind == "extra_forbidden":
        said = _unknown(str(location[-1]), _path(location[:-1]))
    elif location == ("streams",) and isinstance(first["input"], Mapping):
        said = "expected an array of tables, got one table; write [[streams]] with two brackets on each side"
    elif kind == "missing":
        said = f'the key "{location[-1]}" is missing'
    elif kind == "value_error":  # raised by a check of the models, with a complete sentence
        said = first["msg"].removeprefix("Value error, ")
    else:
        message = first["msg"]
        for word, better in _WORDS.items():
            message = message.replace(word, better)
        said = f"expected {_EXPECTED.get(kind, message)}, got {_shown(first['input'])}"
        choices = str(first.get("ctx", {}).get("expected", "")).replace(" or ", ", ").split(", ")
        said += _meant(str(first["input"]), [word.strip("'") for word in choices])
    place = " ".join(filter(None, (_table(location[:end], values), *map(str, location[end:last][:1]))))
    more = "" if len(found) == 1 else f"; {len(found) - 1} more wrong"
    return f"{where}: {place}{': ' if place else ''}{said} (docs/pipeline.md{more})"


def _unknown(key: str, table: Location) -> str:
    known = list(_TABLES[table].model_fields)
    if meant := _meant(key, known):
        return f'unknown key "{key}"{meant}'
    elsewhere = [path for path in _TABLES if key in _TABLES[path].model_fields]
    if elsewhere:
        names: dict[Location, str] = {
            (): "the top of the file, before every table",
            ("streams", "*"): "[[streams]]",
            ("streams", "*", "sinks", "*"): "a sink of [[streams]]",
        }
        name = names.get(elsewhere[0], f"[{'.'.join(map(str, elsewhere[0]))}]")
        return f'unknown key "{key}" here; it belongs in {name}'
    return f'unknown key "{key}"; expected one of {", ".join(known)}'


def _meant(word: str, words: Sequence[str]) -> str:
    found = difflib.get_close_matches(word.lower(), words, n=1)
    return f'; did you mean "{found[0]}"?' if found else ""


def _path(location: Location) -> Location:
    """The path of a table as `_TABLES` has it."""
    named = location[:1] == ("remote",)
    return tuple("*" if isinstance(one, int) or (named and n == 1) else one for n, one in enumerate(location))


def _table(location: Location, values: Any) -> str:
    """The table's name in messages, empty at the top level."""
    if location[:1] != ("streams",):
        return f"[{'.'.join(map(str, location))}]" if location else ""
    (_, number, *rest), stream = location, values["streams"][location[1]]
    name = stream.get("name") if isinstance(stream, Mapping) else None
    text = f"[[streams]] {_shown(name) if isinstance(name, str) else f'no. {int(number) + 1}'}"
    if rest:
        sink = stream["sinks"][rest[1]]
        kind = sink.get("kind") if isinstance(sink, Mapping) else None
        text += f", sink {int(rest[1]) + 1}" + (f' ("{kind}")' if isinstance(kind, str) else "")
    return text


def _shown(value: Any) -> str:
    """A value in TOML's notation, shortened and without credentials."""
    if isinstance(value, str):
        text = redact(value) if is_url(value) else value
        return f'"{text if len(text) <= 80 else text[:77] + "..."}"'
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "a table"
    return "an array" if isinstance(value, Sequence) else str(value)[:80]
