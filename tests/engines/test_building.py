"""An engine from its network to the masks: built, compared, stored, found, and refused where it must be."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

from streamvos.engines import aoti
from streamvos.engines.building import Builder, plan_jobs
from streamvos.engines.cache import EngineCache, digest_of
from streamvos.engines.engines import Engine
from streamvos.engines.keys import plan_of
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


def inputs_of(built):
    """Example inputs and signature of the engine."""
    inputs = ExtractorPart.example(built.clip.size, 2)
    return inputs, Signature.of(*inputs).of_any_batch(built.make().parts()["extractor"], 8)


def replaced(built, cache, path=None, **changes) -> None:
    """Store the engine again, with another manifest and perhaps another file."""
    manifest = built.manifest.model_copy(update=changes)
    if manifest.artefact is not None:
        path = path or cache.artefact(built.manifest)
        manifest = manifest.model_copy(update={"sha256": digest_of(path), "size": path.stat().st_size})
    with cache.building(manifest.name) as folder:
        if manifest.artefact is not None:
            shutil.copy(path, folder / manifest.artefact)
        cache.store(manifest, folder)


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
        f"--backend aoti --cache {cache.folder} --set top_k=3"
    )


def test_other_weights_have_no_engine(built):
    method = built.make()
    with torch.no_grad():
        next(method.extractor.parameters()).mul_(1.5)
    extraction = Extraction(method, "cpu", "aoti", built.cache)
    extraction(frames_of(built))
    assert "eager" in told(extraction)


def test_a_damaged_engine_is_not_loaded_and_eager_runs(built, cache):
    path = cache.artefact(built.manifest)
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
    bad = built.manifest.parity.model_copy(update={"passed": False, "mask_overlap": 0.5, "reason": "too far"})
    replaced(built, cache, parity=bad, artefact=None)
    extraction = Extraction(built.make(), "cpu", "aoti", cache)
    extraction(frames_of(built))
    assert "REFUSED, too far" in told(extraction)
    assert "0.5000" in told(extraction)


def test_what_is_built_is_not_built_again(built):
    method, (inputs, signature) = built.make(), inputs_of(built)
    builder = Builder(method, CPU, built.cache, follow)
    again = builder.build(method.parts()["extractor"], "aoti", inputs, signature, built.clip)
    assert again == built.manifest


def test_a_job_finds_what_a_part_is_called_with_for_every_batch_or_for_one(built):
    from small_methods import SMALL

    from streamvos.methods import build

    builder = Builder(build("rgmp", SMALL["rgmp"]), CPU, EngineCache(), follow)
    every, one = (plan_jobs(["rgmp-run"], [built.clip.size], some)[0] for some in ([], [3]))
    found = builder.inputs(every, built.clip)
    assert len(found) == 2  # scales
    assert all(signature.most == 9 and str(signature).count("1..9") == 2 for _, signature in found)
    assert all(Signature.of(*inputs) == signature for inputs, signature in builder.inputs(one, built.clip))


def test_verifying_an_engine_that_went_wrong_refuses_it(built, cache):
    """The engine of these weights, compared with a network of others: what a broken compiler would give."""
    torch.manual_seed(1)
    other = type(built.make())(built.make().options)
    builder = Builder(other, CPU, cache, follow)
    assert not builder.verify(other.parts()["extractor"], built.manifest, built.clip).passed
    assert cache.find(built.manifest.name).artefact is None


def test_nothing_appears_when_building_is_interrupted(built, tmp_path):
    cache, method = EngineCache(tmp_path / "engines"), built.make()

    def interrupt(what: str, done: int, of: int) -> None:
        if what == "compile":
            raise KeyboardInterrupt

    builder, (inputs, signature) = Builder(method, CPU, cache, follow, interrupt), inputs_of(built)
    with pytest.raises(KeyboardInterrupt):
        builder.build(method.parts()["extractor"], "aoti", inputs, signature, built.clip)
    assert cache.manifests() == []
    assert not [path for path in (cache.folder / "work").iterdir() if path.is_dir()]


def test_another_process_s_build_is_left_alone(built, tmp_path):
    cache, method = EngineCache(tmp_path / "engines"), built.make()
    part, (inputs, signature) = method.parts()["extractor"], inputs_of(built)
    plan = plan_of(method, part, "aoti", signature, CPU)
    with cache.building(plan.digest), pytest.raises(InputError, match="another process"):
        Builder(method, CPU, cache, follow).build(part, "aoti", inputs, signature, built.clip)
    assert cache.manifests() == []


def test_an_engine_that_was_replaced_meanwhile_is_not_loaded_for_the_old_one(built, cache, tmp_path):
    """One process has read the manifest, another one builds the engine anew."""
    other = tmp_path / "new"
    other.write_bytes(cache.artefact(built.manifest).read_bytes() + b"more")
    replaced(built, cache, other)
    with pytest.raises(InputError, match="not the one that was stored"):
        cache.artefact(built.manifest)
    assert cache.artefact(cache.find(built.manifest.name)).exists()


def test_methods_of_others_run_eager(built):
    from stub_methods import drift

    extraction = Extraction(drift(), "cpu", "aoti", built.cache)
    extraction(frames_of(built))
    assert "eager, engines are for the methods of this package" in told(extraction)
