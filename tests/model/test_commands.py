"""The commands as a user meets them: what they print, and how they exit."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from coxless_model import itf
from coxless_model.commands import check, mutants, trace
from coxless_model.random_faults import KINDS


def run_check(*arguments: str) -> Result:
    return CliRunner().invoke(check, arguments, prog_name="check", catch_exceptions=False)


def run_trace(*arguments: str) -> Result:
    return CliRunner().invoke(trace, arguments, prog_name="trace", catch_exceptions=False)


def run_mutants(*arguments: str) -> Result:
    return CliRunner().invoke(mutants, arguments, prog_name="mutants", catch_exceptions=False)


def test_what_holds_exits_with_0() -> None:
    result = run_check("two-phase-commit", "--ranks", "5")
    assert result.exit_code == 0
    assert "two-phase-commit: holds" in result.output
    assert "314 states" in result.output


def test_the_full_search_is_asked_for() -> None:
    assert "8832 states" in run_check("two-phase-commit", "--ranks", "5", "--no-symmetry").output


def test_the_drawn_protocol_breaks_each_of_its_promises() -> None:
    result = run_check("drawn")
    assert result.exit_code == 1
    for name in ("S1", "S2", "S3", "L1"):
        assert f"{name} is broken after" in result.output
    assert "coxless check drawn\n" in result.output
    assert "global_iteration_barrier:consensus" in result.output


def test_one_property_alone() -> None:
    result = run_check("drawn", "--property", "S2", "--iterations", "1")
    assert result.exit_code == 1
    assert "S2 is broken after 14 steps" in result.output
    assert "S1 is broken" not in result.output


def test_a_limit_exits_with_3() -> None:
    result = run_check("two-phase-commit", "--ranks", "6", "--max-states", "50", "--no-symmetry")
    assert result.exit_code == 3
    assert "undetermined (came to the limit of 50 states)" in result.output
    assert "To reproduce: coxless check two-phase-commit --ranks 6 --no-symmetry --max-states 50" in result.output


def test_random_walks_prove_nothing() -> None:
    result = run_check("two-phase-commit", "--simulate", "20", "--seed", "7")
    assert result.exit_code == 3
    assert "20 random walks prove nothing" in result.output


def test_every_fair_run() -> None:
    result = run_check("two-phase-commit", "--liveness")
    assert result.exit_code == 0
    assert "every fair run: holds" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("raft",), "unknown protocol or mutant 'raft'"),
        (("suspicions",), "did you mean suspicion"),
        (("drawn", "--lost-replies", "1"), "the drawn protocol knows no budget for lost_replies"),
        (("drawn", "--property", "S9"), "drawn has no property S9"),
        (("--ranks", "none"), "'none' is not a valid integer range"),
        (("drawn", "--lag", "3"), "the drawn protocol knows no lag; it knows ranks, iterations"),
        (("two-phase-commit", "--lag", "3"), "the two-phase-commit protocol knows no lag"),
        (("hardened", "--ranks", "2", "--min-ranks", "3"), "min_ranks (3) must be at most the number of ranks (2)"),
    ],
)
def test_a_mistake_is_explained_and_exits_with_2(arguments: tuple[str, ...], message: str) -> None:
    result = run_check(*arguments)
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output


def test_json_can_be_read() -> None:
    result = run_check("drawn", "--property", "S1", "--iterations", "1", "--json")
    found = json.loads(result.stdout)
    assert (found["verdict"], found["exit_code"], found["counterexamples"][0]["length"]) == ("violated", 1, 12)
    assert found["counterexamples"][0]["trace"][1]["action"]["name"] == "send_heartbeat"


def test_json_has_one_verdict_and_it_is_that_of_the_exit_code() -> None:
    found = json.loads(run_check("suspicion", "--json").stdout)
    assert (found["verdict"], found["safety"], found["exit_code"]) == ("violated", "holds", 1)


def test_an_action_that_was_never_taken_is_a_warning() -> None:
    alone = ("hardened", "--ranks", "1", "--suspicions", "1")  # there is nobody to suspect
    result = run_check(*alone)
    assert result.exit_code == 0
    assert "warning: never taken within these bounds: read_members" in result.output
    assert json.loads(run_check(*alone, "--json").stdout)["never_taken"] == ["read_members"]
    everything = run_check("hardened", "--crashes", "1", "--restarts", "1", "--lost-replies", "1")
    assert "never taken" not in everything.output


def test_nobody_has_to_found_the_job_with_fewer_than_may_go_on() -> None:
    result = run_check("hardened", "--min-ranks", "2", "--crashes", "1")
    assert (result.exit_code, "never reached" in result.output) == (0, False)


def test_a_mutant_is_checked_within_its_own_bounds() -> None:
    result = run_check("compare_set")
    assert result.exit_code == 1
    assert "S2 is broken after 12 steps: iteration 1 was decided again" in result.output


def test_a_mutant_that_never_goes_on_is_shown_as_a_lasso() -> None:
    result = run_check("suspicion", "--property", "L1")
    assert result.exit_code == 1
    assert "L1 is broken: it goes round for ever" in result.output
    assert "and from here round and round:" in result.output


def test_some_mutants_are_killed() -> None:
    result = run_mutants("compare_set", "votes")
    assert result.exit_code == 0
    assert "2 of 2 mutants killed (100 %)" in result.output


def test_mutants_as_json() -> None:
    result = run_mutants("compare_set", "--json")
    (found,) = json.loads(result.stdout)["mutants"]
    assert (found["killed_by"], found["length"]) == ("S2", 12)


def test_a_limit_leaves_a_mutant_undetermined() -> None:
    result = run_mutants("nonce", "--max-seconds", "0")
    assert result.exit_code == 3
    assert "To reproduce: coxless check nonce" in result.output


@pytest.mark.parametrize("kind", KINDS)
def test_random_scenarios_have_the_fault_and_replay(kind: str, tmp_path: Path) -> None:
    result = run_trace("--kind", kind, "--ranks", "2", "--length", "50", "--seed", "3", "--output", str(tmp_path))
    assert result.exit_code == 0
    (path,) = tmp_path.glob("*.itf.json")
    scenario = itf.read(path)
    assert len(scenario.actions) <= 50
    assert itf.deviation(scenario.system, scenario) is None
    first = path.read_bytes()
    run_trace("--kind", kind, "--ranks", "2", "--length", "50", "--seed", "3", "--output", str(tmp_path))
    assert path.read_bytes() == first


def test_scenarios_may_have_several_faults(tmp_path: Path) -> None:
    result = run_trace("--kind", "crash", "--kind", "failed_vote", "--length", "80", "--output", str(tmp_path))
    assert result.exit_code == 0
    (path,) = tmp_path.glob("crash-failed_vote-*.itf.json")
    notes = [(action["name"], action["note"]) for action in itf.read(path).actions]
    assert any(name == "crash" for name, _ in notes)
    assert any("the step failed" in note for _, note in notes)


def test_too_few_scenarios_are_an_error_that_says_so(tmp_path: Path) -> None:
    result = run_trace(
        "--kind", "restart", "--ranks", "1", "--iterations", "1", "--length", "1", "--count", "5", "--output", str(tmp_path)
    )
    assert result.exit_code == 1
    assert "found 0 of 5 scenarios with restart" in result.output


def test_the_trace_command_wants_one_thing() -> None:
    assert run_trace().exit_code == 2
    assert run_trace("--corpus", "x", "--kind", "crash").exit_code == 2
    assert run_trace("--kind", "flood").exit_code == 2
