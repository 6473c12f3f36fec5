"""Which keys nobody will read again. Pure: the housekeeper lists the keys, and deletes what is named here."""

from collections.abc import Iterable, Sequence

from . import keys
from .records import Member, parse_member


def litter(listed_keys: Iterable[str], before: int, participants: Sequence[Member]) -> list[str]:
    """What the dead have left behind, once an epoch with these participants has begun: a rank that died took its own deletions along.

    The keys of every barrier before that of iteration `before`: nobody stands there any more, whoever is still to learn so.

    The heartbeat of every incarnation that does not take part and of whose rank there is a newer one. A heartbeat is read only of a
    member of the register's list that is missing at its barrier. Whoever still stands before an older list cannot decide anything by it
    (the register has moved on), and one that is deleted wrongly, since even the newest list is already an old one, is a change as any
    other to those who look: nobody is suspected for it, and the next beat writes it again.
    """
    taking_part = set(participants)
    doomed, beating = [], []
    for key in listed_keys:
        k = keys.iteration_of_barrier(key)
        if k is not None and k < before:
            doomed.append(keys.without_ending(key))  # a part of the count goes with it
        member = _beating(key)
        if member is not None:
            beating.append(member)
    newest: dict[int, Member] = {}
    for member in [*beating, *participants]:
        newest[member.rank] = max(newest.get(member.rank, member), member)
    return [*dict.fromkeys(doomed)] + [keys.heartbeat(m) for m in beating if m not in taking_part and m != newest[m.rank]]


def _beating(key: str) -> Member | None:
    if not key.startswith(keys.heartbeat("")):
        return None
    try:
        return parse_member(key.removeprefix(keys.heartbeat("")))
    except ValueError:  # not ours
        return None
