"""The library with one guard taken away, for each guard that the model has: lockstep with the intact model finds it out, and
lockstep with the model's mutant shows that it is the same mutant, which does the same harm."""

import random
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from coxless.errors import CorruptStoreError
from coxless_model import itf, mutants
from coxless_model.environment import Hardened, hardened
from coxless_model.machine import Action, State, successors
from coxless_traces.invisible import INVISIBLE
from coxless_traces.replay import Lockstep, Mismatch
from coxless_traces.targets import Memory
from coxless_traces.walks import Step, replay_walk, replayable

from .library_mutants import MUTANTS, NONE_IN_THE_LIBRARY, Mutant, apply

FOLDER = Path(__file__).parents[2] / "traces" / "mutants"
KILLED = {path.name.removesuffix(".itf.json").removeprefix("without_"): path for path in sorted(FOLDER.glob("*.itf.json"))}
FURTHER = 40

NOT_TO_THE_END = {
    "attention_first": "the library counts itself in and waits in one operation: it signs when the barrier ends, not before",
    "timeout_decides_nothing": "who swallows the timeout would be the driver, after the generator's end",
    "content_addressed": "the mutant's lists are named otherwise than the model's",
    "restore_list": "a rank that finds its list gone says so, where the model's looks for it for ever",
    "spare_the_list": "a rank that finds its list gone says so, where the model's looks for it for ever",
}
"""The model's counterexamples that the library's mutant does not follow to the end, and why."""


def steps_of(guard: str) -> tuple[Hardened, tuple[Step, ...]]:
    """The model's counterexample without this guard."""
    trace = itf.read(KILLED[guard])
    assert isinstance(trace.system, Hardened)
    return trace.system, itf.executed(trace.system, trace).steps


def intact(system: Hardened) -> Hardened:
    return system._replace(setting=system.setting._replace(missing=()), name="hardened")


def beside(system: Hardened, mutated: Iterable[Step], seed: int) -> Iterator[Step]:
    """What the intact model does as its mutant does this: the same steps as long as it can, its own step where they part, and a few
    more that are no faults."""
    chance, state = random.Random(seed), system.initial()
    for _, wanted, _ in mutated:
        action, after = here(system, state, wanted)
        if action is None:
            break
        yield state, action, after
        state = after
        if action != wanted:
            break
    for _ in range(FURTHER):
        usual: dict[int, list[tuple[Action, State]]] = {}
        for action, after in successors(system, state):
            if system.fair(action) is not None and replayable(state, action):
                usual.setdefault(action.rank, []).append((action, after))
        if not usual:
            return
        action, after = chance.choice(usual[chance.choice(sorted(usual))])
        yield state, action, after
        state = after


def here(system: Hardened, state: State, wanted: Action) -> tuple[Action | None, State]:
    """The same action, or else what that rank does instead, under the same circumstances."""
    own = [pair for pair in successors(system, state) if pair[0].rank == wanted.rank and replayable(state, pair[0])]
    instead = [
        pair
        for pair in own
        if pair[0].op and pair[0].note == wanted.note and pair[0].name not in ("clean_up", "leave", "mark_dead")
    ]
    same = [pair for pair in own if pair[0] == wanted]
    return next(iter(same + instead), (None, state))


def follow(system: Hardened, steps: Iterable[Step]) -> None:
    """Raises Mismatch."""
    lockstep = Lockstep(system, Memory())
    try:
        for before, action, after in steps:
            lockstep.step(before, action, after)
    finally:
        lockstep.close()


def parts_from_the_model(guard: str) -> bool:
    """Whether the library as it is now is found out."""
    try:
        if guard in KILLED:
            system, mutated = steps_of(guard)
            for seed in range(5):
                follow(intact(system), beside(intact(system), mutated, seed))
        else:
            for seed in range(100):
                replay_walk(hardened(2, 2, crashes=1, restarts=1), Memory(), seed, 200)
    except (Mismatch, CorruptStoreError):
        return True
    return False


def test_each_guard_of_the_model_has_a_mutant_in_the_library() -> None:
    guards = {each.guard for each in (*mutants.MUTANTS, *mutants.EQUIVALENT)}
    ours = {each.guard for each in MUTANTS}
    assert ours | set(NONE_IN_THE_LIBRARY) == guards
    assert not ours & set(NONE_IN_THE_LIBRARY)
    assert set(KILLED) == {each.guard for each in mutants.MUTANTS}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.guard)
def test_a_mutant_is_caught_by_replay(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not parts_from_the_model(mutant.guard), "that would be no fault of the mutant"
    apply(mutant, monkeypatch)
    assert parts_from_the_model(mutant.guard)


@pytest.mark.parametrize("mutant", [each for each in MUTANTS if each.guard in KILLED], ids=lambda mutant: mutant.guard)
def test_a_mutant_does_the_harm_that_the_same_mutant_of_the_model_does(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    system, steps = steps_of(mutant.guard)
    apply(mutant, monkeypatch)
    if mutant.guard in NOT_TO_THE_END:
        with pytest.raises((Mismatch, CorruptStoreError)):
            follow(system, steps)
    else:
        follow(system, steps)


@pytest.mark.parametrize("guard", KILLED)
def test_the_intact_library_parts_from_each_mutant_of_the_model(guard: str) -> None:
    system, steps = steps_of(guard)
    if guard in INVISIBLE:
        follow(system, steps)
    else:
        with pytest.raises(Mismatch):
            follow(system, steps)
