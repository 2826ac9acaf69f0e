"""The page in a real browser, before a scene whose truth is known."""

from __future__ import annotations

import json
import re
import zipfile

import numpy as np
import pytest
from console.scene import (
    SIZE,
    TOKEN,
    ColorSegmenter,
    ColorSelector,
    Console,
    iou,
    scene_console,
    truth,
    until,
)

from streamvos.console.backends import PictureBackend
from streamvos.console.selecting import Selecting
from streamvos.masks.labelmap import read_label_map, write_label_map

SLOW = 30_000  # ms; nothing is timed by it


@pytest.fixture
def page(browser, scene, tmp_path_factory, request):
    """The console's page with its first picture, on a desktop; errors of its scripts fail the test."""
    yield from opened(browser, scene.page, request)


def opened(browser, address: str, request, **options):
    context = browser.new_context(
        **{"viewport": {"width": 1100, "height": 700}, "accept_downloads": True, **options}
    )
    context.set_default_timeout(SLOW)
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(address)
    page.wait_for_selector("#canvas-box:not([hidden])")
    yield page
    folder = request.config.rootpath / "out" / "console-shots"  # to look at; git ignores it
    folder.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=f"{folder}/{re.sub('[^a-z_]', '', request.node.name)}.png")
    context.close()
    assert not errors


def spot(page, x: float, y: float) -> dict[str, float]:
    """Where a pixel of the frame is in the picture's box."""
    box = page.locator("#canvas-box").bounding_box()
    return {"x": (x + 0.5) * box["width"] / SIZE[1], "y": (y + 0.5) * box["height"] / SIZE[0]}


def freeze(page) -> int:
    """Freeze; returns the frame's number."""
    page.locator("#canvas-box").focus()
    page.keyboard.press("Space")
    page.wait_for_selector("#edit-tools:not([hidden])")
    return int(re.search(r"frozen at (\d+)", page.inner_text("#frame-note"))[1])


def center(n: int, number: int) -> tuple[float, float]:
    rows, columns = np.nonzero(truth(n) == number)
    return float(columns.mean()), float(rows.mean())


def confirm(page) -> None:
    page.click("#confirm:enabled")
    page.wait_for_selector("#live-tools:not([hidden])")


def objects_of(scene) -> dict[int, dict]:
    return {one["id"]: one for one in scene.http.get("/api/streams/front/objects").json()["objects"]}


def score(scene, object_id: int, number: int) -> float:
    """IoU of an object's mask in the newest frame with the truth of that frame."""
    from streamvos.masks.rle import decode_rle

    described = scene.http.get("/api/streams/front/objects").json()
    runs = next((one["rle"] for one in described["objects"] if one["id"] == object_id), None)
    return 0.0 if runs is None else iou(decode_rle(runs) != 0, truth(described["seq"]) == number)


def test_a_click_and_a_confirmation_follow_the_object(page, scene):
    n = freeze(page)
    page.click("#canvas-box", position=spot(page, *center(n, 1)))
    page.fill("#object-name", "red")
    confirm(page)
    until(lambda: score(scene, 1, 1) > 0.8, "the object")
    assert objects_of(scene)[1]["name"] == "red"
    page.wait_for_selector("#objects li[data-id='1'] .state.tracking")
    assert "red joined at frame" in page.inner_text("#messages")


def test_a_click_on_the_live_picture_selects_at_once(page, scene):
    x, y = 110, 90  # the blue disk passes here now and then
    for _ in range(40):
        page.click("#canvas-box", position=spot(page, x, y))
        page.wait_for_selector("#edit-tools:not([hidden])")
        n = int(re.search(r"frozen at (\d+)", page.inner_text("#frame-note"))[1])
        if truth(n)[y, x] == 2:
            break
        page.keyboard.press("Escape")
        page.wait_for_selector("#live-tools:not([hidden])")
    confirm(page)
    until(lambda: score(scene, 1, 2) > 0.8, "the object")


