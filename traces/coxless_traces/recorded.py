"""Reading recorded runs: JSON lines become what the model calls them. Nothing is skipped in silence: every line that is torn, missing,
unknown or not understood is a `Flaw`."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from coxless.errors import CorruptStoreError
from coxless.records import Member, parse_member, parse_record, parse_signatures
from coxless.records import parse_members as parse_list
from coxless_model import records as model
from coxless_model.store import MISSING, PROBE, THERE

LOCAL = ("vote", "decision", "left", "end", "full")
FOREVER = 1 << 62


class Flaw(NamedTuple):
    file: str
    line: int
    what: str


class Item(NamedTuple):
    """One line, in the model's words."""

    file: str
    line: int
    kind: str
    name: str
    op: tuple[Any, ...] | None
    result: Any
    begin: int
    end: int
    """The latest moment at which it can have taken effect."""
    text: str
    timed_out: bool | None = None
    """With read_arrived while founding: what the driver said when asked whether the join timeout has passed."""
    sent: int = 0
    """Of an operation without a reply: when it had been sent, and has most likely taken effect."""

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


def read_recordings(folder: Path) -> tuple[list[Recording], list[Flaw]]:
    flaws: list[Flaw] = []
    raw = {path.name: list(lines_of(path, flaws)) for path in sorted(folder.glob("rank*.jsonl"))}
    words = Words(fields for lines in raw.values() for _, fields, _ in lines)
    recordings = [_recording(name, lines, words, flaws) for name, lines in raw.items() if lines]
    return sorted(recordings, key=lambda one: one.begin), flaws


def lines_of(path: Path, flaws: list[Flaw]) -> Iterator[tuple[int, dict[str, Any], str]]:
    texts = path.read_bytes().split(b"\n")
    wanted = 0
    for number, text in enumerate(texts, start=1):
        if number == len(texts):
            if text:
                flaws.append(Flaw(path.name, number, "torn: the process was killed while it wrote this line"))
            return
        try:
            fields = json.loads(text)
            found = fields["n"]
            fields["t"]
        except (ValueError, KeyError, TypeError):
            flaws.append(Flaw(path.name, number, f"not a line of a recording: {text[:60]!r}"))
            continue
        if found != wanted:
            flaws.append(Flaw(path.name, number, f"line {wanted} is missing: this one says that it is line {found}"))
        wanted = found + 1
        yield number, fields, text.decode(errors="replace")


class Words:
    """The text of the store in the model's words. A list is known by the digest in its name, so all of them are read first."""

    def __init__(self, lines: Any) -> None:
        self._epochs: dict[str, model.Epoch] = {"0": model.Epoch(0, ())}
        for fields in lines:
            if fields.get("o") == "Set" and str(fields["a"][0]).startswith("global_iteration_members:"):
                name = fields["a"][0].partition(":")[2]
                since = int(name.partition("-")[0])
                self._epochs[name] = model.Epoch(since, self.members(name, fields["a"][1]))

    def member(self, member: Member) -> model.Member:
        return model.Member(member.rank, member.number, 0)

    def members(self, epoch: str, text: str) -> model.Members:
        return tuple(model.Listed(self.member(one), holds) for one, holds in parse_list(epoch, text))

    def epoch(self, name: str) -> model.Epoch:
        if name not in self._epochs:
            raise ValueError(f"nobody recorded writing the members list {name}")
        return self._epochs[name]

    def record(self, text: str) -> model.Record:
        _, iteration, epoch, committed, attention, winner = parse_record(text)
        return model.Record(
            0, iteration, self.epoch(epoch), committed, attention, None if winner is None else self.member(winner)
        )

    def key(self, text: str) -> tuple[Any, ...]:
        head, _, rest = text.partition(":")
        if text == "global_iteration_counter":
            return ("register",)
        if head == "global_iteration_members":
            return ("members", self.epoch(rest))
        if head == "global_iteration_barrier":
            number, _, what = rest.partition(":")
            return (what, int(number))
        if text.startswith("rank_"):
            return ("incarnation", int(text.split("_")[1]))
        raise ValueError(f"no key of the protocol: {text!r}")

    def value(self, key: tuple[Any, ...], text: str) -> Any:
        match key[0]:
            case "register":
                return self.record(text)
            case "members":
                return key[1].members
            case "arrived":
                signed = {model.Signature(self.member(one), flag) for one, flag in parse_signatures(key[1], text)}
                return tuple(sorted(signed))
        return int(text)

    def operation(self, kind: str, arguments: list[Any], reply: Any) -> tuple[tuple[Any, ...], Any]:
        """The model's operation and reply."""
        if kind == "ReadHeartbeat":
            return ("read", ("heartbeat", self.member(parse_member(arguments[0])))), reply
        key = self.key(arguments[0])
        match kind:
            case "Add":
                return ("add", key, arguments[1]), reply
            case "Set":
                return ("set", key, self.value(key, arguments[1])), None
            case "Append":
                (signature,) = self.value(key, arguments[1])
                return ("append", key, signature), None
            case "CompareSet":
                expected = MISSING if arguments[1] == "" else self.value(key, arguments[1])
                return ("compare_set", key, expected, self.value(key, arguments[2])), (
                    None if reply is None else self.value(key, reply)
                )
            case "Barrier":
                return ("barrier", key, arguments[1]), THERE if reply else None
            case "Read":
                return ("read", key), PROBE if reply is None else self.value(key, reply)
            case "Wait":
                return ("wait", key), THERE if reply else None
        raise ValueError(f"unknown operation {kind!r}")


