"""A store that dies and stays away, in whatever phase it strikes: one clear error on every rank within its deadline, and the model and the
optimizer are as they were, and can be saved."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

import coxless
from coxless import Crew, IterationTimeoutError, StoreUnreachableError
from coxless.server import StoreServer, start_server

from .crews import crew_of, in_threads, patiently
from .training import Rank, build

pytestmark = [pytest.mark.usefixtures("loopback"), pytest.mark.processes]

SIZE, TOTAL = 3, 1000
ADVANCE, COLLECTIVE = 2.0, 4.0
"""The deadlines (s). A rank that has learned of an iteration first waits in its collective for one that has not."""
BOUND = COLLECTIVE + ADVANCE + 2 * 0.5 + 8.0
"""Both, half a second more each, and the time that a busy machine may take."""


@pytest.fixture
def server() -> Iterator[StoreServer]:
    with start_server() as running:
        yield running


class Phase(NamedTuple):
    """When the store dies."""

    event: str
    """Of the trainer, or a step of the protocol that a rank has just made."""
    iteration: int
    rank: int | None = 1
    """None: whichever comes first."""
    others_wait: bool = False
    """Not before the others are at the barrier."""


PHASES = {
    "a rank has signed, and joins": Phase("sign", 0),
    "the crew is about to be founded": Phase("write_members", 0, None),
    "in a step, before its collective": Phase("bucket", 4),
    "between the collective and the vote": Phase("averaged", 4),
    "the others have voted, and wait at the barrier": Phase("averaged", 4, others_wait=True),
    "a rank has arrived with its vote": Phase("arrive", 4),
    "a rank has decided": Phase("propose_same_epoch", 4, None),
    "between two iterations": Phase("decided", 5),
}

State = list[torch.Tensor]


def state_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> State:
    """Every number of both."""
    slots = optimizer.state_dict()["state"]
    return [one.clone() for one in (*model.state_dict().values(), *(value for slot in slots.values() for value in slot.values()))]


def same(one: State, other: State) -> bool:
    return len(one) == len(other) and all(map(torch.equal, one, other))


def saved_and_loaded(rank: Rank) -> State:
    file = io.BytesIO()
    torch.save((rank.model.state_dict(), rank.optimizer.state_dict()), file)
    file.seek(0)
    model, optimizer = build(seed=99)
    for part, content in zip((model, optimizer), torch.load(file), strict=True):
        part.load_state_dict(content)
    return state_of(model, optimizer)


class Outcome(NamedTuple):
    """Of one rank."""

    error: BaseException
    after: float
    """Seconds from the store's death to the error."""
    rank: Rank
    before: State
    """After the last update; where there was none, at the beginning."""


@pytest.mark.parametrize("phase", PHASES)
def test_a_store_that_stays_away_costs_no_state(server: StoreServer, phase: str) -> None:
    where = PHASES[phase]
    joined, lock = threading.Barrier(SIZE), threading.Lock()
    crews: dict[int, Crew] = {}
    died: list[float] = []

    def strike(event: str, iteration: int, rank: int) -> None:
        if (event, iteration) != (where.event, where.iteration) or rank != (rank if where.rank is None else where.rank):
            return
        deadline = time.monotonic() + 60
        while where.others_wait and not all(crew._driver.unfinished for crew in crews.values() if crew.rank != rank):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        with lock:
            if not died:
                server.kill()
                died.append(time.monotonic())

    def body(number: int) -> Outcome:
        with patiently(lambda: crew_of(server.address, number, SIZE, timeout=timedelta(seconds=ADVANCE))) as crew:
            crews[number] = crew
            joined.wait(60)
            crew._driver.watchers.append(lambda state, operation, reply: strike(operation.step, state.record.iteration, number))

            before: State

            def at(name: str, iteration: Any, rank: Rank) -> None:
                nonlocal before
                if name == "applied":
                    before = state_of(rank.model, rank.optimizer)
                strike(name, iteration.number, number)

            rank = Rank(crew, at=at, options={"timeout": timedelta(seconds=COLLECTIVE)})
            before = state_of(rank.model, rank.optimizer)
            while True:
                try:
                    rank.train(TOTAL)
                    raise AssertionError("it came to its end")
                except coxless.CoxlessError as error:
                    if not died and isinstance(error, IterationTimeoutError | StoreUnreachableError):
                        continue  # the machine is slow: once again
                    return Outcome(error, time.monotonic() - died[0], rank, before)

    outcomes = in_threads(SIZE, body)
    by_position: dict[int, State] = {}
    for outcome in outcomes:
        assert type(outcome.error) is StoreUnreachableError
        assert str(outcome.error).startswith(f"the store at {server.address} cannot be reached: ")
        assert outcome.after < BOUND
        after = state_of(outcome.rank.model, outcome.rank.optimizer)
        assert same(after, outcome.before), "untouched"
        assert same(saved_and_loaded(outcome.rank), after), "and saveable"
        if where.iteration:
            assert same(after, by_position.setdefault(outcome.rank.trainer.position, after)), "the ranks still agree"
    positions = [outcome.rank.trainer.position for outcome in outcomes]
    assert max(positions) - min(positions) <= 1
    assert max(positions) >= where.iteration - 1 or not where.iteration
