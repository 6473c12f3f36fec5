"""How the mutants die: each is searched, within its bounds, for the violation that shows what its guard is for."""

from typing import NamedTuple

from coxless_model.explore import explore
from coxless_model.itf import TraceFile, trace_file
from coxless_model.liveness import Lasso, check_liveness
from coxless_model.mutants import Mutant
from coxless_model.results import NO_LIMITS, Limits, Trace, Verdict


class Death(NamedTuple):
    mutant: Mutant
    verdict: Verdict
    """VIOLATED: it was killed. HOLDS: it survived."""
    killed_by: str
    """The property that found it; empty for a survivor."""
    wrong: str
    trace: Trace | None
    loop: int | None
    """For a run that goes on for ever: the number of the state to which it returns."""
    states: int
    seconds: float

    @property
    def length(self) -> int:
        return 0 if self.trace is None else len(self.trace.actions)


def death(mutant: Mutant, limits: Limits = NO_LIMITS) -> Death:
    """Look for the property that the mutant is meant to break; should that one hold, for any other."""
    if mutant.liveness:
        found = check_liveness(mutant.system, [mutant.killed_by], limits=limits)
        for lasso in found.lassos:
            trace, loop = unrolled(lasso)
            return Death(mutant, found.verdict, lasso.goal, lasso.wrong, trace, loop, found.states, found.seconds)
        return Death(mutant, found.verdict, "", found.reason, None, None, found.states, found.seconds)
    for properties in ([mutant.killed_by], None):
        result = explore(mutant.system, symmetry=True, properties=properties, limits=limits)
        if result.verdict is not Verdict.HOLDS:
            break
    for each in result.counterexamples:
        return Death(mutant, result.verdict, each.property, each.wrong, each.trace, None, result.states, result.seconds)
    return Death(mutant, result.verdict, "", result.reason, None, None, result.states, result.seconds)


def unrolled(lasso: Lasso) -> tuple[Trace, int | None]:
    """The run to the round and once through it, and where the round begins (None where nothing goes on)."""
    states = (*lasso.prefix.states, *lasso.cycle.states[1:])
    actions = (*lasso.prefix.actions, *lasso.cycle.actions)
    return Trace(states, actions), len(lasso.prefix.actions) if lasso.cycle.actions else None


def as_file(found: Death) -> TraceFile:
    """The trace of a mutant that was killed, with its story."""
    assert found.trace is not None
    mutant = found.mutant
    prose = f"The mutant: {mutant.removed}. {mutant.suffers}"
    return trace_file(
        mutant.system,
        found.trace,
        title=f"without the guard {mutant.guard.replace('_', ' ')}",
        prose=prose,
        broken=found.killed_by,
        wrong=found.wrong,
        loop=found.loop,
    )