def _recording(name: str, lines: list[tuple[int, dict[str, Any], str]], words: Words, flaws: list[Flaw]) -> Recording:
    main: list[Item] = []
    clean_up: list[Item] = []
    start: dict[str, Any] = {}
    members: dict[str, None] = {}
    last = 0
    for number, fields, text in lines:
        try:
            match fields["t"]:
                case "start":
                    start = fields
                case "op" if fields["o"] == "JoinTimedOut":
                    if main[-1].name != "read_arrived":
                        flaws.append(Flaw(name, number, "the join timeout is asked about only after read_arrived"))
                    main[-1] = main[-1]._replace(timed_out=fields["r"])
                case "op" | "broken" as kind:
                    op, result = words.operation(fields["o"], fields["a"], fields.get("r"))
                    if fields["b"] < last or fields["e"] < fields["b"]:
                        flaws.append(Flaw(name, number, "its times go back"))
                    last = fields["e"]
                    main.append(Item(name, number, kind, fields["s"], op, result, fields["b"], fields["e"], text))
                    if (
                        op[0] == "barrier" and kind == "op"
                    ):  # one call, two steps of the model: to be counted, and to be let through
                        op = ("barrier_reply", *op[1:])
                        main.append(Item(name, number, kind, "await_barrier", op, result, fields["b"], fields["e"], text))
                case "delete":
                    op = ("delete_key", words.key(fields["a"][0]))
                    clean_up.append(Item(name, number, "delete", "clean_up", op, None, fields["b"], fields["e"], text))
                case "decision":
                    record = words.record(fields["record"])
                    members[fields["me"]] = None
                    main.append(Item(name, number, "decision", "", None, record, 0, 0, text))
                case "vote":
                    main.append(Item(name, number, "vote", "", None, (fields["k"], fields["flag"]), 0, 0, text))
                case "left" | "end" | "full" as kind:
                    main.append(Item(name, number, kind, "", None, fields.get("what"), 0, 0, text))
                case other:
                    flaws.append(Flaw(name, number, f"unknown kind of line {other!r}"))
        except (ValueError, KeyError, TypeError, IndexError, CorruptStoreError) as error:
            flaws.append(Flaw(name, number, f"not understood: {error}"))
    if not start:
        flaws.append(Flaw(name, 1, "does not begin with a start line"))
        start = {"rank": int(name[4:].partition(".")[0]), "world_size": 1, "min_ranks": 1, "b": main[0].begin if main else 0}
    pid = int(name.split(".")[1])
    told = (start["world_size"], start["min_ranks"], start["b"])
    return Recording(name, start["rank"], pid, *told, _stretched(main), tuple(clean_up), tuple(members))


def _stretched(items: list[Item]) -> tuple[Item, ...]:
    """`set` and `append` have no reply: they have taken effect by the time that the next operation with a reply has."""
    until, stretched = FOREVER, []
    for item in reversed(items):
        if item.op is not None:
            if item.op[0] in ("set", "append"):
                item = item._replace(end=until, sent=item.end)
            else:
                until = item.end
        stretched.append(item)
    return tuple(reversed(stretched))
