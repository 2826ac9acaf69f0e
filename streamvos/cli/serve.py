"""`streamvos serve`: run streams through a pipeline of processes until they end.

streamvos serve --source camera:0 --mask first.png
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, closing, nullcontext
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Annotated, Any

import typer

from streamvos.addresses import redact
from streamvos.cli import options
from streamvos.cli.output import check_replaceable, remark, write_json
from streamvos.masks.exports import file_of_mask
from streamvos.pipeline.config.files import claim_of, local_stages, read_by, written_by
from streamvos.pipeline.config.pipeline import PipelineConfig
from streamvos.pipeline.config.reading import config_from_options, make_config, read_config, with_kinds_known
from streamvos.pipeline.telemetry.logs import EventLog
from streamvos.sinks.conflicts import refuse_conflicts
from streamvos.types import InputError, StreamvosError

EXAMPLES = options.examples(
    "streamvos serve examples/pipeline.toml",
    "streamvos serve --source camera:0 --mask first.png",
    "streamvos serve --source camera:0 --box 1:200,120,420,460 --height 240 --out out/",
    "streamvos serve --source clip.mp4 --mask first.png --out out/ --no-publish --json",
    "streamvos serve --source camera:0 --console",
    "streamvos serve --keep --console",
    "streamvos serve pipeline.toml --placement split --trace trace.json --prometheus 9464",
)


def serve(
    file: Annotated[
        Path | None, typer.Argument(metavar="[PIPELINE.toml]", help="What to run (docs/pipeline.md).")
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(metavar="SOURCE", help="One stream instead of a PIPELINE.toml; as for `streamvos run`."),
    ] = None,
    mask: options.MaskPath = None,
    boxes: options.Boxes = None,
    points: options.Points = None,
    select: options.Select = None,
    sam_encoder: options.SamEncoder = None,
    sam_decoder: options.SamDecoder = None,
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Name of the pipeline, and of the stream of --source.")
    ] = None,
    placement: Annotated[
        str | None, typer.Option(metavar="fused|split", help="All networks in one process, or one per stage.")
    ] = None,
    method: Annotated[str | None, options.METHOD] = None,
    weights: Annotated[str | None, options.WEIGHTS] = None,
    device: Annotated[str | None, options.DEVICE] = None,
    backend: Annotated[str | None, options.BACKEND] = None,
    settings: options.MethodSettings = None,
    policy: options.PolicyName = None,
    height: options.Height = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FOLDER", help="Folder for label maps, overlay and JSON lines."),
    ] = None,
    overwrite: options.Overwrite = False,
    publish: Annotated[
        bool | None,
        typer.Option("--publish/--no-publish", help="Publish masks on a socket; the default with --source."),
    ] = None,
    trace: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a timeline of all stages, for ui.perfetto.dev.")
    ] = None,
    prometheus: Annotated[
        str | None, typer.Option(metavar="[HOST:]PORT", help="Serve metrics; by default on 127.0.0.1.")
    ] = None,
    console: Annotated[
        str | None,
        typer.Option(
            metavar="[HOST:PORT]", help="Serve a page to watch and select objects; by default here."
        ),
    ] = None,
    log: Annotated[
        str | None, typer.Option(metavar="text|json", help="Format of the log; text by default.")
    ] = None,
    max_frames: options.MaxFrames = None,
    first_frame: options.FirstFrame = None,
    topic: options.Topic = None,
    allow_truncated: options.AllowTruncated = False,
    realtime: options.Realtime = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Go on without streams, until Ctrl-C; `ctl add` adds some.")
    ] = False,
    json_target: options.JsonTarget = None,
) -> None:
    """Run many streams in processes that supervise each other.

    Options override the file. By default the method is tvos, the device auto, the backend eager.

    Ctrl-C ends the pipeline in order: frames in flight are written, and the exit code is 0. The exit code is
    1 if a stream failed.
    """
    changes = {  # paths are relative to the current folder here, to the file's folder in a file
        "name": name,
        "placement": placement,
        "overwrite": overwrite or None,
        "keep": keep or None,
        "method": {
            "name": method,
            "weights": None if weights is None else options.placed_weights(weights),
            "device": device,
            "backend": backend,
            "options": options.method_settings(settings) or None,
        },
        "selection": {
            "by": select,
            "sam_encoder": None if sam_encoder is None else str(sam_encoder.absolute()),
            "sam_decoder": None if sam_decoder is None else str(sam_decoder.absolute()),
        },
        "observe": {
            "trace": None if trace is None else str(trace.absolute()),
            "prometheus": prometheus,
            "log": log,
        },
    }
    of_stream = {
        "policy": policy,
        "height": height,
        "max_frames": max_frames,
        "first_frame": first_frame,
        "topic": topic,
        "allow_truncated": allow_truncated or None,
        "realtime": realtime,
    }
    of_source = {"mask": mask, "box": boxes, "point": points, "out": out, "publish": publish, **of_stream}
    if file is not None:
        if source is not None:
            raise InputError("a PIPELINE.toml names its own sources, so --source adds none; give one of them")
        given = [f"--{key.replace('_', '-')}" for key, value in of_source.items() if value is not None]
        if given:
            raise InputError(
                f"{', '.join(given)} belongs to --source; a PIPELINE.toml sets it for each of its [[streams]]"
            )
        config = read_config(file, _given(changes))
    elif console is not None and publish is False:
        raise InputError("the console shows published masks; leave out --no-publish")
    elif source is None and keep:
        if more := _given(of_source):
            raise InputError(f"--{', --'.join(more)} belongs to --source, which is missing")
        config = make_config(_given(changes), "the options")
    elif source is None:
        raise InputError(
            "there is nothing to serve; give a PIPELINE.toml, or --source with --mask, --box or --point: "
            "streamvos serve --source camera:0 --mask first.png; or --keep, if streams are added later"
        )
    else:
        config = config_from_options(
            source,
            mask=mask,
            boxes=boxes or (),
            points=points or (),
            out=out,
            publish=publish is not False,
            stream=of_stream,
            changes=_given(changes),
        )
    _check_files(config, file, json_target)
    config = with_kinds_known(config)
    raise typer.Exit(_supervise(config, json_target, console))


def _supervise(config: PipelineConfig, json_target: str | None, console: str | None = None) -> int:
    """Run the pipeline to its end, and return the exit code; the supervisor handles signals meanwhile."""
    from streamvos.pipeline.supervision.supervisor import Supervisor

    _check_method(config)
    _check_backend(config)
    with closing(EventLog(config.observe.log)) as log, _console(config, console, log):
        supervisor = Supervisor(config, log)
        code = supervisor.run()
    write_json(supervisor.summary(), json_target)
    return code


def _console(config: PipelineConfig, place: str | None, log: EventLog) -> AbstractContextManager[object]:
    """The console's process; `place` is the value of --console."""
    if place is None:
        return nullcontext()
    from streamvos.console.process import ConsoleProcess
    from streamvos.console.server import DEFAULT_PORT, address

    chosen = config.selection
    files = {"sam_encoder": chosen.sam_encoder, "sam_decoder": chosen.sam_decoder}
    more = {name: str(path) for name, path in files.items() if path is not None}
    more |= {"selection": chosen.by, "device": config.method.device}
    if place != options.CONSOLE_ANYWHERE:
        console = ConsoleProcess(config.name, *address(place), log.event, more)
    else:
        try:
            console = ConsoleProcess(config.name, "127.0.0.1", DEFAULT_PORT, log.event, more)
        except StreamvosError:  # the port is taken
            console = ConsoleProcess(config.name, "127.0.0.1", 0, log.event, more)
    remark(f"console: {console.url}")  # not in the log, since it ends with the token
    return console


