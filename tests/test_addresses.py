"""Addresses without their secrets."""

import pytest

from streamvos.addresses import host_of, redact

SECRET = "hunter2"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("rtsp://10.0.0.5:554/Streaming/101", "rtsp://10.0.0.5:554/Streaming/101"),
        (f"rtsp://admin:{SECRET}@10.0.0.5:554/Streaming/101", "rtsp://***@10.0.0.5:554/Streaming/101"),
        (f"rtsp://{SECRET}@host/a", "rtsp://***@host/a"),
        (f"rtsp://admin:p@ss/w#rd?{SECRET}@host/a", "rtsp://***@host/a"),
        (f"http://host/video?user=admin&password={SECRET}", "http://host/video?***"),
        (f"http://host/video#{SECRET}", "http://host/video#***"),
        (f"rtsp://host/user=admin_password={SECRET}_channel=1.sdp", "rtsp://host/user=***"),
        (f"rtsp://host/a;token={SECRET}", "rtsp://host/a;token=***"),
        (f"rtmp://host/live/{SECRET}", "rtmp://host/***"),
        (f"srt://host:9000?passphrase={SECRET}", "srt://host:9000?***"),
        (f"HTTP://admin:{SECRET}@[::1]:8080/x", "HTTP://***@[::1]:8080/x"),
        ("udp://127.0.0.1:5000", "udp://127.0.0.1:5000"),
    ],
)
def test_secrets_go_and_the_rest_stays(url, shown):
    assert redact(url) == shown
    assert SECRET not in host_of(url)


@pytest.mark.parametrize("text", ["videos/a@b.mp4", "camera:0", "C:\\clips\\a.mp4", ""])
def test_what_is_no_url_stays(text):
    assert redact(text) == text


@pytest.mark.parametrize(
    ("url", "host"),
    [("rtsp://u:p@cam.local:554/a", "cam.local"), ("http://[fe80::1]:80/", "fe80::1"), ("udp://@:5000", "")],
)
def test_hosts(url, host):
    assert host_of(url) == host


def test_what_stands_behind_camera_is_an_address_too():
    assert redact("camera:rtsp://admin:secret@10.0.0.5/live") == "camera:rtsp://***@10.0.0.5/live"
    assert redact("camera:0") == "camera:0"
