"""The gate lets through what is equal, and nothing else, for every part of every method."""

from __future__ import annotations

import pytest
import torch
from small_methods import SMALL

from streamvos.engines import Engine
from streamvos.engines.batches import batch_of
from streamvos.engines.exporting import PartModule, export
from streamvos.engines.parity import feature_error
from streamvos.engines.signature import Signature
from streamvos.methods import build
from streamvos.methods.parts import ExtractorPart
from streamvos.segmenter.gate import Clip, compare, inputs_in

CPU = torch.device("cpu")
METHODS = ["tvos", "rgmp", "frtm-fast", "joint", "feelvos"]


@pytest.fixture
def short(clip) -> Clip:
    return Clip("short", clip.frames[:3], clip.mask)


def engine_of(built, run, batch: int = 1) -> Engine:
    """A function in an engine's clothes; its manifest tells the layout of the features."""
    return Engine(run, Signature.of(*ExtractorPart.example(built.clip.size, batch)), built.manifest)


@pytest.mark.parametrize("batch", [1, 3])
def test_the_part_itself_passes_in_batches_too(built, batch):
    method = built.make()
    method.extractor.to(memory_format=torch.channels_last)
    part = method.parts()["extractor"]
    parity = compare(method, part, engine_of(built, part.plain, batch), built.clip, CPU)
    assert parity.passed
    # batches may sum in another order
    assert parity.feature_error < 1e-5
    assert parity.frames == len(built.clip.frames)


def test_features_that_are_off_do_not_pass(built):
    method = built.make()
    part = method.parts()["extractor"]
    parity = compare(method, part, engine_of(built, lambda x: (part.plain(x)[0] * 1.1,)), built.clip, CPU)
    assert not parity.passed
    assert parity.feature_error == pytest.approx(0.1, rel=1e-3)


def test_an_engine_that_mixes_up_its_batch_does_not_pass(built):
    method = built.make()
    part = method.parts()["extractor"]
    shifted = engine_of(built, lambda x: (part.plain(x)[0].roll(1, 0),), 2)
    assert not compare(method, part, shifted, built.clip, CPU).passed


def test_an_engine_that_the_clip_never_calls_does_not_pass(built, short):
    method = build("frtm-fast", SMALL["frtm-fast"])
    part = method.parts()["refiner"]
    never = Engine(part.plain, Signature.of(torch.zeros(5)), built.manifest)
    parity = compare(method, part, never, short, CPU)
    assert not parity.passed
    assert "never called" in parity.reason


@pytest.mark.parametrize("name", METHODS)
def test_inner_parts_are_gated_by_what_they_are_really_called_with(built, short, name):
    torch.manual_seed(0)
    method = build(name, SMALL[name])
    for part in method.inner_parts().values():
        for inputs in inputs_in(method, part, short, CPU):
            signature = Signature.of(*inputs)
            assert compare(method, part, Engine(part.plain, signature, built.manifest), short, CPU).passed

            def wrong(*tensors, part=part):
                return tuple(value * 1.2 for value in part.plain(*tensors))

            assert not compare(method, part, Engine(wrong, signature, built.manifest), short, CPU).passed


@pytest.mark.parametrize("name", METHODS)
def test_every_part_exports_to_the_same_numbers(short, name):
    torch.manual_seed(0)
    method = build(name, SMALL[name]).eval()
    parts = method.parts()
    for part in parts.values():
        extractor = isinstance(part, ExtractorPart)
        every = [part.example(short.size, 1)] if extractor else inputs_in(method, part, short, CPU)
        assert every
        for inputs in every:
            program = export(PartModule(part), inputs).module()
            with torch.no_grad():
                # the same operations, but for what the tracing decomposed
                assert feature_error(part.plain(*inputs), tuple(program(*inputs))) < 1e-5


@pytest.mark.parametrize("name", METHODS)
def test_what_a_part_makes_of_a_frame_or_an_object_depends_on_no_other(short, name):
    torch.manual_seed(0)
    method = build(name, SMALL[name]).eval()
    seen = set()
    for part in method.parts().values():
        extractor = isinstance(part, ExtractorPart)
        every = [part.example(short.size, 3)] if extractor else inputs_in(method, part, short, CPU)
        for inputs in every:
            count = batch_of(part, Signature.of(*inputs))
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
