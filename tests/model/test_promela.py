"""The transcription for Spin agrees with the Python model. Here at small bounds; `model/promela/compare.py --large` runs larger ones."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from coxless_model.mutants import by_name

PATH = Path(__file__).parents[2] / "model" / "promela" / "compare.py"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("promela_compare", PATH)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


compare = load()
needs_spin = pytest.mark.skipif(not compare.installed(), reason="spin or gcc is not installed: apt-get install spin gcc")

PRINTED = """
pan:1: assertion violated ( !((4&4))||(x==2)) (at depth 11)
State-vector 284 byte, depth reached 11, errors: 1
       67 states, stored
       49 states, matched
      116 transitions (= stored+matched)
"""


def test_what_the_verifier_prints_is_read_and_corrected() -> None:
    found = compare.read_pan(PRINTED)
    assert (found.states, found.transitions, found.depth, found.violation_depth) == (67, 115, 11, 11)
    assert "4&4" in found.violation


def test_an_incomplete_search_is_no_result() -> None:
    with pytest.raises(ValueError, match="not completed"):
        compare.read_pan("Warning: Search not completed\n" + PRINTED.replace("pan:1", "pan"))


def test_without_spin_one_sentence_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(compare, "installed", lambda: False)
    monkeypatch.setattr(sys, "argv", ["compare.py"])
    assert compare.main() == 3
    assert "apt-get install spin" in capsys.readouterr().err


@needs_spin
@pytest.mark.parametrize("bounds", compare.QUICK, ids=str)
def test_both_see_the_same_states_transitions_depth_dead_ends_and_verdict(bounds: object) -> None:
    assert compare.python(bounds) == compare.spin(bounds)


@needs_spin
def test_a_difference_shows() -> None:
    assert compare.python(compare.Bounds(1, {})) != compare.spin(compare.Bounds(1, {"crashes": 1}))


@needs_spin
@pytest.mark.parametrize("guard", compare.MUTANTS)
def test_a_mutant_dies_after_as_many_steps(guard: str) -> None:
    mutant = by_name(guard)
    length = compare.python_trace(mutant)
    assert length is not None
    assert compare.spin_trace(mutant) == length
