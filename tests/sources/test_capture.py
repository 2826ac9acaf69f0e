"""Grabbing by OpenCV, as from a camera; a file stands in for the device, since few machines have one."""

import time

import cv2
import pytest

from streamvos.sources.capture import DeviceCapture, credible_fps
from streamvos.sources.live_address import LiveAddress
from streamvos.types import SourceError


def address(path) -> LiveAddress:
    return LiveAddress(str(path), "camera 5", "camera5", "device")


def test_frames_come_with_their_times_and_a_camera_never_just_ends(tmp_path, make_video, number_of):
    path = tmp_path / "clip.mp4"
    path.write_bytes(make_video(10, container="mp4", codec="libx264"))
    capture = DeviceCapture(address(path), cv2.CAP_FFMPEG)
    before = time.monotonic_ns()
    grabbed = []
    with pytest.raises(SourceError, match="camera 5 stopped giving frames"):
        grabbed.extend(capture.frames())
    capture.close()
    assert capture.fps == pytest.approx(25)
    assert [number_of(item.image()) for item in grabbed] == list(range(10))
    assert [item.position for item in grabbed] == pytest.approx([index / 25 for index in range(10)], abs=1e-3)
    captured = [item.captured_ns for item in grabbed]
    assert before <= captured[0]
    assert captured == sorted(captured)


def test_a_file_that_is_not_a_camera_is_refused(tmp_path, capfd):
    (tmp_path / "text").write_text("no camera")
    with pytest.raises(SourceError, match="cannot open camera 5: not a camera, or in use"):
        DeviceCapture(address(tmp_path / "text"), cv2.CAP_FFMPEG)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("claimed", "fps"), [(25.0, 25.0), (29.97, 29.97), (0.0, None), (float("nan"), None), (90000.0, None)]
)
def test_only_credible_rates_count(claimed, fps):
    assert credible_fps(claimed) == fps
