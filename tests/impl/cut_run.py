"""A short run of two ranks behind a proxy, and what must be true of any run, however its connections were cut, seen from the outside."""

import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, NamedTuple

import coxless
from coxless import keys
from coxless.iteration import Iteration
from coxless.records import Member, parse_record
from coxless_traces.proxy import Proxy

from .crews import in_threads

LAST = 5
TIMING: dict[str, Any] = {
    "patience": timedelta(milliseconds=250),
    "heartbeat_interval": timedelta(milliseconds=600),  # so the same keys are deleted in every run
    "heartbeat_timeout": timedelta(seconds=15),
    "join_timeout": timedelta(seconds=30),
    "timeout": timedelta(seconds=60),
}


class Life(NamedTuple):
    """What one member saw."""

    seen: list[Iteration]
    failed: set[int]
    """In these iterations it voted that its step had failed."""


def run(proxy: Proxy, direct: Any) -> list[Life]:
    """Two ranks found a crew; the step of rank 1 fails in iteration 2; it leaves after iteration 3, and comes back as a new member.
    Returns what each of the three members saw: the second of rank 1 ends with the iteration that it is let into."""
    for key in direct.list_keys():
        direct.delete_key(key)

    def member(rank: int, until: int | None) -> Life:
        life = Life([], set())
        with coxless.join(proxy.addresses[rank], rank=rank, world_size=2, **TIMING) as crew:
            for iteration in crew.iterations(until=until):
                life.seen.append(iteration)
                if iteration.number == 2 and rank == 1:
                    life.failed.add(2)
                    crew.vote(False)
                if iteration.world_size == 1 and rank == 0:
                    _until_attention(direct)
                if until is None:
                    return life
            finish(life, crew)
        return life

    def body(rank: int) -> list[Life]:
        return [member(0, LAST)] if rank == 0 else [member(1, 3), member(1, None)]

    return [life for lives in in_threads(2, body) for life in lives]


def finish(life: Life, crew: coxless.Crew) -> None:
    """Add the iteration that was decided upon when `iterations` had come to its end."""
    assert crew.iteration is not None
    life.seen.append(crew.iteration)


def _until_attention(direct: Any) -> None:
    """Alone, rank 0 waits until the other has asked to be let in again, so that each run comes to the same iterations."""
    deadline = time.monotonic() + 60
    while not parse_record(direct.get(keys.REGISTER).decode()).attention:
        assert time.monotonic() < deadline, "rank 1 does not come back"
        time.sleep(0.002)


def assert_agreed(lives: Sequence[Life], last: int = LAST) -> None:
    """What the members saw is the same record, one for each iteration, in order, and none is missing up to the last (S1, S2, S5). An
    update counts if, and only if, all that went on from it to the next iteration voted that their step was good (S8)."""
    records: dict[int, tuple[str, tuple[Member, ...], bool, Member | None]] = {}
    votes: dict[int, list[bool]] = {}
    for life in lives:
        numbers = [iteration.number for iteration in life.seen]
        assert numbers == list(range(numbers[0], numbers[-1] + 1)), numbers
        for one in life.seen:
            record = (one.epoch, one.participants, one.committed, one.winner)
            assert records.setdefault(one.number, record) == record
        for number in numbers[:-1]:
            votes.setdefault(number, []).append(number not in life.failed)
    assert sorted(records) == list(range(1, max(records) + 1))
    assert max(records) >= last
    for number, record in records.items():
        assert bool(record[2]) == (number > 1 and all(votes[number - 1])), f"iteration {number}: {record}, votes {votes}"
