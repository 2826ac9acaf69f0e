"""Live sources over real sockets: they give frames, end, stall, and are refused; they never hang."""

import base64
import gc
import http.server
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from streamvos.sources import LiveSource
from streamvos.types import Frame, InputError, SourceError

SECRET = "hunter2"
PATIENCE = 20.0
"""Seconds within which an error must come that is due after 1 s; a busy machine may take a while."""


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("source ")]


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    assert threads() == []
    yield
    deadline = time.monotonic() + PATIENCE  # a blocked read ends by FFmpeg's own deadline
    while threads() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert threads() == []


class HttpServer:
    """Serves bytes under /video.ts and then, by `stall`, holds the line instead of ending."""

    def __init__(self, data: bytes, stall: bool = False) -> None:
        done = self._done = threading.Event()

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                if not self.path.startswith("/video.ts"):
                    self.send_error(404)
                    return
                self.send_response(200)
                self.send_header("Content-Type", "video/mp2t")
                if not stall:
                    self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)
                self.wfile.flush()
                if stall:
                    done.wait(60)

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.address = f"127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def __enter__(self) -> "HttpServer":
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._server.shutdown()
        self._server.server_close()


class RtspServer:
    """As much of RTSP (RFC 2326) as a client needs to play one MPEG-TS stream, with a password."""

    SDP = (
        "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=test\r\nt=0 0\r\na=control:*\r\n"
        "m=video 0 RTP/AVP 33\r\nc=IN IP4 0.0.0.0\r\na=control:track0\r\n"
    )

    def __init__(self, data: bytes, stall: bool = False, udp: bool = False) -> None:
        self._data, self._stall, self._udp = data, stall, udp
        self._port = 0
        self._done = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def __enter__(self) -> "RtspServer":
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                try:
                    self._talk(connection)
                except OSError:  # the client is gone
                    continue

    def _talk(self, connection: socket.socket) -> None:
        expected = "Basic " + base64.b64encode(f"admin:{SECRET}".encode()).decode()
        lines = connection.makefile("rb")
        while True:
            request = lines.readline().decode().split()
            if not request:
                return
            headers = {}
            while (line := lines.readline().decode().strip()) != "":
                name, _, value = line.partition(":")
                headers[name.strip().lower()] = value.strip()
            method, answer, body = request[0], ["RTSP/1.0 200 OK", f"CSeq: {headers['cseq']}"], ""
            if method != "OPTIONS" and headers.get("authorization") != expected:
                answer[0] = "RTSP/1.0 401 Unauthorized"
                answer.append('WWW-Authenticate: Basic realm="camera"')
            elif method == "DESCRIBE":
                body = self.SDP
                answer += ["Content-Type: application/sdp", f"Content-Length: {len(body)}"]
            elif method == "SETUP" and self._udp and "TCP" in headers["transport"]:
                answer[0] = "RTSP/1.0 461 Unsupported Transport"
            elif method == "SETUP" and self._udp:
                self._port = int(headers["transport"].partition("client_port=")[2].partition("-")[0])
                transport = f"RTP/AVP;unicast;client_port={self._port}-{self._port + 1};server_port=5000-5001"
                answer += ["Session: 1", f"Transport: {transport}"]
            elif method == "SETUP":
                answer += ["Session: 1", "Transport: RTP/AVP/TCP;unicast;interleaved=0-1"]
            connection.sendall(("\r\n".join(answer) + "\r\n\r\n" + body).encode())
            if method == "PLAY" and "401" not in answer[0]:
                self._send(connection)
                if self._stall:
                    self._done.wait(60)
                return

    def _send(self, connection: socket.socket) -> None:
        for number, place in enumerate(range(0, len(self._data), 7 * 188)):
            payload = self._data[place : place + 7 * 188]
            packet = struct.pack(">BBHII", 0x80, 33, number % 65536, number * 900, 1) + payload
            if self._udp:
                time.sleep(0.002)  # or the kernel drops some
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as line:
                    line.sendto(packet, ("127.0.0.1", self._port))
            else:
                connection.sendall(struct.pack(">cBH", b"$", 0, len(packet)) + packet)


@pytest.fixture
def clip(tmp_path, make_video) -> Callable[..., str]:
    """(frames) -> path of a video file of 25 frames per second."""

    def make(count: int) -> str:
        path = tmp_path / f"clip{count}.mp4"
        path.write_bytes(make_video(count, container="mp4", codec="libx264"))
        return str(path)

    return make


# ---- files in the part of a camera


