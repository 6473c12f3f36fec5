"""What the ranks wrote down, and what was done to them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Line = dict[str, Any]


@dataclass(frozen=True)
class Life:
    """One process of a rank, started for the n-th time (`restarts`, from 0). Times are of the clock that all processes share."""

    rank: int
    restarts: int
    lines: tuple[Line, ...]
    ended: float | None = None
    """When its end was seen; None: it was not."""
    code: int | None = None
    """Its exit code, or minus the signal."""
    silences: tuple[tuple[float, float], ...] = ()
    """When it was stopped or cut off, and until when."""

    def of(self, event: str) -> list[Line]:
        return [line for line in self.lines if line["event"] == event]

    @property
    def name(self) -> str:
        return f"rank {self.rank}, process {self.restarts}"


@dataclass(frozen=True)
class Done:
    """A fault that took place: when, of which kind ("kill", "self-kill", "stop", "long stop", "cut", "store"), how often counted."""

    at: float
    kind: str
    rank: int = -1
    count: int = 1


@dataclass
class History:
    lives: list[Life]
    done: list[Done] = field(default_factory=list)
    keys: int | None = None
    """Keys in the store after everybody had left."""
    ended: float = 0.0
    store_losses: tuple[tuple[float, float], ...] = ()

    def decided(self) -> list[tuple[Life, Line]]:
        pairs = [(life, line) for life in self.lives for line in life.of("decided")]
        return sorted(pairs, key=lambda pair: float(pair[1]["t"]))

    def records(self) -> dict[int, Line]:
        """The first that was seen of each iteration."""
        first: dict[int, Line] = {}
        for _, line in self.decided():
            first.setdefault(line["iteration"], line)
        return dict(sorted(first.items()))

    def committed(self) -> list[int]:
        """The iterations whose update counts."""
        return [number - 1 for number, line in self.records().items() if line["record"] and number > 1]


def lines_of(path: Path) -> tuple[Line, ...]:
    """The last line, without its newline, was cut short."""
    return tuple(json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]) if path.exists() else ()
