"""Who is killed where, and whether he comes back."""

from __future__ import annotations

import json
import random
import re
from dataclasses import asdict, dataclass
from pathlib import Path

PLACES = {
    "collective": "in a collective: a part of the gradients is exchanged, the rest is not",
    "barrier": "in the barrier: it has arrived, and has not heard the outcome",
    "winner": "between winning and telling: whoever wins the race for this iteration",
}
RETURNS = {
    # Nobody tells the others: they wait for the rank, and its new process is there before they take the old one for dead.
    "early": "started again at once, before the others have noticed",
    "late": "started again when the others have gone on without it",
    "never": "not started again",
}


@dataclass(frozen=True)
class Kill:
    """SIGKILL at one place of one iteration."""

    place: str
    iteration: int
    rank: int | None
    """None for the winner, who is not known beforehand."""
    back: str

    def __str__(self) -> str:
        who = "" if self.rank is None else f":{self.rank}"
        return f"{self.place}@{self.iteration}{who}:{self.back}"


@dataclass(frozen=True)
class Plan:
    """All that the processes of a run have to know."""

    ranks: int
    steps: int
    kills: tuple[Kill, ...]
    step_time: float
    """How long a step takes at least, in seconds."""

    def kill_of(self, rank: int, restarts: int) -> Kill | None:
        """What is in store for a process of `rank` that was started for the n-th time (counted from 0): its own, or the winner's."""
        own = [kill for kill in self.kills if kill.rank == rank]
        return own[restarts] if restarts < len(own) else next((kill for kill in self.kills if kill.rank is None), None)

    @property
    def final_size(self) -> int:
        """How many ranks there are in the end."""
        return self.ranks - sum(kill.back == "never" for kill in self.kills)

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))


def load(path: Path) -> Plan:
    fields = json.loads(path.read_text())
    return Plan(**{**fields, "kills": tuple(Kill(**kill) for kill in fields["kills"])})


def parse(text: str) -> Kill:
    """Reads `collective@45:1:late`, `barrier@120:2:early` or `winner@220:never`. Raises ValueError."""
    match = re.fullmatch(r"(\w+)@(\d+)(?::(\d+))?:(\w+)", text)
    if match is None or match[1] not in PLACES or match[4] not in RETURNS:
        raise ValueError(
            f"{text!r} is not PLACE@ITERATION:RANK:RETURN, with PLACE one of {', '.join(PLACES)}, RETURN one of {', '.join(RETURNS)}"
        )
    place, iteration, rank, back = match[1], int(match[2]), match[3], match[4]
    if (place == "winner") != (rank is None):
        raise ValueError(f"{text!r}: who wins is not known beforehand, so a winner has no RANK, and all others have one")
    if place == "winner" and back == "early":
        raise ValueError(
            f"{text!r}: a winner cannot be 'early'; only a rank that is known beforehand can be kept from being reported"
        )
    return Kill(place, iteration, None if rank is None else int(rank), back)


def check(plan: Plan) -> None:
    """Raises ValueError for a plan that cannot be carried out."""
    last = 0
    for kill in plan.kills:
        if kill.rank is not None and kill.rank >= plan.ranks:
            raise ValueError(f"{kill}: there are only ranks 0 to {plan.ranks - 1}")
        if not 2 <= kill.iteration <= plan.steps:
            raise ValueError(f"{kill}: the iteration must be within 2 and {plan.steps}")
        if kill.iteration <= last:
            raise ValueError(f"{kill}: give the kills in the order of their iterations, at different ones")
        last = kill.iteration
    if any(kill.place == "winner" for kill in plan.kills[:-1]):
        raise ValueError("the winner has to be the last who is killed")
    for rank in range(plan.ranks):
        own = [kill for kill in plan.kills if kill.rank == rank]
        if any(kill.back == "never" for kill in own[:-1]):
            raise ValueError(f"rank {rank} is killed again after it was killed for good")
    if plan.final_size < 2:
        raise ValueError("at least two ranks have to be left in the end")


def draw(seed: int, ranks: int, steps: int) -> tuple[Kill, ...]:
    """One kill at each place; one rank comes back late, one early, one never. The same for the same arguments."""
    chance = random.Random(seed)
    first, second = chance.sample(range(ranks), 2)
    places = chance.sample(["collective", "barrier"], 2)

    def within(start: float, end: float) -> int:
        return max(2, chance.randint(int(start * steps), int(end * steps)))

    return (
        Kill(places[0], within(0.1, 0.2), first, "late"),  # first, so that it has the time to come back
        Kill(places[1], within(0.4, 0.55), second, "early"),
        Kill("winner", within(0.7, 0.8), None, "never"),
    )
