"""The damage beyond the store-loss clause, looked at on the real store: one iteration, and two records of it."""

from coxless import keys
from coxless.records import Listed, Member, Record, parse_record

from .replay import Lockstep


class Decisions:
    """What was decided in a replay: what the store's register held, and the records by which the library's ranks took part."""

    def __init__(self, lockstep: Lockstep) -> None:
        self._lockstep = lockstep
        self._registers: list[Record] = []
        """Each value that the register of the real store came to hold, attention aside."""
        self._held: dict[Record, dict[Member, tuple[Listed, ...]]] = {}
        """For each of those who took part in it: by which list."""

    def look(self) -> None:
        """After each step of the replay."""
        text = self._lockstep.target.contents().get(keys.REGISTER)
        if text is not None and (record := _settled(parse_record(text))) not in self._registers:
            self._registers.append(record)
        for replicas in self._lockstep.ranks:
            for state in (replica.state for replica in replicas):
                if state.is_member and state.members is not None:
                    self._held.setdefault(_settled(state.record), {})[state.me] = state.members

    def twice(self) -> list[str]:
        """A sentence for each iteration that was decided more than once."""
        return [
            f"iteration {iteration} was decided {len(records)} times: {'; and '.join(map(self._told, records))}"
            for iteration in sorted({record.iteration for record in self._registers if record.iteration > 0})
            if len(records := [record for record in self._registers if record.iteration == iteration]) > 1
        ]

    def _told(self, record: Record) -> str:
        holders = self._held.get(record, {})
        if not holders:
            return f"the register held {str(record)!r}, by which nobody took part"
        (members,) = set(holders.values())
        listed = ", ".join(str(member) for member, _ in members)
        return f"{' and '.join(map(str, sorted(holders)))} took part by {str(record)!r}, of {listed}"


def _settled(record: Record) -> Record:
    return record._replace(attention=False)
