"""The diagram's protocol on a real TCPStore: it works when nothing goes wrong and everybody is polite, and its promises break otherwise."""

from datetime import timedelta

import pytest
import torch.distributed as dist

import coxless
from coxless.as_drawn import AsDrawnRank, Steps, advance, handle_rank_restart
from coxless.server import StoreServer

LONG, SHORT = timedelta(seconds=30), timedelta(seconds=0.5)


@pytest.fixture
def store(server: StoreServer) -> dist.Store:
    store = coxless.connect(server.address)
    for key in store.list_keys():
        store.delete_key(key)
    return store


class Stepper:
    """One rank, one store operation at a time."""

    def __init__(self, store: dist.Store, rank: int, world_size: int, iteration: int = 0, *, clock_offset: float = 0.0) -> None:
        self.runner = AsDrawnRank(store, rank, world_size, iteration, clock_offset)
        self.steps = advance(rank, world_size, iteration)
        self.operation = next(self.steps)
        self.result: int | None = None

    def until(self, step: str) -> None:
        """Run until it stands before this step, or has its result."""
        while self.result is None and self.operation.step != step:
            self.step()

    def step(self) -> object:
        reply = self.runner.perform(self.operation)
        # `set` and `append` have no reply: without this one, another rank's next step, on another connection, could overtake them.
        self.runner._connection.ping()
        try:
            self.operation = self.steps.send(reply)
        except StopIteration as stop:
            self.result = stop.value
        return reply


def about_to_compete(store: dist.Store) -> tuple[Stepper, Stepper]:
    """Two ranks that have both arrived, and have both seen it."""
    a, b = Stepper(store, 0, 2), Stepper(store, 1, 2)
    for rank in (a, b):
        rank.until("read_arrived")
    for rank in (a, b):
        rank.until("set_consensus")
    return a, b


def test_all_is_well_when_all_arrive_before_anyone_competes(store: dist.Store) -> None:
    a, b = about_to_compete(store)
    a.step()
    b.step()
    b.until("done")
    a.until("done")
    assert (a.result, b.result) == (1, 1)


def test_two_ranks_win_and_the_counter_moves_by_two(store: dist.Store) -> None:
    a, b = about_to_compete(store)
    a.until("increment_global_iteration")  # set, and read itself back: it won
    b.until("increment_global_iteration")  # so did this one
    a.until("done")
    b.until("done")
    assert (a.result, b.result) == (1, 2)


def test_the_first_rank_up_advances_alone(store: dist.Store) -> None:
    alone = AsDrawnRank(store, 0, 4)
    assert alone.advance(timeout=LONG) == 1


def test_a_clock_that_is_a_minute_ahead_excludes_everybody_else(store: dist.Store) -> None:
    other, ahead = Stepper(store, 1, 2), Stepper(store, 0, 2, clock_offset=60.0)
    other.until("signal_arrival")  # alive, it has just sent its heartbeat
    ahead.until("done")
    assert ahead.result == 1


def test_a_winner_that_dies_before_it_signals_leaves_the_others_waiting_for_ever(store: dist.Store) -> None:
    a, b = about_to_compete(store)
    a.step()
    b.until("signal_global_iteration_ready")  # and dies here
    assert store.add("global_iteration_counter", 0) == 1
    with pytest.raises(TimeoutError, match="await_ready"):
        a.runner._run(_rest(a), SHORT)


def _rest(rank: Stepper) -> Steps:
    """The generator of a rank that has begun, from where it stands."""

    def steps() -> Steps:
        reply = yield rank.operation
        while True:
            try:
                operation = rank.steps.send(reply)
            except StopIteration as stop:
                number: int = stop.value
                return number
            reply = yield operation

    return steps()


def test_a_restarted_rank_asks_the_store_where_it_is(store: dist.Store) -> None:
    alone = AsDrawnRank(store, 0, 2)
    alone.advance(timeout=LONG)
    back = AsDrawnRank(store, 1, 2)
    assert back.restart(timeout=LONG) == 1
    assert [operation.step for operation in [next(handle_rank_restart(1))]] == ["read_last_iteration"]
