"""An engine from its network to the masks: built, compared, stored, found, and refused where it must be."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

from streamvos.engines import aoti
from streamvos.engines.building import Builder
from streamvos.engines.cache import FILE, EngineCache, digest_of
from streamvos.engines.engines import Engine
from streamvos.engines.manifest import plan_of
from streamvos.engines.recipes import recipe_named
from streamvos.engines.signature import Signature
from streamvos.methods.parts import ExtractorPart
from streamvos.segmenter import Extraction, Segmenter, follow
from streamvos.types import InputError
from streamvos.weights import load_method, save_weights

CPU = torch.device("cpu")


@pytest.fixture
def cache(built, tmp_path) -> EngineCache:
    """A copy of the cache, to be damaged."""
    shutil.copytree(built.cache.folder, tmp_path / "engines")
    return EngineCache(tmp_path / "engines")


def frames_of(built, count: int = 1) -> list[torch.Tensor]:
    return [torch.from_numpy(frame) for frame in built.clip.frames[:count]]


def replaced(built, cache, path=None, **changes) -> None:
    """Store the engine again, with another manifest and perhaps another file."""
    path = path or cache.file(built.manifest)
    manifest = built.manifest.model_copy(update={"sha256": digest_of(path), **changes})
    with cache.building(manifest.name) as folder:
        shutil.copy(path, folder / FILE)
        cache.store(manifest, folder)


def told(extraction: Extraction) -> str:
    return "\n".join(line for lines in extraction.engines.describe().values() for line in lines)


def test_a_good_engine_passes_and_says_how_well(built):
    manifest = built.manifest
    assert manifest.parity.passed
    assert manifest.parity.frames == len(built.clip.frames)
    assert manifest.parity.mask_overlap >= 0.99
    assert set(manifest.milliseconds) == {"eager", "engine"}
    assert built.cache.file(manifest).stat().st_size > 0


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
    run = aoti.load(built.cache.file(built.manifest), CPU, torch.nn.Identity())
    (frames,) = ExtractorPart.example(built.clip.size, 1)
    engine = Engine(run, Signature.of(frames))
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
    assert "2x3x48x56: eager, there is no engine for it" in told(extraction)


def test_one_engine_serves_every_batch_and_gives_eager_s_features(built):
    extraction = Extraction(built.make(), "cpu", "aoti", built.cache)
    eager = Extraction(built.make(), "cpu", "eager")
    for count in (1, 2, 3, 5):
        frames = frames_of(built, count)
        features, expected = extraction(frames), eager(frames)
        for name, value in expected.maps.items():
            assert features[name].stride() == value.stride()
            # float32, another order of summation
            torch.testing.assert_close(features[name], value, atol=1e-4, rtol=1e-4)
    assert told(extraction).count("aoti (feature error") == 4


@pytest.mark.parametrize(
    ("engine_ms", "runs"), [(1.0, "aoti (feature"), (1.99, "eager, no engine is faster")]
)
def test_auto_takes_the_fastest_engine_and_eager_where_none_is_faster(built, cache, engine_ms, runs):
    replaced(built, cache, milliseconds={"eager": 2.0, "engine": engine_ms})
    extraction = Extraction(built.make(), "cpu", "auto", cache)
    extraction(frames_of(built, 3))
    assert f"3x3x48x64: {runs}" in told(extraction)


def test_a_missing_engine_is_one_line_with_the_command_that_builds_it(built, tmp_path, caplog):
    path, cache = tmp_path / "my weights.safetensors", EngineCache(tmp_path / "engines")
    method = built.make()
    options = method.options.model_dump(mode="json")
    save_weights(path, method.networks.state_dict(), "tvos", {"options": options})
    extraction = Extraction(load_method("tvos", path, {"top_k": 3}), "cpu", "aoti", cache)
    for count in (1, 1, 3):
        extraction(frames_of(built, count))
    (record,) = caplog.records
    command = "streamvos engines build tvos-extractor --size 48x64"
    assert record.getMessage() == (
        f"no engine for tvos/extractor 1x3x48x64, eager runs; to build one: {command} --weights '{path}' "
        "--backend aoti --set top_k=3"
    )


def test_other_weights_have_no_engine(built):
    method = built.make()
    with torch.no_grad():
        next(method.extractor.parameters()).mul_(1.5)
    extraction = Extraction(method, "cpu", "aoti", built.cache)
    extraction(frames_of(built))
    assert "eager" in told(extraction)


def test_a_damaged_engine_is_not_loaded_and_eager_runs(built, cache):
    path = cache.file(built.manifest)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    extraction = Extraction(built.make(), "cpu", "aoti", cache)
    features = extraction(frames_of(built))
    expected = Extraction(built.make(), "cpu", "eager")(frames_of(built))
    assert all(torch.equal(features[name], value) for name, value in expected.maps.items())
    assert "damaged" in told(extraction)


def test_eager_runs_where_an_engine_fails(built, cache, tmp_path):
    """As engines do where there is no memory, or a library is missing."""
    path = tmp_path / "engine.pt2"
    path.write_bytes(b"no package")
    replaced(built, cache, path)
    extraction = Extraction(built.make(), "cpu", "aoti", cache)
    expected = Extraction(built.make(), "cpu", "eager")(frames_of(built))
    for _ in range(2):
        features = extraction(frames_of(built))
        assert all(torch.equal(features[name], value) for name, value in expected.maps.items())
    assert "eager, the aoti engine fails here: " in told(extraction)


def test_a_refused_engine_is_never_used_and_its_numbers_are_told(built, cache):
    bad = built.manifest.parity.model_copy(update={"mask_overlap": 0.5, "reason": "too far"})
    replaced(built, cache, parity=bad)
    extraction = Extraction(built.make(), "cpu", "aoti", cache)
    extraction(frames_of(built))
    assert "REFUSED, too far" in told(extraction)
    assert "0.5000" in told(extraction)


def test_what_is_built_is_not_built_again(built):
    builder = built.builder(built.make(), built.cache)
    assert builder.build("aoti", builder.inputs()[0]) == built.manifest


def test_a_part_has_an_engine_for_each_scale_and_every_batch(built):
    from small_methods import SMALL

    from streamvos.methods import build

    method = build("rgmp", SMALL["rgmp"])
    builder = Builder(method, recipe_named("rgmp-run"), CPU, EngineCache(), follow, built.clip)
    found = [builder.signature(inputs) for inputs in builder.inputs()]
    assert len(set(found)) == 2  # scales
    assert all(signature.most == 9 and str(signature).count("1..9") == 2 for signature in found)


def test_verifying_an_engine_that_went_wrong_refuses_it(built, cache):
    """The engine of these weights, compared with a network of others: what a broken compiler would give."""
    torch.manual_seed(1)
    other = type(built.make())(built.make().options)
    builder = built.builder(other, cache)
    inputs = builder.inputs()[0]
    plan = plan_of(other, builder.part, "aoti", builder.signature(inputs), CPU)
    replaced(built, cache, name=plan.digest)
    assert not builder.build("aoti", inputs, check=True).parity.passed
    assert not cache.find(plan.digest).parity.passed
    assert not (cache.folder / plan.digest / FILE).exists()


def test_nothing_appears_when_building_is_interrupted(built, tmp_path):
    cache, method = EngineCache(tmp_path / "engines"), built.make()

    def interrupt(step: str) -> None:
        if step.endswith("compile"):
            raise KeyboardInterrupt

    builder = built.builder(method, cache, interrupt)
    with pytest.raises(KeyboardInterrupt):
        builder.build("aoti", builder.inputs()[0])
    assert cache.manifests() == []
    assert not [path for path in (cache.folder / "work").iterdir() if path.is_dir()]


def test_another_process_s_build_is_left_alone(built, tmp_path):
    cache = EngineCache(tmp_path / "engines")
    builder = built.builder(built.make(), cache)
    with cache.building(built.manifest.name), pytest.raises(InputError, match="another process"):
        builder.build("aoti", builder.inputs()[0])
    assert cache.manifests() == []


def test_an_engine_that_was_replaced_meanwhile_is_not_loaded_for_the_old_one(built, cache, tmp_path):
    """One process has read the manifest, another one builds the engine anew."""
    other = tmp_path / "new"
    other.write_bytes(cache.file(built.manifest).read_bytes() + b"more")
    replaced(built, cache, other)
    with pytest.raises(InputError, match="not the one that was stored"):
        cache.file(built.manifest)
    assert cache.file(cache.find(built.manifest.name)).exists()


def test_methods_of_others_run_eager(built):
    from stub_methods import drift

    extraction = Extraction(drift(), "cpu", "aoti", built.cache)
    extraction(frames_of(built))
    assert "eager, engines are for the methods of this package" in told(extraction)
