"""The HTTP API, the WebSocket and the page of the console (docs/console.md).

app = make_app(hub, selecting)          # an ASGI application; `guard.Guard` stands in front of it
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from streamvos.console.hub import Hub
from streamvos.console.requests_admin import admin_requests
from streamvos.console.requests_objects import Work, object_requests
from streamvos.console.requests_streams import stream_requests
from streamvos.console.selecting import Selecting
from streamvos.console.status import UnknownStreamError
from streamvos.console.websocket import websockets
from streamvos.pipeline.clients.client import PipelineError
from streamvos.types import InputError

_DESCRIPTION = """Everything but `/healthz` and `/readyz` needs `Authorization: Bearer TOKEN`.
Errors are `{"error": "what came, what was expected"}`: 400 bad input, 401 no token, 404 no such stream,
409 the object is not in the newest frame any more, or the stream is paused, 413 too large, 429 too much
at once, 503 the pipeline does not answer. Masks are COCO's compressed run lengths, or palette PNGs whose
index is the object's id."""


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
    work = Work()
    app.include_router(admin_requests(hub))
    app.include_router(stream_requests(hub))
    app.include_router(object_requests(hub, selecting, work))
    app.include_router(websockets(hub, selecting, work))

    @app.exception_handler(InputError)
    async def bad_input(_: Request, error: InputError) -> JSONResponse:
        return JSONResponse({"error": str(error)}, 404 if isinstance(error, UnknownStreamError) else 400)

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

    return app
