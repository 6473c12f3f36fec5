"""Dozens of ranks that found at once: all times overlap, and the validation still finds the order."""

import os
import random
from heapq import heappop, heappush
from pathlib import Path

import pytest

from coxless import recording
from coxless.protocol import Operation, RankState, enter
from coxless.protocol.operations import Append, JoinTimedOut, Set, Wait
from coxless.recording import Recorder
from coxless_model.environment import SPARED
from coxless_model.records import Epoch, Member, Record, Signature
from coxless_model.store import REGISTER, THERE
from coxless_traces import search, validation
from coxless_traces.guesses import with_guesses
from coxless_traces.recorded import Item, Recording
from coxless_traces.targets import Memory

RANKS = 40
SLOW = 1000
"""An operation takes effect so long after it began, at most, and so long before its reply is there; a line takes 1."""


@pytest.fixture
def founded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The recording of ranks that found on a dict, in a random order, on a clock of its own."""
    chance, store, clock = random.Random(7), Memory(), [0]
    monkeypatch.setattr(recording, "now", lambda: clock[0])
    pending: list[tuple[int, int, Operation, int]] = []
    effect = [0] * RANKS
    states = [RankState(rank, RANKS, 1, f"{rank:02x}", f"{rank:02x}") for rank in range(RANKS)]
    recorders = [Recorder(tmp_path, f"rank{rank}") for rank in range(RANKS)]
    runs = [enter(state) for state in states]

    def told(rank: int, operation: Operation, reply: object, began: int, ended: int) -> None:
        clock[0] = ended
        recorders[rank].operation(operation, reply, began)
        try:
            asked(rank, runs[rank].send(reply), ended + 1)
        except StopIteration as decided:
            recorders[rank].decision(decided.value)

    def asked(rank: int, operation: Operation, began: int) -> None:
        if isinstance(operation, JoinTimedOut):
            told(rank, operation, False, began, began + 1)
            return
        effect[rank] = max(began, effect[rank]) + 1 + chance.randrange(SLOW)
        heappush(pending, (effect[rank], rank, operation, began))
        if isinstance(operation, Append | Set):  # it has no reply, so the rank goes on
            told(rank, operation, None, began, began + 1)

    for rank, run in enumerate(runs):
        recorders[rank].start(states[rank])
        asked(rank, next(run), chance.randrange(SLOW))
    while pending:
        moment, rank, operation, began = heappop(pending)
        there = not isinstance(operation, Wait) or operation.key in store.contents()
        reply = store.perform(operation) if there else False
        if not isinstance(operation, Append | Set):
            told(rank, operation, reply, began, moment + 1 + chance.randrange(SLOW))
    for recorder in recorders:
        os.close(recorder._descriptor)  # a process has one, to its end; here there are forty
    return tmp_path


def test_a_crowd_that_founds_is_admitted(founded: Path) -> None:
    verdict = validation.validate(founded)
    assert verdict.holds, verdict
    assert verdict.steps_back == 0


def test_by_the_times_alone_the_search_would_give_up(founded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "PATIENCE", 1000)
    monkeypatch.setattr(validation, "with_guesses", lambda recordings: recordings)
    assert validation.validate(founded).word == "undetermined"


ARRIVED = ("arrived", 0)
A, B = (Signature(Member(rank, 1, 0), "j") for rank in (0, 1))


def order(*items: Item) -> str:
    """The names of what these did, in the order in which the search would try it."""
    one = Recording("r", 0, 1, 2, 1, 0, items, ())
    return " ".join(item.name for item in sorted(with_guesses([one])[0].main, key=lambda item: item.likely))


def sign(name: str, signature: Signature, begin: int, end: int) -> Item:
    return Item("r", begin, "op", name, ("append", ARRIVED, signature), None, begin, end, sent=begin + 1)


def look(name: str, seen: tuple[Signature, ...], begin: int, end: int) -> Item:
    return Item("r", begin, "op", name, ("read", ARRIVED), seen, begin, end)


def test_whoever_was_shown_less_looked_earlier() -> None:
    assert order(look("less", (A,), 10, 90), look("more", (A, B), 20, 30)) == "less more"
    assert order(look("less", (A,), 40, 90), look("more", (A, B), 20, 30)) == "more less", "it cannot have: the key was deleted"


def test_a_signature_comes_between_those_who_do_not_see_it_and_those_who_do() -> None:
    both = look("without", (A,), 10, 50), look("with", (A, B), 20, 60)
    assert order(sign("sign", B, 5, 100), *both) == "without sign with"
    assert order(sign("sign", B, 5, 30), look("without", (A,), 10, 50)) == "without sign", "it is there by 30"


def test_the_register_goes_forward() -> None:
    first, second = (Record(0, k, Epoch(1, ()), True, False, None) for k in (1, 2))
    won = Item("r", 1, "op", "won", ("compare_set", REGISTER, first, second), second, 10, 90)
    saw = Item("r", 2, "op", "saw", ("read", REGISTER), second, 20, 50)
    before = Item("r", 3, "op", "before", ("read", REGISTER), first, 15, 95)
    assert order(won, saw, before) == "before won saw"


def test_who_is_woken_is_so_after_the_wake_and_who_is_not_before_it() -> None:
    full = ("full", 0)
    wake = Item("r", 1, "op", "wake", ("set", full, 1), None, 10, 90, sent=11)
    woken = Item("r", 2, "op", "woken", ("wait", full), THERE, 5, 60)
    impatient = Item("r", 3, "op", "impatient", ("wait", full), None, 5, 70)
    assert order(wake, woken, impatient) == "impatient wake woken"
    spared = wake._replace(result=SPARED)
    assert with_guesses([Recording("r", 0, 1, 2, 1, 0, (spared,), ())])[0].main == (spared,), "it was left out"


def test_whoever_ran_out_of_patience_did_so_before_the_last_one_came() -> None:
    count = ("count", 1)
    last = Item("r", 1, "op", "last", ("barrier", count, 2), THERE, 10, 90, sent=10)
    through = Item("r", 1, "op", "through", ("barrier_reply", count, 2), THERE, 10, 90)
    first = Item("r", 2, "op", "first", ("barrier", count, 2), None, 5, 60, sent=5)
    impatient = Item("r", 2, "op", "impatient", ("barrier_reply", count, 2), None, 5, 60)
    assert order(last, through, first, impatient) == "first impatient last through"
