"""Whom an observer suspects: pure bookkeeping over heartbeats that it has read, on its own monotonic clock."""

from dataclasses import dataclass

from .records import DEAD, LEFT, Member


@dataclass(slots=True)
class _Seen:
    value: str | None
    at: float
    silent: float
    looked_away: bool = False


class HeartbeatObserver:
    """Suspects a member whose heartbeat it has seen unchanged for `timeout` seconds, or at once one marked dead or left.

    Only time in which it could look is counted: between two looks at most `longest_gap` seconds. So neither a store that hung, nor
    this process having been frozen, makes anybody else suspect. No clocks of two hosts are compared: the value is opaque here.
    """

    def __init__(self, *, timeout: float, longest_gap: float) -> None:
        self._timeout = timeout
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
        return seen.silent >= self._timeout

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
