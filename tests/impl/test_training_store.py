"""Training while the store dies, comes back empty, or hangs: every update is made once, and the run comes to its end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

import coxless
from coxless import keys
from coxless.server import StoreServer, start_server
from coxless.training import CrewFinished
from coxless.training.groups import make_gloo

from .crews import crew_of, in_threads, stopped
from .training import Rank, same_as_alone

pytestmark = [pytest.mark.usefixtures("loopback"), pytest.mark.processes]

TOTAL = 8


@pytest.fixture
def server() -> Iterator[StoreServer]:
    with start_server() as running:
        yield running


class Once:
    """Does something the first time that it is called."""

    def __init__(self, action: Callable[[], object]) -> None:
        self._action: Callable[[], object] | None = action
        self._lock = threading.Lock()

    @property
    def done(self) -> bool:
        return self._action is None

    def __call__(self) -> None:
        with self._lock:
            action, self._action = self._action, None
        if action is not None:
            action()


def restart(server: StoreServer) -> Once:
    """Kill the server, and start it again: empty, on the same port."""

    def again() -> None:
        server.kill()
        server.start()

    return Once(again)


def three_train(server: StoreServer, strike: Callable[[str, Any, Rank], None]) -> None:
    """Three ranks make every update once. `strike` is told of each moment of each of them."""

    def body(number: int) -> Rank:
        with crew_of(server.address, number, 3) as crew:
            rank = Rank(crew, at=strike)
            rank.train(TOTAL)
        return rank

    same_as_alone(in_threads(3, body), TOTAL)


MOMENTS = {
    "in a step, before the collective": ("bucket", 4),
    "between the collective and the vote": ("averaged", 4),
    "after a decision": ("decided", 5),
    "in the last step": ("averaged", TOTAL),
    "after the last decision": ("decided", TOTAL + 1),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_store_that_comes_back_empty_costs_no_update(server: StoreServer, moment: str) -> None:
    now = restart(server)

    def strike(name: str, iteration: Any, rank: Rank) -> None:
        if (name, iteration.number) == MOMENTS[moment] and rank.crew.rank == 1:
            now()

    three_train(server, strike)
    assert now.done


def test_a_rank_that_has_not_learned_of_the_iteration_is_not_waited_for_in_its_collective(server: StoreServer) -> None:
    """The store is lost with the reply that tells rank 0 of iteration 5. It puts iteration 4 back, and waits at the barrier of 4, while
    the others are in 5."""
    lost = threading.Event()

    def lose() -> None:
        server.kill()
        lost.set()
        server.start()

    now = Once(lose)

    def strike(name: str, iteration: Any, rank: Rank) -> None:
        if (name, iteration.number) == ("decided", 5):
            now()

    def body(number: int) -> Rank:
        with crew_of(server.address, number, 3) as crew:
            connection = crew._driver.connection
            arrive = connection.arrive

            def late(key: str, size: int, patience: timedelta) -> None:
                arrive(key, size, timedelta(seconds=30) if number == 0 else patience)
                if number == 0 and key == keys.count(4):
                    assert lost.wait(30)

            connection.arrive = late
            rank = Rank(crew, at=strike)
            rank.train(TOTAL)
        return rank

    same_as_alone(in_threads(3, body), TOTAL)
    assert now.done


@pytest.mark.parametrize("epoch", [1, 2])
@pytest.mark.parametrize("who", ["the first to come", "the last to come"])
def test_a_store_that_is_lost_while_a_process_group_is_made_costs_no_update(server: StoreServer, epoch: int, who: str) -> None:
    """The participants meet in the store. Those who have met before it is lost have a group in which the others are missing."""
    now = restart(server)
    coming, lock = [0, 0], threading.Lock()

    def body(number: int) -> Rank:
        made = 0

        def make(store: dist.Store, index: int, size: int, timeout: timedelta) -> Any:
            nonlocal made
            made += 1
            with lock:
                coming[made - 1 if made < 2 else 1] += 1
                place = coming[made - 1 if made < 2 else 1]
            if made == epoch and place == (1 if who == "the first to come" else size):
                now()
            return make_gloo(store, index, size, timeout)

        with crew_of(server.address, number, 3) as crew:
            rank = Rank(crew, options={"backend": make, "timeout": timedelta(seconds=20)})
            for step in rank.trainer.steps(TOTAL):
                rank.learn(step)
                if step.position == 3 and number == 2 and made == 1:
                    assert rank.trainer._group is not None
                    rank.trainer._group.close()  # what a broken connection does: another group has to be made
        return rank

    same_as_alone(in_threads(3, body), TOTAL)
    assert now.done


def test_a_store_that_hangs_for_a_while_costs_no_update(server: StoreServer) -> None:
    def hang() -> None:
        stopped(server.pid)
        threading.Timer(4, os.kill, (server.pid, signal.SIGCONT)).start()

    now = Once(hang)

    def strike(name: str, iteration: Any, rank: Rank) -> None:
        if (name, iteration.number) == ("averaged", 4):
            now()

    three_train(server, strike)


def test_a_store_that_is_gone_at_the_end_does_not_spoil_it(server: StoreServer) -> None:
    """All updates are made; only those who come later would have liked to know."""

    def strike(name: str, iteration: Any, rank: Rank) -> None:
        if name == "applied" and rank.trainer.position == TOTAL:
            server.kill()

    with crew_of(server.address, 0, 1) as crew:
        rank = Rank(crew, at=strike)
        rank.train(TOTAL)
    same_as_alone([rank], TOTAL)


def test_a_trainer_is_made_and_its_error_comes_in_time_on_a_store_that_hangs(server: StoreServer) -> None:
    with crew_of(server.address, 0, 1, timeout=timedelta(seconds=1)) as crew:
        crew.advance()
        stopped(server.pid)
        started = time.monotonic()
        rank = Rank(crew)
        with pytest.raises(coxless.StoreUnreachableError):
            rank.train(TOTAL)
        assert time.monotonic() - started < 10
        os.kill(server.pid, signal.SIGCONT)
        rank.train(TOTAL)
    same_as_alone([rank], TOTAL)


def test_whoever_comes_after_the_end_is_told_so_even_by_a_store_that_has_lost_it(server: StoreServer) -> None:
    finished, over = threading.Event(), threading.Event()

    def first() -> None:
        with crew_of(server.address, 0, 1) as crew:
            Rank(crew).train(TOTAL)
            server.kill()
            server.start()
            while crew.published("training_finished") is None:
                time.sleep(0.05)
            finished.set()
            assert over.wait(60)

    def late() -> None:
        assert finished.wait(60)
        with crew_of(server.address, 1, 2, join_timeout=timedelta(seconds=0.1)) as crew, pytest.raises(CrewFinished):
            Rank(crew).train(TOTAL)
        over.set()

    in_threads(2, lambda number: late() if number else first())


FROZEN = """
import os, signal, sys
from datetime import timedelta
import torch
import coxless
from coxless.training import DataParallel

