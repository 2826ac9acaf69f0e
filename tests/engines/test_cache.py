"""The cache: whole or not there, believed only when it matches, one builder at a time."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest
import torch

from streamvos.engines.cache import EngineCache, default_folder, digest_of
from streamvos.engines.manifest import Manifest, Parity, Plan
from streamvos.engines.signature import Signature
from streamvos.types import InputError

KEY = "ab" * 32
PASSED = Parity(feature_error=0, mask_overlap=1, frames=2)
PLAN = Plan(
    method="tvos",
    part="extractor",
    options={},
    weights="",
    source="",
    signature=Signature.of(torch.zeros(1)),
    backend="aoti",
    freezing=True,
    facts={},
)


def engine(cache: EngineCache, key: str = KEY, content: bytes = b"code", built_at: int = 1) -> Manifest:
    """An engine of four bytes, stored."""
    with cache.building(key) as folder:
        path = folder / "engine.pt2"
        path.write_bytes(content)
        manifest = Manifest(
            name=key,
            plan=PLAN,
            frames=(8, 8),
            sha256=digest_of(path),
            parity=PASSED,
            built_at=built_at,
            milliseconds={"eager": 2.0, "engine": 1.0},
        )
        cache.store(manifest, folder)
    return manifest


@pytest.fixture
def cache(tmp_path) -> EngineCache:
    return EngineCache(tmp_path / "engines")


def test_what_is_stored_is_found_and_nothing_half_built_stays(cache):
    assert cache.find(KEY) is None
    stored = engine(cache)
    assert cache.find(KEY) == stored
    assert cache.file(stored).read_bytes() == b"code"
    assert not [path for path in (cache.folder / "work").iterdir() if path.is_dir()]
    assert cache.find("cd" * 32) is None


def test_a_newer_engine_takes_the_place_of_the_older(cache):
    engine(cache, content=b"old", built_at=1)
    new = engine(cache, content=b"new", built_at=2)
    assert cache.find(KEY) == new
    assert cache.file(new).read_bytes() == b"new"


@pytest.mark.parametrize("damage", ["changed", "cut", "gone"])
def test_a_file_that_is_not_the_one_stored_is_refused_and_pruned(cache, damage):
    stored = engine(cache)
    path = cache.folder / KEY / "engine.pt2"
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(b"Code" if damage == "changed" else b"cod")
    with pytest.raises(InputError):
        cache.file(stored)
    assert cache.prune([]) == 1
    assert cache.find(KEY) is None


@pytest.mark.parametrize("text", ["", "{}", "no json", '{"name": 3}', '{"format": 999}'])
def test_a_damaged_manifest_is_no_engine(cache, text):
    engine(cache)
    (cache.folder / KEY / "manifest.json").write_text(text)
    assert cache.manifests() == []
    assert (cache.folder / KEY).is_dir()
    assert cache.prune([]) == 1
    assert not (cache.folder / KEY).exists()


def test_a_manifest_under_another_name_is_not_believed(cache):
    engine(cache)
    os.rename(cache.folder / KEY, cache.folder / ("cd" * 32))
    assert cache.find(KEY) is None


def test_the_folder_is_the_user_s_alone(cache):
    engine(cache)
    assert cache.folder.stat().st_mode & 0o777 == 0o700
    assert cache.problem() is None
    cache.folder.chmod(0o770)
    assert "chmod" in str(cache.problem())
    assert cache.find(KEY) is None
    with pytest.raises(InputError, match="others"):
        engine(cache)


def test_engines_that_are_newer_than_a_pipeline_are_not_seen(cache):
    old = engine(cache, KEY, b"old", built_at=10)
    engine(cache, "ef" * 32, b"new", built_at=20)
    seen = EngineCache(cache.folder, as_of=15)
    assert seen.find(KEY) == old
    assert seen.find("ef" * 32) is None
    assert cache.find("ef" * 32) is not None


def test_one_builder_at_a_time_across_processes(cache):
    code = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        from streamvos.engines.cache import EngineCache
        from streamvos.types import InputError
        try:
            with EngineCache(Path(sys.argv[1])).building(sys.argv[2]) as folder:
                print(folder.name)
        except InputError:
            print("busy")
        """
    )

    def other() -> str:
        command = [sys.executable, "-c", code, str(cache.folder), KEY]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    with cache.building(KEY):
        assert other() == "busy"
    assert other() == KEY


def test_what_a_dead_process_left_is_pruned_and_what_is_being_built_is_not(cache):
    stored = engine(cache)
    (cache.folder / "work" / ("cd" * 32)).mkdir()
    (cache.folder / "work" / ("cd" * 32) / "half.pt2").write_bytes(b"half")
    with cache.building("ef" * 32) as folder:
        (folder / "half.pt2").write_bytes(b"half")
        assert cache.prune([stored]) == 1
        assert [path.name for path in (cache.folder / "work").iterdir() if path.is_dir()] == ["ef" * 32]
    assert cache.find(KEY) is None


def test_a_build_begins_with_an_empty_folder(cache):
    left = cache.folder / "work" / KEY
    left.mkdir(mode=0o700, parents=True)
    (left / "half.pt2").write_bytes(b"half")
    with cache.building(KEY) as folder:
        assert not list(folder.iterdir())
        with pytest.raises(InputError, match="another process"), EngineCache(cache.folder).building(KEY):
            pass


def test_the_default_folder_can_be_named(monkeypatch, tmp_path):
    monkeypatch.setenv("STREAMVOS_ENGINES", str(tmp_path))
    assert default_folder() == tmp_path
    monkeypatch.delenv("STREAMVOS_ENGINES")
    assert default_folder().parts[-2:] in (("engines", "cache"), ("streamvos", "engines"))
