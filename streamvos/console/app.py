"""The HTTP API, the WebSocket and the page of the console (docs/console.md).

app = make_app(hub, selecting)          # an ASGI application; `guard.Guard` stands in front of it
"""

from __future__ import annotations

import asyncio
import io
import json
import math
import tempfile
import time
import zipfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from anyio import CapacityLimiter, to_thread
from fastapi import FastAPI, HTTPException, Query, Request, Response, WebSocket, WebSocketDisconnect
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from streamvos.console.feeds import Held, View, key_of
from streamvos.console.guard import WEBSOCKET
from streamvos.console.hub import Hub, Viewer, now_ms
from streamvos.console.selecting import Carried, Selecting, decoded
from streamvos.masks.checks import MASK_BYTES, named_objects, object_ids
from streamvos.masks.labelmap import davis_palette, read_label_map
from streamvos.masks.rle import decode_rle, encode_rles
from streamvos.pipeline.clients.client import PipelineError
from streamvos.pipeline.clients.subscribing import Picture
from streamvos.types import MAX_OBJECT_ID, InputError

PAGE = Path(__file__).parent / "page"

CALCULATIONS = 8
"""Selections and carried masks that may run or wait at a time."""

MESSAGES_PER_SECOND, MESSAGES_AT_ONCE = 120.0, 240.0
"""Rate of the messages of one WebSocket."""

_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_DESCRIPTION = """Everything but `/healthz` and `/readyz` needs `Authorization: Bearer TOKEN`.
Errors are `{"error": "what came, what was expected"}`: 400 bad input, 401 no token, 404 no such stream,
409 the object is not in the newest frame any more, 413 too large, 429 too much at once, 503 the pipeline
does not answer. Masks are COCO's compressed run lengths, or palette PNGs whose index is the object's id."""


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