def _check_files(config: PipelineConfig, file: Path | None, json_target: str | None) -> None:
    """Refuse missing files, and outputs over files of the user, before anything starts."""
    result = options.places_of_files({"--json": json_target})
    refuse_conflicts([*written_by(config), *result], read_by(config, file))
    if config.observe.trace is not None:
        check_replaceable(config.observe.trace, "--trace")
    claim_of(config, local_stages(config)).check()
    for stream in config.streams:
        if stream.mask is not None and not file_of_mask(stream.mask).is_file():
            raise InputError(
                f"there is no mask {stream.mask} for the stream {stream.name!r}; "
                f"`streamvos run {redact(stream.source)} --save-first first.png` saves a frame to paint on"
            )
    for path in (config.security.secret, config.security.clients):
        if path is not None and not path.exists():
            raise InputError(f"there is no {path}; `streamvos keys new` makes keys (docs/pipeline.md)")


def _check_method(config: PipelineConfig) -> None:
    """Refuse an unknown method, option or weight file before anything starts."""
    method, remote = config.method, _is_all_remote(config)
    if ":" in method.name:  # a user's method, whose code runs in the workers only
        if remote:
            return
        module = method.name.partition(":")[0].partition(".")[0]
        # workers import from the current folder, too
        places = (importlib.util.find_spec, lambda name: PathFinder.find_spec(name, [os.getcwd()]))
        if not module or not any(find(module) for find in places):
            raise InputError(f"cannot load the method {method.name!r}: No module named {module!r}")
        return
    weights = method.weights
    if weights not in (None, "default") and remote:
        weights = None  # the file is on the host where the networks run
    names = options.METHOD_NAMES if weights is None else options.BUNDLED_NAMES if weights == "default" else ()
    if method.name in names and not method.options:
        return  # nothing to check, so this process does not import torch
    from streamvos.weights import check_method

    check_method(method.name, weights, method.options)


def _check_backend(config: PipelineConfig) -> None:
    """Refuse a backend that cannot be used, before anything starts."""
    backend, device = config.method.backend, config.method.device
    if backend in ("eager", "auto") or _is_all_remote(config):
        return
    import torch

    from streamvos.engines.engines import check_backend

    # choose_device is not used here: a CUDA context would take GPU memory in this process
    on_gpu = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    check_backend(backend, torch.device("cuda" if on_gpu else "cpu"))


def _is_all_remote(config: PipelineConfig) -> bool:
    """Whether every stage that needs the method's weights is started elsewhere."""
    outside = ("source.", "sinks.")
    return all(stage in config.remote for stage in config.stage_names if not stage.startswith(outside))


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    """Without values that are None, and without empty tables."""
    result: dict[str, Any] = {}
    for name, value in values.items():
        given = _given(value) if isinstance(value, Mapping) and name != "options" else value
        if given is not None and given != {}:
            result[name] = given
    return result
