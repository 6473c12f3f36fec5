"""Seeded random schedules of the generators, with crashes, restarts, suspicions and broken connections: nothing is ever decided twice.

The model is where the protocol is checked; this guards the generators between two runs of the conformance tests.
"""

import random

import pytest

from coxless import keys
from coxless.errors import SupersededError
from coxless.records import parse_record

from .lockstep import MemoryStore, Rank, register

FAULTS = {"crash": 0.01, "break": 0.02, "suspect": 0.01, "fail": 0.1}


def iteration_of(store: MemoryStore) -> int:
    return parse_record(register(store)).iteration if keys.REGISTER in store.data else 0


def run(seed: int, *, world_size: int = 3, steps: int = 1500) -> tuple[int, int]:
    """Returns how many iterations were decided and how many ranks came back."""
    chance = random.Random(seed)
    store = MemoryStore()
    incarnations = 0

    def start(rank: int) -> Rank:
        nonlocal incarnations
        incarnations += 1
        return Rank(store, rank, world_size=world_size, nonce=f"{incarnations:x}")

    ranks = [start(r) for r in range(world_size)]
    decided: dict[int, object] = {}
    last_seen = dict.fromkeys(range(world_size), 0)
    for _ in range(steps):
        rank = chance.choice(ranks)
        r = rank.state.rank
        if isinstance(rank.error, SupersededError) or chance.random() < FAULTS["crash"]:
            if chance.random() < 0.5:
                store.suspected.add(rank.state.me)
            ranks[r] = start(r)
            continue
        assert rank.error is None, rank.error
        store.suspected = {member for member in store.suspected if chance.random() > 0.05}
        if rank.idle:
            rank.vote("f" if chance.random() < FAULTS["fail"] else "o")
            continue
        if rank.waits and chance.random() < 0.5:
            continue
        if chance.random() < FAULTS["suspect"]:
            store.suspected.add(chance.choice(ranks).state.me)
        before, iteration = len(rank.decisions), iteration_of(store)
        rank.step(breaks=chance.choice(["before", "after"]) if chance.random() < FAULTS["break"] else "")
        assert iteration_of(store) - iteration in (0, 1), (
            f"seed {seed}: the register went from {iteration} to {iteration_of(store)}"
        )
        if len(rank.decisions) > before:
            decision = rank.decisions[-1]
            record = decision.record._replace(attention=False)
            k = record.iteration
            assert decided.setdefault(k, (record, decision.members)) == (record, decision.members), (
                f"seed {seed}: two decisions of {k}"
            )
            assert decision.me in [member for member, _ in decision.members], f"seed {seed}"
            assert k > last_seen[r], f"seed {seed}: rank {r} saw {k} after {last_seen[r]}"
            last_seen[r] = k
    return max(decided), incarnations


@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_random_schedules_decide_each_iteration_once(world_size: int) -> None:
    total = restarted = 0
    for seed in range(60):
        iterations, incarnations = run(seed, world_size=world_size)
        total += iterations
        restarted += incarnations - world_size
    assert total > 60 * 10  # a schedule that decides nothing would show nothing
    assert restarted > 60
