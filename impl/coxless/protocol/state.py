"""What one rank knows while it takes part in the protocol, and what it knows once an iteration is decided."""

from dataclasses import dataclass, field
from typing import Final, NamedTuple

from .. import keys
from ..records import NO_EPOCH, Flag, Listed, Member, Record, Signature, parse_signatures


class Phase:
    """Where a rank stands between two steps. Each but DECIDED has one generator, in the module that its comment names.

    Plain numbers: the fast path looks its next phase up, and an Enum hashes itself in Python.
    """

    DECIDED: Final = 0
    TAKE_INCARNATION: Final = 1  # joining
    CREATE_REGISTER: Final = 2  # joining
    JOIN: Final = 3  # joining
    SIGN_AS_JOINER: Final = 4  # joining
    ARRIVE: Final = 5  # barrier
    AWAIT_FULL: Final = 6  # barrier
    PROPOSE_SAME_EPOCH: Final = 7  # barrier
    SIGN: Final = 8  # barrier
    READ_REGISTER: Final = 9  # barrier
    CLOSE: Final = 10  # closing
    LEARN: Final = 11  # learning
    RECOVER: Final = 12  # recovery


NOBODY = Member(-1, 0, "")
NOTHING = Record("", -1, NO_EPOCH, committed=False, attention=False, winner=None)


class Decision(NamedTuple):
    """One decided iteration, as the rank `me` accepted it."""

    record: Record
    members: tuple[Listed, ...]
    """The list of the record's epoch; `me` is in it."""
    me: Member


class EpochText(NamedTuple):
    """What does not change in the register's text while an epoch lasts, so that the fast path formats little and parses nothing."""

    epoch: str
    before: str
    """Up to the iteration of a record."""
    after: str
    """From the iteration to the winner, in a committed record without attention."""
    me: str
    members: dict[str, Member]


@dataclass(slots=True)
class RankState:
    """Mutable, and owned by exactly one generator at a time. `rank`, `world_size` and `min_ranks` are the caller's."""

    rank: int
    world_size: int
    min_ranks: int
    nonce: str
    """Random, drawn by the driver; with the incarnation number it makes the member unique."""
    generation: str
    """Random, drawn by the driver; used only when this rank creates the register."""

    me: Member = NOBODY
    record: Record = NOTHING
    """The latest record accepted, attention as last read."""
    members: tuple[Listed, ...] | None = None
    """The list of record.epoch; None while it is not read yet."""
    is_member: bool = False
    """Takes part in record.iteration (a member), or wants to (a joiner)."""

    # at the barrier of record.iteration
    flag: Flag = "j"
    signed: bool = False
    full: bool = False
    """The barrier is known to be complete."""
    written: dict[str, tuple[Listed, ...]] = field(default_factory=dict)
    """Lists proposed at this barrier, by epoch."""

    looked_at: tuple[str, tuple[Signature, ...]] = ("", ())
    """`arrived` as last read, and what it says."""

    news: Record = NOTHING
    """A newer record than `record`, being learned."""
    deletions: list[str] = field(default_factory=list)
    """Keys to delete off the critical path, by exact name. The driver takes them from here."""
    known_text: tuple[Record, str] = (NOTHING, "")
    """A record, and its text as the store has it."""
    known_epoch: EpochText | None = None
    missing: tuple[Member, ...] = ()
    """Members that the last look at the barrier did not find; for error messages only."""
    seen: tuple[Member, ...] = ()
    """Candidates that the last look found; for error messages only."""

    @property
    def listed(self) -> tuple[Listed, ...]:
        """The list of record.epoch, which must have been read."""
        if self.members is None:
            raise AssertionError(f"the list of epoch {self.record.epoch} was not read yet")
        return self.members

    def record_text(self) -> str:
        """The register's value, if it still is `record`."""
        record, text = self.known_text
        return text if record is self.record else str(self.record)

    def epoch_text(self) -> EpochText:
        """For the epoch of `record`; made once in an epoch."""
        epoch = self.known_epoch
        if epoch is None or epoch.epoch != self.record.epoch:
            generation, name = self.record.generation, self.record.epoch
            members = {str(member): member for member, _ in self.listed}
            self.known_epoch = epoch = EpochText(name, f"c1 {generation} ", f" {name} 1 0 ", str(self.me), members)
        return epoch

    def signatures_in(self, text: str) -> tuple[Signature, ...]:
        """Who has signed at this barrier. The key is appended to, so only what is new is parsed: while hundreds of ranks found, each reads
        it over and over, and to parse it all each time would keep them from coming to their end. Raises CorruptStoreError."""
        known, signatures = self.looked_at
        if not text.startswith(known):  # a late clean-up deleted it, or the store lost its data
            known, signatures = "", ()
        if text != known:
            signatures += parse_signatures(self.record.iteration, text[len(known) :])
            self.looked_at = (text, signatures)
        return signatures

    def start_barrier(self, record: Record, members: tuple[Listed, ...] | None, *, member: bool) -> None:
        """Stand before the barrier of `record`, with nothing done at it yet."""
        self.record, self.members, self.is_member = record, members, member
        self.flag = "j"
        self.signed = self.full = False
        if self.written:
            self.written = {}
        self.looked_at = ("", ())
        self.news = NOTHING
        self.missing = self.seen = ()

    def decide(self, record: Record, members: tuple[Listed, ...], text: str | None = None) -> int:
        """Accept `record`, in whose list this rank is, and name the keys that this rank has to clean up.

        text: the record as the store has it, where that is at hand.
        """
        before = self.record
        if text is not None:
            self.known_text = (record, text)
        if record.winner == self.me:
            # The winner of k+1 cleans the barrier of k-1: nobody is left there, since every member of k has passed it.
            if before.iteration >= 1:
                self.deletions += keys.barrier(before.iteration - 1)
            if record.epoch != before.epoch and before.epoch != NO_EPOCH:
                self.deletions.append(keys.members(before.epoch))
        if self.written:
            self._delete_vain_lists(record)
        self.start_barrier(record, members, member=True)
        return Phase.DECIDED

    def leave_behind(self, record: Record, members: tuple[Listed, ...] | None) -> int:
        """Left out of `record` (a member) or outrun by it (a joiner): join there. What was perhaps written late is deleted."""
        k = self.record.iteration
        if record.iteration > k:
            if k >= 1:
                self.deletions += keys.barrier(k - 1)
            if record.iteration >= k + 2:  # else the winner of k+2 still comes by
                self.deletions += keys.barrier(k)
                if (
                    k >= 1 and record.epoch != self.record.epoch
                ):  # perhaps it was this rank that replaced that list, and the reply was lost
                    self.deletions.append(keys.members(self.record.epoch))
            self._delete_vain_lists(record)
        self.start_barrier(record, members, member=False)
        return Phase.JOIN

    def _delete_vain_lists(self, record: Record) -> None:
        # Only now that the register is past k: before, another closer might be about to propose the same list.
        self.deletions += [keys.members(epoch) for epoch in self.written if epoch != record.epoch]
