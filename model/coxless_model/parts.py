"""The shared part of a state, taken apart into pieces, and the pieces that a step looks at.

A step mostly depends on little of the shared part: on the store and on one or two budgets, not on the history that the ghost
keeps. What a step depends on is not declared but seen: the specification is handed a shared part that notes which pieces are
looked at. A step that has been computed is the same wherever those pieces (and the rank's local part) are the same, as it
saw nothing else. Passing a piece on is not looking at it; everything but reading a field by its name is looking at all.

A system that has a `layout` says how its shared part comes apart; that of another is one piece. Fields that are in no piece
never change. One field may be a mapping, with a piece for each key (keyed.py).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from coxless_model.keyed import KeyPiece, Keys, TooMany, noting_methods
from coxless_model.looks import Looks


class Piece(NamedTuple):
    """A field of the shared part, or with a dot a field of a field."""

    path: str
    bits: int
    """Room for so many different values. That of a shared part which is one piece has no limit."""
    tally: bool = False
    """A number that steps only add to, and never look at; nor do situations."""


class Mapped(NamedTuple):
    """The field that holds the entries of the mapping. It comes last in a layout."""

    path: str
    room: Callable[[Any], int]
    """For each key the bits that its values need."""


Layout = tuple[Piece | Mapped, ...]
WHOLE: Layout = (Piece("", 0),)


class Parts:
    """Numbers for the values of each piece; a shared part is one integer, `wide`: the first piece on top of the others, and above it
    the keys of the mapping."""

    def __init__(self, layout: Layout, shared: Any) -> None:
        mapped = next((each for each in layout if isinstance(each, Mapped)), None)
        pieces = self.layout = tuple(each for each in layout if isinstance(each, Piece))
        self.split = layout != WHOLE
        self.values: tuple[list[Any], ...] = tuple([] for _ in pieces)
        self._numbers: tuple[dict[Any, int], ...] = tuple({} for _ in pieces)
        places, place = [], 0
        for piece in reversed(pieces):
            places.append(place)
            place += piece.bits
        self.places = tuple(places[::-1])
        self._widths = tuple((1 << piece.bits) - 1 if self.split else -1 for piece in pieces)
        self.keys = None if mapped is None else Keys(mapped.room, place)
        self._below_keys = -1 if self.keys is None else ~self.keys.mask
        self.masks = tuple(width << at for width, at in zip(self._widths, self.places, strict=True))
        # A tally is its own number.
        self._plan = tuple(
            (range(width + 1) if piece.tally else values, at, width)
            for piece, values, at, width in zip(pieces, self.values, self.places, self._widths, strict=True)
        )
        if self.split:
            self._shape = _shape(pieces, shared, mapped, self.keys)

    def wide(self, shared: Any) -> int:
        pieces = self.pieces(shared)
        entries = pieces.pop() if self.keys is not None else ()
        total = sum(
            self.number(which, value) << place for which, (value, place) in enumerate(zip(pieces, self.places, strict=True))
        )
        return total if self.keys is None else total + self.keys.wide(entries)

    def pieces(self, shared: Any) -> list[Any]:
        """In the order of the layout; the entries of the mapping come last."""
        if not self.split:
            return [shared]
        return self._shape.pieces(shared, len(self.layout) + (self.keys is not None))

    def number(self, which: int, value: Any) -> int:
        if self.layout[which].tally:
            return int(value)
        numbers = self._numbers[which]
        number = numbers.setdefault(value, len(numbers))
        if number == len(self.values[which]):
            if number > self._widths[which] >= 0:
                raise TooMany(f"more than {number} different values of {self.layout[which].path}")
            self.values[which].append(value)
        return number

    def known(self, which: int, value: Any) -> int | None:
        """The number of a value, if it has one."""
        return self._numbers[which].get(value)

    def number_in(self, which: int, wide: int) -> int:
        return wide >> self.places[which] & self._widths[which]

    def values_in(self, wide: int) -> list[Any]:
        pieces = wide & self._below_keys
        return [values[pieces >> at & width] for values, at, width in self._plan]

    def whole(self, wide: int) -> Any:
        values = self.values_in(wide)
        if self.keys is not None:
            values.append(self.keys.entries(wide))
        return self._shape.whole(values) if self.split else values[0]

    def noting(self, wide: int) -> tuple[Any, "Seen"]:
        """The shared part, and which pieces of it will have been looked at."""
        values = self.values_in(wide)
        seen = Seen()
        if self.keys is not None:
            values.append(wide & self.keys.mask)
        if self.split:
            return self._shape.noting(values, seen), seen
        seen.look(0)
        return values[0], seen

    def difference(self, before: Any, after: Any, seen: "Seen") -> int:
        """What a step from `before` (which was noting) to the shared part `after` adds. A piece that it replaces counts as looked
        at, even if by the same value, since the difference depends on what was there."""
        if after is before:
            return 0
        if not self.split:
            return self.number(0, after) - self.number(0, before)
        return self._difference(self._shape, before, after, seen)

    def _difference(self, shape: "Shape", before: Any, after: Any, seen: "Seen") -> int:
        anew = type(after) is not shape.noting_kind
        if anew:  # Not handed through: it depends on every piece of what was there.
            seen.look_at(shape)
        total = 0
        for field, was, value in zip(shape.fields, tuple.__iter__(before), tuple.__iter__(after), strict=True):
            if type(field) is Keys:
                total += (field.wide(value) if anew else after.held) - before.held
            elif value is was:
                continue
            elif type(field) is int:
                total += (self.number(field, value) - self.number(field, was)) << self.places[field]
            elif type(field) is Shape:
                total += self._difference(field, was, value, seen)
            elif value != field.value:
                raise ValueError(f"{shape.kind.__name__}: {value!r} stands where the layout says that nothing changes")
        return total

    def looks(self, seen: "Seen") -> Looks:
        """The bits of what was looked at, in that order, each only once."""
        looks, before = [], 0
        for what in seen.pieces:
            mask = (self.masks[what] if type(what) is int else what.mask) & ~before  # type: ignore[union-attr]
            if mask:
                looks.append(mask)
                before |= mask
        return tuple(looks)


class Seen:
    """What was looked at, in that order: pieces by their numbers, keys of the mapping, all keys."""

    __slots__ = ("_looked",)

    def __init__(self) -> None:
        self._looked: dict[int | KeyPiece | Keys, None] = {}

    @property
    def pieces(self) -> tuple[int | KeyPiece | Keys, ...]:
        return tuple(self._looked)

    def look(self, what: int | KeyPiece | Keys) -> None:
        self._looked[what] = None

    def forget(self) -> None:
        self._looked.clear()

    def look_at(self, shape: "Shape") -> None:
        """At everything in it."""
        for field in shape.fields:
            if type(field) in (int, Keys):
                self.look(field)
            elif type(field) is Shape:
                self.look_at(field)


class Shape:
    """How a named tuple is made of pieces."""

    def __init__(self, kind: type[Any], noting_kind: type[Any], fields: tuple[Any, ...]) -> None:
        self.kind = kind
        self.noting_kind = noting_kind
        self.fields = fields
        """For each field the number of the piece, or the shape of the named tuple that stands there, ..."""
        self._fixed = [field.value if type(field) is Fixed else None for field in fields]
        self._pieces = [(at, field) for at, field in enumerate(fields) if type(field) is int]
        self._nested = [(at, field) for at, field in enumerate(fields) if type(field) is Shape]
        self._keyed = next((at for at, field in enumerate(fields) if type(field) is Keys), None)

    def pieces(self, thing: Any, count: int) -> list[Any]:
        """The pieces in the order of their numbers."""
        found: list[Any] = [None] * count
        self._take_apart(thing, found)
        return found

    def _take_apart(self, thing: Any, found: list[Any]) -> None:
        for field, value in zip(self.fields, tuple.__iter__(thing), strict=True):
            if type(field) is int:
                found[field] = value
            elif type(field) is Keys:
                found[-1] = value
            elif type(field) is Shape:
                field._take_apart(value, found)
            elif value is not field.value and value != field.value:
                raise ValueError(f"{self.kind.__name__}: {value!r} stands where the layout says that nothing changes")

    def whole(self, values: list[Any]) -> Any:
        parts = self._fixed.copy()
        for at, which in self._pieces:
            parts[at] = values[which]
        for at, shape in self._nested:
            parts[at] = shape.whole(values)
        if self._keyed is not None:
            parts[self._keyed] = values[-1]
        return tuple.__new__(self.kind, parts)

    def noting(self, values: list[Any], seen: Seen) -> Any:
        parts = self._fixed.copy()
        for at, which in self._pieces:
            parts[at] = values[which]
        for at, shape in self._nested:
            parts[at] = shape.noting(values, seen)
        if self._keyed is not None:
            parts[self._keyed] = values[-1]
        thing = tuple.__new__(self.noting_kind, parts)
        thing.seen = seen
        if self._keyed is not None:
            thing.held = values[-1]
        return thing


class Fixed(NamedTuple):
    """A field that never changes."""

    value: Any


def _shape(layout: tuple[Piece, ...], shared: Any, mapped: Mapped | None, keys: Keys | None, prefix: str = "") -> Shape:
    places = {piece.path: which for which, piece in enumerate(layout)}
    paths = [*places, *([mapped.path] if mapped is not None else [])]
    fields: list[Any] = []
    for name, value in zip(shared._fields, shared, strict=True):
        path = prefix + name
        if path in places:
            fields.append(places[path])
        elif mapped is not None and path == mapped.path:
            fields.append(keys)
        elif any(other.startswith(f"{path}.") for other in paths):
            fields.append(_shape(layout, value, mapped, keys, f"{path}."))
        else:
            fields.append(Fixed(value))
    return Shape(type(shared), _noting_kind(type(shared), tuple(fields), layout), tuple(fields))


def _noting_kind(kind: type[Any], fields: tuple[Any, ...], layout: tuple[Piece, ...]) -> type[Any]:
    """The same kind of named tuple, but it notes which of its fields are looked at."""
    tallies = {which for which, piece in enumerate(layout) if piece.tally}
    watched = {
        name: field for name, field in zip(kind._fields, fields, strict=True) if type(field) is int and field not in tallies
    }
    shape = Shape(kind, kind, fields)
    places = {name: place for place, name in enumerate(kind._fields)}

    def reader(place: int, field: int) -> property:
        def read(self: Any) -> Any:
            self.seen.look(field)
            return tuple.__getitem__(self, place)

        return property(read)

    def replaced(self: Any, **changes: Any) -> Any:
        for name in changes:
            if (which := watched.get(name)) is not None:
                self.seen.look(which)
        parts = [*tuple.__iter__(self)]
        for name, value in changes.items():
            parts[places[name]] = value
        thing = tuple.__new__(type(self), parts)
        thing.seen = self.seen
        return thing

    def seeing_all(name: str) -> Any:
        def method(self: Any, *arguments: Any) -> Any:
            self.seen.look_at(shape)
            return getattr(tuple, name)(self, *arguments)

        return method

    methods = {name: seeing_all(name) for name in ("__iter__", "__getitem__", "__eq__", "__ne__", "__hash__", "__contains__")}
    readers = {name: reader(places[name], field) for name, field in watched.items()}
    keyed = next((place for place, field in enumerate(fields) if type(field) is Keys), None)
    mapping = {} if keyed is None else noting_methods(fields[keyed], keyed)
    return type(f"Noting{kind.__name__}", (kind,), {**methods, **readers, "_replace": replaced, **mapping})
