"""The table of verified bounds, on rows that take a moment."""

from coxless_model.mutants import MUTANTS
from coxless_model.results import Limits, Verdict
from coxless_model.verify import JOBS, Job, exit_code, markdown, searched

SMALL = Job(2, 1, {"lost_replies": 1})
MUTANT = Job(MUTANTS[0].ranks, MUTANTS[0].iterations, MUTANTS[0].budgets, kind="mutant", guard=MUTANTS[0].guard)


def test_rows_say_what_was_found() -> None:
    rows = [searched(job, Limits()) for job in (SMALL, Job(3, 1, kind="two-phase commit", symmetry=False), MUTANT)]
    table = "\n".join(markdown(rows, "a day"))
    assert exit_code(rows) == 0
    assert "| 2 ranks x 1 iterations; 1 lost reply |" in table
    assert "| two-phase commit, 3 managers | consistency, deadlock | holds | 288 | 1 145 | 10 |" in table
    assert "1 of 1 killed" in table


def test_a_limit_is_no_pass() -> None:
    row = searched(SMALL, Limits(states=1))
    assert row.verdict is Verdict.UNDETERMINED
    assert exit_code([row]) == 3


def test_a_mutant_that_survives_fails() -> None:
    row = searched(MUTANT, Limits())._replace(verdict=Verdict.HOLDS, killed_by="")
    assert exit_code([row]) == 1
    assert "SURVIVES" in "\n".join(markdown([row], "a day"))


def test_the_large_bounds_come_first() -> None:
    assert [(job.ranks, job.iterations, sum(job.budgets.values())) for job in JOBS[:2]] == [(2, 3, 5), (3, 2, 3)]
