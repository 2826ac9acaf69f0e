"""The cache: whole or not there, believed only when it matches, one builder at a time."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

from streamvos.engines.cache import AS_OF_VARIABLE, EngineCache, default_folder, digest_of
from streamvos.engines.manifest import Choice, Manifest, Parity
from streamvos.types import InputError

KEY = "ab" * 20
PASSED = Parity(passed=True, feature_error=0, mask_overlap=1, worst_overlap=1, frames=2, clip="none")


def engine(cache: EngineCache, key: str = KEY, content: bytes = b"code", built_at: int = 1) -> Manifest:
    """An engine of four bytes, stored."""
    with cache.workshop() as folder:
        path = folder / "engine.pt2"
        path.write_bytes(content)
        manifest = Manifest(
            format=1,
            key=key,
            plan="plan",
            about={"backend": "aoti", "method": "tvos", "part": "extractor", "inputs": [{"shape": [1]}]},
            frames=(8, 8),
            objects=1,
            artefact=path.name,
            sha256=digest_of(path),
            size=len(content),
            parity=PASSED,
            layout=None,
            outputs=[],
            built_at=built_at,
            seconds={},
            milliseconds={},
        )
        cache.store(manifest, path)
    return manifest


@pytest.fixture
def cache(tmp_path) -> EngineCache:
    return EngineCache(tmp_path / "engines")


def test_what_is_stored_is_found_and_nothing_half_built_stays(cache):
    assert cache.find("plan") is None
    stored = engine(cache)
    assert cache.find("plan") == stored
    assert cache.artefact(stored).read_bytes() == b"code"
    assert not list((cache.folder / "work").iterdir())
    assert cache.find("another plan") is None


def test_a_newer_engine_takes_the_place_of_the_older(cache):
    engine(cache, content=b"old", built_at=1)
    new = engine(cache, content=b"new", built_at=2)
    assert cache.find("plan") == new
    assert cache.artefact(new).read_bytes() == b"new"


@pytest.mark.parametrize("damage", ["changed", "cut", "gone"])
def test_a_file_that_is_not_the_one_stored_goes_to_quarantine(cache, damage):
    stored = engine(cache)
    path = cache.folder / KEY / "engine.pt2"
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(b"Code" if damage == "changed" else b"cod")
    with pytest.raises(InputError):
        cache.artefact(stored)
    assert cache.find("plan") is None
    assert len(list((cache.folder / "quarantine").iterdir())) == 1


@pytest.mark.parametrize("text", ["", "{}", "no json", '{"key": 3}'])
def test_a_damaged_manifest_is_no_engine(cache, text):
    engine(cache)
    (cache.folder / KEY / "manifest.json").write_text(text)
    assert cache.manifests() == []
    assert len(list((cache.folder / "quarantine").iterdir())) == 1
    assert cache.manifests() == []


def test_an_engine_of_another_version_is_not_seen_and_left_alone(cache):
    engine(cache)
    (cache.folder / KEY / "manifest.json").write_text('{"format": 999}')
    assert cache.manifests() == []
    assert (cache.folder / KEY).is_dir()


def test_a_manifest_under_another_name_is_not_believed(cache):
    engine(cache)
    os.rename(cache.folder / KEY, cache.folder / ("cd" * 20))
    assert cache.find("plan") is None


def test_an_artefact_outside_its_folder_is_not_reached(cache):
    stored = engine(cache)
    (cache.folder / "stranger.pt2").write_bytes(b"code")
    (cache.folder / KEY / "engine.pt2").unlink()
    with pytest.raises(InputError):
        cache.artefact(stored.model_copy(update={"artefact": "../stranger.pt2"}))


def test_the_folder_is_the_user_s_alone(cache):
    engine(cache)
    assert cache.folder.stat().st_mode & 0o777 == 0o700
    assert cache.problem() is None
    cache.folder.chmod(0o770)
    assert "chmod" in str(cache.problem())
    assert cache.find("plan") is None
    with pytest.raises(InputError, match="others"):
        engine(cache)


def test_engines_that_are_newer_than_a_pipeline_are_not_seen(cache, monkeypatch):
    old = engine(cache, KEY, b"old", built_at=10)
    engine(cache, "ef" * 20, b"new", built_at=20)
    monkeypatch.setenv(AS_OF_VARIABLE, "15")
    assert cache.find("plan") == old


def test_one_builder_at_a_time_across_processes(cache):
    code = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        from streamvos.engines.cache import EngineCache
        with EngineCache(Path(sys.argv[1])).building("plan") as free:
            print(free)
        """
    )

    def other() -> str:
        command = [sys.executable, "-c", code, str(cache.folder)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    with cache.building("plan") as free:
        assert free
        assert other() == "False"
    assert other() == "True"


def test_what_a_dead_process_left_is_cleared_away_and_what_lives_is_not(cache):
    stored = engine(cache)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for process in (ended.pid, os.getpid()):
        (cache.folder / "work" / f"{process}-x").mkdir()
        (cache.folder / "work" / f"{process}-x" / "half.pt2").write_bytes(b"half")
    cache.quarantine(KEY, "a test")
    assert cache.clean() > 4
    assert [path.name for path in (cache.folder / "work").iterdir()] == [f"{os.getpid()}-x"]
    assert not list((cache.folder / "quarantine").iterdir())
    assert cache.find(stored.plan) is None


def test_what_compilers_keep_is_cleared_away_unless_one_may_look_for_it(cache):
    code = """if True:
        import sys
        from pathlib import Path
        from streamvos.engines import EngineCache
        kept = EngineCache(Path(sys.argv[1])).compiler() / "headers"
        kept.mkdir()
        (kept / "large.h.gch").write_bytes(b"1234567")
        print("kept", flush=True)
        sys.stdin.read()
        """
    command = [sys.executable, "-c", code, str(cache.folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as compiling:
        assert compiling.stdout.readline() == b"kept\n"
        assert cache.clean() == 0
    assert cache.clean() == 7
    assert not list((cache.folder / "compiler").iterdir())


def test_a_choice_is_remembered(cache, monkeypatch):
    assert cache.choice("question") is None
    choice = Choice(
        question="question", backend="aoti", milliseconds={"eager": 2, "aoti": 1}, left_out={}, decided_at=10
    )
    cache.decide(choice)
    assert cache.choice("question") == choice
    monkeypatch.setenv(AS_OF_VARIABLE, "5")
    assert cache.choice("question") is None


def test_the_default_folder_can_be_named(monkeypatch, tmp_path):
    monkeypatch.setenv("STREAMVOS_ENGINES", str(tmp_path))
    assert default_folder() == tmp_path
    monkeypatch.delenv("STREAMVOS_ENGINES")
    assert default_folder().parts[-2:] in (("engines", "cache"), ("streamvos", "engines"))
