"""Foreign pages, wrong names, floods and nonsense: refused, and nothing grows."""

from __future__ import annotations

import asyncio
import contextlib
import json
import string
import time

import httpx
import pytest
import websockets
from console.scene import TOKEN, until
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamvos.console import guard, viewers

HEADERS = {"Authorization": f"Bearer {TOKEN}"}
QUICK = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["frame", "points", "box", "mask", "objects", "id", "rle", "name", "x"]), inner
        )
    ),
    max_leaves=12,
)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 421),
        ({"Host": "evil.example:80"}, 421),
        ({"Host": ""}, 421),
        ({"Host": "localhost"}, 200),
        ({"Host": "192.168.1.5:8642"}, 200),
        ({"Host": "[::1]:8642"}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Host": "localhost:9", "Origin": "http://localhost:9"}, 200),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, 200),
    ],
)
def test_who_may_ask(scene, headers, status):
    with httpx.Client(base_url=scene.url, trust_env=False) as http:
        assert http.get("/api/streams", headers={**HEADERS, **headers}).status_code == status


def connect(scene, protocols=("streamvos", f"token.{TOKEN}"), **options):
    address = scene.url.replace("http", "ws") + "/api/ws"
    return websockets.connect(address, subprotocols=list(protocols), proxy=None, **options)


async def closed(socket) -> int:
    """The code with which the console closes a connection."""
    with contextlib.suppress(websockets.ConnectionClosed):
        while True:
            await socket.recv()
    return socket.close_code


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 30))


@pytest.mark.parametrize(
    ("protocols", "options"),
    [
        (["streamvos"], {}),
        (["streamvos", "token.wrong"], {}),
        (["streamvos", f"token.{TOKEN}"], {"origin": "http://evil.example"}),
    ],
)
def test_a_foreign_websocket_is_refused(scene, protocols, options):
    async def go():
        with pytest.raises(websockets.InvalidStatus) as caught:
            async with connect(scene, protocols, **options):
                pass
        assert caught.value.response.status_code == 403

    run(go())


def test_bodies_are_bounded(scene):
    answer = scene.http.put("/api/streams/front/mask.png", content=bytes(guard.BODY_BYTES + 1))
    assert answer.status_code == 413

    def parts():
        for _ in range(guard.BODY_BYTES // 2**20 + 2):
            yield bytes(2**20)

    try:  # without a length, it is counted on the way
        answer = scene.http.put("/api/streams/front/mask.png", content=parts())
        assert answer.status_code == 413
    except httpx.TransportError:  # answered, and closed, before everything was sent
        pass
    until(lambda: scene.http.get("/healthz").status_code == 200)


@given(
    body=JSON,
    place=st.sampled_from(["", "/front/select", "/front/annotate", "/front/frames", "/front/objects/1"]),
)
@QUICK
def test_any_json_gets_an_answer(scene, body, place):
    method = "PATCH" if "objects" in place else "POST"
    answer = scene.http.request(method, f"/api/streams{place}", json=body)
    assert answer.status_code < 500 or answer.status_code == 503, answer.text
    assert answer.headers["content-type"] == "application/json"


@given(
    place=st.text(string.printable, max_size=30),
    method=st.sampled_from(["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"]),
    body=st.binary(max_size=80),
)
@QUICK
def test_any_request_gets_an_answer(scene, place, method, body):
    try:
        address = httpx.URL(scene.url).copy_with(raw_path=b"/api/streams/front/" + place.encode())
    except httpx.InvalidURL:
        return
    try:
        assert scene.http.request(method, address, content=body).status_code < 500
    except httpx.LocalProtocolError:  # it cannot even be sent
        return


@given(
    messages=st.lists(
        st.text(max_size=40)
        | st.binary(max_size=40)
        | JSON.map(json.dumps)
        | st.builds(
            lambda kind, more: json.dumps({"type": kind, **more}),
            st.sampled_from(["watch", "drawn", "ping", "x"]),
            st.dictionaries(st.sampled_from(["stream", "sent"]), JSON, max_size=2),
        ),
        max_size=6,
    )
)
@QUICK
def test_any_message_leaves_the_console_alive(scene, messages):
    async def go():
        async with connect(scene) as socket:
            with contextlib.suppress(websockets.ConnectionClosed):
                for one in messages:
                    await socket.send(one)
            await socket.close()
            return socket.close_code

    assert run(go()) in (1000, 1005, 1008)
    assert scene.http.get("/healthz").status_code == 200


def test_all_who_left_are_forgotten(scene):
    until(lambda: scene.http.get("/api/streams").json()["viewers"] == 0)


def test_a_flood_of_messages_ends_the_connection(scene):
    async def go():
        async with connect(scene) as socket:
            with contextlib.suppress(websockets.ConnectionClosed):
                for _ in range(3000):
                    await socket.send('{"type": "drawn"}')
            return await closed(socket)

    assert run(go()) == 1008


def test_a_message_that_is_too_large_ends_the_connection(scene):
    async def go():
        async with connect(scene) as socket:
            with contextlib.suppress(websockets.ConnectionClosed):
                await socket.send("x" * 2**20)
            return await closed(socket)

    assert run(go()) == 1009


def test_a_flood_of_requests_is_slowed_down(scene):
    codes = {scene.http.delete("/api/streams/front/frames/x").status_code for _ in range(300)}
    assert codes <= {204, 429}
    assert 429 in codes
    assert scene.http.get("/healthz").status_code == 200  # reading has a rate of its own


async def watch(scene, seconds: float, drawing: bool) -> list[int]:
    """Numbers of the frames that one viewer gets."""
    seen = []
    async with connect(scene, max_size=None) as socket:
        await socket.send('{"type": "watch", "stream": "front"}')
        end = time.monotonic() + seconds
        with contextlib.suppress(asyncio.TimeoutError):
            while (left := end - time.monotonic()) > 0:
                message = await asyncio.wait_for(socket.recv(), left)
                if isinstance(message, bytes):
                    length = int.from_bytes(message[:4], "little")
                    seen.append(json.loads(message[4 : 4 + length])["seq"])
                    assert message[4 + length :][:2] == b"\xff\xd8"
                    if drawing:
                        await socket.send('{"type": "drawn"}')
    return seen


def test_a_slow_viewer_gets_few_frames_and_slows_nobody(scene):
    async def go():
        return await asyncio.gather(watch(scene, 4, True), watch(scene, 4, False), watch(scene, 4, True))

    fast, slow, other = run(go())
    assert len(slow) == viewers.IN_FLIGHT
    assert min(len(fast), len(other)) > 5 * len(slow)
    assert fast == sorted(set(fast))


def test_many_viewers(scene):
    async def go():
        return await asyncio.gather(*(watch(scene, 5, True) for _ in range(50)))

    everyone = run(go())
    assert len(everyone) == 50
    assert min(map(len, everyone)) >= 3
    until(lambda: scene.http.get("/api/streams").json()["viewers"] == 0)
