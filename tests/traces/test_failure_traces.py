"""Each failure trace of the drawn protocol does its damage on a real store, and the same schedule does none when hardened."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from coxless_model import itf
from coxless_model.drawn import Drawn
from coxless_traces.commands import mapping, replay
from coxless_traces.cover_command import cover
from coxless_traces.drawn_replay import DrawnReplay
from coxless_traces.same_schedule import Harm, hardened_on
from coxless_traces.targets import Memory, Target, target

from ..conftest import needs_etcd
from .library_mutants import MUTANTS, apply

TRACES = sorted((Path(__file__).parents[2] / "traces").glob("*.itf.json"))
DAMAGE = {
    "two_winners": "iteration 1 has the winners 0, 1",
    "double_increment": "the counter says 2 after 1 iteration(s)",
    "stale_ready": "returned 1 twice",
    "wake_by_the_wrong_round": "different numbers",
    "winner_dies_after_winning": "before await_ready",
    "winner_dies_between_increment_and_signal": "before await_ready",
    "winner_dies_during_clean_up": "without rank 1, which is alive",
    "founder_advances_alone": "without rank 1, which is alive",
    "arrival_of_a_dead_incarnation": "rank 1 advances to 1 without rank 0, which is alive, by an arrival of before",
    "arrival_lost_by_late_clean_up": "its wait never ends",
    "clock_skew_exclusion": "without rank 1, which is alive",
}


@pytest.fixture(scope="module", params=["tcp", pytest.param("etcd", marks=needs_etcd())])
def store(request: pytest.FixtureRequest) -> Iterator[Target]:
    with target(request.param) as opened:
        yield opened


def test_there_are_traces() -> None:
    assert len(TRACES) >= 10
    assert {path.name.removesuffix(".itf.json") for path in TRACES} == set(DAMAGE)


@pytest.mark.parametrize("path", TRACES, ids=lambda path: path.name.removesuffix(".itf.json"))
def test_the_damage_is_seen_on_a_real_store(store: Target, path: Path) -> None:
    trace = itf.read(path)
    system = trace.system
    assert isinstance(system, Drawn)
    run = itf.executed(system, trace)
    replaying = DrawnReplay(system, store)
    assert len(list(replaying.story(run))) == len(trace.actions)
    damage = replaying.damage(trace.broken)
    replaying.close()
    assert any(DAMAGE[path.name.removesuffix(".itf.json")] in seen for seen in damage), damage
    harmless = hardened_on(system, run, store)
    assert sorted(harmless.iterations) == list(range(1, len(harmless.iterations) + 1))


def test_the_story_is_told() -> None:
    path = next(path for path in TRACES if path.name.startswith("two_winners"))
    result = CliRunner().invoke(replay, [str(path), "--target", "hash"])
    assert result.exit_code == 0, result.output
    assert "Seen on the store: iteration 1 has the winners 0, 1" in result.output
    assert "hardened: no harm" in result.output


def test_the_page_of_the_mapping_is_what_the_command_prints() -> None:
    page = Path(__file__).parents[2] / "docs" / "mapping.md"
    assert CliRunner().invoke(mapping).output == page.read_text(), "coxless mapping > docs/mapping.md"


def test_cover_reports_its_share() -> None:
    result = CliRunner().invoke(cover, ["--iterations", "1", "--target", "hash"])
    assert result.exit_code == 0, result.output
    assert "(100.0%)" in result.output
    assert CliRunner().invoke(cover, ["--action", "nonsense"]).exit_code == 2


HARM = {
    "compare_set": "S1",
    "spare_the_register": "S2",
    "founding": "S3",
    "heartbeats": "S3",
    "timeout_decides_nothing": "S5",
    "commit": "S8",
    "somebody_voted": "S8",
    "fresh_arrived": "S8",
    "patience": "L1",
    "spare_the_list": "L1",
    "persist": "L2",
}
"""What the hardened protocol without a guard does under one of the schedules."""


def harm_of(guard: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    apply(next(each for each in MUTANTS if each.guard == guard), monkeypatch)
    for path in TRACES:
        trace = itf.read(path)
        system = trace.system
        assert isinstance(system, Drawn)
        try:
            hardened_on(system, itf.executed(system, trace), Memory())
        except Harm as harm:
            yield str(harm)


@pytest.mark.parametrize(("guard", "promise"), HARM.items())
def test_harm_that_the_hardened_protocol_did_would_be_seen(guard: str, promise: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = list(harm_of(guard, monkeypatch))
    assert any(each.startswith(f"{promise}: ") for each in found), found


def test_harm_is_told_and_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    apply(next(each for each in MUTANTS if each.guard == "compare_set"), monkeypatch)
    result = CliRunner().invoke(replay, [*map(str, TRACES), "--target", "memory", "--quiet"])
    assert result.exit_code == 1
    assert "The same schedule, hardened: HARM: S1: " in result.output
