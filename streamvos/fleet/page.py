"""One status page and one Prometheus scrape for all machines of a fleet; nothing can be changed here.

| path | |
|---|---|
| `/` | streams and shares as a table, anew every two seconds |
| `/metrics` | the metrics of all pipelines (docs/pipeline.md), and those of the fleet |
| `/status.json` | the same as `streamvos fleet status --json` |
| `/healthz`, `/readyz` | whether the fleet is up; whether every stream gives masks |
"""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from streamvos.fleet.metrics import fleet_metrics
from streamvos.pipeline.telemetry.prometheus import serve_app

Overview = Mapping[str, Any]

READY = ("running", "paused", "ended")

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem;
       color-scheme: light dark; }
h1 { font-size: 1.2rem; } table { border-collapse: collapse; width: 100%; margin: 1rem 0 2rem; }
th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid #8884; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
td.bad, p.bad { color: light-dark(#b00020, #ff8a80); }
"""


@contextmanager
def serve_page(address: str, overview: Callable[[], Overview]) -> Iterator[str]:
    """Serve the page within the block.

    Args:
        address: HOST:PORT; beyond the loopback it is open to everybody who reaches it. It has names of
            streams and machines, but no pictures, and no addresses of cameras.
        overview: as `Fleet.overview` makes it; called for every request.

    Yields:
        Its URL.

    Raises:
        InputError, StreamvosError: see `serve_app`.
    """

    def app(environment: Mapping[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        code, kind, body = answer(environment.get("PATH_INFO", "/"), overview())
        headers = {"Content-Type": kind, "Content-Length": str(len(body)), "Cache-Control": "no-store"}
        start(code, list(headers.items()))
        return [] if environment.get("REQUEST_METHOD") == "HEAD" else [body]

    with serve_app(address, app, "status page") as url:
        yield url


def answer(path: str, shown: Overview) -> tuple[str, str, bytes]:
    """Status, type and body of the answer to a request."""
    unready = [name for name, one in shown["streams"].items() if one["state"] not in READY]
    if path == "/":
        return "200 OK", "text/html; charset=utf-8", page(shown).encode()
    if path == "/metrics":
        return "200 OK", "text/plain; version=0.0.4; charset=utf-8", fleet_metrics(shown)
    if path == "/status.json":
        public = {key: value for key, value in shown.items() if key != "pipelines"}
        return "200 OK", "application/json", json.dumps(public).encode()
    if path == "/healthz":
        return "200 OK", "application/json", b'{"status": "up"}'
    if path == "/readyz":
        ready = not unready and not shown["store"]
        body = json.dumps({"ready": ready, "unready": unready, "problem": shown["store"]}).encode()
        return "200 OK" if ready else "503 Service Unavailable", "application/json", body
    return "404 Not Found", "text/plain", b"there are /, /metrics, /status.json, /healthz and /readyz\n"


def page(shown: Overview) -> str:
    """The status page."""
    streams, shares = shown["streams"], shown["shares"]
    running = sum(one["state"] == "running" for one in streams.values())
    parts = [
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta http-equiv="refresh" content="2">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{_text(shown['pipeline'])}</title><style>{_STYLE}</style>"
        f"<h1>{_text(shown['pipeline'])}: {running} of {len(streams)} streams run "
        f"on {len(shares)} shares</h1>"
    ]
    if shown["store"]:
        parts.append(f'<p class="bad" role="alert">{_text(shown["store"])}</p>')
    names = ["stream", "state", "where", "fps", "objects", "placements", "problem"]
    rows = []
    for name, one in sorted(streams.items()):
        where = f"{one['share']} on {one['machine']}" if one["share"] else ""
        found, problem = len(one.get("objects") or ()), one["problem"] or one.get("waiting_for", "")
        rows.append([name, one["state"], where, _number(one.get("fps")), found, one["epoch"], problem])
    parts.append(_table(names, rows))
    rows = []
    for name, one in sorted(shares.items()):
        used = f"{100 * one['used']:.0f} %"
        rows.append([name, one["machine"], one["kind"], one["state"], used, one["problem"]])
    parts.append(_table(["share", "machine", "kind", "state", "used", "problem"], rows))
    return "".join(parts)


def _table(names: list[str], rows: list[list[Any]]) -> str:
    kinds = {"fps": "number", "objects": "number", "placements": "number", "used": "number", "problem": "bad"}

    def cells(tag: str, values: list[Any]) -> str:
        pairs = zip(names, values, strict=True)
        return "".join(f'<{tag} class="{kinds.get(name, "")}">{_text(one)}</{tag}>' for name, one in pairs)

    lines = [f"<tr>{cells('th', names)}</tr>", *(f"<tr>{cells('td', row)}</tr>" for row in rows)]
    return f"<table>{''.join(lines)}</table>"


def _text(value: Any) -> str:
    return html.escape(str(value))


def _number(value: Any) -> str:
    return f"{value:.1f}" if isinstance(value, (int, float)) and value == value else ""
