"""One line per event, without credentials, and without a flood for repeated causes."""

from __future__ import annotations

import io
import json
import logging
import random
import string
import threading
from datetime import datetime

import pytest

from streamvos.pipeline.telemetry.logs import EventLog, warnings_as_events, without_credentials


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def target():
    return io.StringIO()


def lines(target):
    return [json.loads(line) for line in target.getvalue().splitlines()]


def test_a_line_of_text_is_for_people(target):
    log = EventLog("text", target)
    log.event(
        "died",
        "warning",
        reason="no heartbeat for 3 s",
        worker="compute",
        incarnation=2,
        stream="front",
        none=None,
    )
    moment, rest = target.getvalue().rstrip("\n").split(" ", 1)
    assert datetime.fromisoformat(moment).tzinfo is not None
    assert rest == 'warning died  stream=front incarnation=2 worker=compute reason="no heartbeat for 3 s"'


def test_a_line_of_json_is_for_programs(target):
    log = EventLog("json", target)
    log.event(
        "ready",
        stage="memory.front",
        worker="compute",
        took=1.5,
        sizes=(3, 4),
        more={"a": None},
        x=float("nan"),
    )
    (line,) = lines(target)
    assert list(line)[:3] == ["time", "level", "event"]
    datetime.fromisoformat(line.pop("time"))
    assert line == {
        "level": "info",
        "event": "ready",
        "stage": "memory.front",
        "worker": "compute",
        "took": 1.5,
        "sizes": [3, 4],
        "more": {"a": None},
        "x": None,
    }


@pytest.mark.parametrize("form", ["text", "json"])
def test_an_event_is_one_line_whatever_it_says(target, form):
    log, seed = EventLog(form, target), random.Random(7)
    letters = string.printable + "\x00\x1b\x85\u2028\u2029\ud800é漢"
    for _ in range(300):
        word = "".join(seed.choices(letters, k=seed.randint(0, 30)))
        log.event(
            word,
            level="warning",
            word=word,
            stream=word,
            nested={word: [word, word.encode("utf-8", "replace")]},
        )
    text = target.getvalue()
    assert text.count("\n") == len(text.splitlines()) == 300
    assert "\x1b" not in text  # no control sequences reach the reader's terminal


@pytest.mark.parametrize(
    "secret_url",
    [
        "rtsp://admin:hunter2@10.0.0.5/stream",
        "rtsp://admin:hunter2@x@10.0.0.5:554/stream",
        "rtsp://admin:hun/ter2#hunter2?@10.0.0.5/stream",
        "rtsp://admin:hunter2 hunter2@10.0.0.5/stream",
        "http://10.0.0.5/cam?user=a&password=hunter2",
        "http://10.0.0.5/cam/password=hunter2/live",
        "rtmp://10.0.0.5/live/hunter2",
        "RTSP://admin:hunter2@10.0.0.5/a",
    ],
)
@pytest.mark.parametrize("form", ["text", "json"])
def test_no_credential_is_ever_written(target, secret_url, form):
    log = EventLog(form, target)
    texts = [
        secret_url,
        f"cannot open {secret_url}: refused",
        f"'{secret_url}', then rtsp://other/x",
        "x" * 1980 + f" {secret_url}",
    ]
    for text in texts:
        log.event("failed", error=text, nested={"a": [text]}, bytes=text.encode(), exception=OSError(text))
        log.event(text)
    log.event(
        "keys", secret="hunter2", password="hunter2", token=["hunter2"], nested={"Authorization": "hunter2"}
    )
    assert "hunter2" not in target.getvalue()
    assert "10.0.0.5" in target.getvalue()  # which camera it is, stays


def test_text_without_addresses_stays_as_it_is():
    for text in ["cannot read a/b.png: no such file", "a@b.org", "12:30 // 4", "ipc:///tmp/x.sock", ""]:
        assert without_credentials(text) == text


