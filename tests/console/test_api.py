"""The HTTP API: what it shows, what it changes, and what it refuses."""

from __future__ import annotations

import io
import json
import re
import zipfile

import numpy as np
import pytest
from console.scene import SIZE, TOKEN, image, iou, scene_console, truth, until
from PIL import Image

from streamvos.masks.labelmap import write_label_map
from streamvos.masks.rle import decode_rle, encode_rles
from streamvos.methods import METHODS


def center(n: int, number: int) -> list[float]:
    rows, columns = np.nonzero(truth(n) == number)
    return [float(columns.mean()), float(rows.mean())]


def runs(mask: np.ndarray) -> dict:
    return dict(encode_rles(np.asarray(mask, np.uint8), [1])[1])


def selected(scene, number: int = 1) -> dict:
    frozen = scene.http.post("/api/streams/front/frames", json={}).json()
    body = {"frame": frozen["frame"], "points": [[*center(frozen["seq"], number), 1]]}
    answer = scene.http.post("/api/streams/front/select", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_the_streams_and_what_is_known_of_them(scene):
    found = scene.http.get("/api/streams").json()
    assert [one["name"] for one in found["streams"]] == ["front", "back"]
    one = scene.http.get("/api/streams/front").json()
    assert (one["state"], one["size"], one["dropped"]) == ("running", list(SIZE), {"newer frame": 3})
    assert one["latency_ms"] == {"p50": 20.0, "p95": 25.0, "p99": 30.0}


def test_a_click_gives_the_object_under_it_and_changes_nothing(scene):
    before = len(scene.backend.given)
    answer = selected(scene, 2)
    assert iou(decode_rle(answer["rle"]) != 0, truth(answer["seq"]) == 2) > 0.9
    assert answer["area"] == pytest.approx((truth(answer["seq"]) == 2).sum(), rel=0.1)
    assert len(scene.backend.given) == before


def test_a_confirmed_mask_joins_at_the_newest_frame(scene):
    answer = selected(scene, 1)
    until(lambda: scene.backend.seq > answer["seq"] + 10)
    body = {"frame": answer["frame"], "objects": [{"id": 7, "rle": answer["rle"], "name": " red  one "}]}
    joined = scene.http.post("/api/streams/front/annotate", json=body).json()
    assert joined["objects"] == [7]
    assert joined["carried"]["frames"] >= 10
    seq, label_map = scene.backend.given[-1]
    best = max(iou(label_map == 7, truth(n) == 1) for n in range(seq - 2, seq + 1))
    assert best > 0.9
    assert iou(label_map == 7, truth(answer["seq"]) == 1) < best
    objects = until(lambda: scene.http.get("/api/streams/front/objects").json()["objects"])
    assert [(one["id"], one["name"], one["state"]) for one in objects] == [(7, "red one", "tracking")]


def test_of_many_frames_some_are_used(scene):
    answer = selected(scene, 1)
    until(lambda: scene.backend.seq > answer["seq"] + 60)
    before = scene.segmenter.steps
    body = {"frame": answer["frame"], "objects": [{"id": 1, "rle": answer["rle"]}]}
    carried = scene.http.post("/api/streams/front/annotate", json=body).json()["carried"]
    assert carried["frames"] >= 60
    assert carried["used"] <= 36
    assert scene.segmenter.steps - before == carried["used"] + 1  # and the frozen frame itself


def test_an_object_that_has_left_is_not_annotated(scene):
    frozen = scene.http.post("/api/streams/front/frames", json={}).json()
    until(lambda: scene.backend.seq > frozen["seq"] + 3)
    body = {"frame": frozen["frame"], "objects": [{"id": 3, "rle": runs(np.eye(*SIZE))}]}
    scene.segmenter.step, before = (lambda frame, mask=None: _nothing()), scene.segmenter.step
    try:
        answer = scene.http.post("/api/streams/front/annotate", json=body)
    finally:
        scene.segmenter.step = before
    assert answer.status_code == 409
    assert "object 3" in answer.json()["error"]


def _nothing():
    return type("Result", (), {"mask": np.zeros(SIZE, np.uint8)})()


def test_forgetting_and_naming(scene):
    scene.backend.annotate("front", truth(scene.backend.seq))
    renamed = scene.http.patch("/api/streams/front/objects/2", json={"name": "blue"}).json()
    assert renamed == {"id": 2, "name": "blue"}

    def names() -> dict[int, str]:
        objects = scene.http.get("/api/streams/front/objects").json()["objects"]
        return {one["id"]: one["name"] for one in objects}

    until(lambda: names() == {1: "", 2: "blue"})
    assert scene.http.delete("/api/streams/front/objects/2").json()["id"] == 2
    assert ("forget", "front", 2) in scene.backend.calls
    answer = scene.http.delete("/api/streams/front/objects/2")
    assert answer.status_code == 400
    assert "not followed" in answer.json()["error"]
    kinds = [one["kind"] for one in scene.http.get("/api/events").json()]
    assert "forgotten" in kinds
    last = scene.http.get("/api/events").json()[-1]["number"]
    assert scene.http.get("/api/events", params={"after": last}).json() == []


def test_frames_and_label_maps(scene):
    scene.backend.annotate("front", truth(scene.backend.seq))
    until(lambda: scene.http.get("/api/streams/front/objects").json()["objects"])
    answer = scene.http.get("/api/streams/front/frame.jpg")
    shown = np.asarray(Image.open(io.BytesIO(answer.content)))
    assert np.abs(shown.astype(int) - image(int(answer.headers["x-seq"]))).mean() < 4
    answer = scene.http.get("/api/streams/front/mask.png")
    found = np.asarray(Image.open(io.BytesIO(answer.content)))
    np.testing.assert_array_equal(found, truth(int(answer.headers["x-seq"])))


def test_a_snapshot_holds_frame_label_map_and_objects(scene):
    scene.backend.annotate("front", truth(scene.backend.seq))
    until(lambda: scene.http.get("/api/streams/front/objects").json()["objects"])
    answer = scene.http.get("/api/streams/front/snapshot.zip")
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        found = {name.partition("-")[2][6:]: archive.read(name) for name in archive.namelist()}
    assert sorted(found) == ["-labels.png", ".json", ".png"]
    seq = json.loads(found[".json"])["seq"]
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(found["-labels.png"]))), truth(seq))
    shown = np.asarray(Image.open(io.BytesIO(found[".png"])))
    assert np.abs(shown.astype(int) - image(seq)).mean() < 4


