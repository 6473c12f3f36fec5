"""What can happen in a run, and when a rank that failed is started again."""

import signal
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum


class Kind(StrEnum):
    """What can happen to a run."""

    STARTED = "started"
    EXITED = "exited"
    MARKED_DEAD = "marked_dead"
    RESTARTED = "restarted"
    GAVE_UP = "gave_up"
    FINISHED = "finished"
    STORE_STARTED = "store_started"
    STORE_DIED = "store_died"
    STORE_RESTARTED = "store_restarted"
    STORE_LOST = "store_lost"
    STOPPING = "stopping"


@dataclass(frozen=True)
class Event:
    """Something that happened: to a rank, or to the run when `rank` is None."""

    kind: Kind
    at: float
    """time.monotonic() of this process, in seconds."""
    rank: int | None = None
    pid: int | None = None
    restarts: int = 0
    """How many times the rank had been started again by then."""
    code: int | None = None
    """Exit code, if the process ended by itself."""
    signal: int | None = None
    """The signal that ended the process."""
    detail: str = ""

    def __str__(self) -> str:
        who = "the run" if self.rank is None else f"rank {self.rank}"
        if self.kind.startswith("store"):
            who = "the store"
        how = ""
        if self.signal is not None:
            how = f" by {_signal_name(self.signal)}"
        elif self.code is not None:
            how = f" with code {self.code}"
        return f"{who} {_WORDS[self.kind]}{how}" + (f": {self.detail}" if self.detail else "")


_WORDS = {
    Kind.STARTED: "started",
    Kind.EXITED: "ended",
    Kind.MARKED_DEAD: "is marked dead",
    Kind.RESTARTED: "started again",
    Kind.GAVE_UP: "is given up",
    Kind.FINISHED: "has finished",
    Kind.STORE_STARTED: "serves",
    Kind.STORE_DIED: "died",
    Kind.STORE_RESTARTED: "serves again, empty",
    Kind.STORE_LOST: "cannot be started again",
    Kind.STOPPING: "is being stopped",
}


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"


@dataclass(frozen=True)
class Exited:
    """A process that ended with anything but 0, for a restart policy to judge."""

    rank: int
    restarts: int
    """How many times the rank has been started again so far."""
    code: int | None
    signal: int | None
    ran: timedelta


RestartPolicy = Callable[[Exited], timedelta | None]
"""After what delay the rank is started again; None: never."""


def backoff(
    restarts: int = 3, *, first: timedelta = timedelta(seconds=0.5), longest: timedelta = timedelta(seconds=30)
) -> RestartPolicy:
    """At most so many restarts of each rank, the n-th after first * 2**(n-1), at most `longest`."""

    def policy(exited: Exited) -> timedelta | None:
        if exited.restarts >= restarts:
            return None
        delay: timedelta = first * 2 ** min(exited.restarts, 30)
        return min(longest, delay)

    return policy


def never(exited: Exited) -> timedelta | None:
    """No rank is started again."""
    return None