def test_forgetting_and_undoing(page, scene):
    n = freeze(page)
    page.click("#canvas-box", position=spot(page, *center(n, 1)))
    confirm(page)
    until(lambda: 1 in scene.backend.objects["front"])
    page.click("#messages button:has-text('Undo')")
    until(lambda: not scene.backend.objects["front"], "the undoing")
    scene.backend.annotate("front", truth(scene.backend.seq))
    page.click("#objects li[data-id='2'] button[aria-label='Forget object 2']")
    until(lambda: list(scene.backend.objects["front"]) == [1])
    page.wait_for_selector("#objects li[data-id='2']", state="detached")


def test_correcting_a_running_object(page, scene):
    wrong = truth(scene.backend.seq) == 2
    scene.backend.objects["front"][6] = wrong  # a mask that stays where it was
    page.click("#objects li[data-id='6'] button[aria-label='Correct object 6']")
    page.wait_for_selector("#edit-tools:not([hidden])")
    n = int(re.search(r"frozen at (\d+)", page.inner_text("#frame-note"))[1])
    assert "Correcting" in page.inner_text("#title")
    page.click("[data-tool='eraser']")
    page.locator("#size").fill("160")
    page.click("#canvas-box", position=spot(page, 100, 90))
    page.click("#canvas-box", position=spot(page, 140, 90))
    page.click("[data-tool='click']")
    page.click("#canvas-box", position=spot(page, *center(n, 1)))
    confirm(page)
    until(lambda: score(scene, 6, 1) > 0.8, "the correction")


def test_the_brush_paints_and_undo_takes_it_back(page, scene):
    n = freeze(page)
    x, y = center(n, 1)
    assert page.locator("#confirm").is_disabled()
    page.click("[data-tool='brush']")
    page.locator("#size").fill("11")
    start, end = spot(page, x - 8, y), spot(page, x + 8, y)
    box = page.locator("#canvas-box").bounding_box()
    page.mouse.move(box["x"] + start["x"], box["y"] + start["y"])
    page.mouse.down()
    page.mouse.move(box["x"] + end["x"], box["y"] + end["y"], steps=4)
    page.mouse.up()
    page.wait_for_selector("#confirm:enabled")
    page.keyboard.press("z")
    page.wait_for_selector("#confirm:disabled")
    page.keyboard.press("y")
    painted = confirmed_as_given(page, scene) == 1
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    wanted = np.hypot(rows - y, np.maximum(0, abs(columns - x) - 8)) <= 5.5
    assert iou(painted, wanted) > 0.85


def confirmed_as_given(page, scene) -> np.ndarray:
    """Confirm, with a segmenter that keeps the mask of the first frame; returns what the pipeline gets."""
    kept = []

    def step(frame, mask=None):
        kept.extend([] if mask is None else [mask])
        return type("Result", (), {"mask": kept[-1]})()

    before = len(scene.backend.given)
    scene.segmenter.step, real = step, scene.segmenter.step
    try:
        confirm(page)
    finally:
        scene.segmenter.step = real
    assert len(scene.backend.given) == before + 1
    return scene.backend.given[-1][1]


def test_box_polygon_and_negative_clicks(page, scene):
    n = freeze(page)
    x, y = center(n, 2)
    page.keyboard.press("b")
    corners = [spot(page, x - 20, y - 20), spot(page, x + 20, y + 20)]
    box = page.locator("#canvas-box").bounding_box()
    page.mouse.move(box["x"] + corners[0]["x"], box["y"] + corners[0]["y"])
    page.mouse.down()
    page.mouse.move(box["x"] + corners[1]["x"], box["y"] + corners[1]["y"])
    page.mouse.up()
    page.wait_for_selector("#confirm:enabled")
    call = scene.selector.calls[-1]
    assert np.abs(np.subtract(call["box"], (x - 20, y - 20, x + 20, y + 20))).max() < 2
    page.keyboard.press("c")
    page.click("#canvas-box", position=spot(page, x, y), button="right")
    until(lambda: scene.selector.calls[-1]["points"] and scene.selector.calls[-1]["points"][-1][2] == -1)
    page.wait_for_selector("#confirm:disabled")  # nothing is left
    page.keyboard.press("g")
    for dx, dy in [(-14, -14), (14, -14), (14, 14), (-14, 14), (-14, -14)]:
        page.click("#canvas-box", position=spot(page, x + dx, y + dy))
    page.wait_for_selector("#confirm:enabled")
    confirm(page)
    until(lambda: 1 in scene.backend.objects["front"])


