"""Reduced and full searches agree, and a reduced counterexample is a run of the real thing."""

import random
from collections.abc import Hashable, Iterable
from itertools import permutations
from typing import NamedTuple

import pytest

from coxless_model.drawn import drawn
from coxless_model.environment import hardened
from coxless_model.explore import Search, explore
from coxless_model.machine import Action, Goal, Invariant, Situation, State, Step, System, apply, enabled, run, successors
from coxless_model.mutants import MUTANTS, Mutant
from coxless_model.packed import Packed
from coxless_model.results import NO_LIMITS, Verdict
from coxless_model.symmetry import NotSymmetric, Symmetry, renamed
from coxless_model.two_phase_commit import Flaw, Manager, TwoPhaseCommit

FLAWS: tuple[Flaw | None, ...] = (None, "hasty", "deaf", "silent")


def test_five_interchangeable_managers_have_314_states() -> None:
    result = explore(TwoPhaseCommit(5), symmetry=True)
    assert (result.states, result.depth, result.verdict) == (314, 16, Verdict.HOLDS)


@pytest.mark.parametrize("flaw", FLAWS)
@pytest.mark.parametrize("symmetry", [False, True])
@pytest.mark.parametrize("reduction", [False, True])
def test_reduced_and_full_search_agree(flaw: Flaw | None, symmetry: bool, reduction: bool) -> None:
    system = TwoPhaseCommit(4, flaw)
    full = explore(system)
    reduced = explore(system, symmetry=symmetry, reduction=reduction)
    assert (reduced.verdict, reduced.reached) == (full.verdict, full.reached)
    for mine, theirs in zip(reduced.counterexamples, full.counterexamples, strict=True):
        assert mine.property == theirs.property
        if not reduction:
            assert len(mine.trace.actions) == len(theirs.trace.actions)
        state = system.initial()
        for action in mine.trace.actions:
            state = apply(system, state, action)
        assert state == mine.trace.states[-1]


def test_the_canonical_form_is_the_same_for_all_renamings() -> None:
    system = TwoPhaseCommit(3)
    packed = Packed(system)
    symmetry = Symmetry(packed)
    for state in walk(system, seed=1, length=200):
        forms = {symmetry.canonical(packed.pack(renamed(system, state, perm))) for perm in permutations(range(3))}
        assert len(forms) == 1
        assert symmetry.canonical(*forms) in forms


def test_renaming_commutes_with_every_step() -> None:
    system = TwoPhaseCommit(3)
    for state in walk(system, seed=2, length=50):
        for perm in permutations(range(3)):
            there = {
                (system.permute_action(action, perm), renamed(system, after, perm)) for action, after in successors(system, state)
            }
            assert there == set(successors(system, renamed(system, state, perm)))


def test_the_hardened_protocol_treats_all_ranks_alike() -> None:
    """With every state its image under each renaming is reachable, and a search under symmetry sees each orbit exactly once."""
    system = hardened(2, 2, lag=0, suspicions=1, failed_votes=1, lost_replies=1)
    search = Search(system)
    search.run(NO_LIMITS, None)
    orbits = set()
    for key in list(search.parents):
        image = search.packed.pack(renamed(system, search.packed.unpack(key), (1, 0)))
        assert image in search.parents
        orbits.add(min(key, image))
    assert explore(system, symmetry=True).states == len(orbits)


def test_a_system_that_prefers_a_rank_is_refused() -> None:
    class Biased(TwoPhaseCommit):
        def initial(self) -> State:
            return State(Manager(frozenset({0}), frozenset({0}), ""), ("working",) * self.managers)

    with pytest.raises(NotSymmetric, match="the initial state changes"):
        explore(Biased(2), symmetry=True)


def walk(system: System, seed: int, length: int) -> list[State]:
    chance = random.Random(seed)
    state = system.initial()
    states = [state]
    for _ in range(length):
        state = apply(system, state, chance.choice(enabled(system, state)))
        states.append(state)
    return states


class Thinkers(NamedTuple):
    """Each rank thinks for a while, which nobody can see, and then says so."""

    ranks: int
    thoughts: int
    interrupted: bool = False
    """Once somebody has spoken, the others may stop thinking: thinking alone is then not all that they can do."""

    @property
    def name(self) -> str:
        return "thinkers"

    @property
    def situations(self) -> tuple[Situation, ...]:
        return ()

    @property
    def goals(self) -> tuple[Goal, ...]:
        return ()

    @property
    def invariants(self) -> tuple[Invariant, ...]:
        return (Invariant("silence", lambda state: "all spoke" if state.shared == self.ranks else None),)

    def initial(self) -> State:
        return State(0, (0,) * self.ranks)

    def local_steps(self, rank: int, shared: int, local: int) -> Iterable[Step]:
        if 0 <= local < self.thoughts:
            yield Step(Action(rank, "think", None, None), shared, local + 1)
        elif local == self.thoughts:
            yield Step(Action(rank, "speak", None, None), shared + 1, -1)
        if self.interrupted and shared and local >= 0:
            yield Step(Action(rank, "stop", None, None), shared, -1)

    def shared_steps(self, shared: int) -> Iterable[tuple[Action, int]]:
        return ()

    def permute_shared(self, shared: int, perm: tuple[int, ...]) -> int:
        return shared

    def permute_local(self, local: int, perm: tuple[int, ...]) -> int:
        return local

    def permute_action(self, action: Action, perm: tuple[int, ...]) -> Action:
        return action._replace(rank=perm[action.rank])

    def fair(self, action: Action) -> Hashable | None:
        return action.rank

    def local_only(self, action: Action) -> bool:
        return action.name == "think"


def test_thoughts_of_different_ranks_are_not_interleaved() -> None:
    full, reduced = explore(Thinkers(3, 5)), explore(Thinkers(3, 5), reduction=True)
    assert full.verdict is reduced.verdict is Verdict.VIOLATED
    assert (full.states, reduced.states) == (7**3, 23)


def test_a_hint_that_does_not_hold_is_not_trusted() -> None:
    full, reduced = explore(Thinkers(3, 5, True), properties=()), explore(Thinkers(3, 5, True), properties=(), reduction=True)
    assert reduced.states == full.states


SAFETY_MUTANTS = tuple(mutant for mutant in MUTANTS if not mutant.liveness)


@pytest.mark.parametrize("mutant", SAFETY_MUTANTS, ids=lambda mutant: mutant.guard)
def test_every_mutant_dies_of_the_same_with_and_without_reductions(mutant: Mutant) -> None:
    assert_agree(mutant.system, [mutant.killed_by])


@pytest.mark.parametrize(
    "system", [drawn(2, 2, crashes=1), hardened(2, 2, crashes=1, join_timeouts=2)], ids=lambda system: system.name
)
def test_the_protocols_fare_the_same_with_and_without_reductions(system: System) -> None:
    assert_agree(system, None)


def assert_agree(system: System, properties: list[str] | None) -> None:
    full = explore(system, properties=properties)
    for symmetry, reduction in ((True, False), (False, True), (True, True)):
        reduced = explore(system, properties=properties, symmetry=symmetry, reduction=reduction)
        assert reduced.verdict is full.verdict
        assert reduced.states <= full.states
        assert [found.property for found in reduced.counterexamples] == [found.property for found in full.counterexamples]
        if not reduction:
            assert [len(found.trace.actions) for found in reduced.counterexamples] == [
                len(found.trace.actions) for found in full.counterexamples
            ]
        for found in reduced.counterexamples:
            assert run(system, found.trace.actions) == found.trace.states[-1]
