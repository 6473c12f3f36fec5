"""Hypothesis drives model and implementation side by side on a real TCPStore. A mismatch shrinks to a smallest schedule, which is
written down as a trace file."""

import os
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coxless.protocol import Operation
from coxless.protocol.operations import Append
from coxless_model import itf
from coxless_model.environment import hardened
from coxless_model.machine import Action, successors
from coxless_model.results import Trace
from coxless_traces.commands import replay
from coxless_traces.replay import Lockstep, Mismatch
from coxless_traces.targets import Memory, Target, target
from coxless_traces.walks import ONE_OF_EACH, replayable

from .library_mutants import MUTANTS, apply

SYSTEM = hardened(2, 2, missing=(), **{**ONE_OF_EACH, "leaves": 0, "dead_marks": 0})
EXAMPLES = int(os.environ.get("COXLESS_EXAMPLES", "25"))


def drive(store: Target, choices: list[int], path: Path | None = None) -> int:
    """Each number chooses one of the actions that are enabled; 0, to which Hypothesis shrinks, is the first."""
    lockstep = Lockstep(SYSTEM, store)
    states = [SYSTEM.initial()]
    actions: list[Action] = []
    try:
        for number in choices:
            before = states[-1]
            offered = [pair for pair in successors(SYSTEM, before) if replayable(before, pair[0])]
            if not offered:
                break
            action, after = offered[number % len(offered)]
            states.append(after)
            actions.append(action)
            lockstep.step(before, action, after)
    except Mismatch:
        if path is not None:
            trace = Trace(tuple(states), tuple(actions))
            itf.write(path, itf.trace_file(SYSTEM, trace, title="model and implementation differ", broken="conformance"))
        raise
    finally:
        lockstep.close()
    return lockstep.steps


schedules = st.lists(st.integers(0, 15), min_size=20, max_size=90)


def test_model_and_implementation_side_by_side(tmp_path_factory: pytest.TempPathFactory) -> None:
    path: Path = tmp_path_factory.mktemp("mismatch") / "smallest.itf.json"
    with target("tcp") as store:

        @settings(max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
        @given(schedules)
        def check(choices: list[int]) -> None:
            drive(store, choices, path)

        check()


def test_a_mismatch_shrinks_to_a_smallest_schedule(tmp_path: Path) -> None:
    """A store that forgets the first signature: the shortest schedule that shows it takes both operations before it, and no more."""

    class Forgetful(Memory):
        def perform(self, operation: Operation) -> object:
            reply = super().perform(operation)
            if operation.step == "sign":
                assert isinstance(operation, Append)
                self.data.pop(operation.key)
            return reply

    path = tmp_path / "smallest.itf.json"

    @settings(max_examples=200, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(schedules)
    def check(choices: list[int]) -> None:
        drive(Forgetful(), choices, path)

    with pytest.raises(Mismatch, match="arrived"):
        check()
    trace = itf.read(path)
    assert itf.deviation(trace.system, trace) is None
    assert [action["name"] for action in trace.actions] == ["take_incarnation", "create_register", "sign"]


def test_a_defect_of_the_library_becomes_the_smallest_trace_that_shows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a TCPStore: whoever founds the crew does not wait for the other rank."""
    path = tmp_path / "smallest.itf.json"
    (defect,) = (mutant for mutant in MUTANTS if mutant.guard == "founding")

    with target("tcp") as store:

        @settings(max_examples=100, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
        @given(schedules)
        def check(choices: list[int]) -> None:
            drive(store, choices, path)

        with monkeypatch.context() as patch:
            apply(defect, patch)
            with pytest.raises(Mismatch):
                check()
    names = [action["name"] for action in itf.read(path).actions]
    assert names == ["take_incarnation", "create_register", "sign", "read_arrived"]
    command = [str(path), "--target", "tcp"]
    assert CliRunner().invoke(replay, command).exit_code == 0
    apply(defect, monkeypatch)
    told = CliRunner().invoke(replay, command)
    assert told.exit_code == 1
    assert f"step {len(names)}" in told.output