def test_an_uploaded_label_map_is_checked_as_every_mask(scene, tmp_path):
    path = tmp_path / "given.png"
    write_label_map(path, 5 * (truth(scene.backend.seq) == 1).astype(np.uint8))
    answer = scene.http.put("/api/streams/front/mask.png", content=path.read_bytes())
    assert answer.json()["objects"] == [5]
    jpeg, wrong = io.BytesIO(), io.BytesIO()
    Image.fromarray(image(0)).save(jpeg, "JPEG")
    Image.fromarray(np.ones((3, 4), np.uint8)).save(wrong, "PNG")
    empty = io.BytesIO()
    Image.fromarray(np.zeros(SIZE, np.uint8)).save(empty, "PNG")
    bomb = _png_header(60000, 60000)
    for content, text in [
        (b"", "empty"),
        (b"GIF89a nonsense", "cannot read"),
        (jpeg.getvalue(), "palette"),
        (wrong.getvalue(), "frames are"),
        (empty.getvalue(), "names no object"),
        (bomb, "pixels"),
        (path.read_bytes()[:60], "cannot read"),
    ]:
        answer = scene.http.put("/api/streams/front/mask.png", content=content)
        assert answer.status_code == 400, answer.text
        assert text in answer.json()["error"]
        assert "/tmp" not in answer.json()["error"]


