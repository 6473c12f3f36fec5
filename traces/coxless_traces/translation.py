"""The model's values in the store's own words: structured tuples become the text that the implementation writes.

The model's nonces and generations are small integers; here each gets a fixed text with the same order, so a translation needs
no memory and gives the same text in every run.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeVar

from coxless import keys
from coxless.protocol import Operation
from coxless.protocol.operations import Add, Append, Barrier, CompareSet, Delete, Read, ReadHeartbeat, Set, Wait
from coxless.records import DEAD, LEFT, NO_EPOCH, Listed, Member, Record, Signature, encode_members, epoch_of
from coxless_model import records as model
from coxless_model.machine import Action
from coxless_model.store import MISSING, PROBE, THERE, Store

Contents = dict[str, str]
"""What the store holds, heartbeats apart."""


Given = TypeVar("Given")
Translated = TypeVar("Translated")
KNOWN = 1 << 17


def by_identity(translate: Callable[[Given], Translated]) -> Callable[[Given], Translated]:
    """Remember the translation of each object. Values of the model never change, but have no hash of their own: to look one up by
    its value goes through all that is in it, which costs more than the rest of a replay's step."""
    known: dict[int, tuple[Given, Translated]] = {}

    def remembered(given: Given) -> Translated:
        found = known.get(id(given))
        if found is None:
            if len(known) >= KNOWN:
                known.clear()
            # The object is kept, so nothing else can come to have its id.
            found = known[id(given)] = given, translate(given)
        return found[1]

    return remembered


def number_text(number: int) -> str:
    """A nonce or a generation: order is kept, -128 to 127."""
    return f"{number + 128:02x}"


def member(given: model.Member) -> Member:
    return Member(given.rank, given.number, number_text(given.nonce))


def listed(given: model.Members) -> tuple[Listed, ...]:
    return tuple(Listed(member(one.member), one.holds) for one in given)


@lru_cache(maxsize=1 << 12)
def epoch(given: model.Epoch) -> str:
    return epoch_of(given.since, encode_members(listed(given.members))) if given.members else NO_EPOCH


def record(given: model.Record) -> Record:
    winner = None if given.winner is None else member(given.winner)
    generation = number_text(given.generation)
    return Record(generation, given.iteration, epoch(given.epoch), given.committed, given.attention, winner)


def key(given: tuple[Any, ...]) -> str:
    kind = given[0]
    if kind == "register":
        return keys.REGISTER
    if kind == "members":
        return keys.members(epoch(given[1]) if isinstance(given[1], model.Epoch) else str(given[1][0]))
    if kind == "heartbeat":
        return keys.heartbeat(member(given[1]))
    return _KEYS[kind](given[1])


_KEYS = {"incarnation": keys.incarnation, "count": keys.count, "full": keys.full, "arrived": keys.arrived}


def text(kind: str, value: Any) -> str:
    """A value of a key of this kind, as the store holds it."""
    if kind == "register":
        return str(record(value))
    if kind == "members":
        return encode_members(listed(value))
    if value == PROBE:
        return keys.PROBE
    if kind == "count":
        return str(abs(value))  # below zero where the model notes that those who waited were let through
    if kind == "arrived":
        return settled("".join(str(Signature(member(one.member), one.flag)) for one in value))
    return str(value)  # an incarnation, full, a heartbeat's last word


@lru_cache(maxsize=1 << 12)
def settled(arrived: str) -> str:
    """Signatures in a fixed order, each once: every reader takes them as a set."""
    return "".join(sorted({f"{one}," for one in arrived.split(",") if one}))


@by_identity
@lru_cache(maxsize=1 << 15)
def contents(store: Store) -> Contents:
    return {key(name): text(name[0], value) for name, value in store.entries}


def normal(found: dict[str, str]) -> Contents:
    """What was read from a real store, comparable with `contents`."""
    return {
        name: settled(value) if name.endswith(":arrived") else value
        for name, value in found.items()
        if not name.startswith("heartbeat_")
    }


@by_identity
def issued(action: Action) -> Operation:
    """The operation of an action that has one, as the implementation issues it."""
    assert action.op is not None
    return operation(action.name, action.op)


@lru_cache(maxsize=1 << 15)
def operation(step: str, op: tuple[Any, ...]) -> Operation:
    """The operation as the implementation issues it under the name of this step."""
    name, place, *arguments = op
    kind, target = place[0], key(place)
    match name:
        case "read" if kind == "heartbeat":
            return ReadHeartbeat(step, member(place[1]))
        case "read":
            return Read(step, target)
        case "wait":
            return Wait(step, target)
        case "delete_key":
            return Delete(step, target)
        case "barrier" | "barrier_reply":
            return Barrier("arrive", target, arguments[0])
        case "add":
            return Add(step, target, arguments[0])
        case "set":
            return Set(step, target, text(kind, arguments[0]))
        case "append":
            return Append(step, target, text(kind, arguments))
        case "compare_set":
            expected = "" if arguments[0] == MISSING else text(kind, arguments[0])
            return CompareSet(step, target, expected, text(kind, arguments[1]))
    raise ValueError(f"the model's operation {name!r} is not in the table")


@by_identity
def reply(action: Action) -> object:
    """What the implementation is told when the model is told `action.result`."""
    assert action.op is not None
    name, place, *_ = action.op
    result = action.result
    match name:
        case "wait" | "barrier" | "barrier_reply":
            return result == THERE
        case "read" if place[0] == "heartbeat":
            return result != "beating"
        case "read":
            return None if result == PROBE else text(place[0], result)
        case "compare_set":
            # the expected value may be "": a missing key and a failed creation are told apart by the text
            return "" if result == MISSING else text(place[0], result)
        case "add":
            return result
    return None


LAST_WORDS = {"dead": DEAD, "left": LEFT}
