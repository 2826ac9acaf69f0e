"""Requests about streams, their frames and their masks as files."""

from __future__ import annotations

import time
from enum import Enum
from typing import Annotated, Any, Literal

from anyio import to_thread
from fastapi import APIRouter, Depends, Query, Response

from streamvos.console.bodies import AddStream, Freeze
from streamvos.console.feeds import View
from streamvos.console.hub import Hub
from streamvos.console.label_maps import label_map_of, png, snapshot

TAGS: list[str | Enum] = ["streams"]
FRAMES: list[str | Enum] = ["frames and masks"]


def stream_requests(hub: Hub) -> APIRouter:
    """Streams: what is known of them, pausing, ending, adding and removing them; their frames."""
    router = APIRouter(prefix="/api")
    one = APIRouter(prefix="/streams/{stream}", dependencies=[Depends(hub.need)])

    @router.get("/streams", tags=TAGS)
    async def streams() -> dict[str, Any]:
        """All streams: state, rate, drops, latencies, objects."""
        await hub.fresh()
        return hub.summary()

    @router.post("/streams", tags=TAGS, status_code=201)
    async def add(body: AddStream) -> dict[str, Any]:
        """Add a stream; answered when it has begun, within 65 s.

        A live source that cannot be opened now is tried again, and the state is then "starting". Its masks
        are published. A console that listens beyond this machine refuses sources that are files.
        """
        keys = body.model_dump(exclude_none=True, exclude={"name", "source", "method"})
        state = await to_thread.run_sync(
            lambda: hub.backend.add_stream(body.name, body.source, body.method, keys)
        )
        hub.event("added", body.name)
        await hub.look()
        return {"stream": body.name, "state": state.get("state", ""), "reason": state.get("reason", "")}

    @router.get("/events", tags=TAGS)
    async def events(after: Annotated[int, Query(ge=0)] = 0) -> list[dict[str, Any]]:
        """The last events, those with a number above `after`."""
        return hub.events(after)

    @one.get("", tags=TAGS)
    async def stream(stream: str) -> dict[str, Any]:
        """One stream."""
        await hub.fresh()
        return hub.statuses.stream(stream)

    @one.delete("", tags=TAGS)
    async def remove(stream: str) -> dict[str, Any]:
        """End a stream and forget it, with its objects; answered when its files are finished, within 65 s."""
        last = await to_thread.run_sync(lambda: hub.backend.remove_stream(stream))
        await hub.look()
        return {"stream": stream, "state": last.get("state", ""), "reason": last.get("reason", "")}

    def command(verb: Literal["pause", "resume", "stop"], text: str) -> None:
        async def act(stream: str) -> dict[str, str]:
            function = getattr(hub.backend, verb)
            await to_thread.run_sync(lambda: function(stream))
            hub.event("command", stream, verb=verb)
            await hub.look()
            return {"stream": stream, "done": verb}

        one.post(f"/{verb}", tags=TAGS, name=verb, description=text)(act)

    command("pause", "Take no frames until `resume`; a live stream drops them.")
    command("resume", "Take frames again.")
    command("stop", "End the stream; answered when it has ended. It stays in the list until it is removed.")

    @one.get("/frame.jpg", tags=FRAMES)
    async def frame(stream: str) -> Response:
        """The newest frame; its number is in the header `X-Seq`."""
        return _picture(await hub.view(stream))

    @one.get("/mask.png", tags=FRAMES)
    async def mask(stream: str) -> Response:
        """The newest label map: a palette PNG, 0 is background, the index is the object's id."""
        view = await hub.view(stream)
        content = await to_thread.run_sync(lambda: png(label_map_of(view)))
        return Response(content, media_type="image/png", headers=_head(view))

    @one.get("/snapshot.zip", tags=FRAMES)
    async def zipped(stream: str, frame: Annotated[str | None, Query(max_length=64)] = None) -> Response:
        """A frame as PNG, its label map, and its objects as JSON; of a frozen frame or of the newest one."""
        view = await hub.view(stream) if frame is None else hub.held(stream, frame).view
        described = {**hub.described(view), "time": time.time()}
        content = await to_thread.run_sync(snapshot, view, described)
        name = f"{stream}-{view.picture.seq:06d}.zip"
        headers = {"Content-Disposition": f'attachment; filename="{name}"', **_head(view)}
        return Response(content, media_type="application/zip", headers=headers)

    @one.post("/frames", tags=FRAMES, status_code=201)
    async def freeze(stream: str, body: Freeze | None = None) -> dict[str, Any]:
        """Freeze a frame, to select objects in it while the stream goes on; kept for 10 minutes."""
        key = None
        if body is not None and body.seq is not None:
            newest = await hub.view(stream)
            key = (newest.key[0] if body.incarnation is None else body.incarnation, body.seq)
        held = await hub.hold(stream, key)
        return {"frame": held.token, **hub.described(held.view)}

    @one.get("/frames/{frame}.jpg", tags=FRAMES)
    async def frozen(stream: str, frame: str) -> Response:
        """A frozen frame."""
        return _picture(hub.held(stream, frame).view)

    @one.delete("/frames/{frame}", tags=FRAMES, status_code=204)
    async def release(stream: str, frame: str) -> Response:
        """Forget a frozen frame."""
        hub.release(stream, frame)
        return Response(status_code=204)

    router.include_router(one)
    return router


def _picture(view: View) -> Response:
    return Response(view.picture.jpeg, media_type="image/jpeg", headers=_head(view))


def _head(view: View) -> dict[str, str]:
    incarnation, seq = view.key
    return {"X-Seq": str(seq), "X-Incarnation": str(incarnation)}
