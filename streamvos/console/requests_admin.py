"""Requests about the console itself: probes, metrics, the page and its files."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Any

from fastapi import APIRouter, HTTPException, Response
from fastapi.responses import FileResponse

from streamvos.console.hub import Hub
from streamvos.pipeline.clients.client import PipelineError

PAGE = Path(__file__).parent / "page"

TAGS: list[str | Enum] = ["probes"]

_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


def admin_requests(hub: Hub) -> APIRouter:
    """Probes, metrics and the page."""
    router = APIRouter()

    @router.get("/healthz", tags=TAGS)
    async def healthz() -> dict[str, str]:
        """Whether the console is up."""
        return {"status": "up"}

    @router.get("/readyz", tags=TAGS)
    async def readyz(response: Response) -> dict[str, Any]:
        """Whether every stream has given a mask within its `stall_timeout`, else 503.

        `unready` names those that have not, and why. Paused and ended streams do not count.
        """
        await hub.fresh()
        problem, unready = hub.statuses.problem, hub.statuses.unready()
        ready = not problem and not unready
        response.status_code = 200 if ready else 503
        return {"ready": ready, "problem": problem, "unready": unready}

    @router.get("/metrics", tags=TAGS)
    async def metrics() -> Response:
        """The pipeline's metrics in Prometheus' text format (docs/pipeline.md)."""
        from streamvos.pipeline.telemetry.prometheus import metrics_text

        await hub.fresh()
        if hub.statuses.problem or hub.backend.kind != "pipeline":
            raise PipelineError(hub.statuses.problem or "one picture has no metrics")
        return Response(metrics_text(hub.statuses.status), media_type="text/plain; version=0.0.4")

    @router.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return _file("index.html")

    @router.get("/docs", include_in_schema=False)
    async def docs() -> FileResponse:
        return _file("docs.html")

    @router.get("/page/{name}", include_in_schema=False)
    async def file(name: str) -> FileResponse:
        return _file(name)

    return router


def _file(name: str) -> FileResponse:
    path = PAGE / name
    if path.parent != PAGE or path.suffix not in _TYPES or not path.is_file():
        raise HTTPException(404, "there is no such page")
    return FileResponse(path, media_type=_TYPES[path.suffix])
