"""What a step depends on is seen as it happens: nothing that it looks at may be missed."""

import random
from collections.abc import Hashable
from typing import NamedTuple

import pytest

from coxless_model.environment import hardened
from coxless_model.explore import explore
from coxless_model.machine import apply, enabled
from coxless_model.mutants import MUTANTS
from coxless_model.parts import Parts, Piece
from coxless_model.plain import plain_search


class Inner(NamedTuple):
    left: int
    right: int


class Outer(NamedTuple):
    store: str
    inner: Inner
    sum: int
    always: str = "the same"


LAYOUT = (Piece("store", 4), Piece("inner.left", 4), Piece("inner.right", 4), Piece("sum", 4, tally=True))
START = Outer("a", Inner(1, 2), 0)


def parts_and_wide() -> tuple[Parts, int]:
    parts = Parts(LAYOUT, START)
    return parts, parts.wide(START)


def test_a_shared_part_is_put_together_again() -> None:
    parts, wide = parts_and_wide()
    other = parts.wide(Outer("b", Inner(1, 3), 5))
    assert parts.whole(wide) == START
    assert parts.whole(other) == Outer("b", Inner(1, 3), 5)


def test_reading_is_noted_and_passing_on_is_not() -> None:
    parts, wide = parts_and_wide()
    shared, seen = parts.noting(wide)
    assert shared.inner.right == 2
    after = shared._replace(inner=shared.inner, sum=shared.sum + 1)
    difference = parts.difference(shared, after, seen)
    assert set(seen.pieces) == {2}
    assert parts.whole(wide + difference) == START._replace(sum=1)


def test_what_is_replaced_was_looked_at_even_if_it_stays_the_same() -> None:
    parts, wide = parts_and_wide()
    shared, seen = parts.noting(wide)
    same = shared._replace(inner=shared.inner._replace(left=1))
    assert parts.difference(shared, same, seen) == 0
    assert set(seen.pieces) == {1}
    shared, seen = parts.noting(wide)
    assert parts.difference(shared, shared._replace(inner=Inner(1, 2)), seen) == 0
    assert set(seen.pieces) == {1, 2}


def test_everything_else_is_looking_at_all() -> None:
    for look in (hash, list, lambda shared: shared == START, lambda shared: shared[0], lambda shared: "a" in shared):
        parts, wide = parts_and_wide()
        shared, seen = parts.noting(wide)
        look(shared)
        assert {0, 1, 2} <= set(seen.pieces)


def test_what_never_changes_does_not() -> None:
    parts, wide = parts_and_wide()
    shared, seen = parts.noting(wide)
    with pytest.raises(ValueError, match="nothing changes"):
        parts.difference(shared, shared._replace(always="another"), seen)


@pytest.mark.parametrize(
    ("ranks", "iterations", "budgets"),
    [
        (2, 2, {"crashes": 1, "restarts": 1}),
        (2, 1, {"lost_replies": 1, "suspicions": 1, "failed_votes": 1}),
        (2, 1, {"store_losses": 1, "failed_votes": 1}),
        (2, 1, {"second_processes": 1, "crashes": 1, "dead_marks": 1}),
    ],
)
def test_the_engine_sees_what_the_plain_search_sees(ranks: int, iterations: int, budgets: dict[str, int]) -> None:
    system = hardened(ranks, iterations, lag=1, missing=(), **budgets)
    plain = plain_search(system)
    result = explore(system, properties=[each.id for each in system.invariants])
    assert (result.states, result.transitions, result.depth) == (plain.states, plain.transitions, plain.depth)
    assert not plain.broken
    assert not result.counterexamples


def test_the_properties_look_at_nothing_but_their_views() -> None:
    """On runs of every mutant, broken ones too: where the views are the same, so is the answer."""
    answers: dict[Hashable, Hashable] = {}
    for mutant in MUTANTS:
        system, chance = mutant.system, random.Random(mutant.guard)
        for _ in range(6):
            state = system.initial()
            for _ in range(80):
                options = enabled(system, state)
                if not options:
                    break
                state = apply(system, state, chance.choice(options))
                for invariant in system.invariants:
                    if invariant.views is not None:
                        local = tuple(map(invariant.views.local, state.ranks))
                        seen = (invariant.id, invariant.views.shared(state.shared), local)
                        assert answers.setdefault(seen, invariant.check(state)) == invariant.check(state)
    assert len(answers) > 1000
