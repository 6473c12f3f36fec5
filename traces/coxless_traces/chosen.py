"""Walks chosen for variety: each action of the model, each of its variants, and a crash before each step of a rank."""

from collections.abc import Iterator
from itertools import count

from coxless_model.environment import Hardened
from coxless_model.machine import Action, State, successors
from coxless_model.steps import moves

from .mapping import ENVIRONMENT, STEPS, VARIANTS, variants
from .walks import Step, walk

STEP_NAMES = tuple(row.step for row in STEPS)
EVERYTHING = frozenset(
    (
        *STEP_NAMES,
        *(row.step for row in ENVIRONMENT),
        *(f"[{note}]" for note in VARIANTS if note),
        *(f"crash before {name}" for name in STEP_NAMES),
    )
)
AFTERWARDS = 25
"""So long the others go on after the crash that a walk was chosen for."""


def standing_before(system: Hardened, state: State, rank: int, index: int) -> set[str]:
    """The steps of the protocol that this process may take next."""
    process = state.ranks[rank].processes[index]
    return {move.name for move in moves(system.setting, rank, process)}


def shown(system: Hardened, before: State, action: Action) -> set[str]:
    """What of EVERYTHING this step shows."""
    found = {action.name, *(f"[{note}]" for note in variants(action.note))}
    if action.name == "crash":
        index = 1 if "second process" in action.note else 0
        found |= {f"crash before {name}" for name in standing_before(system, before, action.rank, index)}
    return found


def shown_by(system: Hardened, steps: tuple[Step, ...]) -> set[str]:
    return set().union(*(shown(system, before, action) for before, action, _ in steps))


def crash_before(system: Hardened, name: str, seed: int, length: int) -> Iterator[Step]:
    """A random walk up to where a process stands before this step; there it crashes, and the others go on. Nothing, if none comes there."""
    steps: list[Step] = []
    for before, action, after in walk(system, seed, length):
        for crash, crashed in successors(system, before):
            if crash.name == "crash" and f"crash before {name}" in shown(system, before, crash):
                yield from steps
                yield before, crash, crashed
                yield from walk(system, seed, AFTERWARDS, crashed)
                return
        steps.append((before, action, after))


def chosen(system: Hardened, wanted: frozenset[str] = EVERYTHING, length: int = 40, tries: int = 3000) -> list[tuple[Step, ...]]:
    """Walks that together show everything that is wanted, as far as that many seeds lead to it. The same every time."""
    missing, walks = set(wanted), []
    for name in STEP_NAMES:
        for seed in range(tries):
            if f"crash before {name}" not in missing:
                break
            steps = tuple(crash_before(system, name, seed, length))
            if steps:
                walks.append(steps)
                missing -= shown_by(system, steps)
    for seed in count(tries):
        if not missing or seed == 2 * tries:
            return walks
        steps = tuple(walk(system, seed, length))
        new = [at for at, (before, action, _) in enumerate(steps, start=1) if shown(system, before, action) & missing]
        if new:
            walks.append(steps[: new[-1]])
            missing -= shown_by(system, walks[-1])
    return walks
