"""Reading recorded runs: JSON lines become what the model calls them. Nothing is skipped in silence: every line that is torn, missing,
unknown or not understood is a `Flaw`."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from coxless.errors import CorruptStoreError
from coxless_model.environment import SPARED

from .words import Words

LOCAL = ("vote", "decision", "left", "end")
FOREVER = 1 << 62
TORN, FULL = "torn", "full"
NONCE = re.compile("[0-9a-f]{1,16}")


class Flaw(NamedTuple):
    file: str
    line: int
    what: str

    @property
    def harmless(self) -> bool:
        """A process that was killed while it wrote a line leaves it torn; the line is as if it had not been written."""
        return self.what.startswith(TORN)

    @property
    def open_end(self) -> bool:
        """What the process did from here on is not known."""
        return self.what.startswith(FULL)


class Item(NamedTuple):
    """A line, or one of the steps that a line tells, in the model's words."""

    file: str
    line: int
    kind: str
    name: str
    op: tuple[Any, ...] | None
    result: Any
    begin: int
    end: int
    """The latest moment at which it can have taken effect."""
    sent: int = 0
    """When it has most likely taken effect, if not at its end."""
    timed_out: bool | None = None
    """With read_arrived while founding: what the driver said when asked whether the join timeout has passed."""
    unsure: bool = False
    """Of an operation without a reply: whether it arrived is not known, as the connection was found broken after it (or nothing followed)."""
    emptied: bool = False
    """Of a broken operation: what the process read next shows that the store has lost its data."""
    extra: bool = False
    """One of several steps that a line tells, and not the first of them."""

    @property
    def likely(self) -> int:
        return self.sent or self.end


class Recording(NamedTuple):
    """What one process recorded: what its training thread did, and what it deleted beside it."""

    name: str
    rank: int
    pid: int
    world_size: int
    min_ranks: int
    begin: int
    main: tuple[Item, ...]
    clean_up: tuple[Item, ...]
    members: tuple[str, ...] = ()
    """Who it has been in the crew, by what it decided."""
    nonce: int = 0
    until: int = FOREVER
    """When its file was full."""


def read_recordings(folder: Path) -> tuple[list[Recording], list[Flaw]]:
    """Each file that a rank has written, in the order in which they began to do something; and what is wrong with them."""
    flaws: list[Flaw] = []
    paths = sorted(folder.glob("rank*.jsonl"))
    words = Words()
    for path in paths:  # a list is known by the digest in its name, so all of them are read first
        words.learn_lists(path)
    recordings = []
    for path in paths:
        reader = _Reader(path.name, words, flaws)
        for number, fields in lines_of(path, flaws):
            reader.read(number, fields)
        if (recording := reader.recording()) is not None:
            recordings.append(recording)
    return sorted(recordings, key=_first), flaws


def _first(one: Recording) -> tuple[int, str]:
    return (one.main[0].begin or one.begin) if one.main else one.begin, one.name


