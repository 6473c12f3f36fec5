"""Finds out which parts of a state a predicate looks at, so that its answer can be reused where they are the same.

Predicates (invariants, situations) are pure functions of immutable states. One that has answered without looking at any
local part gives the same answer in every state with the same shared part, whatever it would do elsewhere: up to its answer
it saw nothing else. So nothing has to be declared, and nothing can be declared wrongly.
"""

from collections.abc import Iterator
from typing import Any

from coxless_model.machine import State


class Watched(State):
    """A state that notes which ranks' local parts are looked at."""

    looked: set[int]

    @classmethod
    def of(cls, state: State) -> "Watched":
        watched = cls(*state)
        watched.looked = set()
        return watched

    def _look_at_all(self) -> None:
        self.looked.update(range(len(tuple.__getitem__(self, 1))))

    @property
    def ranks(self) -> Any:
        return _WatchedRanks(tuple.__getitem__(self, 1), self.looked)

    def __iter__(self) -> Iterator[Any]:
        self._look_at_all()
        return tuple.__iter__(self)

    def __getitem__(self, place: Any) -> Any:
        self._look_at_all()
        return tuple.__getitem__(self, place)

    def __eq__(self, other: object) -> bool:
        self._look_at_all()
        return tuple.__eq__(self, other)

    def __hash__(self) -> int:
        self._look_at_all()
        return tuple.__hash__(self)


class _WatchedRanks:
    """The local parts. Everything but indexing by rank counts as looking at all of them."""

    def __init__(self, ranks: tuple[Any, ...], looked: set[int]) -> None:
        self._ranks = ranks
        self._looked = looked

    def _all(self) -> tuple[Any, ...]:
        self._looked.update(range(len(self._ranks)))
        return self._ranks

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, int):
            self._looked.add(place % len(self._ranks))
            return self._ranks[place]
        return self._all()[place]

    def __len__(self) -> int:
        return len(self._ranks)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._all())

    def __contains__(self, item: object) -> bool:
        return item in self._all()

    def __eq__(self, other: object) -> bool:
        return self._all() == (other._all() if isinstance(other, _WatchedRanks) else other)

    def __hash__(self) -> int:
        return hash(self._all())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._all(), name)
