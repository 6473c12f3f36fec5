"""The hardened protocol holds, each fault by itself and in company; with the numbers of states, so that a change shows."""

import pytest

from coxless_model import clause
from coxless_model.environment import Hardened, hardened
from coxless_model.explore import explore
from coxless_model.history import History, NoSuchStep
from coxless_model.liveness import check_liveness
from coxless_model.machine import Invariant, State, describe, successors, violations
from coxless_model.properties import no_gap_no_double
from coxless_model.results import Counterexample, Verdict

Case = tuple[int, int, dict[str, int]]

HOLDS: list[Case] = [
    (2, 2, {}),
    (2, 3, {"suspicions": 1}),
    (2, 2, {"failed_votes": 1, "suspicions": 1}),
    (2, 2, {"lost_replies": 2}),
    (2, 2, {"crashes": 1, "restarts": 1}),
    (2, 2, {"crashes": 1, "dead_marks": 1, "leaves": 1, "join_timeouts": 2}),
    (2, 2, {"store_losses": 1}),
    (2, 4, {}),
    (3, 2, {"crashes": 1}),
    (3, 2, {"suspicions": 1}),
]


def named(case: Case) -> str:
    ranks, iterations, budgets = case
    return f"{ranks}x{iterations} {' '.join(f'{name}={budget}' for name, budget in budgets.items())}"


@pytest.mark.parametrize("case", HOLDS, ids=named)
def test_safety_holds_and_everything_interesting_was_met(case: Case) -> None:
    ranks, iterations, budgets = case
    result = explore(hardened(ranks, iterations, lag=3, missing=(), **budgets), symmetry=True)
    assert result.verdict is Verdict.HOLDS, result
    assert all(result.reached.values()), result.reached


@pytest.mark.parametrize(
    ("ranks", "iterations", "budgets"),
    [
        (2, 2, {"crashes": 1, "join_timeouts": 2}),
        (2, 2, {"lost_replies": 1}),
        (2, 2, {"store_losses": 1}),
        (2, 3, {"suspicions": 1}),
    ],
)
def test_the_job_goes_on_and_who_comes_back_takes_part(ranks: int, iterations: int, budgets: dict[str, int]) -> None:
    assert check_liveness(hardened(ranks, iterations, lag=0, missing=(), **budgets)).verdict is Verdict.HOLDS


def test_without_faults_an_iteration_costs_a_member_two_operations() -> None:
    system = hardened(1, 3)
    result = explore(system)
    assert result.states < 60
    taken = {name for name, times in result.taken.items() if times}
    assert {"arrive", "propose_same_epoch"} <= taken
    assert "await_barrier" not in taken  # alone it is let through at once


@pytest.mark.parametrize(
    "budgets",
    [
        {"suspicions": 1, "join_timeouts": 1},
        {"failed_votes": 1, "lost_replies": 1},
        {"lost_replies": 1, "join_timeouts": 1},  # a joiner puts back a decision that its winner has not learned of
        {"crashes": 1, "restarts": 1},
    ],
    ids=str,
)
def test_with_its_clause_a_store_loss_costs_nothing_whatever_else_happens(budgets: dict[str, int]) -> None:
    assert explore(hardened(2, 2, lag=0, store_losses=1, missing=(), **budgets), symmetry=True).verdict is Verdict.HOLDS


class TestStoreLossNeedsItsClause:
    """A store restart loses nothing as long as a rank that took part in the last two iterations lives, and nobody takes it for dead;
    and nobody who was left out has yet to learn so. Each part of the clause is needed: beyond it an iteration is decided again."""

    def test_a_crash_of_the_only_rank_that_knew_repeats_an_iteration(self) -> None:
        self.assert_decided_again(crashes=1, join_timeouts=0)

    def test_so_does_a_wrong_suspicion(self) -> None:
        self.assert_decided_again(suspicions=1, join_timeouts=0)

    def test_so_does_a_join_timeout_that_is_shorter_than_the_recovery_of_a_live_rank(self) -> None:
        self.assert_decided_again(join_timeouts=1)

    def test_so_does_a_joiner_that_alone_knows_of_the_iteration_it_was_let_into(self) -> None:
        """The member of the iteration before restores that one, and there it waits for nobody: the joiner is in no list that it knows."""
        found = self.assert_decided_again("iteration 2 was decided again", join_timeouts=1, failed_votes=1)
        names = [action.name for action in found.trace.actions]
        assert names.index("join_timeout") < names.index("lose_store"), "it was not the founding that was repeated"

    @pytest.mark.parametrize("part", clause.PARTS, ids=lambda part: part.name)
    def test_a_run_that_lacks_one_part_decides_an_iteration_again_and_nothing_was_wrong_before(self, part: clause.Part) -> None:
        history = clause.run(part)
        void = [state.shared.ghost.void for state in history.states]
        wrong = [dict(violations(history.system, state)) for state in history.states]
        assert wrong[-1]["S2"] == part.wrong
        assert not any(wrong[:-1]), "the second decision is what breaks it"
        assert void[-2], "the clause says beforehand that nothing is claimed of this run"
        lost = next(at for at, action in enumerate(history.actions, start=1) if action.name == "lose_store")
        assert void == sorted(void)
        assert not any(void[:lost]), "up to the store loss everything is claimed"

    @pytest.mark.parametrize("part", clause.PARTS, ids=lambda part: part.name)
    def test_each_fault_of_such_a_run_is_needed(self, part: clause.Part) -> None:
        """With one fault of its kind less the same run cannot happen."""
        for fault in (*part.faults, "store_losses"):
            history = clause.run(part)
            system = history.system
            assert isinstance(system, Hardened)
            budgets = system.budgets
            poorer = system._replace(budgets=budgets._replace(**{fault: getattr(budgets, fault) - 1}))
            with pytest.raises(NoSuchStep):
                part.script(History(poorer))

    def assert_decided_again(self, wrong: str = "was decided again", **budgets: int) -> Counterexample:
        def again(state: State) -> str | None:
            return no_gap_no_double(state) if any(wrong in each.what for each in state.shared.ghost.wrong) else None

        system = hardened(2, 2, lag=0, store_losses=1, missing=(), **budgets)._replace(beyond=True)
        (found,) = explore(system, invariants=[Invariant("S2", again)]).counterexamples
        assert found.wrong.endswith("was decided again")
        assert any(action.name == "lose_store" for action in found.trace.actions)
        within = explore(hardened(2, 2, lag=0, store_losses=1, missing=(), **budgets), symmetry=True, properties=["S2"])
        assert within.verdict is Verdict.HOLDS
        return found


def test_a_founder_that_loses_the_race_learns_the_decision_from_the_reply() -> None:
    """Both ranks close with the same list; one compare_set wins, and the other needs no further operation to take part."""
    system = hardened(2, 1)
    state, lines = system.initial(), []
    for rank in (0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1):
        action, state = next((action, after) for action, after in successors(system, state) if action.rank == rank)
        lines.append(describe(action).split("(")[0])
    assert lines[-6:] == [
        "rank 0: read_arrived read",
        "rank 1: read_arrived read",
        "rank 0: write_members set",
        "rank 1: write_members set",
        "rank 0: propose_new_epoch compare_set",
        "rank 1: propose_new_epoch compare_set",
    ]
    assert [local.processes[0].record.winner.rank for local in state.ranks] == [0, 0]
