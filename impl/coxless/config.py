"""What a caller may choose, checked once: bad input is one clear sentence before anything touches the store."""

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from .records import MOST_RANKS

logger = logging.getLogger(__name__)

LONGEST_PATIENCE = timedelta(seconds=0.5)


@dataclass(frozen=True, slots=True)
class Timing:
    """Every duration of the protocol. They are the driver's business alone: the protocol itself knows no time.

    heartbeat_interval < heartbeat_timeout, and patience < timeout: else ValueError. heartbeat_timeout and join_timeout are usually shorter
    than timeout; else an advance gives up before it may go on without the missing. The log says so for the one, the error of founding for
    the other. It is no mistake: a supervisor's mark makes a heartbeat timeout of any length sensible, and an advance that gave up can be
    repeated, and goes on counting where it stopped.
    """

    heartbeat_interval: timedelta
    """How often a rank says that it lives."""
    heartbeat_timeout: timedelta
    """A member seen silent for so long is suspected, unless a supervisor has marked it dead before."""
    patience: timedelta
    """How long a rank waits at a barrier before it looks who is missing."""
    join_timeout: timedelta
    """How long founding waits for ranks that were never seen, before it goes on without them."""
    timeout: timedelta
    """How long one advance may take in all, before it raises IterationTimeoutError or StoreUnreachableError."""
    stall_timeout: timedelta | None = None
    """After how long without a call of `advance`, `vote`, `trouble` or `send_heartbeat` this rank's heartbeats end, so that the others can
    go on without a rank whose training loop hangs (a heartbeat timeout later). Longer than any step, evaluation or checkpoint takes. None:
    never. Longer than heartbeat_interval."""

    def __post_init__(self) -> None:
        for name in ("heartbeat_interval", "heartbeat_timeout", "patience", "join_timeout", "timeout", "stall_timeout"):
            value = getattr(self, name)
            if name == "stall_timeout" and value is None:
                continue
            if not isinstance(value, timedelta):
                raise TypeError(f"{name} must be a datetime.timedelta, not {value!r}")
            if value <= timedelta(0):
                raise ValueError(f"{name} must be longer than zero, not {value}")
        if self.patience > LONGEST_PATIENCE:
            raise ValueError(
                f"patience must be at most {LONGEST_PATIENCE}, not {self.patience}: a wait in the store cannot be interrupted"
            )
        _ordered(self, "heartbeat_interval", "heartbeat_timeout", "or a live rank would be taken for dead between two beats")
        _ordered(self, "patience", "timeout", "or every advance would give up before it looked who is missing")
        if self.stall_timeout is not None:
            _ordered(self, "heartbeat_interval", "stall_timeout", "or a loop that goes on would be taken for one that hangs")
        if self.heartbeat_timeout >= self.timeout:
            logger.warning(
                "heartbeat_timeout (%s) is not shorter than timeout (%s): an advance gives up before it may leave a silent rank behind; "
                "repeat it, or have one marked dead",
                self.heartbeat_timeout,
                self.timeout,
            )


def _ordered(timing: Timing, shorter: str, longer: str, why: str) -> None:
    low, high = getattr(timing, shorter), getattr(timing, longer)
    if low >= high:
        raise ValueError(f"{shorter} ({low}) must be shorter than {longer} ({high}), {why}")


@dataclass(frozen=True, slots=True)
class World:
    """Who this rank is, and how many make a crew."""

    rank: int
    world_size: int
    min_ranks: int

    def __post_init__(self) -> None:
        for name in ("rank", "world_size", "min_ranks"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} must be an int, not {value!r}")
        if self.world_size < 1:
            raise ValueError(f"world_size must be at least 1, not {self.world_size}")
        if self.world_size > MOST_RANKS:
            raise ValueError(f"world_size must be at most {MOST_RANKS}, not {self.world_size}")
        if not 0 <= self.rank < self.world_size:
            raise ValueError(
                f"rank {self.rank} is out of range for world_size {self.world_size}: it must be 0 to {self.world_size - 1}"
            )
        if not 1 <= self.min_ranks <= self.world_size:
            raise ValueError(f"min_ranks ({self.min_ranks}) must be 1 to world_size ({self.world_size})")


def world_from(rank: int | None, world_size: int | None, min_ranks: int, environ: Mapping[str, str] | None = None) -> World:
    """Arguments win; what is None comes from RANK and WORLD_SIZE, as torchrun and `coxless run` set them.

    Raises ValueError for a value that is missing or no number.
    """
    environ = os.environ if environ is None else environ
    return World(
        _integer("rank", "RANK", environ) if rank is None else rank,
        _integer("world_size", "WORLD_SIZE", environ) if world_size is None else world_size,
        min_ranks,
    )


def _integer(argument: str, variable: str, environ: Mapping[str, str]) -> int:
    text = environ.get(variable)
    if text is None:
        raise ValueError(
            f"{argument} is not given and {variable} is not set: pass {argument}=… or start under coxless run or torchrun"
        )
    if re.fullmatch("-?[0-9]{1,9}", text) is None:
        raise ValueError(f"{variable}={text[:60]!r} is not a number")
    return int(text)
