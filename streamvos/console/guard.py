"""Who may talk to the console: the right host name, no foreign page, the token, not too much at once.

    app = Guard(app, token="...", hosts={"localhost"})

- **Host.** A page whose name an attacker points to this machine (DNS rebinding) sends its own name. Only
  addresses, which cannot be pointed elsewhere, this machine's names and the given ones are answered.
- **Origin.** A browser says which page asks. Only the console's own page may.
- **Token.** Everything but the page itself and the probes needs it, on the loopback too: other users of this
  machine can reach that. It comes as `Authorization: Bearer TOKEN`, for a WebSocket as a subprotocol.
- **Sizes and rates.** A body has at most `BODY_BYTES`; a client may send so many requests a second.
"""

from __future__ import annotations

import hmac
import ipaddress
import json
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from fastapi import HTTPException

BODY_BYTES = 16 * 2**20
"""Largest body of a request."""

RATE, BURST = 40.0, 80.0
"""Requests per second of one client that change or compute something, and how many may come at once."""

READ_RATE, READ_BURST = 200.0, 400.0
"""The same of requests that only read."""

WEBSOCKET = "streamvos"
"""The subprotocol of the console's WebSocket."""

_TOO_LARGE = f"a body has at most {BODY_BYTES} bytes"

_CLIENTS = 1024  # whose rates are remembered

_SECURITY_HEADERS = [
    (b"content-security-policy", b"default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; "
     b"frame-ancestors 'none'; base-uri 'none'; form-action 'none'; object-src 'none'"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
]  # fmt: skip

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Guard:
    """An ASGI application that lets through what is allowed.

    Args:
        app: the application behind it.
        token: what clients have to know.
        hosts: names of this machine, besides its addresses.
    """

    def __init__(
        self, app: Callable[[Scope, Receive, Send], Awaitable[None]], token: str, hosts: Iterable[str]
    ):
        self._app, self._token = app, token
        self._hosts = {"localhost", *(host.lower() for host in hosts)}
        self._rates: OrderedDict[tuple[str, bool], tuple[float, float]] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if refusal is None:
            await self._pass(scope, receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008, "reason": refusal[1]})  # answered with 403
        else:
            await _answer(send, *refusal)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        """Status and reason, if the request is not allowed."""
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get(b"host", "")
        if not self._is_own(host):
            return 421, f"this machine is not called {host[:80]!r}; use its address"
        origin = headers.get(b"origin")
        if origin is not None and urlsplit_netloc(origin) != host.lower():
            return 403, "another page asks; only the console's own page may"
        if headers.get(b"sec-fetch-site") in ("cross-site", "same-site") and headers.get(
            b"sec-fetch-mode"
        ) not in ("navigate", None):
            return 403, "another page asks; only the console's own page may"
        is_read = scope["type"] == "websocket" or scope["method"] in ("GET", "HEAD")
        client = (scope.get("client") or ("",))[0]
        if not self._has_rate(client, is_read):
            return 429, "too many requests; slow down"
        if _needs_token(scope["path"]) and not self._knows_token(scope, headers):
            return 401, "a token is needed: Authorization: Bearer TOKEN; the console prints it when it starts"
        return None

    def _is_own(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name.lower() in self._hosts
        return True

    def _knows_token(self, scope: Scope, headers: dict[bytes, str]) -> bool:
        if scope["type"] == "websocket":
            given = [one.removeprefix("token.") for one in scope.get("subprotocols", []) if one != WEBSOCKET]
        else:
            scheme, _, value = headers.get(b"authorization", "").partition(" ")
            given = [value.strip()] if scheme.lower() == "bearer" else []
        own = self._token.encode()
        return any(hmac.compare_digest(one.encode("utf-8", "replace"), own) for one in given)

    def _has_rate(self, client: str, is_read: bool) -> bool:
        rate, burst = (READ_RATE, READ_BURST) if is_read else (RATE, BURST)
        now = time.monotonic()
        left, at = self._rates.pop((client, is_read), (burst, now))
        left = min(burst, left + (now - at) * rate)
        allowed = left >= 1
        self._rates[client, is_read] = (left - allowed, now)
        while len(self._rates) > _CLIENTS:
            self._rates.popitem(last=False)
        return allowed

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        size = 0

        async def counted() -> MutableMapping[str, Any]:
            nonlocal size
            message = await receive()
            if message["type"] == "http.request":
                size += len(message.get("body", b""))
                if size > BODY_BYTES:
                    raise HTTPException(413, _TOO_LARGE)  # the application answers it
            return message

        async def with_headers(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                given = {name for name, _ in message.get("headers", [])}
                more = [one for one in _SECURITY_HEADERS if one[0] not in given]
                message["headers"] = [*message.get("headers", []), *more]
            await send(message)

        if scope["type"] == "websocket":
            await self._app(scope, receive, send)
            return
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if not length.isdigit() or int(length) > BODY_BYTES:
            await _answer(send, 413, _TOO_LARGE)
            return
        await self._app(scope, counted, with_headers)


def urlsplit_netloc(origin: str) -> str:
    """Host and port of an origin; "" if it has none, such as "null"."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def _needs_token(path: str) -> bool:
    return path.startswith("/api/") or path == "/metrics"


async def _answer(send: Send, status: int, text: str) -> None:
    headers = [(b"content-type", b"application/json"), *_SECURITY_HEADERS]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps({"error": text}).encode()})
