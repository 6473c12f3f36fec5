"""The corpus of failure traces: for each flaw of the drawn protocol and for each mutant of the hardened one, the shortest run
that shows it; and for each part of the store-loss clause a run that needs it. Made from the model alone, byte for byte the same
each time, so that they can be committed and compared.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from coxless_model import clause, itf
from coxless_model.deaths import as_file, death
from coxless_model.drawn import FLAWS, Flaw
from coxless_model.explore import explore
from coxless_model.machine import Invariant, State, System, enabled, violations
from coxless_model.mutants import MUTANTS
from coxless_model.results import NO_LIMITS, Limits

SUFFIX = ".itf.json"


class NotFound(Exception):
    """A flaw that the model does not show within its bounds."""


class Entry(NamedTuple):
    """A file of the corpus: its place below the folder, and what is in it."""

    place: str
    trace: itf.TraceFile


def entries() -> Iterator[Entry]:
    """The whole corpus."""
    yield from drawn_entries()
    yield from mutant_entries()
    yield from clause_entries()


def drawn_entries() -> Iterator[Entry]:
    for flaw in FLAWS:
        yield Entry(flaw.name + SUFFIX, shortest(flaw))


def mutant_entries() -> Iterator[Entry]:
    for mutant in MUTANTS:
        found = death(mutant)
        if found.trace is None:
            raise NotFound(f"{mutant.name}: {found.verdict} within its bounds ({found.states} states); it should be killed")
        yield Entry(f"mutants/{mutant.name}{SUFFIX}", as_file(found))


def clause_entries() -> Iterator[Entry]:
    for part in clause.PARTS:
        yield Entry(f"clause/{part.name}{SUFFIX}", beyond(part))


def beyond(part: clause.Part) -> itf.TraceFile:
    """The run beyond the store-loss clause that shows what this part of it is for."""
    history = clause.run(part)
    wrong = (clause.PROPERTY, part.wrong)
    if wrong not in violations(history.system, history.state):
        raise NotFound(f"{part.name}: after the {len(history.actions)} steps of its run it is not true that {part.wrong}")
    title = part.name.replace("_", " ")
    return itf.trace_file(history.system, history.trace, title=title, prose=part.prose, broken=wrong[0], wrong=wrong[1])


def shortest(flaw: Flaw) -> itf.TraceFile:
    """The shortest run of the drawn protocol that shows the flaw."""
    system = flaw.bounds

    def shown(state: State) -> str | None:
        if not flaw.shows(state) or (flaw.stuck and not stuck(system, state)):
            return None
        wrong = (invariant.check(state) for invariant in system.invariants if invariant.id == flaw.property)
        return next(filter(None, wrong), "nothing can happen any more, and the ranks that are left wait for ever")

    return _found(system, Invariant(flaw.property, shown), flaw.name, flaw.story)


def stuck(system: System, state: State) -> bool:
    """Nothing is promised to happen any more."""
    return all(system.fair(action) is None for action in enabled(system, state))


def _found(system: System, shown: Invariant, name: str, prose: str, limits: Limits = NO_LIMITS) -> itf.TraceFile:
    result = explore(system, invariants=(shown,), limits=limits)
    if not result.counterexamples:
        raise NotFound(f"{name}: {result.verdict} within its bounds ({result.states} states); it should be found")
    (found,) = result.counterexamples
    title = name.replace("_", " ")
    return itf.trace_file(system, found.trace, title=title, prose=prose, broken=shown.id, wrong=found.wrong)


def differences(folder: Path, entries: Iterator[Entry]) -> Iterator[str]:
    """How the folder differs from what the model gives, one line for each file."""
    places = set()
    for place, trace in entries:
        places.add(place)
        path = folder / place
        if not path.exists():
            yield f"{path} is missing"
        elif path.read_text(encoding="utf-8") != itf.dumps(trace):
            yield f"{path} differs from what the model gives"
    for path in sorted(folder.rglob(f"*{SUFFIX}")):
        if str(path.relative_to(folder)) not in places:
            yield f"{path} is not given by the model"


def regenerate(folder: Path, entries: Iterator[Entry]) -> Iterator[Path]:
    """Write the corpus; yields each file as it is written."""
    for place, trace in entries:
        itf.write(folder / place, trace)
        yield folder / place
