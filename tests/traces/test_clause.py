"""Beyond the store-loss clause: the library does on a real store what the model does, and the damage is there to be seen."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from coxless_model import clause, itf
from coxless_model.environment import Hardened
from coxless_traces.commands import replay
from coxless_traces.decided_twice import Decisions
from coxless_traces.replay import Lockstep
from coxless_traces.targets import Memory, Target, target

FOLDER = Path(__file__).parents[2] / "traces" / "clause"
TRACES = {part.name: FOLDER / f"{part.name}.itf.json" for part in clause.PARTS}
DAMAGE = {
    "the_only_rank_that_knew_crashes": 2,
    "the_only_rank_that_knew_is_suspected": 2,
    "the_only_rank_that_knew_leaves": 2,
    "the_only_rank_that_knew_is_replaced": 1,
    "the_job_is_founded_again": 1,
    "only_a_joiner_knew": 2,
    "left_out_by_mistake_and_unaware": 2,
}
"""The iteration that is decided twice: first with rank 1, then by rank 0 without it, or without that process of it."""


@pytest.fixture(scope="module")
def store() -> Iterator[Target]:
    with target("tcp") as opened:
        yield opened


def replayed(path: Path, store: Target, without_the_last: int = 0) -> list[str]:
    """The damage that is seen on the store."""
    trace = itf.read(path)
    system = trace.system
    assert isinstance(system, Hardened)
    lockstep = Lockstep(system, store)
    decisions = Decisions(lockstep)
    steps = itf.executed(system, trace).steps
    try:
        for before, action, after in steps[: len(steps) - without_the_last]:
            lockstep.step(before, action, after)
            decisions.look()
    finally:
        lockstep.close()
    return decisions.twice()


def test_there_is_a_trace_for_each_part() -> None:
    assert set(TRACES) == set(DAMAGE)
    assert sorted(FOLDER.glob("*.itf.json")) == sorted(TRACES.values())


@pytest.mark.parametrize("name", TRACES)
def test_the_library_decides_an_iteration_twice_on_a_real_store(store: Target, name: str) -> None:
    (seen,) = replayed(TRACES[name], store)
    number = DAMAGE[name]
    first, second = seen.split("; and ")
    assert first.startswith(f"iteration {number} was decided 2 times: 1.1-80 took part by 'c1 80 {number} "), seen
    assert re.match(rf"0\.1-80 took part by 'c1 (80|81) {number} ", second), seen
    assert "1.1-80" in first.split(", of ")[1] and "1.1-80" not in second, seen


@pytest.mark.parametrize("name", TRACES)
def test_before_the_second_decision_there_is_nothing_to_be_seen(name: str) -> None:
    assert replayed(TRACES[name], Memory(), without_the_last=1) == []


def test_the_story_and_the_damage_are_told() -> None:
    result = CliRunner().invoke(replay, [str(TRACES["the_only_rank_that_knew_is_suspected"]), "--target", "memory"])
    assert result.exit_code == 0, result.output
    assert "The clause asks: that rank is not suspected meanwhile. Here: rank 1 decides iteration 2" in result.output
    assert "The model says (S2): iteration 2 was decided again\n" in result.output
    assert "28 steps, no difference\nSeen on the store: iteration 2 was decided 2 times" in result.output


def test_a_trace_whose_damage_is_not_seen_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Decisions, "look", lambda self: None)
    result = CliRunner().invoke(replay, [str(TRACES["the_only_rank_that_knew_crashes"]), "--target", "memory", "--quiet"])
    assert result.exit_code == 1
    assert "Seen on the store: nothing" in result.output