def test_keys_alone_are_enough(page, scene):
    scene.backend.objects["back"][1] = 1
    page.keyboard.press("j")  # the next stream
    page.wait_for_selector("#streams button[aria-current='true']:has-text('back')")
    page.wait_for_selector("#objects li[data-id='1']")
    page.keyboard.press("1")
    page.keyboard.press("r")
    page.keyboard.type("disk")
    page.keyboard.press("Enter")
    page.wait_for_selector("#objects li[data-id='1'] b:has-text('disk')")
    page.locator("body").press("Delete")
    until(lambda: not scene.backend.objects["back"])
    page.keyboard.press("j")
    page.wait_for_selector("#streams button[aria-current='true']:has-text('front')")
    page.wait_for_selector("#canvas-box:not([hidden])")
    n = freeze(page)
    x, y = center(n, 1)
    for _ in range(round((SIZE[1] / 2 - x) / 4)):
        page.keyboard.press("ArrowLeft")
    for _ in range(round((SIZE[0] / 2 - y) / 4)):
        page.keyboard.press("ArrowUp")
    page.keyboard.press("Space")
    page.wait_for_selector("#confirm:enabled")
    page.keyboard.press("Enter")
    page.wait_for_selector("#live-tools:not([hidden])")
    until(lambda: score(scene, 1, 1) > 0.8, "the object")
    page.keyboard.press("p")
    until(lambda: scene.backend.states["front"] == "paused")
    page.wait_for_selector("#pause:has-text('Resume')")
    page.keyboard.press("p")
    until(lambda: scene.backend.states["front"] == "running")


def test_snapshot_label_map_and_recording(page, scene, tmp_path):
    path = tmp_path / "given.png"
    write_label_map(path, 9 * (truth(scene.backend.seq) == 1).astype(np.uint8))
    page.set_input_files("#file", str(path))
    until(lambda: 9 in scene.backend.objects["front"])
    page.wait_for_selector("#objects li[data-id='9']")
    page.click("#record")
    page.wait_for_selector("#record[aria-pressed='true']")
    with page.expect_download() as download:
        page.click("#snapshot")
    with zipfile.ZipFile(download.value.path()) as archive:
        described = json.loads(archive.read(next(one for one in archive.namelist() if one.endswith(".json"))))
    assert [one["id"] for one in described["objects"]] == [9]
    page.wait_for_timeout(1200)
    with page.expect_download() as download:
        page.click("#record")
    assert download.value.suggested_filename.endswith((".webm", ".mp4"))
    assert download.value.path().stat().st_size > 1000


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_phone(browser, scene, request, theme):
    options = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}
    for page in opened(browser, scene.page, request, color_scheme=theme, **options):
        n = freeze(page)
        box = page.locator("#canvas-box").bounding_box()
        place = spot(page, *center(n, 1))
        page.touchscreen.tap(box["x"] + place["x"], box["y"] + place["y"])
        wide = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        assert wide[0] <= wide[1], "nothing hangs over the edge"
        small = page.evaluate(
            "[...document.querySelectorAll('button')].filter(one => one.offsetParent)"
            ".filter(one => one.offsetHeight < 28).length"
        )
        assert small == 0
        overlapping = page.evaluate(
            """(() => { const box = (one) => document.getElementById(one).getBoundingClientRect();
                const [a, b] = [box('stage'), box('edit-tools')]; return a.bottom > b.top + 1; })()"""
        )
        assert not overlapping
        page.tap("#confirm:enabled")
        page.wait_for_selector("#live-tools:not([hidden])")
        until(lambda: score(scene, 1, 1) > 0.8, "the object")