rank = int(sys.argv[2])
model = torch.nn.Linear(2, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
timing = dict(heartbeat_interval=timedelta(seconds=0.3), heartbeat_timeout=timedelta(seconds=3), timeout=timedelta(seconds=90))
with coxless.join(sys.argv[1], rank=rank, world_size=3, **timing) as crew:
    trainer = DataParallel(crew, model, optimizer)
    for step in trainer.steps(6):
        if step.position == 3 and step.size == 3:
            print("here", flush=True)
            if rank == 2:
                os.kill(os.getpid(), signal.SIGSTOP)
        model(torch.ones(1, 2)).sum().backward()
print(trainer.position, step.size, flush=True)
"""


def test_a_frozen_peer_is_noticed_in_a_collective_although_the_store_was_lost_meanwhile(server: StoreServer) -> None:
    ranks = [
        subprocess.Popen([sys.executable, "-c", FROZEN, server.address, str(number)], stdout=subprocess.PIPE, text=True)
        for number in range(3)
    ]
    try:
        for rank in ranks:
            assert rank.stdout is not None
            assert rank.stdout.readline() == "here\n"
        while Path(f"/proc/{ranks[2].pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
            time.sleep(0.01)
        server.kill()
        server.start()
        assert [rank.communicate(timeout=90)[0] for rank in ranks[:2]] == ["6 2\n"] * 2
    finally:
        for rank in ranks:
            rank.kill()
