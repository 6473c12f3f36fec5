"""Hypothesis walks through both protocols: it breaks the one as drawn, and leaves a trace that replays."""

from pathlib import Path

import pytest
from hypothesis import settings

from coxless_model import itf
from coxless_model.drawn import drawn
from coxless_model.environment import Budgets, hardened
from coxless_model.machine import System, expected_actions, violations
from coxless_model.mutants import by_name
from coxless_model.stateful import FIND, Broken, check, state_machine

EVERY_FAULT = dict.fromkeys((name for name in Budgets._fields if name != "clock_skews"), 1)


def test_the_hardened_protocol_stands(tmp_path: Path) -> None:
    check(hardened(3, 3, missing=(), **EVERY_FAULT), settings(), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("system", [drawn(2, 2, crashes=1), by_name("founding").system], ids=lambda system: system.name)
def test_a_failure_is_shrunk_to_a_trace_that_replays(system: System, tmp_path: Path) -> None:
    with pytest.raises(Broken, match=r"is broken after \d+ steps: .*To replay: coxless replay ") as caught:
        check(system, FIND, tmp_path)
    path = Path(str(caught.value).split("coxless replay ")[1])
    trace = itf.read(path)
    assert itf.deviation(trace.system, trace) is None
    last = itf.executed(trace.system, trace).states[-1]
    assert (trace.broken, trace.wrong) in violations(trace.system, last)


def test_there_is_a_rule_for_each_step_and_an_invariant_for_each_property(tmp_path: Path) -> None:
    system = hardened(2, 2, missing=(), **EVERY_FAULT)
    machine = state_machine(system, tmp_path)
    for name in (*expected_actions(system), "another_step", "property_S1", "property_L3"):
        assert hasattr(machine, name)
    assert {"renew_incarnation", "restore_register", "mark_dead", "lose_store"} <= set(expected_actions(system))