def test_a_file_plays_in_real_time_without_loss(clip, number_of):
    with LiveSource(clip(15), policy="lossless") as source:
        assert (source.name, source.size, source.fps, source.length) == ("clip15", (48, 64), 25.0, None)
        time.sleep(0.3)  # the tape begins with the first frame that is taken, not before
        began = time.monotonic_ns()
        frames = list(source)
    assert [number_of(frame.image) for frame in frames] == list(range(15))
    assert [frame.index for frame in frames] == list(range(15))
    assert [frame.pts for frame in frames] == pytest.approx([index / 25 for index in range(15)], abs=1e-3)
    assert source.dropped == 0
    for index, frame in enumerate(frames):
        assert frame.captured_ns >= began + index * 40_000_000 - 2_000_000  # never before its time
        assert frame.image.dtype == np.uint8


def test_colors_are_rgb(tmp_path, make_pair_of_colors):
    with LiveSource(make_pair_of_colors(tmp_path / "colors.mp4")) as source:
        image = next(source).image
    red, blue = image[24, 16].astype(int), image[24, 48].astype(int)
    assert red[0] > red[2] + 100
    assert blue[2] > blue[0] + 100


@pytest.fixture
def make_pair_of_colors() -> Callable[..., str]:
    import av

    def make(path):
        image = np.zeros((48, 64, 3), np.uint8)
        image[:, :32] = 220, 20, 20
        image[:, 32:] = 20, 20, 220
        with av.open(str(path), "w") as output:
            stream = output.add_stream("libx264", rate=25)
            stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
            for index in range(3):
                frame = av.VideoFrame.from_ndarray(image, format="rgb24")
                frame.pts = index
                output.mux(stream.encode(frame))
            output.mux(stream.encode(None))
        return str(path)

    return make


def test_latest_gives_the_newest_and_counts_what_it_drops(clip, number_of):
    numbers = []
    with LiveSource(clip(40), policy="latest") as source:
        for frame in source:
            assert frame.index == len(numbers)
            numbers.append(number_of(frame.image))
            time.sleep(0.25)  # six frames' time
    assert numbers[0] == 0
    assert numbers[-1] == 39
    assert numbers == sorted(set(numbers))
    assert source.dropped > 0
    assert len(numbers) + source.dropped == 40


def test_lossless_makes_the_stream_wait(clip, number_of):
    with LiveSource(clip(30), policy="lossless", stall_timeout=1.0) as source:
        frames = [next(source)]
        time.sleep(2.5)  # a slow reader is no stall
        frames.extend(source)
    assert [number_of(frame.image) for frame in frames] == list(range(30))


@pytest.mark.parametrize("policy", ["latest", "lossless"])
def test_closing_in_the_middle_ends_the_thread(clip, policy):
    source = LiveSource(clip(100), policy=policy)
    next(source)
    began = time.monotonic()
    source.close()
    assert threads() == []
    assert time.monotonic() - began < 1.9  # the thread ended by itself and was not abandoned
    with pytest.raises(SourceError, match="closed"):
        next(source)


def test_a_forgotten_source_ends_its_thread(clip):
    source = LiveSource(clip(100))
    next(source)
    del source
    gc.collect()
    assert threads() == []


def test_a_damaged_file(tmp_path):
    (tmp_path / "bad.mp4").write_bytes(b"no video " * 200)
    with pytest.raises(SourceError, match=r"cannot open .*bad\.mp4: .*invalid data"):
        LiveSource(str(tmp_path / "bad.mp4"))


def test_a_change_of_size_is_an_error(tmp_path, make_video):
    (tmp_path / "clip.ts").write_bytes(make_video(5) + make_video(5, size=(64, 96)))
    with LiveSource(str(tmp_path / "clip.ts"), policy="lossless") as source:
        frames: list[Frame] = []
        with pytest.raises(SourceError, match=r"96x64 pixels.*64x48"):
            frames.extend(source)
    assert {frame.size for frame in frames} == {(48, 64)}


def test_a_folder_is_no_camera(tmp_path):
    with pytest.raises(InputError, match="folder"):
        LiveSource(str(tmp_path))


# ---- network streams


def test_http_stream_from_begin_to_end(make_video, number_of):
    with HttpServer(make_video(40)) as server:
        url = f"http://admin:{SECRET}@{server.address}/video.ts?token={SECRET}"
        with LiveSource(url, policy="lossless") as source:
            assert source.name == "127.0.0.1"
            assert SECRET not in repr(source)
            frames = list(source)
    assert [number_of(frame.image) for frame in frames] == list(range(40))
    assert [frame.pts for frame in frames] == pytest.approx([index / 25 for index in range(40)], abs=1e-3)
    captured = [frame.captured_ns for frame in frames]
    assert captured == sorted(captured)


def test_times_go_on_when_the_clock_of_the_stream_starts_again(make_video, number_of):
    server = HttpServer(make_video(20) + make_video(20))
    url = f"http://{server.address}/video.ts"
    with server, LiveSource(url, policy="lossless") as source:
        frames = list(source)
    numbers = [number_of(frame.image) for frame in frames]
    assert numbers[:15] == list(range(15))
    assert numbers[-15:] == list(range(5, 20))
    times = [frame.pts for frame in frames]
    assert times == sorted(times)
    assert times[:15] == pytest.approx([index / 25 for index in range(15)], abs=1e-3)


