"""What training sees of a crew, and what a training loop sees of training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch.distributed.distributed_c10d import Store

from coxless.training.sharding import shard


class IterationLike(Protocol):
    """What training reads of an iteration; see `coxless.Iteration`."""

    @property
    def number(self) -> int: ...
    @property
    def epoch(self) -> str: ...
    @property
    def participants(self) -> tuple[Any, ...]: ...
    @property
    def index(self) -> int: ...
    @property
    def holders(self) -> tuple[bool, ...]: ...
    @property
    def committed(self) -> bool: ...
    @property
    def rejoined(self) -> bool: ...


class CrewLike(Protocol):
    """What training needs of a crew; see `coxless.Crew`."""

    @property
    def store(self) -> Store: ...
    @property
    def iteration(self) -> Any: ...
    def advance(self, ok: bool = True, *, holds: bool | None = None) -> Any: ...
    def trouble(self) -> str | None: ...
    def publish(self, name: str, value: str) -> None: ...
    def published(self, name: str) -> str | None: ...


@dataclass(slots=True)
class Step:
    """One attempt at one update: what to train on, with whom.

    `position` is the number of updates committed so far. All participants agree on it, and every position is committed exactly
    once: a failed attempt is followed by another one at the same position, perhaps with other participants.
    """

    position: int
    iteration: IterationLike
    weight: float = field(default=1.0)
    """How much the gradient of this participant counts, relative to the others: the number of samples in its shard."""

    @property
    def index(self) -> int:
        """The place of this rank among the participants, 0 .. size-1."""
        return self.iteration.index

    @property
    def size(self) -> int:
        """The number of participants."""
        return len(self.iteration.participants)

    def shard(self, batch: torch.Tensor) -> torch.Tensor:
        """The part of `batch` for this rank. Its length is the `weight` from now on."""
        part = shard(batch, self.index, self.size)
        self.weight = float(len(part))
        return part


Observer = Callable[[str, IterationLike, Mapping[str, object]], None]
