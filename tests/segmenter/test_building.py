"""An engine from its network to the masks: built, compared, stored, found, and refused where it must be."""

from __future__ import annotations

import shutil
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from streamvos.engines import Engine, EngineCache, aoti
from streamvos.engines.beside import requests
from streamvos.engines.cache import digest_of
from streamvos.engines.manifest import Choice
from streamvos.engines.signature import Signature
from streamvos.methods.parts import ExtractorPart
from streamvos.segmenter import Extraction, Segmenter
from streamvos.segmenter.building import Builder
from streamvos.types import InputError

CPU = torch.device("cpu")


@pytest.fixture
def cache(built, tmp_path) -> EngineCache:
    """A copy of the cache, to be damaged."""
    shutil.copytree(built.cache.folder, tmp_path / "engines")
    return EngineCache(tmp_path / "engines")


def frames_of(built, count: int = 1) -> list[torch.Tensor]:
    return [torch.from_numpy(frame) for frame in built.clip.frames[:count]]


def told(extraction: Extraction) -> str:
    return "\n".join(line for lines in extraction.engines.describe().values() for line in lines)


def test_a_good_engine_passes_and_says_how_well(built):
    manifest = built.manifest
    assert manifest.parity.passed
    assert manifest.parity.frames == len(built.clip.frames)
    assert manifest.parity.mask_overlap >= 0.99
    assert set(manifest.milliseconds) == {"eager", "engine"}
    assert built.cache.artefact(manifest).stat().st_size == manifest.size


def test_a_stream_uses_it_and_gets_eager_s_features(built):
    extraction = Extraction(built.make(), "cpu", "aoti", built.cache)
    features = extraction(frames_of(built))
    expected = Extraction(built.make(), "cpu", "eager")(frames_of(built))
    assert features.size == expected.size
    assert list(features.maps) == list(expected.maps)
    for name, value in expected.maps.items():
        assert features[name].stride() == value.stride()
        # float32, another order of summation
        torch.testing.assert_close(features[name], value, atol=1e-4, rtol=1e-4)
    assert "aoti (feature error" in told(extraction)