def test_rtsp_stream_with_password(make_video, number_of):
    with RtspServer(make_video(60)) as server:
        url = f"rtsp://admin:{SECRET}@{server.address}/stream"
        with LiveSource(url, policy="lossless") as source:
            frames = list(source)
    numbers = [number_of(frame.image) for frame in frames]
    # The end of the connection may cost the decoder its last frame.
    assert numbers == list(range(len(numbers)))
    assert len(numbers) >= 58


def test_udp_stream_that_stops(make_video, number_of):
    data = make_video(120)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    stop = threading.Event()

    def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            while not stop.is_set():
                for place in range(0, len(data), 7 * 188):
                    sender.sendto(data[place : place + 7 * 188], ("127.0.0.1", port))
                    if stop.wait(0.002):
                        break

    thread = threading.Thread(target=send)
    thread.start()
    try:
        with LiveSource(f"udp://127.0.0.1:{port}", open_timeout=PATIENCE, stall_timeout=1.0) as source:
            frames = [next(source) for _ in range(20)]
            times = [frame.pts for frame in frames]
            stop.set()
            began = time.monotonic()
            with pytest.raises(SourceError, match=r"udp://127\.0\.0\.1.*stalled"):
                frames.extend(source)
            assert 0.5 < time.monotonic() - began < PATIENCE
    finally:
        stop.set()
        thread.join()
    assert times == sorted(set(times))


@pytest.mark.parametrize("server_kind", [HttpServer, RtspServer])
def test_a_stream_that_stalls_is_an_error_in_time(make_video, server_kind):
    data = make_video(100)
    with server_kind(data[: len(data) // 188 * 4 // 5 * 188], stall=True) as server:
        scheme = "http" if server_kind is HttpServer else "rtsp"
        path = "video.ts" if server_kind is HttpServer else "stream"
        url = f"{scheme}://admin:{SECRET}@{server.address}/{path}"
        with LiveSource(url, policy="lossless", open_timeout=PATIENCE, stall_timeout=1.0) as source:
            frames: list[Frame] = []
            with pytest.raises(SourceError, match="stalled: no frame for 1 s") as caught:
                frames.extend(source)
            assert 0.5 < (time.monotonic_ns() - frames[-1].captured_ns) * 1e-9 < PATIENCE
            assert len(frames) > 50
            assert SECRET not in str(caught.value)
            with pytest.raises(SourceError, match="stalled"):  # and it stays so
                next(source)


@pytest.mark.parametrize("scheme", ["rtsp", "http", "tcp"])
def test_a_server_that_says_nothing_is_an_error_in_time(scheme):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"{scheme}://admin:{SECRET}@127.0.0.1:{silent.getsockname()[1]}/stream"
        began = time.monotonic()
        with pytest.raises(SourceError, match="no answer within 1 s") as caught:
            LiveSource(url, open_timeout=1.0)
        assert 0.9 < time.monotonic() - began < PATIENCE
    assert SECRET not in str(caught.value)


def refused(scheme: str) -> str:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    return f"{scheme}://admin:{SECRET}@127.0.0.1:{port}/stream"


def chain(error: BaseException | None) -> str:
    texts = []
    while error is not None:
        texts += [str(error), repr(error), repr(error.args)]
        error = error.__cause__ or error.__context__
    return " ".join(texts)


def test_errors_give_the_reason_but_no_secrets(capfd, caplog):
    with HttpServer(b"no video " * 1000) as plain, RtspServer(b"") as camera:
        addresses = {
            refused("rtsp"): "connection refused",
            refused("http"): "connection refused",
            f"http://admin:{SECRET}@{plain.address}/absent?token={SECRET}": "not found",
            f"http://admin:{SECRET}@{plain.address}/video.ts?token={SECRET}": "invalid data",
            f"rtsp://admin:{SECRET}-not@{camera.address}/stream": "unauthorized",
        }
        for url, reason in addresses.items():
            with pytest.raises(SourceError) as caught:
                LiveSource(url, open_timeout=PATIENCE)
            assert reason in str(caught.value)
            assert "127.0.0.1" in str(caught.value)
            assert "\n" not in str(caught.value)
            assert SECRET not in chain(caught.value)
    written = capfd.readouterr()
    assert SECRET not in written.out + written.err + caplog.text


def test_a_camera_that_speaks_udp_only(make_video):
    with RtspServer(make_video(30), stall=True, udp=True) as server:
        address = f"rtsp://admin:{SECRET}@{server.address}/stream"
        with LiveSource(address, stall_timeout=2.0) as source:
            assert next(source).size == (48, 64)
