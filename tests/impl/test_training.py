"""The trainer on real Gloo groups over a real TCPStore. The crew is a stand-in that decides in memory; a thread is a rank."""

from __future__ import annotations

import threading
import time
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from coxless.training import CrewFinished, DataParallel, Step, batch_at
from coxless.training.groups import make_gloo

from .training import (
    BATCH,
    SAMPLES,
    TIMEOUT,
    Crew,
    Harbour,
    Killed,
    Run,
    assert_same_weights,
    build,
    digest,
    loss_of,
    together,
    train,
)

pytestmark = pytest.mark.usefixtures("loopback")


@pytest.mark.parametrize("size", [1, 2, 5])
def test_a_crew_trains_like_one_process(store: Any, size: int) -> None:
    harbour = Harbour(store, size)
    runs = together([partial(train, harbour, rank, 12) for rank in range(size)])
    assert_same_weights(runs, 12, seed=100)
    # Founding, and one iteration for each update.
    assert harbour.number == 13
    assert [key for key in store.list_keys() if "epoch" in key] == []


@pytest.mark.parametrize("bucket", [0, 1])
def test_a_step_whose_collective_fails_is_tried_again(store: Any, bucket: int) -> None:
    harbour = Harbour(store, 4)

    def die(name: str, iteration: Any, crew: Crew) -> None:
        if name == "bucket" and iteration.number == 5 and next(count) == bucket:
            harbour.kill(crew.member)
            raise Killed

    count = iter(range(100))
    failed: list[int] = []

    def note(name: str, iteration: Any, crew: Crew) -> None:
        if name == "failed":
            failed.append(iteration.number)

    runs = together([partial(train, harbour, rank, 10, at=die if rank == 2 else note) for rank in range(4)])
    assert isinstance(runs.pop(2), Killed)
    assert set(failed) == {5}
    assert_same_weights(runs, 10, seed=100)
    assert [size for _, size, _ in runs[0].history] == [4] * 4 + [3] * 6


def test_a_restarted_rank_receives_the_state(store: Any) -> None:
    harbour = Harbour(store, 3)
    back = threading.Event()

    def die(name: str, iteration: Any, crew: Crew) -> None:
        if name == "averaged" and iteration.number == 4:
            harbour.kill(crew.member)
            back.set()
            raise Killed

    def hold_on(name: str, iteration: Any, crew: Crew) -> None:
        if name == "decided" and iteration.number == 6:
            with harbour.lock:
                harbour.lock.wait_for(lambda: harbour.joining, 20)

    def again() -> Run:
        assert back.wait(30)
        while harbour.number < 6:
            time.sleep(0.01)
        return train(harbour, 1, 15, number=2)

    runs = together(
        [
            lambda: train(harbour, 0, 15, at=hold_on),
            lambda: train(harbour, 1, 15, at=die),
            lambda: train(harbour, 2, 15),
            again,
        ]
    )
    assert isinstance(runs.pop(1), Killed)
    assert_same_weights(runs, 15, seed=100)
    # The averaged update of iteration 4 counts although a rank died between averaging and voting.
    assert runs[0].history[3] == (3, 3, 4)
    assert len(runs[-1].history) < 15
    assert [key for key in store.list_keys() if "epoch" in key] == []


def test_when_the_source_dies_in_the_transfer_another_one_sends(store: Any) -> None:
    harbour = Harbour(store, 3)
    holds: list[tuple[bool, ...]] = []

    def die(name: str, iteration: Any, crew: Crew) -> None:
        restarted = name == "opened" and iteration.number > 1 and not all(iteration.holders)
        if (crew.member.rank == 1 and name == "averaged" and iteration.number == 4) or (crew.member.rank == 0 and restarted):
            harbour.kill(crew.member)
            raise Killed

    def note(name: str, iteration: Any, crew: Crew) -> None:
        if name == "decided":
            holds.append(iteration.holders)
        if name == "decided" and iteration.number == 5:
            with harbour.lock:
                harbour.lock.wait_for(lambda: harbour.joining, 20)

    def again() -> Run:
        while harbour.number < 5:
            time.sleep(0.01)
        return train(harbour, 1, 15, number=2)

    # Rank 0 gets as far as a group with somebody who lacks the state, and is the first who holds it.
    runs = together(
        [
            lambda: train(harbour, 0, 15, at=die),
            lambda: train(harbour, 1, 15, at=die),
            lambda: train(harbour, 2, 15, at=note),
            again,
        ]
    )
    assert [type(run) for run in runs] == [Killed, Killed, Run, Run]
    # Rank 1 has nothing, and after the failed transfer it still has nothing.
    assert holds[holds.index((True, False, True)) + 1] == (False, True)
    assert_same_weights(runs[2:], 15, seed=100)