def test_it_refuses_what_it_would_compute_wrongly(built):
    """AOTInductor itself checks nothing: it would take one frame for two, or columns for colors."""
    run = aoti.load(built.cache.artefact(built.manifest), CPU, torch.nn.Identity())
    (frames,) = ExtractorPart.example(built.clip.size, 1)
    engine = Engine(run, Signature.of(frames), built.manifest)
    expected = built.make().eval().extractor(frames)["embedding"]
    # float32, another order of summation
    torch.testing.assert_close(engine(frames)[0], expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(engine(frames)[0], engine(frames)[0])
    for wrong in (frames.repeat(2, 1, 1, 1), frames.contiguous(), frames.half(), frames[..., :32]):
        with pytest.raises(InputError, match="input 0"):
            engine(wrong)


def test_two_streams_with_one_cache_get_the_same_bits(built, monkeypatch):
    monkeypatch.setenv("STREAMVOS_ENGINES", str(built.cache.folder))
    masks = []
    for _ in range(2):
        vos = Segmenter(built.make(), "cpu", "aoti")
        first = vos.step(built.clip.frames[0], built.clip.mask)
        masks.append([first.probabilities] + [vos.step(one).probabilities for one in built.clip.frames[1:]])
        assert "aoti" in told(vos.extraction)
    for ours, theirs in zip(*masks, strict=True):
        assert np.array_equal(ours, theirs)


def test_what_no_engine_fits_runs_eager_visibly(built):
    frames = [frame[:, :56].contiguous() for frame in frames_of(built, 2)]
    extraction = Extraction(built.make(), "cpu", "aoti", built.cache)
    features = extraction(frames)
    expected = Extraction(built.make(), "cpu", "eager")(frames)
    assert all(torch.equal(features[name], value) for name, value in expected.maps.items())
    assert "2x3x48x56: eager, there is no aoti engine for it yet" in told(extraction)


def test_an_engine_of_one_frame_serves_several_bit_for_bit(built):
    extraction = Extraction(built.make(), "cpu", "aoti", built.cache)
    frames = frames_of(built, 3)
    features = extraction(frames)
    assert "3x3x48x64: engines of 1 + 1 + 1: aoti (feature error" in told(extraction)
    eager = Extraction(built.make(), "cpu", "eager")(frames)
    for k, frame in enumerate(frames):
        alone = extraction([frame])
        for name, value in alone.maps.items():
            assert torch.equal(features[name][k : k + 1], value)
            assert features[name].stride() == eager[name].stride()


@pytest.mark.parametrize(("engine_ms", "runs"), [(1.0, "engines of 1 + 1 + 1: aoti"), (2.2, "eager, which")])
def test_auto_puts_engines_together_only_where_eager_would_take_longer(built, cache, engine_ms, runs):
    times = {"eager": 2.0, "engine": engine_ms}
    cache.store(
        built.manifest.model_copy(update={"milliseconds": times}), copied(cache.artefact(built.manifest))
    )
    method, part = built.make(), built.make().parts()["extractor"]
    question = Builder(method, CPU, cache).plan(part, "auto", part.example(built.clip.size, 1)).question
    cache.decide(
        Choice(question=question, backend="aoti", milliseconds=times, left_out={}, decided_at=time.time_ns())
    )
    extraction = Extraction(method, "cpu", "auto", cache)
    extraction(frames_of(built, 3))
    assert f"3x3x48x64: {runs}" in told(extraction)


def copied(path: Path) -> Path:
    """Another file with the same content."""
    return Path(shutil.copy(path, path.with_suffix(".copy")))


def test_a_stream_asks_for_the_batches_of_the_recipe(tmp_path, built, monkeypatch):
    monkeypatch.setenv("STREAMVOS_BUILD_BESIDE", "ask")
    cache = EngineCache(tmp_path / "engines")
    extraction = Extraction(built.make(), "cpu", "aoti", cache)
    extraction(frames_of(built, 3))
    asked = sorted(
        request.signature.tensors[0].shape for request in requests(cache)
    )  # a processor gains nothing by an empty place
    assert asked == [(1, 3, *built.clip.size), (2, 3, *built.clip.size)]


def test_other_weights_have_no_engine(built):
    method = built.make()
    with torch.no_grad():
        next(method.extractor.parameters()).mul_(1.5)
    extraction = Extraction(method, "cpu", "aoti", built.cache)
    extraction(frames_of(built))
    assert "eager" in told(extraction)


def test_a_damaged_engine_is_put_aside_and_eager_runs(built, cache):
    path = cache.artefact(built.manifest)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    extraction = Extraction(built.make(), "cpu", "aoti", cache)
    features = extraction(frames_of(built))
    expected = Extraction(built.make(), "cpu", "eager")(frames_of(built))
    assert all(torch.equal(features[name], value) for name, value in expected.maps.items())
    assert "quarantine" in told(extraction)
    assert cache.manifests() == []


def test_eager_runs_where_an_engine_fails(built, cache, tmp_path):
    """As inductor's do where there is no compiler, or others where there is no memory."""
    method, path = built.make(), tmp_path / "engine.json"
    part = method.parts()["extractor"]
    plan = Builder(method, CPU, cache).plan(part, "inductor", part.example(built.clip.size, 1))
    path.write_text('{"such an option": true}')
    there = {"artefact": path.name, "sha256": digest_of(path), "size": path.stat().st_size}
    cache.store(built.manifest.model_copy(update={"plan": plan.digest, "about": asdict(plan), **there}), path)
    extraction = Extraction(method, "cpu", "inductor", cache)
    expected = Extraction(built.make(), "cpu", "eager")(frames_of(built))
    for _ in range(2):
        features = extraction(frames_of(built))
        assert all(torch.equal(features[name], value) for name, value in expected.maps.items())
    assert "eager, the inductor engine fails here: " in told(extraction)
    assert "such an option" in told(extraction)


def test_a_refused_engine_is_never_used_and_its_numbers_are_told(built, cache):
    bad = built.manifest.parity.model_copy(update={"passed": False, "mask_overlap": 0.5, "reason": "too far"})
    cache.store(built.manifest.model_copy(update={"parity": bad, "artefact": None}), None)
    extraction = Extraction(built.make(), "cpu", "aoti", cache)
    extraction(frames_of(built))
    assert "REFUSED, too far" in told(extraction)
    assert "0.5000" in told(extraction)


def test_what_is_built_is_not_built_again(built):
    method = built.make()
    again = Builder(method, CPU, built.cache).build(
        method.parts()["extractor"], "aoti", ExtractorPart.example(built.clip.size, 1), built.clip
    )
    assert again == built.manifest


def test_auto_says_what_it_chose_and_why_and_streams_follow_it(built, cache):
    method, inputs = built.make(), ExtractorPart.example(built.clip.size, 1)
    asked = Extraction(built.make(), "cpu", "auto", cache)
    asked(frames_of(built))
    assert "backend is fastest is not known yet" in told(asked)
    choice = Builder(method, CPU, cache).choose(method.parts()["extractor"], inputs, built.clip)
    assert choice.milliseconds == {
        "eager": built.manifest.milliseconds["eager"],
        "aoti": built.manifest.milliseconds["engine"],
    }
    faster = choice.milliseconds["aoti"] < 0.95 * choice.milliseconds["eager"]
    assert choice.backend == ("aoti" if faster else "eager")
    assert "tensorrt" in choice.left_out
    later = Extraction(built.make(), "cpu", "auto", cache)
    later(frames_of(built))
    assert str(choice) in told(later)


def test_verifying_an_engine_that_went_wrong_refuses_it(built, cache):
    """The engine of these weights, compared with a network of others: what a broken compiler would give."""
    torch.manual_seed(1)
    other = type(built.make())(built.make().options)
    builder = Builder(other, CPU, cache)
    assert not builder.verify(other.parts()["extractor"], built.manifest, built.clip).passed
    assert cache.find(built.manifest.plan).artefact is None


def test_nothing_appears_when_building_is_interrupted(built, tmp_path):
    cache, method = EngineCache(tmp_path / "engines"), built.make()

    def interrupt(what: str, done: int, of: int) -> None:
        if what == "compile":
            raise KeyboardInterrupt

    builder = Builder(method, CPU, cache, interrupt)
    with pytest.raises(KeyboardInterrupt):
        builder.build(
            method.parts()["extractor"], "aoti", ExtractorPart.example(built.clip.size, 1), built.clip
        )
    assert cache.manifests() == []
    assert not list((cache.folder / "work").iterdir())


@pytest.mark.parametrize(
    "work",
    [
        lambda builder, part, inputs, clip: builder.build(part, "aoti", inputs, clip),
        lambda builder, part, inputs, clip: builder.choose(part, inputs, clip),
    ],
    ids=["build", "choose"],
)
def test_somebody_else_s_build_is_left_alone_and_decides_nothing(built, tmp_path, work):
    cache, method = EngineCache(tmp_path / "engines"), built.make()
    builder, part = Builder(method, CPU, cache), method.parts()["extractor"]
    inputs = ExtractorPart.example(built.clip.size, 1)
    with (
        cache.building(builder.plan(part, "aoti", inputs).digest),
        pytest.raises(InputError, match="another process"),
    ):
        work(builder, part, inputs, built.clip)
    # eager for good would be wrong
    assert cache.choice(builder.plan(part, "auto", inputs).question) is None


def test_an_engine_that_was_replaced_meanwhile_stays(built, cache):
    """One process has read the manifest, another one builds the engine anew."""
    path = cache.artefact(built.manifest)
    other = path.with_suffix(".new")
    other.write_bytes(path.read_bytes() + b"more")
    newer = built.manifest.model_copy(
        update={"sha256": digest_of(other), "size": other.stat().st_size, "built_at": time.time_ns()}
    )
    cache.store(newer, other)
    with pytest.raises(InputError, match="built anew"):
        cache.artefact(built.manifest)
    assert cache.artefact(newer).exists()


def test_methods_of_others_run_eager(built):
    from stub_methods import drift

    extraction = Extraction(drift(), "cpu", "aoti", built.cache)
    extraction(frames_of(built))
    assert "eager, engines are for the methods of this package" in told(extraction)
