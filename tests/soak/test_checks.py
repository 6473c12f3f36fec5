"""The checks of the soak: a good history passes all of them, and one with a single thing wrong does not pass the check of that thing."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from bench.soak.checks import CHECKS, KEYS, violations
from bench.soak.history import History, Life
from bench.soak.rank import alone

Lines = list[dict[str, Any]]
A, B, C = "0.1-aa", "1.1-bb", "1.2-cc"

# Ranks 0 and 1 found the crew; iterations 1 and 2 are committed; rank 1 dies in 3, rank 0 makes 3 again alone (4), and rank 1 is back in 5.
RECORDS: list[dict[str, Any]] = [
    {"iteration": 1, "epoch": "1-a", "participants": [A, B], "holders": [False, False], "record": False, "winner": A},
    {"iteration": 2, "epoch": "1-a", "participants": [A, B], "holders": [True, True], "record": True, "winner": B},
    {"iteration": 3, "epoch": "1-a", "participants": [A, B], "holders": [True, True], "record": True, "winner": A},
    {"iteration": 4, "epoch": "4-b", "participants": [A], "holders": [True], "record": False, "winner": A},
    {"iteration": 5, "epoch": "5-c", "participants": [A, C], "holders": [True, False], "record": True, "winner": A},
    {"iteration": 6, "epoch": "5-c", "participants": [A, C], "holders": [True, True], "record": True, "winner": C},
]
POSITIONS = {1: 0, 2: 1, 3: 2, 4: 2, 5: 3, 6: 4}
TIMES = {1: 1.0, 2: 2.0, 3: 3.0, 4: 4.5, 5: 5.5, 6: 6.5}


def updates(upto: int) -> list[tuple[int, int, list[str]]]:
    made = [(1, RECORDS[0]), (2, RECORDS[1]), (4, RECORDS[3]), (5, RECORDS[4])]
    return [(position, number, record["participants"]) for position, (number, record) in enumerate(made)][:upto]


def life(rank: int, restarts: int, me: str, numbers: list[int], ended: float, code: int, *, dies_in: int = 0) -> Life:
    lines: Lines = [{"t": 0.5 if restarts == 0 else 5.0, "event": "started"}]
    for record in (record for record in RECORDS if record["iteration"] in numbers):
        number = record["iteration"]
        lines.append({"t": TIMES[number] + 0.01 * rank, "event": "decided", "me": me, **record})
        if not record["holders"][record["participants"].index(me)]:
            lines.append({"t": TIMES[number] + 0.02, "event": "received", "iteration": number, "me": me, "source": 0})
        start = {"iteration": number, "me": me, "position": POSITIONS[number], "weights": alone(updates(POSITIONS[number]))}
        lines.append({"t": TIMES[number] + 0.03, "event": "step", **start})
        if number not in (dies_in, 6):
            event = "failed" if number == 3 else "averaged"
            lines.append({"t": TIMES[number] + 0.04, "event": event, "iteration": number, "me": me})
    if code == 0:
        lines.append({"t": 7.0, "event": "finished", "position": 4, "weights": alone(updates(4))})
    return Life(rank, restarts, tuple(lines), ended, code)


def good() -> History:
    lives = [
        life(1, 0, B, [1, 2, 3], 3.5, -9, dies_in=3),
        life(0, 0, A, [1, 2, 3, 4, 5, 6], 7.1, 0),
        life(1, 1, C, [5, 6], 7.1, 0),
    ]
    return History(lives, keys=12, ended=7.2)


def test_nothing_is_wrong_with_a_good_history() -> None:
    assert violations(good()) == {}


def change(history: History, event: str, of: int | None, by: str | None, **new: Any) -> None:
    """All such lines say something else; with `gone` they are taken out."""
    found = 0
    for index, one in enumerate(history.lives):
        lines: Lines = []
        for line in copy.deepcopy(list(one.lines)):
            hit = line["event"] == event and of in (None, line.get("iteration")) and by in (None, line.get("me"))
            found += hit
            if hit and new.get("gone"):
                continue
            lines.append({**line, **new} if hit else line)
        history.lives[index] = Life(one.rank, one.restarts, tuple(lines), one.ended, one.code, one.silences)
    assert found


def ends(history: History, index: int, **new: Any) -> None:
    one = history.lives[index]
    fields: dict[str, Any] = {"ended": one.ended, "code": one.code, "silences": one.silences, "lines": one.lines, **new}
    history.lives[index] = Life(one.rank, one.restarts, fields["lines"], fields["ended"], fields["code"], fields["silences"])


BAD: dict[str, tuple[str, Callable[[History], object]]] = {
    "two records of one iteration": ("S1 agreement", lambda h: change(h, "decided", 3, B, winner=B)),
    "two lists of one iteration": ("S1 agreement", lambda h: change(h, "decided", 2, A, participants=[A])),
    "an iteration is skipped": ("S2 no gap, no double", lambda h: change(h, "decided", 4, None, gone=True)),
    "an update is made twice": ("S2 no gap, no double", lambda h: change(h, "step", 2, None, position=0)),
    "two positions in one iteration": ("S2 no gap, no double", lambda h: change(h, "step", 2, B, position=0)),
    "a participant that had not come": ("S3 barrier", lambda h: change(h, "averaged", 2, B, gone=True)),
    "a member that was alive is left out": ("S3 barrier", lambda h: ends(h, 0, ended=20.0)),
    "a rank that does not take part trains": (
        "S4 membership",
        lambda h: change(h, "step", 4, A, me=B),
    ),
    "an iteration goes back": ("S5 monotonic", lambda h: change(h, "decided", 6, C, iteration=2)),
    "two processes of a rank take part": ("S6 one incarnation", lambda h: change(h, "decided", 5, None, participants=[A, B, C])),
    "an older process takes part after a newer": ("S6 one incarnation", lambda h: change(h, "decided", 3, B, t=9.0)),
    "a holder is sent the state": ("S7 state", lambda h: change(h, "decided", 5, None, holders=[True, True])),
    "different weights in one iteration": ("S7 state", lambda h: change(h, "step", 3, B, weights="other")),
    "a failed update counts": ("S8 commit", lambda h: change(h, "decided", 4, None, record=True)),
    "an update counts of which nobody goes on": ("S8 commit", lambda h: change(h, "decided", 3, None, participants=["2.1-dd"])),
    "nothing happens for minutes": ("L1 progress", lambda h: change(h, "decided", 6, None, t=600.0)),
    "a process lives and never takes part": (
        "L2 rejoin",
        lambda h: h.lives.append(Life(2, 0, ({"t": 0.0, "event": "started"},), 300.0, -9)),
    ),
    "keys are left": ("L3 bounded store", lambda h: setattr(h, "keys", KEYS + 1)),
    "a rank ends with an error": ("all end well", lambda h: ends(h, 2, code=1)),
    "a rank aborts": ("all end well", lambda h: ends(h, 2, code=-6)),
    "a rank does not finish": ("all end well", lambda h: change(h, "finished", None, None, gone=True)),
    "different ends": (
        "final weights identical",
        lambda h: ends(h, 2, lines=(*h.lives[2].lines[:-1], {**h.lives[2].lines[-1], "weights": "other"})),
    ),
    "all have the same wrong weights": ("as one process", lambda h: change(h, "finished", None, None, weights="other")),
    "an update is lost by all": ("as one process", lambda h: change(h, "finished", None, None, position=3)),
}


@pytest.mark.parametrize("what", BAD)
def test_a_single_thing_that_is_wrong_is_seen(what: str) -> None:
    history = good()
    check, spoil = BAD[what]
    spoil(history)
    assert check in violations(history)


def test_each_check_has_something_that_it_refuses() -> None:
    assert {check for check, _ in BAD.values()} == set(CHECKS)


def test_a_silence_a_store_loss_and_an_end_excuse_who_is_left_out() -> None:
    history = good()
    ends(history, 0, ended=20.0, silences=((3.2, 6.0),))
    assert "S3 barrier" not in violations(history)
    history = good()
    ends(history, 0, ended=20.0)
    history.store_losses = ((3.2, 3.9),)
    assert "S3 barrier" not in violations(history)


def test_other_participants_lead_to_other_weights() -> None:
    """Else `as one process` could not see a wrong list."""
    made = updates(4)
    assert len({alone(made), alone(made[:3]), alone([*made[:3], (3, 5, [A])]), alone([*made[:3], (3, 6, [A, C])])}) == 4
