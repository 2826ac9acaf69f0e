"""A package offers names without importing what is behind them."""

from __future__ import annotations

import sys

import pytest

from streamvos.lazy import import_on_use


def test_a_module_is_imported_when_its_name_is_used(tmp_path, monkeypatch):
    (tmp_path / "heavy_module.py").write_text("answer = 42")
    monkeypatch.syspath_prepend(tmp_path)
    get = import_on_use("shop", {"heavy_module": ["answer"]})
    assert "heavy_module" not in sys.modules
    assert get("answer") == 42
    monkeypatch.delitem(sys.modules, "heavy_module")


def test_other_names_are_no_attributes():
    with pytest.raises(AttributeError, match="module 'shop' has no attribute 'anwser'"):
        import_on_use("shop", {"heavy_module": ["answer"]})("anwser")
