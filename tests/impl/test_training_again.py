"""`steps` called again: for more updates, after a deadline, after a loop that was left, after Ctrl-C. Every update is made once."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import Any

import pytest
import torch
from torch import nn

import coxless
from coxless.training import DataParallel, batch_at

from .crews import crew_of, in_threads
from .training import BATCH, SAMPLES, Rank, digest, loss_of, same_as_alone

pytestmark = pytest.mark.usefixtures("loopback")


@pytest.mark.parametrize("size", [1, 2, 3])
def test_for_more_updates(address: str, size: int) -> None:
    def body(number: int) -> Rank:
        with crew_of(address, number, size) as crew:
            rank = Rank(crew)
            rank.train(3)
            rank.train(3)
            rank.train(7)
        return rank

    same_as_alone(in_threads(size, body), 7)
    assert not [key for key in coxless.connect(address).list_keys() if key.startswith("process_group")]


def test_after_a_deadline(address: str) -> None:
    """Rank 0 gives up waiting for rank 1, which is writing a checkpoint, say. Its averaged gradients still wait for the decision."""
    gave_up = threading.Event()

    def body(number: int) -> Rank:
        with crew_of(address, number, 2, timeout=timedelta(seconds=60 if number else 3)) as crew:
            rank = Rank(crew)
            if number == 1:
                advance = crew.advance

                def late(ok: bool = True, *, holds: bool | None = None) -> coxless.Iteration:
                    assert crew.iteration is None or crew.iteration.number != 3 or gave_up.wait(60)
                    return advance(ok, holds=holds)

                crew.advance = late  # type: ignore[method-assign]
            while True:
                try:
                    rank.train(6)
                    return rank
                except coxless.IterationTimeoutError:
                    gave_up.set()

    first, second = in_threads(2, body)
    same_as_alone([first, second], 6)
    assert [iteration for *_, iteration in first.applied] == list(range(1, 7)), "and no iteration was wasted"


@pytest.mark.parametrize("who", [{0}, {0, 1}])
def test_after_a_loop_that_was_left(address: str, who: set[int]) -> None:
    def body(number: int) -> Rank:
        with crew_of(address, number, 2) as crew:
            rank = Rank(crew)
            if number in who:
                rank.train(6, stop_before=2)
                assert rank.trainer.position == 2
            rank.train(6)
        return rank

    same_as_alone(in_threads(2, body), 6)


def test_an_older_call_is_over() -> None:
    with coxless.join(torch.distributed.HashStore(), rank=0, world_size=1) as crew:
        rank = Rank(crew)
        older = rank.trainer.steps(3)
        next(older)
        next(rank.trainer.steps(3))
        with pytest.raises(RuntimeError, match=r"steps\(\) was called again while this call of it went on"):
            next(older)


class Interrupted(torch.optim.SGD):  # type: ignore[misc]  # torch's types are not followed
    """Ctrl-C strikes once, in the middle of an update."""

    def __init__(self, *arguments: Any, at: int, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.left = at

    def step(self, closure: Any = None) -> None:
        self.left -= 1
        if self.left == 0:
            with torch.no_grad():
                self.param_groups[0]["params"][0].add_(1)
            raise KeyboardInterrupt
        super().step(closure)


def interrupted(crew: coxless.Crew, at: int) -> DataParallel:
    torch.manual_seed(crew.rank)
    model = nn.Linear(6, 2)
    return DataParallel(crew, model, Interrupted(model.parameters(), at=at, lr=0.1))


def run(trainer: DataParallel, total: int) -> None:
    for step in trainer.steps(total):
        loss_of(trainer.model, step.shard(batch_at(step.position, samples=SAMPLES, batch_size=BATCH))).backward()


def test_a_rank_whose_update_was_interrupted_gets_the_state_from_another(address: str) -> None:
    def body(number: int) -> str:
        with crew_of(address, number, 2) as crew:
            trainer = interrupted(crew, at=3 if number else 0)
            if number == 1:
                with pytest.raises(KeyboardInterrupt):
                    run(trainer, 6)
                with pytest.raises(RuntimeError, match="the update after position 2 was interrupted half-way"):
                    trainer.state_dict()
            run(trainer, 6)
            assert trainer.position == 6
        return digest(trainer.model)

    first, second = in_threads(2, body)
    assert first == second


def test_a_rank_alone_whose_update_was_interrupted_needs_a_checkpoint(address: str) -> None:
    with crew_of(address, 0, 1) as crew:
        trainer = interrupted(crew, at=3)
        run(trainer, 1)
        checkpoint = {name: _copy(value) for name, value in trainer.state_dict().items()}
        with pytest.raises(KeyboardInterrupt):
            run(trainer, 6)
        with pytest.raises(RuntimeError, match="nobody holds the state: load_state_dict a checkpoint"):
            run(trainer, 6)
        trainer.load_state_dict(checkpoint)
        run(trainer, 6)
        assert trainer.position == 6


def _copy(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.clone()
    return {key: _copy(item) for key, item in value.items()} if isinstance(value, dict) else value
