"""What fleet.toml may say; what is wrong ends in one line that names the place."""

from __future__ import annotations

from fractions import Fraction

import pytest
from fleet.fleets import camera, values

from streamvos.fleet.cluster import count_shares
from streamvos.fleet.config import ShareConfig, make_fleet, read_fleet
from streamvos.types import InputError

SIZING = {"method": "tvos", "height": 48, "streams": 2}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sorce": 1}, "sorce: Extra inputs"),
        ({"store": ""}, "store: .* at least 1 character"),
        ({"store": 3}, "store: .* valid string"),
        ({"name": "no name"}, "name: expected a name of"),
        ({"cluster": "ray://head:10001"}, "cluster: expected .* HOST:PORT"),
        ({"cluster": "head"}, "cluster: expected .* HOST:PORT"),
        ({"reserve": 1.0}, "reserve: .* less than 1"),
        ({"snapshot_seconds": 0}, "snapshot_seconds: .* 0.5"),
        ({"share": {"gpus": 1.5}}, "share.gpus: expected a whole number"),
        ({"share": {"cpus": 0}}, "share.cpus: .* 0.01"),
        ({"share": {"gpu": 1}}, "share.gpu: Extra"),
        ({"sizing": []}, "sizing: .* at least 1 item"),
        ({"sizing": {}}, "sizing: "),
        ({"sizing": [SIZING, {**SIZING, "streams": 3}]}, "sizing: two tables are of tvos at 48"),
        ({"sizing": [{**SIZING, "streams": 0}]}, r"sizing.0.streams: .* 1"),
        ({"sizing": [{**SIZING, "method": "frtm"}], "streams": [camera("a")]}, "knows tvos at none"),
        ({"streams": {"name": "a"}}, "streams: expected"),
        ({"streams": ["a"]}, "streams: expected"),
        ({"streams": [camera("a"), camera("a")]}, "twice: a"),
        ({"streams": [camera("a", height=None)]}, "'a' has no height"),
        ({"streams": [camera("a", nmae="b")]}, "nmae"),
        (
            {"streams": [camera("a")], "reserve": 0.6},
            "'a' takes 1/2 of a share, and reserve = 0.6 keeps more",
        ),
        ({"method": {"nmae": "tvos"}}, "method.nmae"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path, change, said):
    with pytest.raises(InputError, match=said) as caught:
        make_fleet(values(tmp_path, **change), "fleet.toml")
    assert str(caught.value).startswith("fleet.toml")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["name = ", "[[streams]", "\x00", "sizing = 1\nsizing = 2"])
def test_what_is_no_toml_is_one_line(tmp_path, text):
    (tmp_path / "fleet.toml").write_text(text)
    with pytest.raises(InputError, match=r"fleet\.toml") as caught:
        read_fleet(tmp_path / "fleet.toml")
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="no such file"):
        read_fleet(tmp_path / "none.toml")


def test_a_stream_takes_what_was_measured_on_each_kind_of_machine(tmp_path):
    sizing = [
        {**SIZING, "height": 480, "streams": 4},
        SIZING,
        {**SIZING, "height": 1080, "streams": 3, "on": "H200"},
        {**SIZING, "height": 480, "streams": 16, "on": "big"},
    ]
    config = make_fleet(values(tmp_path, sizing=sizing))
    assert config.kinds == ("H200", "big")
    for height, loads in [
        (48, {"": Fraction(1, 2), "H200": Fraction(1, 3), "big": Fraction(1, 16)}),
        (240, {"": Fraction(1, 4), "H200": Fraction(1, 3), "big": Fraction(1, 16)}),
        (720, {"H200": Fraction(1, 3)}),
    ]:
        (stream,) = make_fleet(values(tmp_path, sizing=sizing, streams=[camera("a", height=height)])).streams
        assert config.loads_of(stream) == loads


@pytest.mark.parametrize(
    ("resources", "share", "count"),
    [
        ({"CPU": 8.0}, {"cpus": 3.0}, 2),
        ({"CPU": 3.0}, {"cpus": 0.1}, 30),
        ({"CPU": 8.0}, {"cpus": 1.0, "gpus": 1.0}, 0),
        ({"CPU": 64.0, "GPU": 8.0}, {"cpus": 4.0, "gpus": 1.0}, 8),
        ({"CPU": 64.0, "GPU": 2.0}, {"cpus": 1.0, "gpus": 0.4}, 4),  # no share is on two GPUs
        ({"CPU": 64.0, "GPU": 5.0}, {"cpus": 1.0, "gpus": 2.0}, 2),
        ({}, {}, 0),
    ],
)
def test_a_machine_has_as_many_shares_as_fit(resources, share, count):
    assert count_shares(resources, ShareConfig(**share)) == count
