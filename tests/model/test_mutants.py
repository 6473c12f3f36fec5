"""Each guard of the hardened protocol is needed: without it the model finds a violation, and which one."""

import inspect
import re
from pathlib import Path

import pytest

from coxless_model import hardened as hardened_steps
from coxless_model import process, recovery
from coxless_model.environment import hardened
from coxless_model.explore import explore
from coxless_model.liveness import check_liveness
from coxless_model.mutants import EQUIVALENT, MUTANTS, Mutant, by_name, mutant
from coxless_model.results import Verdict

Case = tuple[int, int, int, tuple[tuple[str, int], ...]]

SAFETY = [each for each in MUTANTS if not each.liveness]
LIVENESS = [each for each in MUTANTS if each.liveness]


@pytest.mark.parametrize("which", SAFETY, ids=lambda which: which.name)
def test_safety_is_lost_without_it(which: Mutant) -> None:
    result = explore(mutant(which), symmetry=True, properties=[which.killed_by])
    assert [found.property for found in result.counterexamples] == [which.killed_by]


@pytest.mark.parametrize("which", LIVENESS, ids=lambda which: which.name)
def test_progress_is_lost_without_it(which: Mutant) -> None:
    result = check_liveness(mutant(which))
    assert which.killed_by in {lasso.goal for lasso in result.lassos}


@pytest.mark.parametrize("which", LIVENESS, ids=lambda which: which.name)
def test_with_it_there_is_progress_within_the_same_bounds(which: Mutant) -> None:
    whole = hardened(which.ranks, which.iterations, min_ranks=which.min_ranks, missing=(), **which.budgets)
    assert check_liveness(whole).verdict is Verdict.HOLDS


def within() -> list[Case]:
    """Every configuration in which a mutant is killed."""
    return sorted({(m.ranks, m.iterations, m.min_ranks, tuple(sorted(m.budgets.items()))) for m in SAFETY})


@pytest.mark.parametrize("case", within(), ids=str)
def test_with_every_guard_the_same_bounds_hold(case: Case) -> None:
    """So the mutant dies of what it lacks, and not of its bounds."""
    ranks, iterations, min_ranks, budgets = case
    assert explore(hardened(ranks, iterations, min_ranks, missing=(), **dict(budgets)), symmetry=True).verdict is Verdict.HOLDS


def test_every_property_is_broken_by_some_mutant() -> None:
    """None of them is vacuous: for each there is a step less that breaks it."""
    broken: dict[str, str] = {}
    for which in SAFETY:
        result = explore(mutant(which), symmetry=True)
        for found in result.counterexamples:
            broken.setdefault(found.property, which.guard)
    for which in LIVENESS:
        broken.setdefault(which.killed_by, which.guard)
    assert set(broken) >= {"S1", "S2", "S3", "S4", "S5", "S6", "S7", "S8", "L1", "L2", "L3"}, broken


@pytest.mark.parametrize("which", EQUIVALENT, ids=lambda which: which.name)
def test_an_equivalent_mutant_survives(which: Mutant) -> None:
    assert explore(mutant(which), symmetry=True).verdict is Verdict.HOLDS


def test_every_guard_in_the_protocol_has_a_mutant_and_the_other_way_round() -> None:
    source = "".join(Path(inspect.getfile(module)).read_text() for module in (hardened_steps, process, recovery))
    quoted = set(re.findall(r'"(\w+)"', " ".join(re.findall(r"guards\(([^()]*)\)", source))))
    assert quoted == {each.guard for each in (*MUTANTS, *EQUIVALENT)}


def test_there_are_enough() -> None:
    assert len(MUTANTS) >= 25


def test_an_unknown_mutant_is_refused() -> None:
    with pytest.raises(ValueError, match="no mutant 'nothing'; there are compare_set, "):
        by_name("nothing")