def test_everything_has_a_name(page, scene):
    scene.backend.objects["front"][1] = 1
    page.wait_for_selector("#objects li[data-id='1']")
    freeze(page)
    nameless = page.evaluate(
        """[...document.querySelectorAll('button, input, [role]')].filter(one => {
            if (!one.offsetParent) return false;
            const name = one.getAttribute('aria-label') || one.labels?.[0]?.textContent || one.textContent;
            return !name.trim() && one.getAttribute('role') !== 'status';
        }).map(one => one.outerHTML)"""
    )
    assert nameless == []


def test_the_page_comes_back_after_the_console_died(browser, scene, request):
    selecting = Selecting(ColorSelector, ColorSegmenter)
    console = Console(scene.backend, selecting)
    for page in opened(browser, console.page, request):
        page.wait_for_selector("#connection.good")
        console.close()
        page.wait_for_selector("#connection.bad")
        console = Console(scene.backend, selecting, port=console.port)
        page.wait_for_selector("#connection.good")
        before = page.inner_text("#frame-note")
        page.wait_for_function(
            "text => document.getElementById('frame-note').textContent !== text", arg=before
        )
    console.close()


def test_without_the_token_the_page_asks_for_it(browser, scene, request):
    context = browser.new_context()
    page = context.new_page()
    page.goto(scene.url)
    page.wait_for_selector("#sign-in[open]")
    page.fill("#token", TOKEN)
    page.click("#sign-in button")
    page.wait_for_selector("#canvas-box:not([hidden])", timeout=SLOW)
    context.close()


def test_a_foreign_page_gets_nothing(browser, scene):
    context = browser.new_context()
    page = context.new_page()
    page.route(
        "http://evil.example/", lambda route: route.fulfill(body="<p>hello</p>", content_type="text/html")
    )
    page.goto("http://evil.example/")
    asked = """async ([url, token]) => {
        const headers = {Authorization: "Bearer " + token};
        const read = await fetch(url + "/api/streams", {headers}).then(a => a.status, () => "refused");
        const options = {method: "POST", mode: "no-cors"};
        const place = url + "/api/streams/front/pause";
        const write = await fetch(place, options).then(() => "sent", () => "refused");
        const socket = await new Promise(done => {
            const one = new WebSocket(url.replace("http", "ws") + "/api/ws", ["streamvos", "token." + token]);
            one.onopen = () => done("open"); one.onerror = () => done("refused");
        });
        return [read, write, socket];
    }"""
    read, _, socket = page.evaluate(asked, [scene.url, TOKEN])
    assert (read, socket) == ("refused", "refused")
    assert scene.backend.states["front"] == "running"
    context.close()


def test_the_documentation_of_the_api(browser, scene):
    context = browser.new_context()
    page = context.new_page()
    page.goto(f"{scene.url}/docs")
    page.wait_for_selector("details:has-text('/api/streams/{stream}/select')", timeout=SLOW)
    context.close()


def test_picking_in_one_picture(browser, request, tmp_path):
    from console.scene import image

    backend = PictureBackend("clip.mp4", image(20), tmp_path / "mask.png")
    console = Console(backend, Selecting(ColorSelector, ColorSegmenter))
    for page in opened(browser, console.page, request):
        assert page.locator("#save").is_disabled()
        for number in (1, 2):
            page.click("#canvas-box", position=spot(page, *center(20, number)))
            page.click("#confirm:enabled")
            page.wait_for_selector("#live-tools:not([hidden])")
            page.wait_for_selector(f"#objects li[data-id='{number}']")
        page.click("#save:enabled")
        page.wait_for_selector("body[data-saved]")
    console.close()
    assert backend.finished.is_set()
    written = read_label_map(tmp_path / "mask.png")
    assert min(iou(written == number, truth(20) == number) for number in (1, 2)) > 0.9


