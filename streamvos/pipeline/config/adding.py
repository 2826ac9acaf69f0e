"""A stream that is added to a running pipeline: how it is checked, and which files it names.

own = with_stream(config, others, {"name": "side", "source": "camera:1"}, None, files=True)
own.streams                                     # the added one alone
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from streamvos.addresses import is_url
from streamvos.files import read_toml
from streamvos.pipeline.config.pipeline import PipelineConfig
from streamvos.pipeline.config.reading import make_config, make_stream, with_kinds_known
from streamvos.pipeline.config.streams import StreamConfig
from streamvos.pipeline.config.tables import MethodConfig
from streamvos.synthetic.options import parse_parameters
from streamvos.types import InputError


def with_stream(
    config: PipelineConfig,
    others: Sequence[StreamConfig],
    table: Mapping[str, Any],
    method: Mapping[str, Any] | None,
    files: bool,
) -> PipelineConfig:
    """Check a further stream as if it had been in the pipeline's file; it may open the source for that.

    Args:
        config: the pipeline's configuration.
        others: the streams that it has now.
        table: the stream's table in [[streams]].
        method: keys of [method] that replace the pipeline's for this stream.
        files: whether the stream may name files of this machine.

    Returns:
        The pipeline's configuration with this stream alone, its method, and no remote stages.

    Raises:
        InputError: the stream cannot be added; the message says why.
    """
    stream, own_method = make_stream(table, method)
    if not files and (named := names_of_files(stream, own_method)):
        raise InputError(
            f"this request may name nothing on the pipeline's machine, and the stream names "
            f"{', '.join(named)}; over tcp:// that needs remote_files = true in the pipeline's [security]"
        )
    values = config.only(others).model_dump(mode="json")
    values["streams"].append(stream.model_dump(mode="json"))
    if own_method is not None:
        values["method"] = {**_inherited(config.method, own_method), **(method or {})}
    whole = with_kinds_known(make_config(values, "the stream"))
    return whole.only(whole.streams[-1:]).model_copy(update={"remote": {}})


def read_stream(path: Path, name: str | None = None) -> dict[str, Any]:
    """Read a file with one [[streams]] table, and perhaps [method], as arguments of `Client.add_stream`.

    Args:
        path: the file; relative paths in it start from its folder.
        name: a name for the stream, instead of the file's.

    Raises:
        InputError: the file cannot be read, or holds something else; the message names the key.
    """
    values = read_toml(path, "the stream's file")
    streams = values.pop("streams", None)
    method = values.pop("method", None)
    if values or not isinstance(streams, list) or len(streams) != 1 or not isinstance(streams[0], dict):
        count = len(streams) if isinstance(streams, list) else 0
        found = ", ".join([f"{count} [[streams]]", *values])
        raise InputError(f"{path}: expected one [[streams]] table, and perhaps [method], got {found}")
    if method is not None and not isinstance(method, dict):
        raise InputError(f"{path}: method: expected a table, got {method!r:.80}")
    table = {**streams[0], **({} if name is None else {"name": name})}
    stream, own = make_stream(table, method, str(path), path.parent)
    more = {} if own is None else {"method": own.model_dump(mode="json", exclude_unset=True)}
    return {"sinks": [], **stream.model_dump(mode="json", exclude_unset=True), **more}


def names_of_files(stream: StreamConfig, method: MethodConfig | None = None) -> list[str]:
    """What a stream and its method name on the pipeline's machine: files, programs and local sockets."""
    place = stream.source.removeprefix("camera:")
    kind, _, parameters = stream.source.partition(":")
    found = []
    if kind == "synthetic":
        if getattr(parse_parameters(parameters)[1], "stills", None) is not None:
            found.append("the folder of its synthetic source")
    elif not is_url(place) and not (kind == "camera" and place.isdecimal()):
        found.append(f"the source {stream.source}")
    if stream.mask is not None:
        found.append(f"the mask {stream.mask}")
    found += [f"the {one.kind} sink {one.path}" for one in stream.sinks if one.path is not None]
    addresses = [one.address for one in stream.sinks if one.address is not None]
    found += [f"the socket {one}" for one in addresses if one.startswith("ipc://")]
    if method is not None and ":" in method.name:
        found.append(f"the module of the method {method.name}")
    if method is not None and method.weights not in (None, "default"):
        found.append(f"the weights {method.weights}")
    return found


def _inherited(pipelines: MethodConfig, own: MethodConfig) -> dict[str, Any]:
    """The pipeline's method, as far as it holds for a stream's own: weights and options are of one method."""
    values = pipelines.model_dump(mode="json")
    if "name" in own.model_fields_set and own.name != pipelines.name:
        del values["weights"], values["options"]
    return values