def _png_header(width: int, height: int) -> bytes:
    import struct
    import zlib

    chunks = [
        b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0),
        b"IDAT" + zlib.compress(bytes(99)),
    ]
    sealed = [struct.pack(">I", len(one) - 4) + one + struct.pack(">I", zlib.crc32(one)) for one in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(sealed)


def test_pause_resume_and_stop(scene):
    scene.http.post("/api/streams/back/pause")
    assert scene.backend.states["back"] == "paused"
    until(lambda: scene.http.get("/api/streams/back").json()["state"] == "paused")
    scene.http.post("/api/streams/back/resume")
    assert scene.backend.states["back"] == "running"
    scene.http.post("/api/streams/back/stop")
    assert scene.backend.states["back"] == "ended"


GOOD = runs(np.eye(*SIZE))
BAD = [
    ("POST", "select", {"points": [[500, 1, 1]]}, 400, "within"),
    ("POST", "select", {"points": [[5, 1, 0]]}, 400, "points"),
    ("POST", "select", {"points": [[5, 1]]}, 400, "points"),
    ("POST", "select", {}, 400, "nothing points"),
    ("POST", "select", {"point": []}, 400, "point"),
    ("POST", "select", {"frame": "gone", "points": [[5, 5, 1]]}, 400, "not there any more"),
    ("POST", "select", {"mask": {"size": [3, 3], "counts": "9"}}, 400, "frame"),
    ("POST", "select", {"mask": {"size": list(SIZE), "counts": "~~~"}}, 400, "RLE"),
    ("POST", "select", {"mask": {"size": list(SIZE), "counts": "o" * 11 + "0"}}, 400, "RLE"),
    ("POST", "annotate", {"objects": []}, 400, "objects"),
    ("POST", "annotate", {"objects": [{"id": 0, "rle": GOOD}]}, 400, "id"),
    ("POST", "annotate", {"objects": [{"id": 255, "rle": GOOD}]}, 400, "id"),
    ("POST", "annotate", {"objects": [{"id": 1, "rle": runs(np.zeros(SIZE))}]}, 400, "empty"),
    ("POST", "annotate", {"objects": [{"id": 1, "rle": runs(np.eye(9))}]}, 400, "mask is"),
    (
        "POST",
        "annotate",
        {"objects": [{"id": 1, "rle": {"size": [2**30, 2**30], "counts": "0"}}]},
        400,
        "pixels",
    ),
    ("POST", "frames", {"seq": 10**9}, 400, "not there any more"),
    ("POST", "frames", {"seq": -1}, 400, "seq"),
    ("PATCH", "objects/999", {"name": "x"}, 400, "1..254"),
    ("PATCH", "objects/x", {"name": "x"}, 400, "object_id"),
]


@pytest.mark.parametrize(("method", "place", "body", "status", "text"), BAD)
def test_bad_input_gets_one_clear_line(scene, method, place, body, status, text):
    answer = scene.http.request(method, f"/api/streams/front/{place}", json=body)
    assert answer.status_code == status, answer.text
    assert text in answer.json()["error"]


def test_what_is_not_there(scene):
    for method, place in [("GET", "nowhere"), ("POST", "nowhere/pause"), ("GET", "nowhere/frame.jpg")]:
        answer = scene.http.request(method, f"/api/streams/{place}")
        assert answer.status_code == 404
        assert "front" in answer.json()["error"]
    assert scene.http.get("/page/../app.py").status_code == 404
    assert scene.http.get("/page/%2e%2e%2fapp.py").status_code == 404
    assert scene.http.get("/nothing").status_code == 404


def test_the_page_and_its_description_need_no_network(scene):
    for place in ("/", "/docs", "/page/main.js", "/page/docs.js", "/page/style.css"):
        answer = scene.http.get(place)
        assert answer.status_code == 200
        assert "https://" not in answer.text
        assert "default-src 'self'" in answer.headers["content-security-policy"]
    offered = re.findall(r"<option>([\w-]+)</option>", scene.http.get("/").text)
    assert offered == list(METHODS)
    described = scene.http.get("/openapi.json").json()["paths"]
    assert {"/api/streams", "/api/streams/{stream}/select", "/healthz", "/readyz"} <= set(described)
    for verbs in described.values():
        for one in verbs.values():
            assert one.get("description"), one


def test_probes_tell_up_from_ready():
    with scene_console() as console:
        assert console.http.get("/healthz").status_code == 200
        until(lambda: console.http.get("/readyz").json()["ready"])
        console.backend.states["back"] = "failed"
        answer = until(lambda: (one := console.http.get("/readyz")).status_code == 503 and one)
        assert answer.json()["unready"] == {"back": "it has failed"}
        console.backend.states["back"] = "paused"
        console.backend.stall_timeout = 1e-6  # its own time-out, not one for all
        until(lambda: "front" in console.http.get("/readyz").json()["unready"])
        assert "follows no object" in console.http.get("/readyz").json()["unready"]["front"]
        console.backend.stall_timeout = 10.0
        until(lambda: console.http.get("/readyz").json()["ready"])
        console.backend.down = True
        until(lambda: console.http.get("/readyz").status_code == 503)
        assert console.http.get("/healthz").status_code == 200
        assert console.http.post("/api/streams/front/select", json={}).status_code in (400, 503)
        console.backend.down = False
        until(lambda: console.http.get("/readyz").json()["ready"])


def test_names_survive_the_console(tmp_path):
    from console.scene import ColorSegmenter, ColorSelector, Console, SceneBackend

    from streamvos.console.selecting import Selecting

    backend = SceneBackend()
    for turn in range(2):
        console = Console(
            backend, Selecting(ColorSelector, ColorSegmenter), names_file=tmp_path / "names.json"
        )
        if turn == 0:
            console.http.patch("/api/streams/front/objects/4", json={"name": "cup"})
        else:
            backend.annotate("front", 4 * (truth(backend.seq) == 1).astype(np.uint8))
            objects = until(
                lambda http=console.http: http.get("/api/streams/front/objects").json()["objects"]
            )
            assert objects[0]["name"] == "cup"
        console.close()
    backend.close()


def test_a_stream_that_nobody_looks_at_is_not_followed(scene):
    with scene_console() as console:
        until(lambda: console.http.get("/readyz").json()["ready"])
        assert console.backend.followed == []
        console.http.get("/api/streams/back/frame.jpg")
        assert console.backend.followed == ["back"]
        until(lambda: not console.backend._followers, "the end of following")


def test_the_token_is_needed(scene):
    import httpx

    with httpx.Client(base_url=scene.url, trust_env=False) as stranger:
        for place in ("/api/streams", "/api/streams/front/frame.jpg", "/api/events", "/metrics"):
            assert stranger.get(place).status_code == 401
            assert stranger.get(place, headers={"Authorization": f"Bearer {TOKEN}x"}).status_code == 401
            assert stranger.get(place, headers={"Authorization": TOKEN}).status_code == 401
            assert stranger.get(place, params={"token": TOKEN}).status_code == 401
        assert stranger.get("/healthz").status_code == 200


def test_streams_are_added_and_removed():
    with scene_console() as console:
        body = {"name": "yard", "source": "rtsp://user:secret@10.0.0.5/x", "method": "frtm", "height": 240}
        answer = console.http.post("/api/streams", json=body)
        assert (answer.status_code, answer.json()["state"]) == (201, "running")
        assert console.backend.calls[-1] == ("add", "yard", body["source"], "frtm", {"height": 240})
        assert console.http.get("/api/streams/yard").json()["state"] == "running"
        assert "secret" not in console.http.get("/api/events").text
        again = console.http.post("/api/streams", json=body)
        assert (again.status_code, "already" in again.json()["error"]) == (400, True)
        for name in ("yard", "front", "back"):
            assert console.http.delete(f"/api/streams/{name}").json()["state"] == "ended"
        assert console.http.get("/api/streams").json()["streams"] == []
        assert console.http.get("/api/streams/yard").status_code == 404
        assert console.http.get("/readyz").json()["ready"]
        kinds = [(one["kind"], one["stream"]) for one in console.http.get("/api/events").json()]
        assert {("added", "yard"), ("removed", "yard"), ("removed", "front")} <= set(kinds)
        for wrong in ({"name": "x"}, {"name": "x", "source": "y", "sinks": []}, {"name": 3, "source": "y"}):
            assert console.http.post("/api/streams", json=wrong).status_code == 400