def test_undoing_a_correction_gives_the_former_mask_back(page, scene):
    scene.backend.objects["front"][1] = 1
    page.click("#objects li[data-id='1'] button[aria-label='Correct object 1']")
    page.wait_for_selector("#edit-tools:not([hidden])")
    n = int(re.search(r"frozen at (\d+)", page.inner_text("#frame-note"))[1])
    page.click("[data-tool='eraser']")
    page.locator("#size").fill("160")
    page.click("#canvas-box", position=spot(page, *center(n, 1)))
    page.wait_for_selector("#confirm:disabled")  # nothing is left
    page.click("[data-tool='click']")
    page.click("#canvas-box", position=spot(page, *center(n, 2)))
    confirm(page)
    until(lambda: score(scene, 1, 2) > 0.8, "the correction")
    page.locator("body").press("z")
    until(lambda: score(scene, 1, 1) > 0.8, "the former mask, where the object is now")
    page.wait_for_selector("#messages >> text=Undone")
    page.locator("body").press("z")
    page.wait_for_selector("#messages >> text=nothing to undo")


def test_a_forgotten_object_comes_back_with_its_name(page, scene):
    scene.backend.objects["front"][3] = 2
    scene.http.patch("/api/streams/front/objects/3", json={"name": "ball"})
    page.click("#objects li[data-id='3'] button[aria-label='Forget object 3']")
    until(lambda: 3 not in scene.backend.objects["front"])
    page.click("#messages button:has-text('Undo')")
    until(lambda: score(scene, 3, 2) > 0.8, "the object")
    page.wait_for_selector("#objects li[data-id='3'] b:has-text('ball')")


def test_each_step_of_an_edit_is_undone_and_redone(page, scene):
    n = freeze(page)
    for number in (1, 2):
        page.click("#canvas-box", position=spot(page, *center(n, number)))
    page.wait_for_selector("#confirm:enabled")
    x, y = center(n, 2)
    page.keyboard.press("g")
    for dx, dy in [(-10, -10), (10, -10), (0, 10)]:
        page.click("#canvas-box", position=spot(page, x + dx, y + dy))
    page.keyboard.press("Enter")  # closes it
    steps = 0
    while not page.locator("#undo").is_disabled():
        page.keyboard.press("z")
        page.wait_for_timeout(60)  # the buttons follow with the next frame of the screen
        steps += 1
    assert steps == 2 + 3 + 1  # clicks, corners, the polygon
    page.wait_for_selector("#confirm:disabled")
    page.keyboard.press("y")
    page.keyboard.press("y")
    page.wait_for_selector("#redo:enabled")
    given = confirmed_as_given(page, scene)
    assert iou(given == 1, truth(n) > 0) > 0.8  # both disks, as the two clicks said


def test_a_brush_of_one_pixel_in_a_zoomed_picture_paints_that_pixel(page, scene):
    freeze(page)
    box = page.locator("#stage").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.3, box["y"] + box["height"] * 0.6)
    for _ in range(12):
        page.mouse.wheel(0, -300)
    until(lambda: page.evaluate("document.getElementById('picture').classList.contains('coarse')"))
    page.keyboard.press("d")
    page.locator("#size").fill("1")
    shown = page.locator("#canvas-box").bounding_box()
    pixel = shown["width"] / SIZE[1]
    assert pixel > 20  # on the screen, for one of the frame
    place = (box["x"] + box["width"] * 0.3, box["y"] + box["height"] * 0.6)
    column, row = int((place[0] - shown["x"]) / pixel), int((place[1] - shown["y"]) / pixel)
    page.mouse.click(*place)
    page.mouse.move(place[0], place[1] + pixel)
    page.mouse.click(place[0], place[1] + pixel, button="right")  # takes away, and there is nothing
    page.wait_for_selector("#confirm:enabled")
    given = confirmed_as_given(page, scene)
    assert np.argwhere(given == 1).tolist() == [[row, column]]
    page.keyboard.press("0")
    until(lambda: page.locator("#canvas-box").bounding_box()["width"] <= box["width"] + 1)


def test_the_keyboard_zooms_and_the_view_follows_the_cross(page, scene):
    n = freeze(page)
    for _ in range(6):
        page.keyboard.press("+")
    before = page.locator("#canvas-box").bounding_box()
    for _ in range(60):
        page.keyboard.press("Shift+ArrowRight")
        page.keyboard.press("Shift+ArrowDown")
    after = page.locator("#canvas-box").bounding_box()
    stage = page.locator("#stage").bounding_box()
    assert after["x"] < before["x"] - 100
    for at, size in (("x", "width"), ("y", "height")):  # its corner is in the corner, or nearly
        assert abs(after[at] + after[size] - stage[at] - stage[size]) < 30
    x, y = center(n, 1)
    for _ in range(round(SIZE[1] - 1 - x)):
        page.keyboard.press("ArrowLeft")
    for _ in range(round(SIZE[0] - 1 - y)):
        page.keyboard.press("ArrowUp")
    page.keyboard.press("Space")
    confirm(page)
    until(lambda: score(scene, 1, 1) > 0.8, "the object")


