"""How long the crew is held up when a rank is killed under the supervisor. A stated requirement, so with an absolute bound."""

import json
import statistics
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

import pytest

from coxless.supervisor import Exited, Supervisor

pytestmark = pytest.mark.processes

STEP = 0.05
RANKS = 4
VICTIMS = (1, 3, 0, 2, 1)
BOUND = 1.0

PROGRAM = f"""
import json, time
import coxless
with coxless.join_from_env() as crew:
    for iteration in crew.iterations():
        members = [str(member) for member in iteration.participants]
        print(json.dumps([time.monotonic(), iteration.number, iteration.committed, members]), flush=True)
        time.sleep({STEP})
"""


class Log:
    """What each rank prints for each iteration: when it learned of it, its number, whether the one before counts, and who takes part."""

    def __init__(self) -> None:
        self.of: dict[int, list[Any]] = {rank: [] for rank in range(RANKS)}
        self._lock = threading.Lock()

    def on_line(self, rank: int, stream: str, line: str) -> None:
        if stream == "stdout":
            with self._lock:
                self.of[rank].append(json.loads(line))

    def since(self, moment: float, rank: int) -> list[Any]:
        with self._lock:
            return [line for line in self.of[rank] if line[0] > moment]


def until(supervisor: Supervisor, condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 90
    while not (found := condition()):
        assert time.monotonic() < deadline
        supervisor.poll()
        time.sleep(0.005)
    return found


def complete(log: Log, moment: float) -> list[str] | None:
    """The members of an iteration in which all ranks take part, once all have learned of it."""
    lines = [log.since(moment, rank)[-1:] for rank in range(RANKS)]
    members = [line[0][3] for line in lines if line]
    return members[0] if len(members) == RANKS and len(members[0]) == RANKS and all(m == members[0] for m in members) else None


def test_the_others_go_on_within_a_second_after_a_rank_is_killed() -> None:
    log = Log()

    def at_once(exited: Exited) -> timedelta:
        return timedelta(seconds=1)  # later than the recovery, which is therefore not the new process's

    recoveries = []
    with Supervisor(
        [sys.executable, "-c", PROGRAM], ranks=RANKS, restart=at_once, on_line=log.on_line, grace=timedelta(0)
    ) as supervisor:
        moment = time.monotonic()
        for victim in VICTIMS:
            member = until(supervisor, partial(complete, log, moment))[victim]
            moment = time.monotonic()
            assert supervisor.kill(victim)
            others = [rank for rank in range(RANKS) if rank != victim]

            def first(rank: int, moment: float = moment, member: str = member) -> Any:
                return next((line for line in log.since(moment, rank) if member not in line[3]), None)

            def all_went_on(first: Callable[[int], Any] = first, others: list[int] = others) -> bool:
                return all(first(rank) for rank in others)

            until(supervisor, all_went_on)
            lines = [first(rank) for rank in others]
            assert all(committed for _, _, committed, _ in lines), "all three that went on voted ok"
            assert len({number for _, number, _, _ in lines}) == 1
            recoveries.append(max(at for at, *_ in lines) - moment)
    assert statistics.median(recoveries) < BOUND + STEP, recoveries
    print(f"recovered in {', '.join(f'{one:.2f} s' for one in recoveries)}")
