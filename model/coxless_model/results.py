"""What a search is told, and what it has to say: limits and progress, verdicts, traces and counterexamples."""

from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple

from coxless_model.machine import Action, State


class Verdict(StrEnum):
    HOLDS = "holds"
    VIOLATED = "violated"
    UNDETERMINED = "undetermined"


class Limits(NamedTuple):
    states: int | None = None
    seconds: float | None = None
    memory: int | None = None
    """Bytes that the process may have resident."""


NO_LIMITS = Limits()


class Trace(NamedTuple):
    """A run of the system: one state more than actions."""

    states: tuple[State, ...]
    actions: tuple[Action, ...]

    @property
    def steps(self) -> tuple[tuple[State, Action, State], ...]:
        return tuple(zip(self.states, self.actions, self.states[1:], strict=False))


class Counterexample(NamedTuple):
    property: str
    wrong: str
    trace: Trace


class Progress(NamedTuple):
    states: int
    depth: int
    waiting: int
    """States of the current layer that are still to be expanded."""
    seconds: float
    memory: int


class Result(NamedTuple):
    system: str
    verdict: Verdict
    reason: str
    """Why the verdict is UNDETERMINED; empty otherwise."""
    states: int
    transitions: int
    depth: int
    seconds: float
    memory: int
    """Resident bytes that the search added to the process."""
    taken: Mapping[str, int]
    """How often each action was taken, by name."""
    reached: Mapping[str, bool]
    """The situations that a search has to come to."""
    never_taken: tuple[str, ...]
    """Actions that one should expect within the bounds, and that were not taken."""
    stuck: int
    """States in which nothing that is promised to happen can happen any more."""
    counterexamples: tuple[Counterexample, ...]

    @property
    def rate(self) -> float:
        return self.states / max(self.seconds, 1e-9)

    @property
    def bytes_per_state(self) -> float:
        return self.memory / max(self.states, 1)
