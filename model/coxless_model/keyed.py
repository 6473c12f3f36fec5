"""A mapping in the shared part, the store, taken apart into one piece for each of its keys.

Most steps look at one key of the store, and depend on no other: so a step that was computed once is right wherever that key (and
the rank's local part) is the same. Which keys there are is not known beforehand. A key gets its place in the wide integer when it
is first met, above all places given before; number 0 says that the key is missing.

The mapping is a named tuple with the methods `get`, `put` and `drop`, and a field that holds its entries, sorted by key.
"""

from bisect import insort
from collections.abc import Callable, Hashable, Iterable
from typing import Any

Key = Hashable
Entries = tuple[tuple[Any, Any], ...]


class TooMany(Exception):
    """More different parts than there are numbers for."""


class KeyPiece:
    """One key: its place, and a number for each value that it has had."""

    __slots__ = ("_numbers", "key", "mask", "place", "values", "width")

    def __init__(self, key: Any, place: int, bits: int) -> None:
        self.key = key
        self.place = place
        self.width = (1 << bits) - 1
        self.mask = self.width << place
        self.values: list[Any] = [None]
        self._numbers: dict[Any, int] = {}

    def add(self, value: Any) -> int:
        """What the key adds to a wide integer with this value."""
        number = self._numbers.get(value)
        if number is None:
            number = len(self.values)
            if number > self.width:
                raise TooMany(f"more than {self.width} different values of {self.key}")
            self._numbers[value] = number
            self.values.append(value)
        return number << self.place


class Keys:
    """The pieces of a mapping, from `bottom` on upwards."""

    def __init__(self, room: Callable[[Any], int], bottom: int) -> None:
        self._room = room
        self._pieces: dict[Any, KeyPiece] = {}
        self._bottom = self._top = bottom
        self._plan: list[tuple[Any, int, int, list[Any]]] = []  # sorted by key
        self.mask = -1 << bottom
        """The bits of all keys, those included that are yet to be met."""

    def piece(self, key: Any) -> KeyPiece:
        found = self._pieces.get(key)
        if found is None:
            bits = self._room(key)
            found = self._pieces[key] = KeyPiece(key, self._top, bits)
            insort(self._plan, (key, self._top - self._bottom, found.width, found.values), key=lambda each: each[0])
            self._top += bits
        return found

    def wide(self, entries: Entries) -> int:
        return sum(self.piece(key).add(value) for key, value in entries)

    def present(self, wide: int) -> Iterable[tuple[KeyPiece, int]]:
        """The keys that are there, in the order in which they were first met, each with the number of its value."""
        for piece in self._pieces.values():
            number = wide >> piece.place & piece.width
            if number:
                yield piece, number

    def entries(self, wide: int) -> Entries:
        keys = wide >> self._bottom
        return tuple([(key, values[number]) for key, place, width, values in self._plan if (number := keys >> place & width)])


def noting_methods(keys: Keys, entries_at: int) -> dict[str, Any]:
    """What a noting mapping does otherwise than the one that it stands for: it keeps its entries as they are in a wide integer, in
    `held`, and notes which keys are looked at. `entries_at`: the place of the field that holds the entries."""

    def changed(self: Any, held: int) -> Any:
        thing = tuple.__new__(type(self), tuple.__iter__(self))
        thing.seen, thing.held = self.seen, held
        return thing

    def get(self: Any, key: Any, default: Any = None) -> Any:
        piece = keys.piece(key)
        self.seen.look(piece)
        number = self.held >> piece.place & piece.width
        return piece.values[number] if number else default

    def put(self: Any, key: Any, value: Any) -> Any:
        piece = keys.piece(key)
        self.seen.look(piece)
        return changed(self, self.held & ~piece.mask | piece.add(value))

    def drop(self: Any, key: Any) -> Any:
        piece = keys.piece(key)
        self.seen.look(piece)
        return changed(self, self.held & ~piece.mask)

    def entries(self: Any) -> Entries:
        self.seen.look(keys)
        return keys.entries(self.held)

    def all_keys(self: Any) -> tuple[Any, ...]:
        return tuple([key for key, _ in entries(self)])

    def equal(self: Any, other: Any) -> bool:
        if type(other) is not type(self) or other.seen is not self.seen:
            return bool(plain(self) == (tuple(other) if isinstance(other, tuple) else other))
        # Two that come of the same one differ at most in keys that were put or dropped, and so are noted already.
        fields = (place for place in range(tuple.__len__(self)) if place != entries_at)
        return self.held == other.held and all(tuple.__getitem__(self, at) == tuple.__getitem__(other, at) for at in fields)

    def plain(self: Any) -> tuple[Any, ...]:
        fields = list(tuple.__iter__(self))
        fields[entries_at] = entries(self)
        return tuple(fields)

    return {
        "get": get,
        "put": put,
        "drop": drop,
        "keys": property(all_keys),
        "entries": property(entries),
        "__eq__": equal,
        "__ne__": lambda self, other: not equal(self, other),
        "__iter__": lambda self: iter(plain(self)),
        "__getitem__": lambda self, place: plain(self)[place],
        "__contains__": lambda self, item: item in plain(self),
        "__hash__": lambda self: hash(plain(self)),
    }
