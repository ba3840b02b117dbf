import pytest

from patchword.errors import DataError, MetricUnavailable
from patchword.metrics import spice
from patchword.metrics.spice import Spice, tuple_f1


def test_without_java_one_line_says_so(monkeypatch):
    pytest.importorskip("pycocoevalcap", reason="pycocoevalcap is not installed")
    monkeypatch.setattr(spice.shutil, "which", lambda name: None)
    with pytest.raises(MetricUnavailable, match="SPICE needs Java"):
        Spice()


def test_without_pycocoevalcap_the_pip_line(monkeypatch):
    monkeypatch.setattr(spice.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MetricUnavailable, match=r'pip install "patchword\[meteor\]"'):
        Spice()


def test_tuple_f1():
    references = {1: [("dog",), ("dog", "brown"), ("dog", "on", "grass")], 2: [("cat",)], 3: []}
    found = tuple_f1(references, {1: [("dog",), ("dog", "black")], 2: [("cat",)], 3: []})["tuple_F1"]
    assert found.per_item == pytest.approx({1: 0.4, 2: 1.0}) and found.value == pytest.approx(0.7)
    with pytest.raises(DataError, match="no image has a tuple"):
        tuple_f1({1: []}, {1: []})
    with pytest.raises(DataError, match="1 image ids stand on one side only"):
        tuple_f1({1: []}, {})
