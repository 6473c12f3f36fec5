"""The record of an iteration as one rank sees it."""

from typing import NamedTuple

from .protocol import Decision
from .records import Member, epoch_start


class Iteration(NamedTuple):
    """One agreed iteration: which it is, and who takes part. Equal on all participants but for what speaks of this rank
    (`index`, `rejoined`, `joined`, `left`)."""

    number: int
    """1, 2, 3, …: never skipped and never repeated (property S2)."""
    epoch: str
    """The name of the membership list. A process group lives exactly as long as its epoch: a new one means that members changed or
    that a step failed."""
    participants: tuple[Member, ...]
    """Who takes part, by rank."""
    index: int  # type: ignore[assignment]  # takes the place of tuple.index, which nobody needs here
    """This rank's place in `participants`: its rank in the epoch's process group."""
    holders: tuple[bool, ...]
    """For each participant, whether it holds the model state as this iteration begins (property S7)."""
    joined: tuple[Member, ...]
    """Participants that did not take part in the last iteration this rank saw."""
    left: tuple[Member, ...]
    """Members that did, and do not now."""
    committed: bool
    """Whether the update of iteration number-1 counts: all its members that go on voted ok (property S8)."""
    winner: Member | None
    """Who won the race for this decision."""
    rejoined: bool
    """This rank did not take part in iteration number-1 (founding, a restart, or it was left behind): whatever model state it has is
    outdated, it has to receive one."""

    @property
    def world_size(self) -> int:
        """How many take part now (the world_size of the epoch's process group)."""
        return len(self.participants)

    @property
    def me(self) -> Member:
        """This rank's own place in it, with its incarnation."""
        return self.participants[self.index]

    @property
    def holds(self) -> bool:
        """Whether this rank holds the model state."""
        return self.holders[self.index]

    @property
    def source(self) -> int | None:
        """The place of the first participant that holds the model state; None when none does (founding, or all holders were lost)."""
        return self.holders.index(True) if True in self.holders else None


def iteration_from(decision: Decision, previous: Iteration | None) -> Iteration:
    """`previous` is the last iteration that this rank took part in."""
    record, listed, me = decision
    if previous is not None and record.epoch == previous.epoch and record.iteration == previous.number + 1:
        # Nobody came or went, and every member holds the state.
        return previous._replace(
            number=record.iteration,
            holders=(True,) * len(previous.participants),
            joined=(),
            left=(),
            committed=record.committed,
            winner=record.winner,
            rejoined=False,
        )
    participants = tuple(member for member, _ in listed)
    before = () if previous is None else previous.participants
    were, are = set(before), set(participants)
    # An epoch is kept only by the fast path, and that asserts that all members hold the state.
    kept = record.iteration > epoch_start(record.epoch)
    follows = previous is not None and previous.number + 1 == record.iteration and me == previous.me
    return Iteration(
        number=record.iteration,
        epoch=record.epoch,
        participants=participants,
        index=participants.index(me),
        holders=(True,) * len(listed) if kept else tuple(holds for _, holds in listed),
        joined=tuple(member for member in participants if member not in were),
        left=tuple(member for member in before if member not in are),
        committed=record.committed,
        winner=record.winner,
        rejoined=not follows,
    )
