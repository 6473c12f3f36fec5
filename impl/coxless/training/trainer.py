"""Data-parallel training that goes on when ranks die, leave, return or join."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from coxless import keys
from coxless.errors import CoxlessError, IterationTimeoutError, StoreUnreachableError
from coxless.records import parse_counter
from coxless.training.average import BUCKET_BYTES, average_buffers, average_gradients
from coxless.training.background import Background
from coxless.training.groups import Cleaner, CollectiveFailed, EpochGroup, MakeBackend, open_group
from coxless.training.step import CrewLike, IterationLike, Observer, Step
from coxless.training.transfer import broadcast_state

__all__ = ["CrewFinished", "CrewLike", "DataParallel", "IterationLike", "Observer", "Step"]

_log = logging.getLogger(__name__)

FINISHED = "training_finished"  # published: the position at which a crew ended its training

INTERRUPTED_FLUSH = 0.3
"""How long (s) Ctrl-C, or the end of a loop that was left, waits for keys to be deleted, should the store not answer."""

TOLERATED = 3
"""From so many failed attempts at one position on, each is a warning in the log."""


class CrewFinished(CoxlessError):
    """The others ended the training before this rank came back, and nobody is left to give it the state. Nothing is wrong with theirs."""


class DataParallel:
    """Trains `model` together with the other ranks of `crew`.

        trainer = DataParallel(crew, model, optimizer)
        for step in trainer.steps(500):
            rows = step.shard(batch_at(step.position, samples=len(x), batch_size=64))
            loss(model(x[rows]), y[rows]).backward()

    After the loop body the gradients are averaged and the crew advances. The optimizer makes its step only when the iteration
    was committed, that is, when it worked for everybody who goes on; else the same position is tried again. All that changes
    in training (model, optimizer, scheduler, position) goes from a participant that holds it to those that do not, before they
    train.

    A scheduler steps after each committed update. Randomness in the loop body is best drawn from `sharding.generator` by
    position, so that a retry repeats it. The weights after a position depend only on the number of participants at each
    position: a single process that averages the same shards arrives at the same weights, up to rounding.

    `observer` is called on the training thread with a name, the iteration and details: "opened" (a process group), "received"
    (the state), "bucket" (before an exchange), "averaged", "failed", "decided" (the crew has advanced), "applied" (the
    optimizer made its step).
    """

    def __init__(
        self,
        crew: CrewLike,
        model: nn.Module,
        optimizer: Optimizer,
        scheduler: LRScheduler | None = None,
        *,
        backend: str | MakeBackend = "gloo",
        timeout: timedelta = timedelta(minutes=5),
        bucket_bytes: int = BUCKET_BYTES,
        observer: Observer | None = None,
    ) -> None:
        self.crew = crew
        self.model = model
        self.optimizer = optimizer
        self.scheduler = scheduler
        self._backend = backend
        self._timeout = timeout
        self._bucket_bytes = bucket_bytes
        self._observer = observer
        self._position = 0
        self._holds = False
        self._torn = False  # an update, or a state that was received, is half in the model
        # Iterations, by number: what a call of `steps` that comes after an interrupted one has to know.
        self._settled = 0  # the last one whose decision was drawn conclusions from
        self._begun = 0  # the last one that was attempted here
        self._averaged = 0  # the last one whose averaged gradients were ready here
        self._voted = 0  # the last one that was voted on
        self._failures, self._failed_at = 0, -1  # attempts in a row that failed here, and at which position
        self._turn = object()  # the call of `steps` that goes on; an older one is over
        self._group: EpochGroup | None = None
        self._met: IterationLike | None = None  # the iteration in which the group was made, or was meant to be
        self._buffers: list[torch.Tensor] = []  # as they were before this step
        self._background = Background()
        self._cleaner = Cleaner(crew.store)

    @property
    def position(self) -> int:
        """The number of updates that are in the model."""
        return self._position

    def state_dict(self) -> dict[str, Any]:
        """All that a rank needs to go on from here. Good for a checkpoint between two steps, and what a new rank receives.

        RuntimeError when an update was interrupted half-way: this is no state then that the crew ever had.
        """
        if self._torn:
            raise RuntimeError(f"the update after position {self._position} was interrupted half-way: this state is a mixture")
        return {
            "position": self._position,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over a state. From a checkpoint: before `steps`; the crew starts from the furthest one that a rank brings."""
        self._torn = True
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])
        self._position = int(state["position"])
        self._torn = False

    def steps(self, total: int) -> Iterator[Step]:
        """Yields attempts until `total` updates are committed and everybody who takes part has them.

        Errors of the crew (superseded, out of time, the store is gone) pass through. `CrewFinished` when this rank came too late
        for any of it. RuntimeError when a participant sends a state that contradicts the one held here.

        May be called again: for more updates, after an error that may be repeated, after a loop that was left. A decision that was still
        to come is waited for (leave the gradients alone until then); an attempt that was left half-way has failed.
        """
        turn = self._turn = object()
        iteration = self._take_up()
        flush = 1.0
        try:
            while True:
                self._settle(iteration)
                # The state must have reached everybody, by the crew's record: a source that leaves early would take it along.
                if self._holds and self._position >= total and all(iteration.holders):
                    self.crew.publish(FINISHED, str(self._position))
                    return
                number = iteration.number
                lost = iteration.holders[iteration.index] and not self._holds
                if number != self._begun and not lost:
                    self._begun = number
                    try:
                        self._meet(iteration)
                        self._share_state(iteration, total)
                        if self._position < total:
                            step = self._begin(iteration)
                            yield step
                            if self._turn is not turn:
                                raise RuntimeError("steps() was called again while this call of it went on")
                            self._average(step)
                            self._averaged = number
                    except CollectiveFailed as error:
                        self._failures = self._failures + 1 if self._failed_at == self._position else 1
                        self._failed_at = self._position
                        # One failure is what this is made for; the third at the same position is perhaps none of the network's.
                        level = logging.INFO if self._failures < TOLERATED else logging.WARNING
                        _log.log(
                            level,
                            "iteration %d, attempt %d at position %d failed here: %s",
                            number,
                            self._failures,
                            self._position,
                            error,
                        )
                        self._tell("failed", iteration, reason=str(error))
                iteration = self._advance(iteration)
        except CoxlessError as error:
            if not isinstance(error, IterationTimeoutError | StoreUnreachableError):
                self._voted = 0  # no advance can go on
            raise
        except BaseException as error:
            if not isinstance(error, Exception):
                flush = INTERRUPTED_FLUSH
            raise
        finally:
            # An advance that was stopped leaves the group as it was: the others go on with theirs.
            if self._turn is turn and self._voted != (self.crew.iteration or iteration).number:
                self._part(self.crew.iteration or iteration)
            self._background.flush(timeout=flush)  # the process may end right after this

    def _take_up(self) -> IterationLike:
        """The iteration to go on with."""
        iteration: IterationLike | None = self.crew.iteration
        if iteration is not None and self._voted == iteration.number:
            return self._advance(iteration)  # it was stopped
        if iteration is None:
            iteration = self._decided(self.crew.advance())
        elif iteration.number != self._settled:
            self._decided(iteration)
        return iteration

    def _advance(self, iteration: IterationLike) -> IterationLike:
        self._voted = iteration.number
        return self._decided(self.crew.advance(self._averaged == iteration.number, holds=self._holds))

    def _decided(self, iteration: IterationLike) -> IterationLike:
        committed = iteration.committed and iteration.number == self._voted + 1
        self._tell("decided", iteration, committed=committed)
        return iteration

    def _settle(self, iteration: IterationLike) -> None:
        """Draws the conclusions from a decision, once: the update counts, or it is dropped, or the whole state is."""
        if iteration.number == self._settled:
            return
        if iteration.rejoined or not iteration.committed:
            self._undo()
            self._holds = not iteration.rejoined and iteration.holders[iteration.index] and not self._torn
            self._settled = iteration.number
            return
        if self._averaged != iteration.number - 1:
            raise RuntimeError(
                f"iteration {iteration.number - 1} was committed, but this rank has no update of it: was the crew advanced outside of steps()?"
            )
        # Before the optimizer: if it is interrupted, this rank does not hold the state any more, and the optimizer must not step again.
        self._holds, self._torn, self._buffers = False, True, []
        self._settled = iteration.number
        self.optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()
        self._position += 1
        self._holds, self._torn = iteration.holders[iteration.index], False
        self._tell("applied", iteration, position=self._position)

    def _undo(self) -> None:
        """Drops the gradients, and what the forward pass did to the buffers."""
        self.optimizer.zero_grad()
        if self._buffers:
            with torch.no_grad():
                for buffer, before in zip(self.model.buffers(), self._buffers, strict=True):
                    buffer.copy_(before)
        self._buffers = []

    def _meet(self, iteration: IterationLike) -> None:
        """Makes the process group of the epoch, unless it is there."""
        if self._met is not None and self._met.epoch == iteration.epoch:
            if self._group is None or self._group.closed:
                raise RuntimeError(f"the group of epoch {iteration.epoch} failed, and yet the crew kept the epoch")
            return
        self._part(iteration)
        self._met = iteration
        started = time.monotonic()
        self._group = open_group(
            self.crew.store,
            _meeting(iteration),
            iteration.index,
            len(iteration.participants),
            watch=self.crew.trouble,
            background=self._background,
            backend=self._backend,
            timeout=self._timeout,
        )
        self._tell("opened", iteration, seconds=time.monotonic() - started)

    def _part(self, successor: IterationLike) -> None:
        """Drops the group of the epoch that ended, and deletes what it left in the store."""
        if self._group is not None:
            self._group.close()
        self._group, met, self._met = None, self._met, None
        if met is None or len(met.participants) == 1:
            return
        name, gone = _meeting(met), {met.index}
        remaining = [index for index, member in enumerate(met.participants) if member in successor.participants]
        if remaining and remaining[0] == met.index:
            # Somebody has to delete the keys of those that cannot any more.
            gone |= set(range(len(met.participants))) - set(remaining)
        self._background.call(lambda: self._cleaner.delete(name, gone, backend=self._backend))

    def _share_state(self, iteration: IterationLike, total: int) -> None:
        """Gives the state to the participants that lack it."""
        if all(iteration.holders):
            return
        assert self._group is not None
        started = time.monotonic()
        device = self._device()
        if any(iteration.holders):
            source = iteration.holders.index(True)
        else:
            # A founding crew, or all that held the state are gone. Whoever brings the furthest state gives it: what a rank was
            # trained to, or loaded from a checkpoint, is always the outcome of committed updates.
            positions = torch.zeros(self._group.size, dtype=torch.int64, device=device)
            positions[self._group.index] = -1 if self._torn else self._position
            self._group.all_reduce(positions)
            source, furthest = int(positions.argmax()), int(positions.max())
            if furthest < 0:
                raise RuntimeError("an update was interrupted half-way and nobody holds the state: load_state_dict a checkpoint")
            if furthest < total and self._finished(total):
                raise CrewFinished(f"the others have made all {total} updates and are gone")
            if iteration.number > 1:
                _log.warning("nobody holds the state any more; going on from position %d", furthest)
        mine = self.state_dict() if source == iteration.index else None
        state = broadcast_state(self._group, mine, source, device=device)
        if self._holds:
            if state["position"] != self._position:
                raise RuntimeError(
                    f"{iteration.participants[source]} is at position {state['position']}, this rank at {self._position}"
                )
            return
        if source != iteration.index:
            self.load_state_dict(state)
        self._holds = True
        self._tell("received", iteration, seconds=time.monotonic() - started, source=source, position=self._position)

    def _finished(self, total: int) -> bool:
        """Whether a crew that is gone has made all the updates."""
        assert self._group is not None
        try:
            text = self.crew.published(FINISHED)
        except StoreUnreachableError as error:
            self._group.close()
            raise CollectiveFailed(f"whether the training is over is not known: {error}") from None
        return text is not None and parse_counter(keys.published(FINISHED), text) >= total

    def _begin(self, iteration: IterationLike) -> Step:
        self.optimizer.zero_grad()
        self._buffers = [buffer.clone() for buffer in self.model.buffers()]
        return Step(self._position, iteration)

    def _average(self, step: Step) -> None:
        assert self._group is not None
        started = time.monotonic()
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        average_gradients(
            self._group,
            parameters,
            step.weight,
            bucket_bytes=self._bucket_bytes,
            on_bucket=lambda number: self._tell("bucket", step.iteration, bucket=number),
        )
        with torch.no_grad():
            average_buffers(self._group, self.model.buffers(), bucket_bytes=self._bucket_bytes)
        self._tell("averaged", step.iteration, seconds=time.monotonic() - started)

    def _device(self) -> torch.device:
        """Where tensors must lie to be sent."""
        if self._backend == "gloo":
            return torch.device("cpu")
        return next((parameter.device for parameter in self.model.parameters()), torch.device("cpu"))

    def _tell(self, name: str, iteration: IterationLike, **details: object) -> None:
        if self._observer is not None:
            self._observer(name, iteration, details)


def _meeting(iteration: IterationLike) -> str:
    """Where the participants of an iteration meet to make their group. They may meet again in the same epoch, for another call of
    `steps`, and must not find the addresses of the time before."""
    return f"{iteration.epoch}:{iteration.number}"
