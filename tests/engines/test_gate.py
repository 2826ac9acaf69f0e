"""The gate lets through what is equal, and nothing else, for every part of every method."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_methods import SMALL

from streamvos.engines.engines import Engine
from streamvos.engines.exporting import export
from streamvos.engines.gate import Clip, compare, feature_error, inputs_in, judge, mask_overlap, resized
from streamvos.engines.signature import Signature
from streamvos.methods import build
from streamvos.methods.parts import ExtractorPart
from streamvos.segmenter import follow

CPU = torch.device("cpu")
METHODS = ["tvos", "rgmp", "frtm-fast", "joint", "feelvos"]


@pytest.fixture
def short(clip) -> Clip:
    return Clip(clip.frames[:3], clip.mask)


def engine_of(built, run) -> Engine:
    """A function as an engine for 1 to 8 frames of the clip."""
    signature = Signature.of(*ExtractorPart.example(built.clip.size, 2))
    return Engine(run, signature.of_any_batch(built.make().parts()["extractor"], 8))


def test_the_part_itself_passes_in_batches_too(built):
    method = built.make()
    method.extractor.to(memory_format=torch.channels_last)
    part = method.parts()["extractor"]
    parity = compare(method, part, engine_of(built, part.plain), built.clip, CPU, follow)
    assert parity.passed
    # batches may sum in another order
    assert parity.feature_error < 1e-5
    assert parity.frames == len(built.clip.frames)


def test_features_that_are_off_do_not_pass(built):
    method = built.make()
    part = method.parts()["extractor"]
    parity = compare(
        method, part, engine_of(built, lambda x: (part.plain(x)[0] * 1.1,)), built.clip, CPU, follow
    )
    assert not parity.passed
    assert parity.feature_error == pytest.approx(0.1, rel=1e-3)


def test_an_engine_that_mixes_up_its_batch_does_not_pass(built):
    method = built.make()
    part = method.parts()["extractor"]
    shifted = engine_of(built, lambda x: (part.plain(x)[0].roll(1, 0),))
    assert not compare(method, part, shifted, built.clip, CPU, follow).passed


def test_an_engine_that_the_clip_never_calls_does_not_pass(built, short):
    method = build("frtm-fast", SMALL["frtm-fast"])
    part = method.parts()["refiner"]
    never = Engine(part.plain, Signature.of(torch.zeros(2, 5)).of_any_batch(part, 8))
    parity = compare(method, part, never, short, CPU, follow)
    assert not parity.passed
    assert "never called" in parity.reason


@pytest.mark.parametrize("name", METHODS)
def test_inner_parts_are_gated_by_what_they_are_really_called_with(short, name):
    torch.manual_seed(0)
    method = build(name, SMALL[name])
    for part in method.inner_parts().values():
        for inputs in inputs_in(method, part, short, CPU, follow):
            signature = Signature.of(*inputs).of_any_batch(part, 8)
            assert compare(method, part, Engine(part.plain, signature), short, CPU, follow).passed

            def wrong(*tensors, part=part):
                return tuple(value * 1.2 for value in part.plain(*tensors))

            assert not compare(method, part, Engine(wrong, signature), short, CPU, follow).passed


@pytest.mark.parametrize("name", METHODS)
def test_every_part_exports_to_the_same_numbers_for_every_batch(short, name):
    torch.manual_seed(0)
    method = build(name, SMALL[name]).eval()
    parts = method.parts()
    for part in parts.values():
        extractor = isinstance(part, ExtractorPart)
        every = [part.example(short.size, 1)] if extractor else inputs_in(method, part, short, CPU, follow)
        assert every
        for inputs in every:
            two = resized(part, inputs, 2)
            signature = Signature.of(*two).of_any_batch(part, 8)
            program = export(part, two, signature).module()
            for count in (1, 2, 5, 8):
                some = resized(part, inputs, count)
                with torch.no_grad():
                    # the same operations, but for what the tracing decomposed
                    assert feature_error(part.plain(*some), tuple(program(*some))) < 1e-5


@pytest.mark.parametrize("name", METHODS)
def test_what_a_part_makes_of_a_frame_or_an_object_depends_on_no_other(short, name):
    torch.manual_seed(0)
    method = build(name, SMALL[name]).eval()
    seen = set()
    for part in method.parts().values():
        extractor = isinstance(part, ExtractorPart)
        every = [part.example(short.size, 3)] if extractor else inputs_in(method, part, short, CPU, follow)
        for inputs in every:
            count = Signature.of(*inputs).batch(part)
            if count == 1:
                continue
            seen.add(part.name)
            with torch.no_grad():
                whole = part.plain(*inputs)
                for k in range(count):
                    alone = part.plain(
                        *(value[k : k + 1] if part.is_batched(j) else value for j, value in enumerate(inputs))
                    )
                    rows = tuple(value[k : k + 1] for value in whole)
                    # of another batch the sums may be in another order
                    assert feature_error(rows, alone) < 1e-5
    assert seen == set(method.parts())


def test_equal_tensors_have_no_error_and_a_scaled_one_has_its_scale():
    x = torch.randn(1, 4, 6, 6)
    assert feature_error([x, x], [x, x.clone()]) == 0
    assert feature_error([x, x], [x, x * 1.25]) == pytest.approx(0.25)


@pytest.mark.parametrize(
    "other",
    [
        torch.randn(1, 4, 6, 5),
        torch.randn(1, 4, 6, 6).double(),
        torch.randn(1, 4, 6, 6).contiguous(memory_format=torch.channels_last),
        torch.full((1, 4, 6, 6), float("nan")),
    ],
)
def test_another_shape_dtype_or_layout_and_nan_are_no_answer(other):
    assert feature_error([torch.randn(1, 4, 6, 6)], [other]) == float("inf")


def test_a_missing_output_is_no_answer():
    x = torch.randn(3)
    assert feature_error([x, x], [x]) == float("inf")


def test_overlap_is_that_of_every_object_in_every_frame():
    ours = [np.zeros((4, 4), np.uint8), np.zeros((4, 4), np.uint8)]
    theirs = [frame.copy() for frame in ours]
    assert mask_overlap(ours, theirs) == 1.0
    ours[0][:, :2], theirs[0][:, :1] = 1, 1  # half of it
    ours[1][0], theirs[1][0] = 7, 7
    assert mask_overlap(ours, theirs) == 0.75


def test_an_object_that_one_of_them_lost_counts_as_nothing():
    ours, theirs = np.zeros((4, 4), np.uint8), np.zeros((4, 4), np.uint8)
    ours[0] = 3
    assert mask_overlap([ours], [theirs]) == 0.0


def test_the_verdict_names_what_failed_with_numbers():
    assert judge(1e-5, 0.999, 50).passed
    features = judge(0.3, 1.0, 50)
    assert not features.passed
    assert "0.3" in features.reason
    masks = judge(1e-5, 0.5, 50)
    assert not masks.passed
    assert "0.5000" in masks.reason
    assert not judge(float("nan"), 1.0, 50).passed


def test_bfloat16_may_round_and_float32_may_not():
    assert judge(1e-2, 1.0, 50, "bfloat16").passed
    assert not judge(1e-2, 1.0, 50, "float32").passed
