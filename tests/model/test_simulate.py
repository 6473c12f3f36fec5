"""Random walks: the same walk for the same seed, the same properties, a trace that replays."""

from coxless_model.machine import apply
from coxless_model.results import Limits, Verdict
from coxless_model.simulate import simulate
from coxless_model.two_phase_commit import TwoPhaseCommit


def test_walks_find_a_hasty_manager() -> None:
    system = TwoPhaseCommit(4, "hasty")
    result = simulate(system, seed=3, walks=1000)
    (found,) = result.counterexamples
    assert (result.verdict, found.property) == (Verdict.VIOLATED, "consistent")
    state = system.initial()
    for _, action, after in found.trace.steps:
        state = apply(system, state, action)
        assert state == after


def test_a_walk_depends_on_nothing_but_its_seed() -> None:
    def walked(seed: int) -> object:
        return simulate(TwoPhaseCommit(4, "hasty"), seed=seed, walks=1000).counterexamples

    assert walked(5) == walked(5)
    assert len({repr(walked(seed)) for seed in range(10)}) > 1


def test_walks_that_find_nothing_prove_nothing() -> None:
    result = simulate(TwoPhaseCommit(3), seed=1, walks=50)
    assert (result.verdict, result.reason) == (Verdict.UNDETERMINED, "50 random walks prove nothing")
    assert result.reached == {"commit": True, "abort": True}
    assert result.transitions > 50


def test_walks_keep_to_their_limits() -> None:
    result = simulate(TwoPhaseCommit(3), seed=1, walks=10**9, limits=Limits(seconds=0.05))
    assert result.reason.startswith("came to the limit")
