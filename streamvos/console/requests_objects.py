"""Requests about objects: selecting, starting, correcting, naming and forgetting them."""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import Enum
from typing import Annotated, Any, TypeVar

import numpy as np
from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Depends, HTTPException, Query, Request

from streamvos.console.bodies import Annotate, Rename, Select
from streamvos.console.feeds import Held, key_of
from streamvos.console.hub import Hub
from streamvos.console.label_maps import checked_size, decoded_runs, read_upload
from streamvos.console.selecting import Carried, Selecting, decoded
from streamvos.masks.checks import named_objects, object_ids
from streamvos.masks.rle import encode_rles
from streamvos.pipeline.clients.published import Picture
from streamvos.types import MAX_OBJECT_ID, InputError

TAGS: list[str | Enum] = ["objects"]

CALCULATIONS = 8
"""Selections and carried masks that may run or wait at a time."""

_T = TypeVar("_T")


class Work:
    """Calculations in threads, of which only some may run or wait."""

    def __init__(self, most: int = CALCULATIONS):
        self.limiter = CapacityLimiter(most)
        self._most, self._waiting = most, 0

    async def run(self, function: Callable[[], _T]) -> _T:
        """Its result; refuses with 429 if too many wait."""
        if self._waiting >= self._most:
            raise HTTPException(429, "too many selections at once; try again")
        self._waiting += 1
        try:
            return await to_thread.run_sync(function, limiter=self.limiter)
        finally:
            self._waiting -= 1


def object_requests(hub: Hub, selecting: Selecting, work: Work) -> APIRouter:
    """Objects of a stream."""
    router = APIRouter(prefix="/api/streams/{stream}", dependencies=[Depends(hub.need)])

    @router.get("/objects", tags=TAGS)
    async def objects(stream: str) -> dict[str, Any]:
        """The objects in the newest frame: name, state, score, area, box, mask."""
        return hub.described(await hub.view(stream))

    @router.patch("/objects/{object_id}", tags=TAGS)
    async def rename(stream: str, object_id: int, body: Rename) -> dict[str, Any]:
        """Name an object; the console keeps the name."""
        if not 1 <= object_id <= MAX_OBJECT_ID:
            raise InputError(f"object ids are 1..{MAX_OBJECT_ID}, got {object_id}")
        hub.rename(stream, object_id, body.name)
        return {"id": object_id, "name": hub.name_of(stream, object_id)}

    @router.delete("/objects/{object_id}", tags=TAGS)
    async def forget(stream: str, object_id: int) -> dict[str, Any]:
        """Forget an object; `seq` is the first frame without it."""
        await _refuse_paused(hub, stream)
        seq = await to_thread.run_sync(lambda: hub.backend.forget(stream, object_id))
        hub.drop_object(stream, object_id)
        hub.event("forgotten", stream, object=object_id, seq=seq)
        hub.look_soon()
        return {"id": object_id, "seq": seq}

    @router.post("/select", tags=TAGS)
    async def select(stream: str, body: Select) -> dict[str, Any]:
        """The mask of the object that clicks, a box or an earlier mask point at; changes nothing.

        `frame` in the answer is the frozen frame, for further clicks and for `annotate`.
        """
        if not hub.statuses.stream(stream)["shows_frames"]:
            raise InputError(
                f"the frames of {stream} are on another machine, so nothing can be selected in them; "
                "upload a label map"
            )
        held = await hub.hold(stream, None) if body.frame is None else hub.held(stream, body.frame)
        size = held.view.picture.size
        earlier = None if body.mask is None else decoded_runs(body.mask, size) != 0

        def run() -> tuple[np.ndarray, float, dict[int, Any]]:
            image = decoded(held.view.picture.jpeg)
            found, score = selecting.select(image, body.points, body.box, earlier)
            return found, score, encode_rles(found, [1])

        found, score, runs = await work.run(run)
        area = int(np.count_nonzero(found))
        answer = {"frame": held.token, "seq": held.view.picture.seq, "size": list(size)}
        return {**answer, "score": score if math.isfinite(score) else 0.0, "area": area, "rle": runs[1]}

    @router.post("/annotate", tags=TAGS)
    async def annotate(stream: str, body: Annotate) -> dict[str, Any]:
        """Start or correct objects of the running stream; where they overlap, the last one is in front.

        With `frame`, the masks are carried from that frozen frame to the newest one: the console segments the
        frames between, at most 36 of them, evenly chosen. `carried` in the answer says how many it used.
        """
        size = (
            body.objects[0].rle.size if body.frame is None else hub.held(stream, body.frame).view.picture.size
        )
        label_map = np.zeros(checked_size(size), np.uint8)
        for one in body.objects:
            label_map[decoded_runs(one.rle, size) != 0] = one.id
        hidden = sorted({one.id for one in body.objects} - set(object_ids(label_map)))
        if hidden:
            raise InputError(f"the mask of object {hidden[0]} is empty, or others cover it")
        answer = await annotated(stream, label_map, body.frame)
        for one in body.objects:
            if one.name is not None:
                hub.rename(stream, one.id, one.name)
        return answer

    @router.put("/mask.png", tags=["frames and masks"])
    async def upload(
        stream: str, request: Request, frame: Annotated[str | None, Query(max_length=64)] = None
    ) -> dict[str, Any]:
        """Start or correct the objects of a label map, the body: a PNG as `streamvos run --mask` takes it.

        With `frame` it belongs to that frozen frame and is carried to the newest one.
        """
        body = await request.body()
        label_map = await to_thread.run_sync(read_upload, body)
        return await annotated(stream, label_map, frame)

    async def annotated(stream: str, label_map: np.ndarray, token: str | None) -> dict[str, Any]:
        ids = named_objects(label_map)
        await _refuse_paused(hub, stream)
        held = None if token is None else hub.held(stream, token)

        def run() -> tuple[int, Carried]:
            carried = Carried(label_map) if held is None else _carry(selecting, held, label_map)
            return hub.backend.annotate(stream, carried.label_map), carried

        seq, carried = await work.run(run)
        hub.event("annotated", stream, objects=ids, seq=seq, used=carried.used, seen=carried.seen)
        hub.look_soon()
        return {"seq": seq, "objects": ids, "carried": {"used": carried.used, "frames": carried.seen}}

    return router


async def _refuse_paused(hub: Hub, stream: str) -> None:
    """Refuse what takes effect at the next frame, which may not come for long."""
    if hub.statuses.stream(stream)["state"] == "paused":
        await hub.look()  # others may have resumed it
    if hub.statuses.stream(stream)["state"] == "paused":
        raise HTTPException(
            409, f"{stream} is paused, and this takes effect at its next frame; resume it first"
        )


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
