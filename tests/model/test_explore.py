"""The engine against numbers that everybody knows, and against the search that everybody would write first."""

from typing import Any

import pytest

from coxless_model.explore import explore
from coxless_model.machine import Action, Invariant, Situation, State, System, apply, violations
from coxless_model.plain import plain_search
from coxless_model.results import Limits, Trace, Verdict
from coxless_model.two_phase_commit import TwoPhaseCommit


@pytest.mark.parametrize(("managers", "states", "transitions", "depth"), [(3, 288, 1145, 10), (5, 8832, 58145, 16)])
def test_two_phase_commit_has_the_known_number_of_states(managers: int, states: int, transitions: int, depth: int) -> None:
    result = explore(TwoPhaseCommit(managers))
    assert (result.states, result.transitions, result.depth) == (states, transitions, depth)
    assert result.verdict is Verdict.HOLDS
    assert all(result.reached.values())
    assert result.stuck == 0


def test_agrees_with_the_plain_search() -> None:
    for system in (TwoPhaseCommit(4), TwoPhaseCommit(4, "silent")):
        plain = plain_search(system)
        result = explore(system, properties=["consistent"])
        assert (result.states, result.transitions, result.depth) == (plain.states, plain.transitions, plain.depth)
    for system in (TwoPhaseCommit(4, "hasty"), TwoPhaseCommit(4, "deaf")):
        plain = plain_search(system)
        found = explore(system).counterexamples[0]
        assert (found.property, len(found.trace.actions)) == (plain.broken, plain.length)


def test_a_hasty_manager_is_found_by_the_shortest_run() -> None:
    (found,) = explore(TwoPhaseCommit(3, "hasty")).counterexamples
    assert [action.name for action in found.trace.actions] == ["choose_to_abort", "commit", "obey"]
    assert found.wrong == "rank 1 has committed, rank 0 has aborted"
    assert_replays(TwoPhaseCommit(3, "hasty"), found.trace)


def test_a_silent_manager_is_a_deadlock() -> None:
    (found,) = explore(TwoPhaseCommit(3, "silent")).counterexamples
    assert found.property == "deadlock"
    assert [action.name for action in found.trace.actions] == ["prepare"] * 3


def test_goes_on_for_a_counterexample_of_each_property() -> None:
    class Two(TwoPhaseCommit):
        @property
        def invariants(self) -> tuple[Invariant, ...]:
            return (Invariant("nobody prepares", self.prepares), Invariant("nobody commits", self.commits))

        @staticmethod
        def prepares(state: State) -> str | None:
            return "somebody does" if "prepared" in state.ranks else None

        @staticmethod
        def commits(state: State) -> str | None:
            return "somebody does" if "committed" in state.ranks else None

    result = explore(Two(2), every_property=True)
    assert {each.property: len(each.trace.actions) for each in result.counterexamples} == {
        "nobody prepares": 1,
        "nobody commits": 6,
    }
    assert [each.property for each in explore(Two(2), properties=["nobody commits"]).counterexamples] == ["nobody commits"]


@pytest.mark.parametrize("limits", [Limits(states=100), Limits(seconds=0.0), Limits(memory=1)])
def test_a_search_that_comes_to_a_limit_shows_nothing(limits: Limits) -> None:
    result = explore(TwoPhaseCommit(5), limits=limits)
    assert result.verdict is Verdict.UNDETERMINED
    assert result.reason.startswith("came to the limit of")


def test_a_situation_that_was_not_reached_is_told() -> None:
    assert explore(TwoPhaseCommit(3, "silent"), properties=["consistent"]).reached == {"commit": True, "abort": True}
    early = explore(TwoPhaseCommit(3), limits=Limits(seconds=0.0))
    assert early.reached == {"commit": False, "abort": False}


def test_a_situation_may_depend_on_more_than_its_step_does() -> None:
    """To abort on its own looks at nothing that is shared, so it is learned once, in a state where nobody is prepared."""

    class Late(TwoPhaseCommit):
        @property
        def situations(self) -> tuple[Situation, ...]:
            return (
                Situation("late", self.late),
                Situation("too late", lambda before, action, after: self.late(before, action, after, number=3)),
            )

        @staticmethod
        def late(before: State, action: Action, after: State, number: int = 2) -> bool:
            return action.name == "choose_to_abort" and len(after.shared.prepared) == number

    assert explore(Late(3)).reached == {"late": True, "too late": False}


def test_seven_managers_fit_in_a_fraction_of_the_memory() -> None:
    """Known: 296 448 states. The plain search needs about four times as much for states as small as these."""
    result = explore(TwoPhaseCommit(7))
    assert (result.states, result.verdict) == (296_448, Verdict.HOLDS)
    assert result.memory < 300 << 20


def assert_replays(system: System, trace: Trace) -> None:
    """Every step of the trace is a step of the specification, and no state before the last breaks a property."""
    state: Any = system.initial()
    assert state == trace.states[0]
    for _, action, after in trace.steps:
        assert not violations(system, state)
        state = apply(system, state, action)
        assert state == after
