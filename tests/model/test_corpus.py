"""The corpus of failure traces is what the model gives, the same bytes each time, and each trace is a run of its system."""

import subprocess
import sys
from pathlib import Path

import pytest

from coxless_model import clause, corpus, itf
from coxless_model.deaths import as_file, death
from coxless_model.drawn import FLAWS, Flaw
from coxless_model.machine import violations
from coxless_model.mutants import MUTANTS, by_name

COMMITTED = Path(__file__).parents[2] / "traces"
LENGTHS = {
    "two_winners": 12,
    "double_increment": 14,
    "stale_ready": 34,
    "wake_by_the_wrong_round": 32,
    "winner_dies_after_winning": 14,
    "winner_dies_between_increment_and_signal": 15,
    "winner_dies_during_clean_up": 24,
    "founder_advances_alone": 6,
    "arrival_of_a_dead_incarnation": 10,
    "arrival_lost_by_late_clean_up": 22,
    "clock_skew_exclusion": 7,
}


@pytest.mark.parametrize("flaw", FLAWS, ids=lambda flaw: flaw.name)
def test_each_flaw_of_the_drawn_protocol_has_its_shortest_trace(flaw: Flaw) -> None:
    trace = corpus.shortest(flaw)
    assert len(trace.actions) == LENGTHS[flaw.name]
    assert itf.deviation(trace.system, trace) is None
    assert flaw.shows(itf.executed(trace.system, trace).states[-1])
    assert trace.wrong


def test_a_trace_of_a_mutant_tells_its_story() -> None:
    trace = as_file(death(by_name("compare_set")))
    assert (trace.title, trace.broken) == ("without the guard compare set", "S2")
    assert trace.prose.startswith("The mutant: propose with set, not with compare_set. Two ranks decide")
    last = itf.executed(trace.system, trace).states[-1]
    assert ("S2", trace.wrong) in violations(trace.system, last)


def test_a_trace_that_goes_round_says_where() -> None:
    trace = as_file(death(by_name("suspicion")))
    assert trace.loop is not None
    assert trace.states[trace.loop] == trace.states[-1]
    assert itf.deviation(trace.system, trace) is None


@pytest.mark.parametrize("part", clause.PARTS, ids=lambda part: part.name)
def test_a_trace_beyond_the_store_loss_clause_names_the_part_that_it_lacks(part: clause.Part) -> None:
    trace = corpus.beyond(part)
    assert itf.deviation(trace.system, trace) is None
    assert (trace.broken, trace.wrong) == ("S2", part.wrong)
    assert trace.prose.startswith(f"The clause asks: {part.part}. Here: ")
    last = itf.executed(trace.system, trace).states[-1]
    assert ("S2", trace.wrong) in violations(trace.system, last)


def test_a_run_that_does_no_damage_is_no_trace_of_the_clause() -> None:
    harmless = clause.PARTS[0]._replace(script=lambda history: history.until(0, "await_full"))
    with pytest.raises(corpus.NotFound, match="after the 4 steps of its run it is not true that iteration 2 was decided again"):
        corpus.beyond(harmless)


def test_other_hash_seeds_give_the_same_bytes() -> None:
    program = "from coxless_model import corpus, itf; print(itf.dumps(corpus.shortest(corpus.FLAWS[0])))"
    texts = {
        subprocess.run(
            [sys.executable, "-c", program], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("0", "1", "2")
    }
    assert len(texts) == 1


def test_differences_are_told(tmp_path: Path) -> None:
    flaws = [corpus.Entry(f"{flaw.name}.itf.json", corpus.shortest(flaw)) for flaw in FLAWS[:3]]
    written = list(corpus.regenerate(tmp_path, iter(flaws)))
    assert list(corpus.differences(tmp_path, iter(flaws))) == []
    written[0].unlink()
    written[1].write_text("{}")
    (tmp_path / "another.itf.json").write_text("{}")
    assert [line.split("/")[-1] for line in corpus.differences(tmp_path, iter(flaws))] == [
        "two_winners.itf.json is missing",
        "double_increment.itf.json differs from what the model gives",
        "another.itf.json is not given by the model",
    ]


def test_the_committed_corpus_is_what_the_model_gives() -> None:
    """If this fails after a change of the model: look at the differences, then `coxless trace --corpus traces`."""
    assert list(corpus.differences(COMMITTED, corpus.entries())) == []
    assert len(list((COMMITTED / "mutants").glob("*.itf.json"))) == len(MUTANTS)
    assert len(list((COMMITTED / "clause").glob("*.itf.json"))) == len(clause.PARTS)
