"""Each guard of the hardened protocol is needed: without it the model finds a violation, and which one."""

import re
from pathlib import Path

import pytest

import coxless_model.hardened
from coxless_model.environment import hardened
from coxless_model.explore import Verdict, explore
from coxless_model.liveness import check_liveness
from coxless_model.mutants import EQUIVALENT, MUTANTS, by_name, mutant

SAFETY = [each for each in MUTANTS if not each.liveness]
LIVENESS = [each for each in MUTANTS if each.liveness]


@pytest.mark.parametrize("which", SAFETY, ids=lambda which: which.name)
def test_safety_is_lost_without_it(which):
    result = explore(mutant(which), symmetry=True)
    assert which.killed_by in {found.property for found in result.counterexamples}


@pytest.mark.parametrize("which", LIVENESS, ids=lambda which: which.name)
def test_progress_is_lost_without_it(which):
    result = check_liveness(mutant(which))
    assert which.killed_by in {lasso.goal for lasso in result.lassos}


@pytest.mark.parametrize("which", LIVENESS, ids=lambda which: which.name)
def test_with_it_there_is_progress_within_the_same_bounds(which):
    whole = hardened(which.ranks, which.iterations, min_ranks=which.min_ranks, **which.budgets)
    assert check_liveness(whole).verdict is Verdict.HOLDS


def within():
    cases = {
        (m.ranks, m.iterations, m.min_ranks, tuple(sorted(m.budgets.items()))) for m in MUTANTS if "clock_skews" not in m.budgets
    }
    return sorted(case for case in cases if not {"second_processes"} & {name for name, _ in case[3]})


@pytest.mark.parametrize("case", within(), ids=str)
def test_with_every_guard_the_same_bounds_hold(case):
    ranks, iterations, min_ranks, budgets = case
    assert explore(hardened(ranks, iterations, min_ranks, **dict(budgets)), symmetry=True).verdict is Verdict.HOLDS


@pytest.mark.parametrize("which", EQUIVALENT, ids=lambda which: which.name)
def test_an_equivalent_mutant_survives(which):
    assert explore(mutant(which), symmetry=True).verdict is Verdict.HOLDS


def test_every_guard_in_the_protocol_has_a_mutant_and_the_other_way_round():
    source = Path(coxless_model.hardened.__file__).read_text()
    quoted = set(re.findall(r'"(\w+)"', " ".join(re.findall(r"guards\(([^()]*)\)", source))))
    assert quoted == {each.guard for each in (*MUTANTS, *EQUIVALENT)}


def test_there_are_enough():
    assert len(MUTANTS) >= 25


def test_an_unknown_mutant_is_refused():
    with pytest.raises(ValueError, match="no mutant 'nothing'; there are compare_set, "):
        by_name("nothing")