def test_two_fingers_zoom_and_paint_nothing(browser, scene, request):
    options = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}
    for page in opened(browser, scene.page, request, **options):
        freeze(page)
        page.tap("[data-tool='brush']")
        box = page.locator("#stage").bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        touch = page.context.new_cdp_session(page)

        def send(kind, *places, to=touch):
            points = [{"x": one[0], "y": one[1], "id": n} for n, one in enumerate(places)]
            to.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

        send("touchStart", (x - 20, y))
        send("touchStart", (x - 20, y), (x + 20, y))
        for far in range(30, 121, 15):
            send("touchMove", (x - far, y), (x + far, y))
        send("touchEnd")
        page.wait_for_function("document.getElementById('canvas-box').getBoundingClientRect().width > 700")
        assert page.locator("#canvas-box").bounding_box()["x"] < 0
        assert page.locator("#undo").is_disabled()
        send("touchStart", (x, y))
        send("touchMove", (x + 10, y))
        send("touchEnd")
        page.wait_for_selector("#undo:enabled")  # one finger paints
        page.wait_for_selector("#confirm:enabled")


def test_streams_are_added_and_removed(browser, request):
    with scene_console(fps=25) as console:
        for page in opened(browser, console.page, request):
            page.locator("body").press("n")
            page.fill("#add-source", "camera:7")
            page.fill("#add-name", "back")
            page.click("#add-submit")
            page.wait_for_selector("#add-error:has-text('already')")
            page.fill("#add-name", "yard")
            page.select_option("#add-method", "frtm")
            page.click("#add-submit")
            page.wait_for_selector("#streams button[aria-current='true']:has-text('yard')")
            page.wait_for_selector("#canvas-box:not([hidden])")
            assert console.backend.calls[-1] == ("add", "yard", "camera:7", "frtm", {"realtime": True})
            for _ in range(3):
                n = page.locator("#streams li").count()
                page.click("#remove")
                page.click("#remove:has-text('Remove for good?')")
                page.wait_for_function("n => document.querySelectorAll('#streams li').length < n", arg=n)
            page.wait_for_selector("#empty-add")
            assert "no stream yet" in page.inner_text("#empty-text")
            assert page.locator("#freeze").is_disabled()
            page.click("#empty-add")
            page.fill("#add-source", "camera:0")
            page.click("#add-submit")
            page.wait_for_selector("#canvas-box:not([hidden])")


def test_a_stream_whose_frames_stay_elsewhere_shows_its_masks_and_says_so(browser, request):
    with scene_console(fps=25) as console:
        console.backend.without_frames = {"front"}
        console.backend.objects["front"][1] = 1
        for page in opened(browser, console.page, request):
            page.wait_for_selector("#badge:has-text('Masks only')")
            page.wait_for_selector("#objects li[data-id='1'] .state.tracking")
            assert page.locator("#freeze").is_disabled()
        answer = console.http.post("/api/streams/front/select", json={"points": [[5, 5, 1]]})
        assert (answer.status_code, "another machine" in answer.json()["error"]) == (400, True)


def test_a_paused_stream_is_resumed_by_what_is_added_to_it(page, scene):
    page.keyboard.press("p")
    page.wait_for_selector("#badge:has-text('Paused')")
    n = freeze(page)
    page.click("#canvas-box", position=spot(page, *center(n, 1)))
    page.click("#confirm:has-text('Resume and add object')")
    page.wait_for_selector("#live-tools:not([hidden])")
    until(lambda: score(scene, 1, 1) > 0.8, "the object")
    assert scene.backend.states["front"] == "running"
