"""What a supervisor recorded beside its ranks: which process it started for which rank, when it saw it dead, whom it marked dead.

It is held against what the ranks recorded, and bounds when each of them died: who was seen dead at a moment does nothing after it.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from coxless.errors import CorruptStoreError
from coxless.records import parse_member

from .recorded import FOREVER, FULL, Flaw, Item, Recording, lines_of

STARTED = ("started", "restarted")
OF_A_RANK = (*STARTED, "exited", "marked_dead", "gave_up", "finished")
OF_THE_RUN = ("store_started", "store_died", "store_restarted", "store_lost", "stopping")


@dataclass
class Life:
    """A process of a rank, as its supervisor saw it."""

    file: str
    line: int
    rank: int
    pid: int
    begin: int
    seen_dead: int = FOREVER
    code: int | None = None


@dataclass
class Seen:
    """What all the supervisors of a run saw."""

    lives: list[Life] = field(default_factory=list)
    marked: list[tuple[str, int, int, str]] = field(default_factory=list)
    """File, line, rank and member of each that was marked dead."""
    losses: tuple[Item, ...] | None = None
    """The losses of the store that it ran; None if it ran none."""
    flaws: list[Flaw] = field(default_factory=list)

    def life_of(self, recording: Recording) -> Life | None:
        """By the process id, which a command in between (a shell, say) keeps from being known; then there is none."""
        return next((life for life in self.lives if (life.rank, life.pid) == (recording.rank, recording.pid)), None)


def read_supervisors(folder: Path) -> Seen:
    seen = Seen()
    for path in sorted(folder.glob("*.jsonl")):
        if path.name.startswith("supervisor"):
            _read(path.name, lines_of(path, seen.flaws), seen)
        elif not path.name.startswith("rank"):
            seen.flaws.append(Flaw(path.name, 1, "neither a rank nor a supervisor has recorded this file"))
    return seen


def _read(name: str, lines: Iterable[tuple[int, dict[str, Any]]], seen: Seen) -> None:
    alive: dict[int, Life] = {}
    ended: set[int] = set()
    since = 0
    for number, fields in lines:
        try:
            if fields["t"] == "full":
                seen.flaws.append(Flaw(name, number, f"{FULL}: nothing more was recorded (COXLESS_TRACE_LIMIT)"))
                continue
            if fields["t"] != "event":
                raise ValueError(f"unknown kind of line {fields['t']!r}")
            what, rank, at = fields["what"], fields["rank"], fields["b"]
            if type(at) is not int:
                raise ValueError("its time is no number")
            if what in OF_THE_RUN:
                if what == "store_died":
                    loss = Item(name, number, "lose_store", "lose_store", None, None, since, at)
                    seen.losses = (*(seen.losses or ()), loss)
                elif what == "store_started":
                    seen.losses = seen.losses or ()
                since = at if what.startswith("store") else since
                continue
            if what not in OF_A_RANK:
                raise ValueError(f"unknown event {what!r}")
            if what in STARTED:
                if rank in alive:
                    raise ValueError(f"rank {rank} is started while process {alive[rank].pid} of it runs")
                alive[rank] = Life(name, number, rank, fields["pid"], at)
                seen.lives.append(alive[rank])
            elif what == "exited":
                life = alive.pop(rank, None)
                if life is None or life.pid != fields["pid"]:
                    raise ValueError(f"process {fields['pid']} of rank {rank} ends without having been started")
                life.seen_dead, life.code = at, fields["code"]
                ended.add(rank)
            elif what == "marked_dead":
                if rank not in ended:
                    raise ValueError(f"rank {rank} is marked dead, and no process of it has ended")
                seen.marked += [(name, number, rank, member) for member in fields["detail"].split(", ")]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            seen.flaws.append(Flaw(name, number, f"not understood: {error!r}" if isinstance(error, KeyError) else str(error)))


def contradictions(seen: Seen, recordings: list[Recording]) -> Iterator[Flaw]:
    """Where supervisor and ranks cannot both be right."""
    lives = [seen.life_of(one) for one in recordings]
    members: dict[str, list[Life]] = defaultdict(list)
    for one, life in zip(recordings, lives, strict=True):
        if life is None:
            continue
        for member in one.members:
            members[member].append(life)
        late = next((item for item in (*one.main, *one.clean_up) if item.begin > life.seen_dead), None)
        if late is not None:
            yield Flaw(one.name, late.line, f"process {life.pid} was seen dead before ({life.file})")
    for file, line, rank, text in seen.marked:
        try:
            named = parse_member(text).rank
        except (ValueError, CorruptStoreError):
            yield Flaw(file, line, f"{text!r}, marked dead, is no member")
            continue
        if named != rank:
            yield Flaw(file, line, f"{text} is marked dead as a member of rank {rank}")
        if any(life.seen_dead == FOREVER for life in members[text]):
            yield Flaw(file, line, f"{text} is marked dead, and its process was not seen to end")
    if any(life is not None for life in lives):  # else a command in between hides the process ids
        recorded = {(one.rank, one.pid) for one in recordings}
        for life in seen.lives:
            if life.code == 0 and (life.rank, life.pid) not in recorded:
                yield Flaw(
                    life.file, life.line, f"process {life.pid} of rank {life.rank} ended well, and its recording is missing"
                )
