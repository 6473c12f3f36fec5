"""What a rank can see of the others while it waits for them in a collective: whether its iteration can still complete."""

from . import keys
from .driver import Driver
from .iteration import Iteration
from .records import parse_record, parse_signatures

_AT_ONCE = 8
"""So many participants are asked about in one look: it must not take longer the larger the crew is."""


class Lookout:
    """Looks over the training thread's connection, between two runs of its driver."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._next_to_ask = 0

    def trouble(self, iteration: Iteration) -> str | None:
        """Why this iteration cannot complete as it is, or None. Raises StoreUnreachableError."""
        return self._driver.look(lambda: self._moved_on(iteration) or self._gone(iteration))

    def _moved_on(self, iteration: Iteration) -> str | None:
        text = self._driver.connection.read(keys.REGISTER)
        if text is None:  # the store has lost its data, and nobody has put it back yet: each does so when it advances
            return None
        record = parse_record(text)
        if record.iteration > iteration.number:
            return f"the crew is at iteration {record.iteration}"
        if record.iteration < iteration.number or record.epoch != iteration.epoch:
            # Whoever put that back never learned of this iteration, and waits at the barrier before it, not in the collective. It learns
            # of it when somebody advances and puts it back in turn.
            return f"the store was lost and is back at iteration {record.iteration}"
        if not record.attention:
            return None
        arrived = self._driver.connection.read(keys.arrived(iteration.number))
        participants = {participant.rank: participant for participant in iteration.participants}
        for member, flag in parse_signatures(iteration.number, arrived or ""):
            participant = participants.get(member.rank)
            if participant is None:
                continue
            if member == participant and flag != "o":
                return f"the step failed on rank {member.rank}"
            if member.replaces(participant):
                return f"rank {member.rank} was restarted"
        return None

    def _gone(self, iteration: Iteration) -> str | None:
        others = [member for member in iteration.participants if member != iteration.me]
        for _ in range(min(_AT_ONCE, len(others))):
            self._next_to_ask = (self._next_to_ask + 1) % len(others)
            member = others[self._next_to_ask]
            if self._driver.suspects(member):
                return f"rank {member.rank} is gone"
        return None
