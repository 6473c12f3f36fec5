"""The text of recordings in the model's words.

The nonces and generations of a recording become numbers in the order of their texts, far from those that the model draws by itself: who
is who, and who replaces whom, is as it was in truth, over any number of store losses.
"""

import json
from pathlib import Path
from typing import Any

from coxless import keys
from coxless.errors import CorruptStoreError
from coxless.records import Member, parse_member, parse_record, parse_signatures
from coxless.records import parse_members as parse_list
from coxless_model import records as model
from coxless_model.store import MISSING, PROBE, THERE

_LISTS = keys.members("")


class Words:
    """What was translated once is kept: the same text is the same value."""

    def __init__(self) -> None:
        self._epochs: dict[str, model.Epoch] = {"0": model.Epoch(0, ())}
        self._names: dict[model.Epoch, str] = {}
        self._records: dict[str, model.Record] = {}
        self._members: dict[Member, model.Member] = {}
        self._numbers: dict[str, int] = {}

    def learn_lists(self, path: Path) -> None:
        """Take in every members list that is written out somewhere in a file. What is no list is told when its line is read."""
        with path.open("rb") as file:
            for line in file:
                if _LISTS.encode() not in line and b'"members"' not in line:
                    continue
                try:
                    fields = json.loads(line)
                    if fields["t"] == "decision":
                        self._learn(fields["record"].split(" ")[3], fields["members"])
                    elif fields.get("o") == "Set":
                        self._learn(fields["a"][0].removeprefix(_LISTS), fields["a"][1])
                    elif fields.get("o") == "Read" and fields.get("r"):
                        self._learn(fields["a"][0].removeprefix(_LISTS), fields["r"])
                except (ValueError, KeyError, TypeError, IndexError, AttributeError, CorruptStoreError, RecursionError):
                    continue

    def _learn(self, name: str, text: str) -> None:
        if name not in self._epochs:
            epoch = model.Epoch(int(name.partition("-")[0]), self.members(name, text))
            self._epochs[name], self._names[epoch] = epoch, name

    def number(self, text: str) -> int:
        """A nonce or a generation."""
        if text not in self._numbers:
            self._numbers[text] = int.from_bytes(text.encode("ascii").ljust(16, b"\0"), "big")
        return self._numbers[text]

    def member(self, member: Member) -> model.Member:
        if member not in self._members:
            self._members[member] = model.Member(member.rank, member.number, self.number(member.nonce))
        return self._members[member]

    def member_of(self, text: str) -> model.Member:
        return self.member(parse_member(text))

    def members(self, epoch: str, text: str) -> model.Members:
        known = self._epochs.get(epoch)
        listed = tuple(model.Listed(self.member(one), holds) for one, holds in parse_list(epoch, text))
        return known.members if known is not None and known.members == listed else listed

    def epoch(self, name: str) -> model.Epoch:
        if name not in self._epochs:
            raise ValueError(f"nobody recorded the members list {name}")
        return self._epochs[name]

    def record(self, text: str) -> model.Record:
        if text not in self._records:
            generation, iteration, epoch, committed, attention, winner = parse_record(text)
            named = None if winner is None else self.member(winner)
            made = model.Record(self.number(generation), iteration, self.epoch(epoch), committed, attention, named)
            self._records[text] = made
        return self._records[text]

    def key(self, text: str) -> tuple[Any, ...]:
        head, _, rest = text.partition(":")
        if text == keys.REGISTER:
            return ("register",)
        if text.startswith(_LISTS):
            return ("members", self.epoch(rest))
        if head == "global_iteration_barrier":
            number, _, what = rest.partition(":")
            if what in ("count", "full", "arrived"):
                return (what, int(number))
        if text.startswith("rank_"):
            return ("incarnation", int(text.split("_")[1]))
        raise ValueError(f"no key of the protocol: {text!r}")

    def value(self, key: tuple[Any, ...], text: str) -> Any:
        match key[0]:
            case "register":
                return self.record(text)
            case "members":
                return self.members(self._names[key[1]], text)
            case "arrived":
                signed = {model.Signature(self.member(one), flag) for one, flag in parse_signatures(key[1], text)}
                return tuple(sorted(signed))
        return int(text)

    def operation(self, kind: str, arguments: list[Any], reply: Any) -> tuple[tuple[Any, ...], Any]:
        """The model's operation and reply."""
        if kind == "ReadHeartbeat":
            if reply not in (None, True, False):
                raise ValueError(f"no answer to whether a member is suspected: {reply!r}")
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
                answer = None if reply is None else MISSING if reply == "" else self.value(key, reply)
                return ("compare_set", key, expected, self.value(key, arguments[2])), answer
            case "Barrier":
                return ("barrier", key, arguments[1]), THERE if reply else None
            case "Read":
                return ("read", key), PROBE if reply is None else self.value(key, reply)
            case "Wait":
                return ("wait", key), THERE if reply else None
        raise ValueError(f"unknown operation {kind!r}")

    def shows_empty(self, step: str, op: tuple[Any, ...], result: Any) -> bool:
        """Whether this reply, the first after a broken connection, is one that only an empty store gives."""
        return (step == "read_register" and result == PROBE) or (step == "create_register" and result == op[3])
