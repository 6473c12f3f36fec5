"""What the soak does is a function of its length and seed, can be written down and read back, and is made smaller when it fails."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bench.soak.__main__ import main
from bench.soak.schedule import RANKS, Fault, Schedule, load, plan
from bench.soak.shrink import compressed, shrink
from click.testing import CliRunner


def test_the_same_seed_gives_the_same_faults() -> None:
    assert plan(3, 7) == plan(3, 7)
    assert plan(3, 7) != plan(3, 8)


def test_thirty_minutes_are_planned_to_do_what_was_asked_for() -> None:
    counts = plan(30, 7).counts()
    assert counts["kill"] + counts["self-kill"] >= 300
    assert counts["stop"] >= 100
    assert counts["store"] >= 20
    assert counts["long stop"] >= 30
    assert 2 * counts["cut"] >= 200, "a rank has more than two connections, and a cut is one of them all"


def test_a_schedule_comes_back_as_it_was_written(tmp_path: Path) -> None:
    schedule = plan(2, 3)
    schedule.write(tmp_path / "schedule.json")
    assert load(tmp_path / "schedule.json") == schedule


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"seed": 1, "minutes": 1}', '{"seed": 1, "minutes": 1, "faults": [{"at": 1, "kind": "flood"}]}'],
)
def test_a_file_that_is_no_schedule_is_one_sentence(tmp_path: Path, text: str) -> None:
    path = tmp_path / "schedule.json"
    path.write_text(text)
    done = CliRunner().invoke(main, ["--schedule", str(path)])
    assert done.exit_code == 1
    assert "is no schedule" in done.output


def test_a_rank_that_is_not_there_is_no_fault(tmp_path: Path) -> None:
    Schedule(1, 1, (Fault(1, "kill", RANKS),)).write(tmp_path / "schedule.json")
    with pytest.raises(ValueError, match="no fault of a crew of 4 ranks"):
        load(tmp_path / "schedule.json")


def test_the_plan_can_be_looked_at_beforehand() -> None:
    done = CliRunner().invoke(main, ["--minutes", "30", "--plan"])
    assert done.exit_code == 0
    assert json.loads(done.output) == plan(30, 7).counts()


def test_a_failing_schedule_shrinks_to_the_faults_that_matter() -> None:
    """The planted defect: a long stop of rank 2 some time before a store loss."""
    schedule = plan(10, 5)
    tries = []

    def fails(candidate: Schedule) -> bool:
        tries.append(len(candidate.faults))
        kinds = [(fault.kind, fault.rank) for fault in candidate.faults]
        return ("stop", 2) in kinds and ("store", -1) in kinds[kinds.index(("stop", 2)) :]

    assert fails(schedule)
    small = shrink(schedule, fails, seconds=60)
    assert [fault.kind for fault in small.faults] == ["stop", "store"]
    assert small.minutes < 1
    assert len(tries) < 200


def test_shrinking_ends_in_time_with_a_schedule_that_was_seen_to_fail() -> None:
    now = 0.0
    schedule = plan(10, 5)

    def fails(candidate: Schedule) -> bool:
        nonlocal now
        now += candidate.minutes * 60
        return len(candidate.faults) > len(schedule.faults) // 3

    small = shrink(schedule, fails, seconds=300, clock=lambda: now)
    assert fails(small)
    assert now < 300 + 2 * 600 + 100


def test_what_never_fails_again_stays_whole() -> None:
    schedule = plan(1, 5)
    assert shrink(schedule, lambda _: False, seconds=1e9) == schedule


def test_pauses_are_shortened_and_the_order_kept() -> None:
    faults = (Fault(20, "kill", 1), Fault(25, "cut", 2), Fault(400, "store"))
    short = compressed(Schedule(1, 30, faults), faults)
    assert [(fault.at, fault.kind) for fault in short.faults] == [(8, "kill"), (13, "cut"), (23, "store")]