def test_a_repeated_cause_is_written_once_a_second_with_the_number_of_the_others(target, clock):
    log = EventLog("json", target, clock=clock)
    for _ in range(500):
        log.event("refused", level="warning", cause="dtype", stage="extractor", detail=random.random())
        log.event("refused", level="warning", cause="shape", stage="extractor")
    assert [line["cause"] for line in lines(target)] == ["dtype", "shape"]
    clock.now += 1.01
    log.event("another")  # any event writes what was suppressed
    told = lines(target)[2:]
    assert [(line["event"], line.get("cause"), line.get("suppressed")) for line in told] == [
        ("refused", "dtype", 499),
        ("refused", "shape", 499),
        ("another", None, None),
    ]
    for _ in range(7):
        log.event("refused", cause="dtype", stage="extractor")
    log.close()
    assert lines(target)[-1]["suppressed"] == 7


def test_under_a_flood_lines_are_few_and_every_event_is_counted(target, clock):
    log, count = EventLog("json", target, clock=clock), 5000
    for _ in range(count):  # ten seconds
        clock.now += 0.002
        log.event("refused", cause="version")
    log.close()
    told = lines(target)
    assert len(told) <= 12
    assert sum(line.get("suppressed", 1) for line in told) == count


def test_events_without_a_cause_are_all_written(target):
    log = EventLog("json", target)
    for number in range(100):
        log.event("ready", worker="compute", number=number)
    assert [line["number"] for line in lines(target)] == list(range(100))


def test_invented_causes_take_no_memory(target, clock):
    log = EventLog("json", target, clock=clock)
    for number in range(5000):
        for _ in range(3):
            log.event("refused", cause=f"cause {number}")
    before = lines(target)
    log.close()
    assert len(lines(target)) - len(before) <= 256  # the others were written before
    assert sum(line.get("suppressed", 1) for line in lines(target)) == 15000


def test_levels(target):
    log = EventLog("json", target)
    for level in ("info", "warning", "error", "no such level", []):
        log.event("one", level=level)
    assert [line["level"] for line in lines(target)] == ["info", "warning", "error", "error", "error"]


def test_threads_do_not_mix_their_lines(target):
    log = EventLog("json", target)

    def write(name):
        for _ in range(200):
            log.event("tick", worker=name, text="x" * 200)

    threads = [threading.Thread(target=write, args=(f"w{n}",)) for n in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert len(lines(target)) == 800


def test_a_closed_stream_is_no_error():
    class Gone(io.StringIO):
        def write(self, _):
            raise BrokenPipeError(32, "Broken pipe")

    EventLog("text", Gone()).event("ready")
    closed = io.StringIO()
    closed.close()
    EventLog("text", closed).event("ready")


def test_what_cannot_be_shown_is_no_error(target):
    class Broken:
        def __str__(self):
            raise RuntimeError

    circle: list = []
    circle.append(circle)
    EventLog("json", target).event("odd", broken=Broken(), circle=circle, kind=Broken, time="mine")
    (line,) = lines(target)
    assert line["broken"] == "<Broken: RuntimeError>"
    assert line["time"] != "mine"


def test_it_writes_to_the_standard_error_of_the_moment(capsys):
    EventLog().event("ready", worker="compute")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.endswith("info    ready  worker=compute\n")


def test_warnings_of_the_package_become_events_and_nothing_else_within_the_block(target, capsys, caplog):
    logger, log = logging.getLogger("streamvos.sources.live"), EventLog("json", target)
    before = list(logging.getLogger("streamvos").handlers)
    with warnings_as_events(lambda level, text: log.event("warned", level, text=text)):
        logger.info("not worth a line")
        logger.warning("%d frames of %s are late", 3, "rtsp://admin:hunter2@10.0.0.5/live")
        logger.error("lost")
    logger.warning("after the block")
    told = [(line["event"], line["level"], line["text"]) for line in lines(target)]
    assert told == [
        ("warned", "warning", "3 frames of rtsp://***@10.0.0.5/live are late"),
        ("warned", "error", "lost"),
    ]
    assert capsys.readouterr().err == ""
    assert [record.getMessage() for record in caplog.records] == ["after the block"]
    assert logging.getLogger("streamvos").handlers == before
