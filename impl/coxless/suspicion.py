"""Whom an observer suspects, and who observes: pure bookkeeping over heartbeats that it has read, on its own monotonic clock."""

from collections.abc import Sequence
from dataclasses import dataclass

from .records import DEAD, LEFT, Member

ALL_LOOK = 32
"""Up to so many members everybody at the barrier looks who of the missing is alive."""
_LOOKOUTS = 8
"""In a larger crew so many do, or up to twice as many. If all looked at all the others, the store would have to answer a thousand members a
million times, one after another, while it is slow already; then whoever is late is the later for it, and the crew does not get on."""


@dataclass(slots=True)
class _Seen:
    value: str | None
    at: float
    silent: float
    looked_away: bool = False


def is_lookout(member: Member, present: Sequence[Member]) -> bool:
    """Whether this member is one of those who look. `present`: who is known to be at the barrier. They are spread over it, since neighbours
    tend to die together; the first of them is one."""
    return member not in present or present.index(member) % max(1, len(present) // _LOOKOUTS) == 0


class HeartbeatObserver:
    """Suspects a member whose heartbeat it has seen unchanged for `timeout` seconds, or at once one marked dead or left.

    Only time in which it could look is counted: between two looks at most `longest_gap` seconds. So neither a store that hung, nor
    this process having been frozen, makes anybody else suspect. No clocks of two hosts are compared: the value is opaque here.
    """

    def __init__(self, *, timeout: float, longest_gap: float) -> None:
        self.timeout = timeout
        self._longest_gap = longest_gap
        self._seen: dict[Member, _Seen] = {}

    def observe(self, member: Member, value: str | None, now: float) -> bool:
        """Take note of a heartbeat just read (None: the key is missing) and say whether the member is suspected."""
        if value in (DEAD, LEFT):
            return True
        seen = self._seen.get(member)
        if seen is None or seen.value != value:
            self._seen[member] = _Seen(value, now, 0.0)
            return False
        if not seen.looked_away:
            seen.silent += min(now - seen.at, self._longest_gap)
        seen.at, seen.looked_away = now, False
        return seen.silent >= self.timeout

    def look_away(self) -> None:
        """The connection to the store was lost: what lies between the last look and the next one is nobody's silence."""
        for seen in self._seen.values():
            seen.looked_away = True

    def silence(self, member: Member) -> float:
        """For how long (s) the member has been seen silent."""
        seen = self._seen.get(member)
        return 0.0 if seen is None else seen.silent

    def forget_all_but(self, members: set[Member]) -> None:
        """Drop what is known of members that are not in the crew any more."""
        self._seen = {member: seen for member, seen in self._seen.items() if member in members}