def make_app(hub: Hub, selecting: Selecting) -> FastAPI:
    """The application.

    Args:
        hub: the console's state; the application starts and closes it.
        selecting: selects objects and carries their masks.
    """

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        await hub.start()
        yield
        await hub.close()

    app = FastAPI(
        title="streamvos console",
        description=_DESCRIPTION,
        version="1",
        lifespan=life,
        docs_url=None,  # FastAPI's own pages load scripts from a CDN
        redoc_url=None,
    )
    work = _Work(CALCULATIONS)

    def known(stream: str) -> None:
        if stream not in hub.streams:
            if not hub.status:
                raise PipelineError(hub.problem)
            raise HTTPException(404, f"there is no stream {stream!r}; there are: {', '.join(hub.streams)}")

    # ---- errors

    @app.exception_handler(InputError)
    async def bad_input(_: Request, error: InputError) -> JSONResponse:
        return JSONResponse({"error": str(error)}, 400)

    @app.exception_handler(PipelineError)
    async def no_pipeline(_: Request, error: PipelineError) -> JSONResponse:
        return JSONResponse({"error": str(error)}, 503)

    @app.exception_handler(RequestValidationError)
    async def malformed(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = ".".join(str(one) for one in first["loc"] if one != "body")
        return JSONResponse({"error": f"{place or 'the body'}: {first['msg']}"}, 400)

    @app.exception_handler(HTTPException)
    async def refused(_: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": error.detail}, error.status_code)

    # ---- probes and metrics

    @app.get("/healthz", tags=["probes"])
    async def healthz() -> dict[str, str]:
        """Whether the console is up."""
        return {"status": "up"}

    @app.get("/readyz", tags=["probes"])
    async def readyz(response: Response) -> dict[str, Any]:
        """Whether every stream has given a mask within 10 s, else 503; paused and ended ones do not count."""
        unready = hub.unready()
        ready = not hub.problem and not unready
        response.status_code = 200 if ready else 503
        return {"ready": ready, "problem": hub.problem, "unready": unready}

    @app.get("/metrics", tags=["probes"])
    async def metrics() -> Response:
        """The pipeline's metrics in Prometheus' text format (docs/pipeline.md)."""
        from streamvos.pipeline.telemetry.prometheus import metrics_text

        if hub.problem or hub.backend.kind != "pipeline":
            raise PipelineError(hub.problem or "one picture has no metrics")
        return Response(metrics_text(hub.status), media_type="text/plain; version=0.0.4")

    # ---- streams

    @app.get("/api/streams", tags=["streams"])
    async def streams() -> dict[str, Any]:
        """All streams: state, rate, drops, latencies, objects."""
        return hub.summary()

    @app.get("/api/streams/{stream}", tags=["streams"])
    async def stream(stream: str) -> dict[str, Any]:
        """One stream."""
        known(stream)
        return hub.stream(stream)

    def command(verb: Literal["pause", "resume", "stop"], text: str) -> None:
        async def act(stream: str) -> dict[str, str]:
            known(stream)
            function = getattr(hub.backend, verb)
            await to_thread.run_sync(lambda: function(stream))
            hub.event("command", stream, verb=verb)
            hub.look_soon()
            return {"stream": stream, "done": verb}

        app.post(f"/api/streams/{{stream}}/{verb}", tags=["streams"], name=verb, description=text)(act)

    command("pause", "Take no frames until `resume`; a live stream drops them.")
    command("resume", "Take frames again.")
    command("stop", "End the stream; answered when it has ended.")

    @app.get("/api/events", tags=["streams"])
    async def events(after: Annotated[int, Query(ge=0)] = 0) -> list[dict[str, Any]]:
        """The last events, those with a number above `after`."""
        return hub.events(after)

    # ---- frames and masks

    @app.get("/api/streams/{stream}/frame.jpg", tags=["frames and masks"])
    async def frame(stream: str) -> Response:
        """The newest frame; its number is in the header `X-Seq`."""
        known(stream)
        return _picture(await hub.view(stream))

    @app.get("/api/streams/{stream}/mask.png", tags=["frames and masks"])
    async def mask(stream: str) -> Response:
        """The newest label map: a palette PNG, 0 is background, the index is the object's id."""
        known(stream)
        view = await hub.view(stream)
        return Response(_png(_label_map(view)), media_type="image/png", headers=_head(view))

    @app.put("/api/streams/{stream}/mask.png", tags=["frames and masks"])
    async def upload(
        stream: str, request: Request, frame: Annotated[str | None, Query(max_length=64)] = None
    ) -> dict[str, Any]:
        """Start or correct the objects of a label map, the body: a PNG as `streamvos run --mask` takes it.

        With `frame` it belongs to that frozen frame and is carried to the newest one.
        """
        known(stream)
        body = await request.body()
        label_map = await to_thread.run_sync(_read_upload, body)
        return await annotated(stream, label_map, frame)

    @app.get("/api/streams/{stream}/snapshot.zip", tags=["frames and masks"])
    async def snapshot(stream: str, frame: Annotated[str | None, Query(max_length=64)] = None) -> Response:
        """A frame as PNG, its label map, and its objects as JSON; of a frozen frame or of the newest one."""
        known(stream)
        view = await hub.view(stream) if frame is None else hub.held(stream, frame).view
        described = {**hub.described(view), "time": time.time()}
        content = await to_thread.run_sync(_snapshot, view, described)
        name = f"{stream}-{view.picture.seq:06d}.zip"
        headers = {"Content-Disposition": f'attachment; filename="{name}"', **_head(view)}
        return Response(content, media_type="application/zip", headers=headers)

    @app.post("/api/streams/{stream}/frames", tags=["frames and masks"], status_code=201)
    async def freeze(stream: str, body: Freeze | None = None) -> dict[str, Any]:
        """Freeze a frame, to select objects in it while the stream goes on; kept for 10 minutes."""
        known(stream)
        key = None
        if body is not None and body.seq is not None:
            newest = await hub.view(stream)
            key = (newest.key[0] if body.incarnation is None else body.incarnation, body.seq)
        held = await hub.hold(stream, key)
        return {"frame": held.token, **hub.described(held.view)}

    @app.get("/api/streams/{stream}/frames/{frame}.jpg", tags=["frames and masks"])
    async def frozen(stream: str, frame: str) -> Response:
        """A frozen frame."""
        known(stream)
        return _picture(hub.held(stream, frame).view)

    @app.delete("/api/streams/{stream}/frames/{frame}", tags=["frames and masks"], status_code=204)
    async def release(stream: str, frame: str) -> Response:
        """Forget a frozen frame."""
        known(stream)
        hub.release(stream, frame)
        return Response(status_code=204)

    # ---- objects

    @app.get("/api/streams/{stream}/objects", tags=["objects"])
    async def objects(stream: str) -> dict[str, Any]:
        """The objects in the newest frame: name, state, score, area, box, mask."""
        known(stream)
        return hub.described(await hub.view(stream))

    @app.patch("/api/streams/{stream}/objects/{object_id}", tags=["objects"])
    async def rename(stream: str, object_id: int, body: Rename) -> dict[str, Any]:
        """Name an object; the console keeps the name."""
        known(stream)
        if not 1 <= object_id <= MAX_OBJECT_ID:
            raise InputError(f"object ids are 1..{MAX_OBJECT_ID}, got {object_id}")
        hub.rename(stream, object_id, body.name)
        return {"id": object_id, "name": hub.name_of(stream, object_id)}

    @app.delete("/api/streams/{stream}/objects/{object_id}", tags=["objects"])
    async def forget(stream: str, object_id: int) -> dict[str, Any]:
        """Forget an object; `seq` is the first frame without it."""
        known(stream)
        seq = await to_thread.run_sync(lambda: hub.backend.forget(stream, object_id))
        hub.drop_name(stream, object_id)
        hub.event("forgotten", stream, object=object_id, seq=seq)
        hub.look_soon()
        return {"id": object_id, "seq": seq}

    @app.post("/api/streams/{stream}/select", tags=["objects"])
    async def select(stream: str, body: Select) -> dict[str, Any]:
        """The mask of the object that clicks, a box or an earlier mask point at; changes nothing.

        `frame` in the answer is the frozen frame, for further clicks and for `annotate`.
        """
        known(stream)
        held = await hub.hold(stream, None) if body.frame is None else hub.held(stream, body.frame)
        size = held.view.picture.size
        earlier = None if body.mask is None else _decoded_runs(body.mask, size) != 0

        def run() -> tuple[np.ndarray, float, dict[int, Any]]:
            image = decoded(held.view.picture.jpeg)
            found, score = selecting.select(image, body.points, body.box, earlier)
            return found, score, encode_rles(found, [1])

        found, score, runs = await work.run(run)
        area = int(np.count_nonzero(found))
        answer = {"frame": held.token, "seq": held.view.picture.seq, "size": list(size)}
        return {**answer, "score": score if math.isfinite(score) else 0.0, "area": area, "rle": runs[1]}

    @app.post("/api/streams/{stream}/annotate", tags=["objects"])
    async def annotate(stream: str, body: Annotate) -> dict[str, Any]:
        """Start or correct objects of the running stream; where they overlap, the last one is in front.

        With `frame`, the masks are carried from that frozen frame to the newest one: the console segments the
        frames between, at most 36 of them, evenly chosen. `carried` in the answer says how many it used.
        """
        known(stream)
        size = (
            body.objects[0].rle.size if body.frame is None else hub.held(stream, body.frame).view.picture.size
        )
        label_map = np.zeros(_checked_size(size), np.uint8)
        for one in body.objects:
            label_map[_decoded_runs(one.rle, size) != 0] = one.id
        hidden = sorted({one.id for one in body.objects} - set(object_ids(label_map)))
        if hidden:
            raise InputError(f"the mask of object {hidden[0]} is empty, or others cover it")
        answer = await annotated(stream, label_map, body.frame)
        for one in body.objects:
            if one.name is not None:
                hub.rename(stream, one.id, one.name)
        return answer

    async def annotated(stream: str, label_map: np.ndarray, token: str | None) -> dict[str, Any]:
        ids = named_objects(label_map)
        held = None if token is None else hub.held(stream, token)

        def run() -> tuple[int, Carried]:
            carried = Carried(label_map) if held is None else _carry(selecting, held, label_map)
            return hub.backend.annotate(stream, carried.label_map), carried

        seq, carried = await work.run(run)
        hub.event("annotated", stream, objects=ids, seq=seq, used=carried.used, seen=carried.seen)
        hub.look_soon()
        return {"seq": seq, "objects": ids, "carried": {"used": carried.used, "frames": carried.seen}}

    # ---- the WebSocket

    @app.websocket("/api/ws")
    async def websocket(socket: WebSocket) -> None:
        try:
            viewer = hub.join()
        except InputError as error:
            await socket.close(1013, str(error))
            return
        try:
            await socket.accept(WEBSOCKET if WEBSOCKET in socket.scope.get("subprotocols", []) else None)
            sender = asyncio.create_task(_send(socket, viewer))
            asyncio.create_task(to_thread.run_sync(selecting.load, limiter=work.limiter))  # noqa: RUF006
            try:
                await _receive(socket, hub, viewer)
            finally:
                sender.cancel()
        except (WebSocketDisconnect, RuntimeError, OSError):
            pass  # it has left
        finally:
            hub.leave(viewer)

    # ---- the page

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return _file("index.html")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> FileResponse:
        return _file("docs.html")

    @app.get("/page/{name}", include_in_schema=False)
    async def file(name: str) -> FileResponse:
        return _file(name)

    return app


class _Work:
    """Calculations in threads, of which only some may run or wait."""

    def __init__(self, most: int):
        self.limiter = CapacityLimiter(most)
        self._most, self._waiting = most, 0

    async def run(self, function: Any) -> Any:
        if self._waiting >= self._most:
            raise HTTPException(429, "too many selections at once; try again")
        self._waiting += 1
        try:
            return await to_thread.run_sync(function, limiter=self.limiter)
        finally:
            self._waiting -= 1


# ---- the WebSocket


async def _send(socket: WebSocket, viewer: Viewer) -> None:
    async for message in viewer.messages():
        if isinstance(message, bytes):
            await socket.send_bytes(message)
        else:
            await socket.send_text(message)


async def _receive(socket: WebSocket, hub: Hub, viewer: Viewer) -> None:
    """Handle a page's messages until it leaves; one that sends too many, or nonsense, is left."""
    left, at = MESSAGES_AT_ONCE, time.monotonic()
    while True:
        message = await socket.receive()
        if message["type"] == "websocket.disconnect":
            return
        now = time.monotonic()
        left, at = min(MESSAGES_AT_ONCE, left + (now - at) * MESSAGES_PER_SECOND) - 1, now
        fields = _fields(message.get("text"))
        if left < 0 or fields is None:
            await socket.close(1008, "too many messages" if left < 0 else "not a message of this protocol")
            return
        kind, name = fields.get("type"), fields.get("stream", "")
        if kind == "drawn":
            viewer.drawn()
        elif kind == "ping" and isinstance(fields.get("sent"), (int, float)):
            viewer.say("pong", sent=fields["sent"], now_ms=now_ms())
        elif kind == "watch" and isinstance(name, str):
            try:
                await hub.watch(viewer, name)
            except (InputError, PipelineError) as error:
                viewer.say("problem", text=str(error))
        else:
            await socket.close(1008, "not a message of this protocol")
            return


def _fields(text: str | None) -> dict[str, Any] | None:
    def no_constant(word: str) -> None:
        raise ValueError(word)

    try:
        fields = json.loads(text or "", parse_constant=no_constant)
    except (ValueError, RecursionError):
        return None
    numbers = [one for one in fields.values() if isinstance(one, float)] if isinstance(fields, dict) else []
    return fields if isinstance(fields, dict) and all(map(math.isfinite, numbers)) else None


# ---- masks


def _carry(selecting: Selecting, held: Held, label_map: np.ndarray) -> Carried:
    if label_map.shape != held.view.picture.size:
        height, width = held.view.picture.size
        got = f"{label_map.shape[1]} x {label_map.shape[0]}"
        raise InputError(f"the mask is {got}, the frozen frame {width} x {height} (W x H)")

    def later(last: Picture | None) -> list[Picture]:
        frames = list(held.later)
        return frames if last is None else [one for one in frames if key_of(one) > key_of(last)]

    try:
        return selecting.carry(decoded(held.view.picture.jpeg), label_map, later)
    except InputError as error:
        raise HTTPException(409, str(error)) from None


def _checked_size(size: tuple[int, int]) -> tuple[int, int]:
    height, width = size
    if not (height > 0 and width > 0 and height * width <= MASK_BYTES):
        raise InputError(f"a mask has 1 to {MASK_BYTES} pixels, got {width} x {height} (W x H)")
    return height, width


def _decoded_runs(runs: Runs, size: tuple[int, int]) -> np.ndarray:
    if runs.size != tuple(size):
        raise InputError(f"the mask is {list(runs.size)}, the frame {list(size)} (H, W)")
    _checked_size(runs.size)
    return decode_rle({"size": list(runs.size), "counts": runs.counts})


def _label_map(view: View) -> np.ndarray:
    return np.zeros(view.picture.size, np.uint8) if view.mask is None else view.mask.label_map


def _png(label_map: np.ndarray) -> bytes:
    picture = Image.fromarray(np.ascontiguousarray(label_map))
    picture.putpalette(davis_palette().tobytes())
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", compress_level=4)
    return buffer.getvalue()


def _read_upload(body: bytes) -> np.ndarray:
    """The label map in an uploaded file, checked as every mask is."""
    name = "the uploaded label map"
    if not body:
        raise InputError(f"{name} is empty; send a PNG as the body")
    with tempfile.TemporaryDirectory(prefix="streamvos-") as folder:
        path = Path(folder) / "upload.png"
        path.write_bytes(body)
        try:
            with Image.open(path) as picture:  # before any pixel is decompressed
                _checked_size((picture.height, picture.width))
        except InputError:
            raise
        except Exception:  # Pillow raises many types; the reader says what is wrong
            pass
        try:
            return read_label_map(path)
        except InputError as error:
            raise InputError(
                str(error).replace(f"the label map {path}", name).replace(str(path), name)
            ) from None


def _snapshot(view: View, described: dict[str, Any]) -> bytes:
    frame = io.BytesIO()
    Image.fromarray(decoded(view.picture.jpeg)).save(frame, format="PNG", compress_level=4)
    stem = f"{view.picture.stream}-{view.picture.seq:06d}"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:  # PNGs do not get smaller
        archive.writestr(f"{stem}.png", frame.getvalue())
        archive.writestr(f"{stem}-labels.png", _png(_label_map(view)))
        archive.writestr(f"{stem}.json", json.dumps(described, indent=1))
    return buffer.getvalue()


# ---- answers


def _picture(view: View) -> Response:
    return Response(view.picture.jpeg, media_type="image/jpeg", headers=_head(view))


def _head(view: View) -> dict[str, str]:
    incarnation, seq = view.key
    return {"X-Seq": str(seq), "X-Incarnation": str(incarnation)}


def _file(name: str) -> FileResponse:
    path = PAGE / name
    if path.parent != PAGE or path.suffix not in _TYPES or not path.is_file():
        raise HTTPException(404, "there is no such page")
    return FileResponse(path, media_type=_TYPES[path.suffix])
