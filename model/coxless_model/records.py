"""What the ranks write to each other: members, lists of members, records, signatures; and how each looks after renaming ranks.

An epoch is modelled as (the iteration at which the list took effect, the list itself) where the implementation has a digest
of the list: the name of a list says what is in it, either way.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

from .store import Key

Perm = tuple[int, ...]


class Member(NamedTuple):
    rank: int
    number: int
    nonce: int


class Listed(NamedTuple):
    member: Member
    holds: bool


Members = tuple[Listed, ...]


class Epoch(NamedTuple):
    since: int
    members: Members


class Record(NamedTuple):
    """A register value."""

    generation: int
    iteration: int
    epoch: Epoch
    committed: bool
    attention: bool
    winner: Member | None

    def raised(self) -> "Record":
        return self._replace(attention=True)

    def lowered(self) -> "Record":
        return self._replace(attention=False)

    def same(self, other: "Record") -> bool:
        """The same decision; attention may have come up in one of them."""
        return self.lowered() == other.lowered()


class Signature(NamedTuple):
    member: Member
    flag: str
    """o: its step worked; f: it failed, but the member holds the model state; j: it does not hold the state."""


Signatures = tuple[Signature, ...]


def worst(signatures: Signatures) -> dict[Member, str]:
    """What each says of itself; the worse, where it said two things: j outweighs f, and f outweighs o."""
    flags: dict[Member, str] = {}
    for member, flag in signatures:
        flags[member] = max(flag, flags.get(member, flag), key="ofj".index)
    return flags


def genesis(generation: int) -> Record:
    return Record(generation, 0, Epoch(0, ()), committed=False, attention=True, winner=None)


def newer(one: Member, other: Member) -> bool:
    """`one` is a newer incarnation of the same rank."""
    return one.rank == other.rank and one[1:] > other[1:]


def names(members: Members) -> tuple[Member, ...]:
    return tuple(listed.member for listed in members)


def listed_as(members: Members, member: Member) -> Listed | None:
    return next((listed for listed in members if listed.member == member), None)


def newest(members: Iterable[Member]) -> tuple[Member, ...]:
    """The newest incarnation of each rank, by rank."""
    latest: dict[int, Member] = {}
    for member in sorted(members):
        latest[member.rank] = member
    return tuple(latest[rank] for rank in sorted(latest))


def rename(thing: Any, perm: Perm) -> Any:
    """Anything made of the types above, with the ranks in it renamed, and sorted again where it was sorted by rank."""
    if isinstance(thing, Member):
        return Member(perm[thing.rank], thing.number, thing.nonce)
    if isinstance(thing, tuple):
        parts = [rename(part, perm) for part in thing]
        if hasattr(thing, "_fields"):
            return type(thing)(*parts)
        # A plain tuple of named ones is a set, kept sorted so that there is one way to write it.
        return tuple(sorted(parts)) if parts and hasattr(parts[0], "_fields") else tuple(parts)
    return thing


def rename_key(key: Key, perm: Perm) -> Key:
    if key[0] in ("incarnation", "drawn_heartbeat", "last_iteration"):
        return (key[0], perm[key[1]])
    return (key[0], *(rename(part, perm) for part in key[1:]))
