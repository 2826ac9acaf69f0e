"""From a click to masks on a running pipeline: real processes, the real method, a video with known truth."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import av
import httpx
import numpy as np
import pytest
from console.scene import PATIENCE, ColorSegmenter, ColorSelector, Console, image, iou, truth, until

from streamvos.console.backends import PipelineBackend
from streamvos.console.selecting import Selecting
from streamvos.masks.rle import decode_rle

FPS, FRAMES, SCALE = 4, 800, 2
START_SECONDS = 120.0
MAIN = "import sys; from streamvos.cli import main; sys.exit(main())"


def enlarged(picture: np.ndarray) -> np.ndarray:
    return picture.repeat(SCALE, axis=0).repeat(SCALE, axis=1)


def write_clip(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=FPS)
        stream.height, stream.width = enlarged(image(0)).shape[:2]
        stream.pix_fmt, stream.bit_rate = "yuv420p", 4_000_000
        pictures = [av.VideoFrame.from_ndarray(enlarged(image(n)), "rgb24") for n in range(80)]
        for n in range(FRAMES):  # the scene repeats itself after 80
            frame = pictures[n % 80]
            frame.pts = n
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


@pytest.fixture(scope="module")
def serving(tmp_path_factory):
    """`streamvos serve --console` on a camera; yields the process and the address that it prints."""
    folder = tmp_path_factory.mktemp("live")
    write_clip(folder / "clip.mp4")
    runtime = tempfile.mkdtemp(prefix="svos", dir="/tmp")
    before = os.environ.get("XDG_RUNTIME_DIR")
    os.environ["XDG_RUNTIME_DIR"] = runtime
    command = ["serve", "--source", f"camera:{folder / 'clip.mp4'}", "--name", "cam"]
    log = open(folder / "log", "wb")  # noqa: SIM115
    process = subprocess.Popen(
        [sys.executable, "-c", MAIN, *command, "--console", "127.0.0.1:0", "--log", "json"],
        stderr=log,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        found = until(
            lambda: re.search(r"console: (\S+)#token=(\S+)", (folder / "log").read_text()), "the address"
        )
        yield process, found[1], found[2]
    finally:
        process.terminate()
        process.wait(20)
        log.close()
        if before is None:
            del os.environ["XDG_RUNTIME_DIR"]
        else:
            os.environ["XDG_RUNTIME_DIR"] = before


def client(address: str, token: str) -> httpx.Client:
    headers = {"Authorization": f"Bearer {token}"}
    return httpx.Client(base_url=address, headers=headers, timeout=PATIENCE, trust_env=False)


def score(http: httpx.Client, object_id: int, number: int) -> float:
    """IoU of an object in the newest frame with the truth of that frame."""
    described = http.get("/api/streams/cam/objects").json()
    runs = next((one["rle"] for one in described.get("objects", []) if one["id"] == object_id), None)
    n = round(described["pts"] * FPS) if runs else 0
    return 0.0 if runs is None else iou(decode_rle(runs) != 0, enlarged(truth(n % 80) == number))


def test_from_a_click_to_masks(serving, browser):
    """On a stream that follows nothing yet: one click, confirmed, and the masks are right from there on."""
    import streamvos

    backend = PipelineBackend("cam")
    console = Console(backend, Selecting(ColorSelector, lambda: streamvos.load(device="cpu")))
    context = browser.new_context(viewport={"width": 1000, "height": 700})
    page = context.new_page()
    page.set_default_timeout(1000 * START_SECONDS)
    try:
        page.goto(console.page)
        page.wait_for_selector("#canvas-box:not([hidden])")  # frames come though there is nothing to follow
        page.locator("#canvas-box").focus()
        page.keyboard.press("Space")
        page.wait_for_selector("#edit-tools:not([hidden])")
        frozen = int(re.search(r"frozen at (\d+)", page.inner_text("#frame-note"))[1])
        again = console.http.post("/api/streams/cam/frames", json={"seq": frozen}).json()
        n = round(again["pts"] * FPS)
        rows, columns = np.nonzero(enlarged(truth(n % 80) == 1))
        box = page.locator("#canvas-box").bounding_box()
        height, width = enlarged(truth(0)).shape
        place = {"x": columns.mean() * box["width"] / width, "y": rows.mean() * box["height"] / height}
        page.click("#canvas-box", position=place)
        page.click("#confirm:enabled")
        page.wait_for_selector("#live-tools:not([hidden])")
        until(lambda: score(console.http, 1, 1) > 0.8, "masks that fit", START_SECONDS)
        page.wait_for_selector("#objects li[data-id='1'] .state.tracking")
    finally:
        context.close()
        console.close()
        backend.close()


def test_a_console_that_comes_in_a_pause_shows_the_last_frame_and_its_masks(serving, browser):
    _, address, token = serving
    with client(address, token) as http:
        until(lambda: http.get("/api/streams/cam").json().get("objects") == [1], "the object", START_SECONDS)
        http.post("/api/streams/cam/pause").raise_for_status()
        backend = PipelineBackend("cam")
        console = Console(backend, Selecting(ColorSelector, ColorSegmenter))
        context = browser.new_context(viewport={"width": 1000, "height": 700})
        page = context.new_page()
        page.set_default_timeout(1000 * START_SECONDS)
        try:
            page.goto(console.page)
            page.wait_for_selector("#canvas-box:not([hidden])")
            page.wait_for_selector("#badge:has-text('Paused')")
            page.wait_for_selector("#objects li[data-id='1']")
            answer = console.http.delete("/api/streams/cam/objects/1")
            assert (answer.status_code, "resume it first" in answer.json()["error"]) == (409, True)
        finally:
            context.close()
            console.close()
            backend.close()
        http.post("/api/streams/cam/resume").raise_for_status()


def console_pids(runtime: str) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            own = f"XDG_RUNTIME_DIR={runtime}".encode() in (entry / "environ").read_bytes().split(b"\0")
            if own and b"streamvos.console.process" in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return found


def test_a_console_that_dies_comes_back_and_the_pipeline_never_notices(serving):
    process, address, token = serving
    with client(address, token) as http:
        until(lambda: http.get("/api/streams").json()["streams"], "the first status", START_SECONDS)
        until(lambda: http.get("/metrics").status_code == 200)
        assert "streamvos_frames_total" in http.get("/metrics").text
        restarts = http.get("/api/streams/cam").json()["restarts"]
        (pid,) = console_pids(os.environ["XDG_RUNTIME_DIR"])
        os.kill(pid, signal.SIGKILL)
        until(lambda: [one for one in console_pids(os.environ["XDG_RUNTIME_DIR"]) if one != pid])
        until(lambda: http.get("/api/streams").json()["streams"], "the console", START_SECONDS)
        assert http.get("/api/streams/cam").json()["restarts"] == restarts
    assert process.poll() is None


def test_the_console_ends_with_its_pipeline(serving):
    process, address, _ = serving
    process.terminate()
    assert process.wait(30) == 0
    until(lambda: not console_pids(os.environ["XDG_RUNTIME_DIR"]), "the console's end")
    with pytest.raises(httpx.ConnectError):
        httpx.get(address, trust_env=False)
