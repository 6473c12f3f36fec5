"""What the store holds, as values: members, the register's record, membership lists, signatures, heartbeats.

Everything that comes from the store is parsed here, strictly and with bounds; whatever does not parse is a `CorruptStoreError`
that names the key and the value. Each encoding is canonical: `encode(parse(text)) == text`, so that compare_set can compare text.
"""

import hashlib
import re
from typing import Literal, NamedTuple

from . import keys
from .errors import CorruptStoreError

Flag = Literal["o", "f", "j"]
"""What a rank says of itself at a barrier: o, its step worked; f, it failed but the rank holds the model state; j, it does not
hold the model state."""

MOST_RANKS = 1_000_000
LONGEST_WORD = 64 * 1024
"""Of what is published, in characters."""
_RANK = r"(?:0|[1-9][0-9]{0,5})"  # less than MOST_RANKS
_NUMBER = r"(?:0|[1-9][0-9]{0,17})"  # 64 bits, in any store
_MEMBER = rf"({_RANK})\.({_NUMBER})-([0-9a-f]{{1,16}})"
_EPOCH = r"(?:0|[1-9][0-9]{0,17}-[0-9a-f]{12})"
_member = re.compile(_MEMBER)
_listed = re.compile(rf"{_MEMBER}\.([hj]),")
_signature = re.compile(rf"{_MEMBER}\.([ofj]),")
_record = re.compile(rf"c1 ([0-9a-f]{{1,16}}) ({_NUMBER}) ({_EPOCH}) ([01]) ([01]) (-|{_MEMBER})")
_beat = re.compile(rf"({_NUMBER}) ({_NUMBER}) ({_NUMBER}\.[0-9]{{3}})")


class Member(NamedTuple):
    """A rank together with its incarnation: the number (from a counter in the store) and a nonce, which keeps it unique even when
    the store has lost the counter. Members of one rank are ordered by age, the newest last (property S6)."""

    rank: int
    number: int
    nonce: str

    @property
    def incarnation(self) -> str:
        """Number and nonce, as the store writes them."""
        return f"{self.number}-{self.nonce}"

    def __str__(self) -> str:
        return f"{self.rank}.{self.number}-{self.nonce}"

    def replaces(self, other: "Member") -> bool:
        """Whether this is a newer incarnation of the same rank."""
        return self.rank == other.rank and self[1:] > other[1:]


class Listed(NamedTuple):
    """One line of a membership list: a member, and whether it holds the model state when the epoch begins."""

    member: Member
    holds: bool


class Signature(NamedTuple):
    """What a rank appended to the barrier's `arrived` key."""

    member: Member
    flag: Flag

    def __str__(self) -> str:
        return f"{self.member}.{self.flag},"


class Record(NamedTuple):
    """The register's value. `committed` speaks of the iteration before: whether its update counts (property S8)."""

    generation: str
    iteration: int
    epoch: str
    committed: bool
    attention: bool
    winner: Member | None

    def __str__(self) -> str:
        winner = "-" if self.winner is None else self.winner
        return f"c1 {self.generation} {self.iteration} {self.epoch} {self.committed:d} {self.attention:d} {winner}"

    def same_decision(self, other: "Record") -> bool:
        """Equal, attention aside: attention may be raised on a record, everything else in it is final."""
        return self._replace(attention=other.attention) == other


class Beat(NamedTuple):
    """A heartbeat: how many so far, the iteration the rank is in, and the sender's wall clock (s), which only people read."""

    number: int
    iteration: int
    wall_clock: float

    def __str__(self) -> str:
        return f"{self.number} {self.iteration} {self.wall_clock:.3f}"


NO_EPOCH = "0"
"""The epoch of genesis, which has no members."""

DEAD = "dead"
LEFT = "left"


def genesis(generation: str) -> Record:
    """The first value of the register: iteration 0, no members, attention up since everyone is yet to join."""
    return Record(generation, 0, NO_EPOCH, committed=False, attention=True, winner=None)


def corrupt(key: str, value: str | bytes, wanted: str) -> CorruptStoreError:
    """The error about a value that no member of the crew wrote; it shows the beginning, escaped."""
    shown = repr(value) if len(value) <= 120 else f"{value[:100]!r}... ({len(value)} in all)"
    return CorruptStoreError(
        f"the store's key {key!r} holds {shown}, which is not {wanted}: is another program using this store?"
    )


