"""Traces survive being written and read, and a damaged file is told from a good one."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from coxless_model import itf
from coxless_model.bounds import configuration, configured
from coxless_model.drawn import drawn
from coxless_model.environment import hardened
from coxless_model.explore import explore
from coxless_model.machine import System
from coxless_model.two_phase_commit import TwoPhaseCommit


def hasty() -> itf.TraceFile:
    system = TwoPhaseCommit(3, "hasty")
    found = explore(system).counterexamples[0]
    return itf.trace_file(system, found.trace, title="hasty", prose="It does not wait.", broken=found.property, wrong=found.wrong)


@pytest.mark.parametrize(
    "value", [0, -1, 2**70, True, "a", None, (), (1, ("x", None)), frozenset({1, 2}), frozenset({(1, "a")}), {"k": (1,), "j": 2}]
)
def test_values_come_back(value: Any) -> None:
    assert itf.decode(json.loads(json.dumps(itf.encode(value)))) == value


def test_a_file_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "traces" / "hasty.itf.json"
    itf.write(path, hasty())
    again = itf.read(path)
    assert again == hasty()
    assert itf.dumps(again) == path.read_text(encoding="utf-8") == itf.dumps(hasty())
    assert itf.deviation(again.system, again) is None


@pytest.mark.parametrize(
    "system", [drawn(2, 2, crashes=1), hardened(2, 2, crashes=1, restarts=1, join_timeouts=2), TwoPhaseCommit(3)]
)
def test_every_system_can_be_built_from_its_trace(system: System) -> None:
    again = configured(json.loads(json.dumps(configuration(system))))
    assert again == system


def damaged(change: Callable[[dict[str, Any]], Any]) -> str:
    whole = json.loads(itf.dumps(hasty()))
    change(whole)
    return json.dumps(whole)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "bad.json: is not JSON (line 1, column 1: Expecting value)"),
        ("[]", "bad.json: the file is not an object"),
        ("{}", "bad.json: the file: #meta is missing"),
        (damaged(lambda w: w["#meta"].pop("title")), "bad.json: #meta: title is missing"),
        (damaged(lambda w: w.update(vars="x")), "bad.json: the file: vars is not a list"),
        (damaged(lambda w: w.update(states=[])), "bad.json: it has no states"),
        (damaged(lambda w: w["states"].pop(1)), "bad.json: states[1]: its index is 2"),
        (damaged(lambda w: w["states"][2].pop("ranks")), "bad.json: states[2]: has the variables"),
        (damaged(lambda w: w["states"][1]["#meta"].pop("action")), "bad.json: states[1].#meta: action is missing"),
        (
            damaged(lambda w: w["states"][1].update(decision={"#oops": 1})),
            'bad.json: states[1].decision: {"#oops": 1} is not a value',
        ),
        (damaged(lambda w: w.update(loop=9)), "bad.json: it goes back to state 9, which there is not"),
    ],
)
def test_a_corrupt_file_gives_one_clear_sentence(text: str, message: str) -> None:
    with pytest.raises(itf.CorruptTrace) as caught:
        itf.loads(text, "bad.json")
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(itf.CorruptTrace, match=r"nowhere\.json: cannot be read: No such file"):
        itf.read(tmp_path / "nowhere.json")


def test_a_deviation_names_the_step() -> None:
    trace = hasty()
    swapped = trace._replace(actions=(trace.actions[1], trace.actions[0], *trace.actions[2:]))
    found = itf.deviation(trace.system, swapped)
    assert found is not None
    assert found.step == 1
    unbroken = itf.deviation(TwoPhaseCommit(3), trace)
    assert unbroken is not None
    assert unbroken.step == 2
    assert unbroken.wrong.startswith("commit of rank -1 is not enabled; enabled: ")


@pytest.mark.parametrize(
    ("configuration", "message"),
    [
        ({"protocol": "raft"}, "unknown protocol 'raft'"),
        ({"protocol": "drawn", "ranks": 2, "iterations": 1, "budgets": {"floods": 1}}, "knows no budget for floods"),
        ({"protocol": "drawn", "ranks": "2", "iterations": 1}, "ranks has to be a number, not '2'"),
        ({"protocol": "drawn", "ranks": 2}, "cannot be configured so"),
    ],
)
def test_a_wrong_configuration_is_told(configuration: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        configured(configuration)
