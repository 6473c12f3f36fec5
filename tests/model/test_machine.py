"""What every consumer of the model relies on: pure steps, one successor for each action, renaming that is exact."""

import random
import subprocess
import sys
from collections.abc import Iterator
from itertools import permutations

import pytest

from coxless_model.drawn import drawn
from coxless_model.environment import hardened
from coxless_model.machine import Action, State, System, apply, describe, enabled, run, successors

FAULTS = {
    "crashes": 2,
    "restarts": 2,
    "suspicions": 2,
    "failed_votes": 1,
    "lost_replies": 2,
    "store_losses": 1,
    "second_processes": 1,
    "leaves": 1,
    "dead_marks": 1,
    "join_timeouts": 1,
    "spared_wakes": 1,
}
SYSTEMS: tuple[System, ...] = (hardened(3, 3, missing=(), **FAULTS), drawn(3, 3, crashes=2, restarts=2, skews=1))


def walk(system: System, seed: int, steps: int = 400) -> Iterator[State]:
    """States of a random run, started again now and then."""
    choices = random.Random(seed)
    state = system.initial()
    for _ in range(steps):
        yield state
        following = list(successors(system, state))
        state = choices.choice(following)[1] if following and choices.random() > 0.01 else system.initial()


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda system: system.name)
def test_an_action_has_one_successor(system: System) -> None:
    for state in walk(system, seed=1):
        actions = enabled(system, state)
        assert len(set(actions)) == len(actions)
        for action, after in successors(system, state):
            assert apply(system, state, action) == after


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda system: system.name)
def test_renaming_the_ranks_and_then_stepping_is_stepping_and_then_renaming(system: System) -> None:
    choices = random.Random(2)
    for state in walk(system, seed=2):
        perm = choices.choice(list(permutations(range(len(state.ranks)))))
        renamed = {
            (system.permute_action(action, perm), permuted(system, after, perm)) for action, after in successors(system, state)
        }
        assert renamed == set(successors(system, permuted(system, state, perm)))


def permuted(system: System, state: State, perm: tuple[int, ...]) -> State:
    locals_ = {perm[rank]: system.permute_local(local, perm) for rank, local in enumerate(state.ranks)}
    return State(system.permute_shared(state.shared, perm), tuple(locals_[rank] for rank in sorted(locals_)))


def test_an_action_that_is_not_enabled_is_refused_with_what_is() -> None:
    system = hardened(2, 1)
    with pytest.raises(ValueError, match=r"rank 0: arrive .* is not enabled; enabled: rank 0: take_incarnation add"):
        apply(system, system.initial(), Action(0, "arrive", ("add", ("count", 0), 1), 1))


def test_a_run_is_its_actions() -> None:
    system = hardened(2, 1)
    first = enabled(system, system.initial())[0]
    assert describe(first) == "rank 0: take_incarnation add(('incarnation', 0), 1) -> 1"
    assert run(system, [first]).ranks[0].processes[0].at == "create_register"


def test_the_order_of_hashing_does_not_matter() -> None:
    program = (
        "from coxless_model.environment import hardened; from coxless_model.machine import successors, describe\n"
        "s = hardened(2, 2, crashes=1, restarts=1, suspicions=1, lost_replies=1, join_timeouts=1); state = s.initial(); out = []\n"
        "for i in range(200):\n"
        "    steps = list(successors(s, state)); out.append([describe(a) for a, _ in steps])\n"
        "    state = steps[i * 7 % len(steps)][1] if steps else s.initial()\n"
        "import hashlib; print(hashlib.sha256(repr(out).encode()).hexdigest())"
    )
    seen = {
        subprocess.run([sys.executable, "-c", program], env={"PYTHONHASHSEED": seed}, capture_output=True, check=True).stdout
        for seed in ("1", "2")
    }
    assert len(seen) == 1