def parse_record(text: str) -> Record:
    """The register's value. Raises CorruptStoreError, as everything here that parses does."""
    match = _record.fullmatch(text)
    if match is None:
        raise corrupt(keys.REGISTER, text, "a coxless record")
    generation, iteration, epoch, committed, attention, winner, rank, number, nonce = match.groups()
    undecided = (epoch == NO_EPOCH, winner == "-", committed == "0")
    # Each field is well-formed; together they have to be genesis, or what somebody has decided.
    if (not all(undecided) if iteration == "0" else any(undecided[:2])) or epoch_start(epoch) > int(iteration):
        raise corrupt(keys.REGISTER, text, "the record of a decision")
    return Record(
        generation,
        int(iteration),
        epoch,
        committed == "1",
        attention == "1",
        None if winner == "-" else Member(int(rank), int(number), nonce),
    )


def parse_member(text: str) -> Member:
    """`rank.number-nonce`, as str(member) writes it. Raises ValueError."""
    match = _member.fullmatch(text)
    if match is None:
        raise ValueError(f"{text[:100]!r} is not a member: expected rank.number-nonce, such as 2.1-9f3a1c2e")
    rank, number, nonce = match.groups()
    return Member(int(rank), int(number), nonce)


def encode_members(members: tuple[Listed, ...]) -> str:
    """A membership list as the store has it."""
    return "".join(f"{member}.{'h' if holds else 'j'}," for member, holds in members)


def epoch_of(iteration: int, encoded_members: str) -> str:
    """The name of a membership list that takes effect at `iteration`. It contains a digest of the list, so whoever writes under
    this name writes the same bytes: two closers that reach the same conclusion do not disturb each other, and a proposal whose
    reply was lost can never come to point at another list than the one it was made with (property S1)."""
    return f"{iteration}-{hashlib.sha256(encoded_members.encode()).hexdigest()[:12]}"


def epoch_start(epoch: str) -> int:
    """The iteration at which the epoch's list took effect."""
    return int(epoch.partition("-")[0])


def parse_members(epoch: str, text: str) -> tuple[Listed, ...]:
    """The list of this epoch, which must be the one that the name of the epoch has the digest of."""
    key = keys.members(epoch)
    listed = tuple(
        Listed(Member(int(rank), int(number), nonce), holds == "h")
        for rank, number, nonce, holds in _parse_all(_listed, key, text, "a membership list")
    )
    ranks = [member.rank for member, _ in listed]
    if not listed or ranks != sorted(set(ranks)) or epoch_of(epoch_start(epoch), text) != epoch:
        raise corrupt(key, text, "the membership list that this epoch names")
    return listed


def parse_signatures(iteration: int, text: str) -> tuple[Signature, ...]:
    """In the order in which they were appended. A repeated signature (after a lost reply) is kept."""
    key = keys.arrived(iteration)
    return tuple(
        Signature(Member(int(rank), int(number), nonce), flag)  # type: ignore[arg-type]  # the pattern admits only flags
        for rank, number, nonce, flag in _parse_all(_signature, key, text, "a list of arrivals")
    )


def _parse_all(pattern: re.Pattern[str], key: str, text: str, wanted: str) -> list[tuple[str, ...]]:
    position, rows = 0, []
    while position < len(text):
        match = pattern.match(text, position)
        if match is None:
            raise corrupt(key, text[position:], wanted)
        rows.append(match.groups())
        position = match.end()
    return rows


def parse_counter(key: str, text: str) -> int:
    """A count of incarnations."""
    if re.fullmatch(_NUMBER, text) is None:
        raise corrupt(key, text, "a count")
    return int(text)


def published_word(name: str, value: str) -> tuple[str, str]:
    """Key and value of what is published under a name. Raises ValueError for what the store, or its readers, would not take."""
    if not name.isascii() or not name.isprintable() or not 0 < len(name) <= 200:
        raise ValueError(f"{name[:60]!r} is no name to publish under: it has 1 to 200 printable ASCII characters")
    if not value.isascii() or len(value) > LONGEST_WORD:
        raise ValueError(f"what is published is ASCII text of at most {LONGEST_WORD} characters, not {value[:60]!r}")
    return keys.published(name), value


def parse_published(key: str, text: str) -> str:
    """What was published."""
    if len(text) > LONGEST_WORD:
        raise corrupt(key, text, f"a word of at most {LONGEST_WORD} characters")
    return text


def parse_heartbeat(key: str, text: str) -> Beat | Literal["dead", "left"]:
    """What a member, or its supervisor, has written last."""
    if text in (DEAD, LEFT):
        return text  # type: ignore[return-value]  # mypy does not narrow str to the literals
    match = _beat.fullmatch(text)
    if match is None:
        raise corrupt(key, text, "a heartbeat")
    number, iteration, wall_clock = match.groups()
    return Beat(int(number), int(iteration), float(wall_clock))