def lines_of(path: Path, flaws: list[Flaw]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The lines of a file, each with its number."""
    wanted = number = 0
    with path.open("rb") as file:
        for text in file:
            number += 1
            if not text.endswith(b"\n"):
                flaws.append(Flaw(path.name, number, f"{TORN}: the process was killed while it wrote this line"))
                return
            try:
                fields = json.loads(text)
                found, _ = fields["n"], fields["t"]
                if type(found) is not int:
                    raise TypeError(found)
            except (ValueError, KeyError, TypeError, RecursionError):
                flaws.append(Flaw(path.name, number, f"not a line of a recording: {text[:60]!r}"))
                continue
            if found != wanted:
                flaws.append(Flaw(path.name, number, f"line {wanted} is missing: this one says that it is line {found}"))
            wanted = found + 1
            yield number, fields
    if not number:
        flaws.append(Flaw(path.name, 0, f"{TORN}: the file is empty, its process was killed before it wrote a line"))


def text_of(path: Path, line: int) -> str:
    """The text of a line, for people."""
    with path.open("rb") as file:
        for number, text in enumerate(file, start=1):
            if number == line:
                return text.decode(errors="replace").rstrip("\n")
    return ""


class _Reader:
    """One file on its way to a Recording."""

    def __init__(self, name: str, words: Words, flaws: list[Flaw]) -> None:
        self.name, self.words, self.flaws = name, words, flaws
        self.main: list[Item] = []
        self.clean_up: list[Item] = []
        self.start: dict[str, Any] = {}
        self.members: dict[str, None] = {}
        self.last = 0
        self.until = FOREVER
        self.some = False

    def read(self, number: int, fields: dict[str, Any]) -> None:
        self.some = True
        try:
            self._read(number, fields)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, CorruptStoreError) as error:
            what = f"{type(error).__name__}: {error}" if isinstance(error, KeyError) else str(error)
            self.flaws.append(Flaw(self.name, number, f"not understood: {what}"))

    def _read(self, number: int, fields: dict[str, Any]) -> None:
        words, main = self.words, self.main
        match fields["t"]:
            case "start":
                if self.start:
                    raise ValueError("a second start line")
                self.start = fields
            case "op" | "broken" if fields["o"] == "JoinTimedOut":
                if not main or main[-1].name != "read_arrived":
                    raise ValueError("the join timeout is asked about only after read_arrived")
                if fields["t"] == "op":
                    main[-1] = main[-1]._replace(timed_out=fields["r"])
                else:
                    main[-1] = main[-1]._replace(kind="broken", end=self._time(number, fields)[1])
            case "op" | "broken" as kind:
                op, result = words.operation(fields["o"], fields["a"], fields.get("r"))
                begin, end = self._time(number, fields)
                if main and main[-1].kind == "broken" and kind == "op":
                    main[-1] = main[-1]._replace(emptied=words.shows_empty(fields["s"], op, result))
                barrier = op[0] == "barrier"
                # It counts as soon as it is asked.
                main.append(Item(self.name, number, kind, fields["s"], op, result, begin, end, sent=begin if barrier else 0))
                if barrier and kind == "op":  # one call, two steps of the model: to be counted, and to be let through
                    reply = ("barrier_reply", *op[1:])
                    main.append(Item(self.name, number, kind, "await_barrier", reply, result, begin, end, extra=True))
            case "fast":
                self._fast(number, fields)
            case "delete":
                begin, end = _moments(fields)
                op = ("delete_key", words.key(fields["a"][0]))
                self.clean_up.append(Item(self.name, number, "delete", "clean_up", op, None, begin, end))
            case "forgot":
                forgotten = tuple(map(words.key, fields["a"]))
                self.clean_up.append(Item(self.name, number, "forgot", "forgot", None, forgotten, *_moments(fields)))
            case "decision":
                record, members, me = fields["record"], fields["members"], fields["me"]
                self.members[me] = None
                told = (words.record(record), words.members(record.split(" ")[3], members), words.member_of(me))
                main.append(Item(self.name, number, "decision", "", None, told, 0, 0))
            case "vote":
                if fields["flag"] not in ("o", "f", "j"):
                    raise ValueError(f"no vote: {fields['flag']!r}")
                main.append(Item(self.name, number, "vote", "", None, (fields["k"], fields["flag"]), 0, 0))
            case "left" | "end" as kind:
                main.append(Item(self.name, number, kind, "", None, fields.get("what"), 0, 0))
            case "full":
                if type(fields["b"]) is not int:
                    raise ValueError("its time is no number")
                self.until = fields["b"]
                self.flaws.append(
                    Flaw(
                        self.name,
                        number,
                        f"{FULL}: the process went on, and nothing more of it was recorded (COXLESS_TRACE_LIMIT)",
                    )
                )
            case other:
                raise ValueError(f"unknown kind of line {other!r}")

    def _time(self, number: int, fields: dict[str, Any]) -> tuple[int, int]:
        begin, end = _moments(fields)
        # A fast path that was left on the way is told step by step, and its two operations have one time.
        again = fields.get("s") == "propose_same_epoch" and bool(self.main) and begin == self.main[-1].begin
        if (begin < self.last and not again) or end < begin:
            self.flaws.append(Flaw(self.name, number, "its times go back"))
        self.last = end
        return begin, end

    def _fast(self, number: int, fields: dict[str, Any]) -> None:
        words, k, size = self.words, fields["k"], fields["size"]
        if type(k) is not int or type(size) is not int:
            raise ValueError("k and size have to be numbers")
        expected, desired, reply = words.record(fields["x"]), words.record(fields["d"]), words.record(fields["r"])
        begin, end = self._time(number, fields)
        name, register = self.name, ("register",)
        propose = ("compare_set", register, expected, desired)
        self.main += [
            Item(name, number, "vote", "", None, (k, "o"), 0, 0),
            Item(name, number, "op", "arrive", ("barrier", ("count", k), size), "there", begin, end, begin, extra=True),
            Item(name, number, "op", "await_barrier", ("barrier_reply", ("count", k), size), "there", begin, end, extra=True),
            Item(name, number, "op", "propose_same_epoch", propose, reply, begin, end, extra=True),
        ]
        said = fields.get("wake")
        if said not in (None, SPARED) or (said is not None and reply != desired):
            raise ValueError(f"the wake is either {SPARED} by the winner, or not told of")
        if reply == desired:
            self.main.append(Item(name, number, "op", "wake", ("set", ("full", k), 1), said, begin, end, extra=True))
        self.main.append(Item(name, number, "decision", "", None, (reply, None, desired.winner), 0, 0, extra=True))

    def recording(self) -> Recording | None:
        if not self.some:
            return None
        start, main = self.start, self.main
        try:
            rank, pid = int(self.name[4:].partition(".")[0]), int(self.name.split(".")[1])
        except (ValueError, IndexError):
            self.flaws.append(Flaw(self.name, 1, "a recording is named rank….pid.time.jsonl"))
            return None
        told: list[Any] = [start.get(each) for each in ("rank", "world_size", "min_ranks", "b")]
        nonce = start.get("nonce")
        if (
            any(type(each) is not int for each in told)
            or not isinstance(nonce, str)
            or not NONCE.fullmatch(nonce)
            or told[0] != rank
        ):
            self.flaws.append(Flaw(self.name, 1, "does not begin with a start line"))
            return None
        return Recording(
            self.name, rank, pid, told[1], told[2], told[3], _stretched(main), tuple(self.clean_up), tuple(self.members),
            self.words.number(nonce), self.until,
        )  # fmt: skip


def _moments(fields: dict[str, Any]) -> tuple[int, int]:
    """When the operation of a line began and ended."""
    begin, end = fields["b"], fields["e"]
    if type(begin) is not int or type(end) is not int:
        raise ValueError("its times are no numbers")
    return begin, end


def _stretched(items: list[Item]) -> tuple[Item, ...]:
    """`set` and `append` have no reply: they have taken effect by the time that the next operation with a reply has, unless that one found
    the connection broken."""
    until, unsure, stretched = FOREVER, True, []
    for item in reversed(items):
        if item.op is not None:
            if item.op[0] in ("set", "append") and item.result != SPARED:
                item = item._replace(end=until, sent=item.end, unsure=unsure)
            else:
                until, unsure = item.end, item.kind == "broken"
        stretched.append(item)
    return tuple(reversed(stretched))