def test_when_all_holders_are_lost_the_furthest_state_goes_on(store: Any, caplog: pytest.LogCaptureFixture) -> None:
    harbour = Harbour(store, 2)
    checkpoint: dict[str, Any] = {}

    def die(name: str, iteration: Any, crew: Crew) -> None:
        if name == "averaged" and iteration.number == 4:
            harbour.kill(crew.member)
            raise Killed

    def founder(rank: int) -> Run:
        return train(harbour, rank, 9, at=die)

    def late(rank: int) -> Run:
        while len(harbour.dead) < 2:
            time.sleep(0.01)
        crew = Crew(harbour, rank, 2)
        model, optimizer = build(rank)
        trainer = DataParallel(crew, model, optimizer, timeout=TIMEOUT)
        if rank == 1:
            trainer.load_state_dict({**trainer.state_dict(), "position": 2})
            checkpoint.update(digest=digest(model))
        run = Run(trainer)
        for step in trainer.steps(9):
            run.history.append((step.position, step.size, step.iteration.number))
            loss_of(model, step.shard(batch_at(step.position, samples=SAMPLES, batch_size=BATCH))).backward()
        return run

    results = together([lambda: founder(0), lambda: founder(1), lambda: late(0), lambda: late(1)])
    assert [type(result) for result in results[:2]] == [Killed, Killed]
    first, second = results[2:]
    assert digest(first.trainer.model) == digest(second.trainer.model)
    assert first.history[0][0] == 2
    assert "nobody holds the state" in caplog.text


def test_a_rank_that_comes_after_the_end_is_told(store: Any) -> None:
    harbour = Harbour(store, 2)
    first = together([lambda: train(harbour, 0, 3), lambda: train(harbour, 1, 3)])
    for member in list(harbour.members):
        harbour.kill(member)
    late = together([lambda: train(harbour, 0, 3, number=2), lambda: train(harbour, 1, 3, number=2)])
    assert [type(error) for error in late] == [CrewFinished, CrewFinished]
    assert first[0].trainer.position == 3


def test_a_failed_step_leaves_the_buffers_as_they_were(store: Any) -> None:
    harbour = Harbour(store, 2)

    def rank(number: int) -> nn.Module:
        crew = Crew(harbour, number)
        torch.manual_seed(number)
        model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        seen: list[Step] = []

        def refuse(name: str, iteration: Any, details: Any) -> None:
            if name == "bucket" and iteration.number == 3 and number == 1:
                assert trainer._group is not None
                trainer._group.close()  # what a broken connection does

        trainer = DataParallel(crew, model, optimizer, observer=refuse, timeout=TIMEOUT)
        for step in trainer.steps(5):
            seen.append(step)
            loss_of(model, step.shard(batch_at(step.position, samples=SAMPLES, batch_size=BATCH))).backward()
        assert [step.position for step in seen] == [0, 1, 2, 2, 3, 4]
        return model

    first, second = together([lambda: rank(0), lambda: rank(1)])
    assert digest(first) == digest(second)
    assert first[1].num_batches_tracked.item() == 5


def test_attempts_that_fail_again_and_again_are_told(store: Any, caplog: pytest.LogCaptureFixture) -> None:
    """One failure is what the trainer is made for. When it comes every time, somebody has to read why."""
    harbour = Harbour(store, 2)
    left = [4]

    def make(store: Any, index: int, size: int, timeout: Any) -> Any:
        if index == 0 and left[0]:
            left[0] -= 1
            raise RuntimeError("no such interface")
        return make_gloo(store, index, size, timeout)

    def rank(number: int) -> None:
        model, optimizer = build(number)
        trainer = DataParallel(Crew(harbour, number), model, optimizer, timeout=TIMEOUT, backend=make)
        for step in trainer.steps(2):
            loss_of(model, step.shard(batch_at(step.position, samples=SAMPLES, batch_size=BATCH))).backward()

    assert together([lambda: rank(0), lambda: rank(1)]) == [None, None]
    told = [record.getMessage() for record in caplog.records if "no such interface" in record.getMessage()]
    assert [message.partition(" failed")[0] for message in told] == [
        "iteration 3, attempt 3 at position 0",
        "iteration 4, attempt 4 at position 0",
    ]


def test_buffers_of_an_update_that_counts_stay_when_the_next_group_cannot_be_made(store: Any) -> None:
    """Rank 2 dies after its vote on position 3: the update counts, and a new group is made. That fails once."""
    harbour = Harbour(store, 3)
    failed: list[str] = []

    def rank(number: int) -> nn.Module:
        crew = Crew(harbour, number)
        model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

        def die(name: str, iteration: Any, details: Any) -> None:
            if name == "averaged" and iteration.number == 4 and number == 2:
                harbour.kill(crew.member)
                raise Killed

        def make(store: Any, index: int, size: int, timeout: Any) -> Any:
            if size == 2 and number == 0 and not failed:
                failed.append("once")
                raise RuntimeError("no route")
            return make_gloo(store, index, size, timeout)

        trainer = DataParallel(crew, model, optimizer, observer=die, timeout=TIMEOUT, backend=make)
        for step in trainer.steps(6):
            loss_of(model, step.shard(batch_at(step.position, samples=SAMPLES, batch_size=BATCH))).backward()
        return model

    first, second, _ = together([partial(rank, number) for number in range(3)])
    assert failed
    assert digest(first) == digest(second)
    assert first[1].num_batches_tracked.item() == 6
