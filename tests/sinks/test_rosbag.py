"""rosbag2 recordings: rosbags decodes every message, they are sources again, and users lose nothing."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("mcap", reason="needs mcap, of the extra bags")
pytest.importorskip("rosbags", reason="needs rosbags, of the extra bags")

from rosbags.interfaces import QosDurability
from rosbags.rosbag2 import Reader

from streamvos.rosmsg.results import detections, label_info
from streamvos.rosmsg.types import decode, encode, make, stamp_ns, time_of, type_hash, typestore
from streamvos.sinks import open_sinks
from streamvos.sinks.rosbag import RosbagSink
from streamvos.sources import open_source
from streamvos.types import InputError, SinkError

EPOCH_NS = 1_700_000_000 * 10**9
STEP_NS = 40_000_000
TOPICS = ["image/compressed", "label_map", "detections", "labels"]


def write(folder, make_pair, count=3, **options):
    others = {"labels": False, "overlay": False, "results": False}
    with open_sinks(folder, rosbag=True, epoch_ns=EPOCH_NS, **others, **options) as sinks:
        for number in range(count):
            sinks.write(*make_pair(number, pts=number * STEP_NS / 1e9))


def names_in(folder):
    return sorted(path.name for path in folder.rglob("*") if path.name != ".streamvos-files")


def messages_of(folder):
    """(topic, time, message) of all messages, decoded by rosbags with the definitions in the file."""
    with Reader(folder) as reader:
        for one in reader.connections:
            assert one.digest == type_hash(one.msgtype)
            assert one.msgdef.data == typestore().generate_msgdef(one.msgtype, ros_version=2)[0]
        return [
            (connection.topic.removeprefix("/streamvos/"), time_ns, decode(content, connection.msgtype))
            for connection, time_ns, content in reader.messages()
        ]


def test_rosbags_decodes_every_message(tmp_path, make_pair):
    write(tmp_path, make_pair, uncertain_below=0.25)
    assert names_in(tmp_path) == ["metadata.yaml", "rosbag", "rosbag.mcap"]
    found = messages_of(tmp_path / "rosbag")
    counts = {topic: sum(one == topic for one, _, _ in found) for topic in TOPICS}
    assert counts == {"image/compressed": 3, "label_map": 3, "detections": 3, "labels": 1}
    for topic, time_ns, message in found:
        number = (time_ns - EPOCH_NS) // STEP_NS
        frame, result = make_pair(number)
        header = make("std_msgs/msg/Header", stamp=time_of(EPOCH_NS + number * STEP_NS), frame_id="clip")
        names = {1: "1", 7: "7"}
        assert stamp_ns(message.header) == time_ns
        if topic == "label_map":
            assert message.encoding == "mono8"
            assert np.array_equal(message.data.reshape(48, 64), result.mask)
        elif topic == "image/compressed":
            picture = np.array(Image.open(io.BytesIO(message.data.tobytes())))
            assert np.abs(picture.astype(int) - frame.image).mean() < 3  # JPEG
        elif topic == "detections":
            assert encode(message) == encode(detections(result.objects, names, header))
        else:
            assert encode(message) == encode(label_info(names, header, 0.25))
    with Reader(tmp_path / "rosbag") as reader:
        assert (reader.message_count, reader.duration) == (10, 2 * STEP_NS + 1)
        (labels,) = [one for one in reader.connections if one.topic == "/streamvos/labels"]
        assert [one.durability for one in labels.ext.offered_qos_profiles] == [QosDurability.TRANSIENT_LOCAL]


def test_it_is_a_source_again_with_its_times(tmp_path, make_pair):
    write(tmp_path, make_pair)
    for place in (tmp_path / "rosbag", tmp_path / "rosbag/rosbag.mcap"):
        with pytest.raises(InputError, match="2 topics with pictures"):
            open_source(str(place))
        with open_source(str(place), topic="/streamvos/image/compressed") as source:
            frames = list(source)
            assert source.epoch_ns == EPOCH_NS
        assert [round(one.pts * 1e9) for one in frames] == [0, STEP_NS, 2 * STEP_NS]
        with open_source(str(place), topic="/streamvos/label_map") as source:
            maps = [frame.image for frame in source]
        assert np.array_equal(maps[2][..., 0], make_pair(2)[1].mask)


def test_labels_come_again_when_the_objects_change(tmp_path, make_pair, make_result):
    frame, _ = make_pair(0)
    with RosbagSink(tmp_path / "a") as sink:
        for ids in ((1,), (1,), (1, 5), (5,)):
            sink.write(frame, make_result(np.zeros((48, 64), np.uint8), ids))
    labels = [message for topic, _, message in messages_of(tmp_path / "a") if topic == "labels"]
    assert [[one.class_name for one in message.class_map[1:]] for message in labels] == [
        ["1"],
        ["1", "5"],
        ["5"],
    ]


def test_after_an_exception_the_partial_recording_is_whole(tmp_path, make_pair):
    sinks = open_sinks(tmp_path, overlay=False, rosbag=True)
    sinks.write(*make_pair(0))
    sinks.abort()
    (partial,) = tmp_path.glob("rosbag.*.partial")
    assert not (tmp_path / "rosbag").exists()
    assert len(messages_of(partial)) == 4
    write(tmp_path, make_pair)  # removes it
    assert names_in(tmp_path) == ["metadata.yaml", "rosbag", "rosbag.mcap"]


def test_a_later_run_replaces_it_or_removes_it(tmp_path, make_pair):
    write(tmp_path, make_pair, 3)
    write(tmp_path, make_pair, 1)
    assert len(messages_of(tmp_path / "rosbag")) == 4
    with open_sinks(tmp_path, labels=False, overlay=False) as sinks:
        sinks.write(*make_pair(0))
    assert names_in(tmp_path) == ["results.jsonl"]


@pytest.mark.parametrize("name", ["rosbag.mcap", "metadata.yaml"])
def test_a_file_of_the_user_is_replaced_only_on_demand(tmp_path, make_pair, name):
    write(tmp_path, make_pair)
    (tmp_path / "rosbag" / name).write_text("the user's")
    with pytest.raises(InputError, match=rf"rosbag/{name} is there already.*overwrite=True"):
        write(tmp_path, make_pair)
    assert (tmp_path / "rosbag" / name).read_text() == "the user's"
    write(tmp_path, make_pair, 1, overwrite=True)
    assert len(messages_of(tmp_path / "rosbag")) == 4


def test_a_folder_that_holds_something_else_is_refused_in_any_case(tmp_path, make_pair):
    (tmp_path / "rosbag").mkdir()
    (tmp_path / "rosbag/ride_0.mcap").write_text("the user's")
    with pytest.raises(InputError, match=r"holds ride_0\.mcap, which is no part of the recording"):
        write(tmp_path, make_pair, overwrite=True)
    with pytest.raises(InputError, match=r"holds ride_0\.mcap"):
        RosbagSink(tmp_path / "rosbag")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="it is a file; give a folder"):
        RosbagSink(tmp_path / "file")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="it is a link"):
        RosbagSink(tmp_path / "link")
    with pytest.raises(SinkError, match="something is in the way"):
        RosbagSink(tmp_path / "file" / "a")
    assert names_in(tmp_path) == ["file", "link", "ride_0.mcap", "rosbag"]


def test_what_appears_meanwhile_is_not_replaced(tmp_path, make_pair):
    sinks = open_sinks(tmp_path, labels=False, overlay=False, results=False, rosbag=True)
    sinks.write(*make_pair(0))
    (tmp_path / "rosbag").mkdir()
    (tmp_path / "rosbag/metadata.yaml").write_text("the user's")
    with pytest.raises(SinkError, match=r"put there by somebody else.*partial/metadata\.yaml"):
        sinks.close()
    assert (tmp_path / "rosbag/metadata.yaml").read_text() == "the user's"


def test_a_full_disk_keeps_what_is_whole(tmp_path, make_pair, file_size_limit):
    rng, limit = np.random.default_rng(0), 2_000_000
    sink, written = RosbagSink(tmp_path / "a"), []

    def fill():
        for number in range(100):
            frame, result = make_pair(number, (480, 640))
            frame.image[:] = rng.integers(0, 256, frame.image.shape)  # so that it does not compress
            sink.write(frame, result)
            written.append(number)

    with file_size_limit(limit), pytest.raises(SinkError, match=r"write .*a\..*partial: File too large"):
        fill()
    sink.abort()
    assert not (tmp_path / "a").exists()
    options = {"topic": "/streamvos/image/compressed", "allow_truncated": True}
    with open_source(str(sink.partial), **options) as source:
        assert 0 < len(list(source)) <= len(written)


def test_a_full_disk_at_the_end(tmp_path, make_pair, file_size_limit):
    sink = RosbagSink(tmp_path / "a")
    sink.write(*make_pair(0))
    with file_size_limit(1000), pytest.raises(SinkError, match="File too large"):
        sink.close()
    assert not (tmp_path / "a").exists()
    assert [path.suffix for path in sink.partial.iterdir()] == [".mcap"]


def test_times_that_ros_cannot_say(tmp_path, make_pair):
    for pts in (-1.0, 2.0**31):
        with RosbagSink(tmp_path / "a") as sink:
            with pytest.raises(SinkError, match="a ROS stamp is at most 2147483647 s"):
                sink.write(*make_pair(0, pts=pts))
            sink.write(*make_pair(0))


def test_a_recording_that_is_removed_meanwhile(tmp_path, make_pair):
    sink = RosbagSink(tmp_path / "a")
    sink._files[0].unlink()
    with pytest.raises(SinkError, match="was removed while it was written"):
        sink.write(*make_pair(0))
