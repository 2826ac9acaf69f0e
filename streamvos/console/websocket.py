"""The console's WebSocket: pictures, masks and the status for pages (docs/console.md)."""

from __future__ import annotations

import asyncio
import json
import math
import time
from typing import Any

from anyio import to_thread
from fastapi import APIRouter, WebSocket, WebSocketDisconnect

from streamvos.console.guard import WEBSOCKET
from streamvos.console.hub import Hub, now_ms
from streamvos.console.requests_objects import Work
from streamvos.console.selecting import Selecting
from streamvos.console.viewers import Viewer
from streamvos.pipeline.clients.client import PipelineError
from streamvos.types import InputError

MESSAGES_PER_SECOND, MESSAGES_AT_ONCE = 120.0, 240.0
"""Rate of the messages of one WebSocket."""


def websockets(hub: Hub, selecting: Selecting, work: Work) -> APIRouter:
    """The route of the WebSocket; the first one loads what selects, so that no click waits for it."""
    router = APIRouter()

    @router.websocket("/api/ws")
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

    return router


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
    """The message; None if it is none."""

    def no_constant(word: str) -> None:
        raise ValueError(word)

    try:
        fields = json.loads(text or "", parse_constant=no_constant)
    except (ValueError, RecursionError):
        return None
    numbers = [one for one in fields.values() if isinstance(one, float)] if isinstance(fields, dict) else []
    return fields if isinstance(fields, dict) and all(map(math.isfinite, numbers)) else None
