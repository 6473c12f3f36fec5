"""A rank frozen (SIGSTOP) after each step of the protocol, for longer than the heartbeat timeout: the others go on without it, and when it
wakes, whatever it does next changes nothing: it learns that it was left behind, drops its state and rejoins."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from coxless import Iteration
from coxless.client import host_and_port
from coxless.driver import Watcher

from .crews import crew_of, in_threads

pytestmark = pytest.mark.processes

FROZEN_RANK, SIZE = 2, 3
LONG = 60.0
OPTIONS: dict[str, Any] = {"patience": timedelta(milliseconds=50), "join_timeout": timedelta(seconds=1)}


class View(NamedTuple):
    """What one rank was told of an iteration."""

    number: int
    epoch: str
    committed: bool
    ranks: tuple[int, ...]


def view_of(iteration: Iteration) -> View:
    return View(iteration.number, iteration.epoch, iteration.committed, tuple(member.rank for member in iteration.participants))


def frozen_rank(pipe: Pipe, address: str, fault: str, fails: bool) -> None:
    """The process that is going to be frozen. It ends when it is told of an iteration that it has rejoined."""
    os.environ["COXLESS_FAULT"] = f"stop@{fault}"
    with crew_of(address, FROZEN_RANK, SIZE, **OPTIONS) as crew:
        number, told = 0, []
        while True:
            iteration = crew.advance(not (fails and number == 2), holds=True)
            number = iteration.number
            told.append((view_of(iteration), iteration.rejoined, iteration.holds))
            if iteration.rejoined and number > 3:
                break
        pipe.send(told)
        pipe.recv()  # until the others have seen it too


@dataclass(frozen=True)
class Case:
    """Where the rank is frozen, and what the two others wait with until it is."""

    fault: str
    others: str
    """`join`: joining. `arrive`: arriving at the barrier of 2 (or 1, for a joiner). `close`: what comes after the arrival at 2."""
    fails: bool = False
    """Its step of iteration 2 has failed, which takes it the slow path."""
    late: bool = False
    """It starts when the others are in iteration 1."""


CASES = [
    Case("sign@0", "join"),
    Case("read_members@1", "arrive", late=True),
    Case("raise_attention@1", "arrive", late=True),
    Case("arrive@2", "arrive"),
    Case("sign@2", "arrive"),
    Case("read_register@2", "arrive"),
    Case("read_heartbeat@2", "arrive"),
    Case("await_full@2", "arrive"),
    Case("propose_same_epoch@2", "close"),
    Case("wake@3", "close"),
    Case("raise_attention@2", "close", fails=True),
    Case("write_members@2", "close", fails=True),
    Case("won@3", "close", fails=True),
]


@dataclass
class Frozen:
    """The process, once it is started."""

    start: Callable[[], multiprocessing.process.BaseProcess]
    process: multiprocessing.process.BaseProcess | None = None
    is_frozen: threading.Event = field(default_factory=threading.Event)

    def freeze(self) -> None:
        """Start it, and wait until it is frozen."""
        self.process = self.start()
        stat = Path(f"/proc/{self.process.pid}/stat")
        deadline = time.monotonic() + LONG
        while stat.read_text().rpartition(")")[2].split()[0] != "T":
            assert self.process.is_alive(), "it has ended, and was not frozen"
            assert time.monotonic() < deadline, "it was not frozen"
            time.sleep(0.01)
        self.is_frozen.set()

    def wake(self) -> None:
        assert self.process is not None
        assert self.process.pid is not None
        os.kill(self.process.pid, signal.SIGCONT)


def other_rank(case: Case, frozen: Frozen, address: str, rank: int, joined: threading.Barrier) -> list[View]:
    """Goes on until the frozen rank was left behind, woken, and is back."""

    def await_frozen() -> None:
        assert frozen.is_frozen.wait(LONG)

    def hold(state: Any, operation: Any, reply: Any) -> None:
        if operation.step == "arrive" and state.record.iteration == 2:
            await_frozen()

    if case.others == "join":
        await_frozen()
    told: list[View] = []
    left_behind = 0
    watcher: Watcher = hold
    with crew_of(address, rank, SIZE, **OPTIONS) as crew:
        if case.others == "close":
            crew._driver.watchers.append(watcher)
        while True:
            told.append(view_of(crew.advance()))
            number, present = told[-1].number, len(told[-1].ranks)
            if number == 1 and case.late:
                joined.wait(LONG)
            if case.others == "arrive" and number == (1 if case.late else 2):
                await_frozen()
            if not left_behind and number > 3 and present == SIZE - 1:
                left_behind = number
                if rank == 0:
                    frozen.wake()
            if left_behind and present == SIZE:
                return told


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.fault)
def test_a_rank_that_is_frozen_after_any_step_changes_nothing_when_it_wakes(case: Case, store: Any) -> None:
    where = host_and_port(store)
    assert where is not None
    address = f"{where[0]}:{where[1]}"
    context = multiprocessing.get_context("forkserver")  # which has the imports behind it: a rank starts in no time
    context.set_forkserver_preload([__name__])
    mine, its = context.Pipe()

    def start() -> multiprocessing.process.BaseProcess:
        process = context.Process(target=frozen_rank, args=(its, address, case.fault, case.fails), daemon=True)
        process.start()
        return process

    frozen = Frozen(start)
    joined = threading.Barrier(SIZE)

    def body(index: int) -> Any:
        if index == FROZEN_RANK:
            if case.late:
                joined.wait(LONG)
            return frozen.freeze()
        return other_rank(case, frozen, address, index, joined)

    try:
        first, second, _ = in_threads(SIZE, body)
        assert mine.poll(LONG)
        its_own = mine.recv()
        mine.send("end")
    finally:
        if frozen.process is not None:
            frozen.process.kill()
            frozen.process.join(10)
    assert first == second, "the two that went on were told the same"
    assert isinstance(first, list)
    assert [told.number for told in first] == list(range(1, first[-1].number + 1)), "no iteration is missing, none came twice"
    back, rejoined, holds = its_own[-1]
    assert (back, rejoined, holds) == (first[-1], True, False), "it is back without the state"
    left = next(told for told in first if told.number > 3 and len(told.ranks) == SIZE - 1)
    assert back.number > left.number
    by_number = {told.number: told for told in first}
    for view, _, _ in its_own:
        assert view == by_number[view.number], "whatever it was told, before and after, the others were told too"
    assert all(view.number <= 3 for view, _, _ in its_own[:-1])
