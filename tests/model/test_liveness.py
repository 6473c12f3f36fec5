"""Fair runs that never come to the goal are found, and shown as a lasso."""

import random

import networkx as nx
import pytest

from coxless_model.liveness import Lasso, check_liveness, components
from coxless_model.machine import Goal, State, System, apply
from coxless_model.results import Limits, Verdict
from coxless_model.two_phase_commit import TwoPhaseCommit


def test_two_phase_commit_comes_to_a_decision() -> None:
    result = check_liveness(TwoPhaseCommit(3))
    assert (result.verdict, result.states, result.lassos) == (Verdict.HOLDS, 288, ())


def test_a_manager_that_need_not_act_leaves_the_others_waiting() -> None:
    system = TwoPhaseCommit(3, "silent")
    (lasso,) = check_liveness(system).lassos
    assert [action.name for action in lasso.prefix.actions] == ["prepare"] * 3
    assert lasso.cycle.actions == ()
    assert_replays(system, lasso)


class Goals(TwoPhaseCommit):
    """Two-phase commit with two promises of which no system can keep both."""

    @property
    def goals(self) -> tuple[Goal, ...]:
        return (Goal("all commit", self.all_commit, self.never), Goal("nobody commits", self.nobody_commits, self.never))

    @staticmethod
    def all_commit(state: State) -> bool:
        return set(state.ranks) == {"committed"}

    @staticmethod
    def nobody_commits(state: State) -> bool:
        return "committed" not in state.ranks

    @staticmethod
    def never(state: State) -> bool:
        return False


def test_of_two_contradictory_promises_one_at_least_is_broken() -> None:
    """Must fail: a checker that calls both kept is asleep. Here each is broken, by the run that keeps the other."""
    lassos = {lasso.goal: lasso for lasso in check_liveness(Goals(2)).lassos}
    assert set(lassos) == {"all commit", "nobody commits"}
    for lasso in lassos.values():
        assert_replays(Goals(2), lasso)
        assert lasso.cycle.states[0] == lasso.cycle.states[-1] == lasso.prefix.states[-1]
    assert lassos["nobody commits"].cycle.actions, "having committed, they go on obeying for ever"
    assert {action.name for action in lassos["nobody commits"].cycle.actions} == {"obey"}


def test_only_the_goals_asked_for() -> None:
    assert [lasso.goal for lasso in check_liveness(Goals(2), ["all commit"]).lassos] == ["all commit"]


def test_a_goal_that_is_excused_for_good_is_not_broken() -> None:
    class Excused(Goals):
        @property
        def goals(self) -> tuple[Goal, ...]:
            return (
                Goal("all commit", self.all_commit, lambda state: "aborted" in state.ranks or state.shared.decision == "aborted"),
            )

    assert check_liveness(Excused(2)).verdict is Verdict.HOLDS


def test_a_limit_leaves_it_undetermined() -> None:
    result = check_liveness(TwoPhaseCommit(4), limits=Limits(states=10))
    assert (result.verdict, result.lassos) == (Verdict.UNDETERMINED, ())


@pytest.mark.parametrize("seed", range(20))
def test_components_are_those_of_networkx(seed: int) -> None:
    chance = random.Random(seed)
    size = chance.randint(1, 30)
    graph = nx.gnp_random_graph(size, chance.random() * 0.2, seed=seed, directed=True)
    mine = {frozenset(component) for component in components(graph, lambda node: list(graph[node]))}
    assert mine == {frozenset(component) for component in nx.strongly_connected_components(graph)}


def assert_replays(system: System, lasso: Lasso) -> None:
    state = system.initial()
    for _, action, after in lasso.prefix.steps + lasso.cycle.steps:
        state = apply(system, state, action)
        assert state == after
