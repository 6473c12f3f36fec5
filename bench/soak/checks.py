"""The properties of docs/protocol.md, looked at from outside: pure functions of the history, each of which names what is wrong."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import pairwise

from .history import History

STAND_STILL = 60.0
"""Seconds after which a crew that decides nothing counts as stuck: founding, a store's start and a heartbeat timeout take less together."""
COMES_BACK = 60.0
"""Seconds within which a process that lives has to take part."""
KEYS = 80
"""More than a crew of four leaves behind, and far fewer than there are iterations."""
SLACK = 5.0
"""Seconds between the start of a silence and the decision that it explains, beyond the silence itself."""


def agreement(history: History) -> Iterator[str]:
    """S1: all who enter an iteration hold the same record of it."""
    seen: dict[int, tuple[str, tuple[object, ...]]] = {}
    for life, line in history.decided():
        record = tuple(str(line[name]) for name in ("epoch", "participants", "holders", "record", "winner"))
        who, first = seen.setdefault(line["iteration"], (life.name, record))
        if record != first:
            yield f"iteration {line['iteration']}: {life.name} has {record}, {who} has {first}"


def no_gap(history: History) -> Iterator[str]:
    """S2: decisions are 1, 2, 3, … and committed positions 0, 1, 2, …: none is skipped, none repeated."""
    numbers = list(history.records())
    if numbers != list(range(1, len(numbers) + 1)):
        missing = sorted(set(range(1, max(numbers, default=0) + 1)) - set(numbers))
        yield f"iterations are missing: {missing[:5]}"
    positions: dict[int, int] = {}
    for life in history.lives:
        for line in life.of("step"):
            if positions.setdefault(line["iteration"], line["position"]) != line["position"]:
                yield f"iteration {line['iteration']}: positions {positions[line['iteration']]} and {line['position']}"
    committed = [positions[number] for number in history.committed() if number in positions]
    if committed != list(range(len(committed))):
        wrong = next(index for index, position in enumerate(committed) if position != index)
        yield f"update {wrong} is position {committed[wrong]}: one was lost or made twice"


def barrier(history: History) -> Iterator[str]:
    """S3: participants had come; a member that is left out had been silent, had ended or was replaced."""
    records, tried = (
        history.records(),
        {(line["me"], line["iteration"]) for life in history.lives for line in _attempts(life.lines)},
    )
    owners = {line["me"]: life for life in history.lives for line in life.of("decided")}
    for number, line in records.items():
        before = records.get(number - 1)
        if before is None:
            continue
        for member in set(line["participants"]) & set(before["participants"]):
            if (member, number - 1) not in tried and (line["record"] or line["epoch"] == before["epoch"]):
                yield f"iteration {number}: {member} takes part and had not come to the barrier of {number - 1}"
        for member in set(before["participants"]) - set(line["participants"]):
            life = owners.get(member)
            if life is None or (life.ended is not None and life.ended <= line["t"] + SLACK):
                continue  # it ended before it could write down that it takes part; or its end explains it
            silent = any(begin <= line["t"] <= end + SLACK for begin, end in life.silences)
            lost = any(begin <= line["t"] <= end + SLACK for begin, end in history.store_losses)
            if not silent and not lost:
                yield f"iteration {number}: {member} is left out and was alive and not silent"


def _attempts(lines: tuple[dict[str, object], ...]) -> list[dict[str, object]]:
    return [line for line in lines if line["event"] in ("averaged", "failed")]


def membership(history: History) -> Iterator[str]:
    """S4: who trains an iteration takes part in it."""
    records = history.records()
    for life in history.lives:
        for line in life.of("step"):
            record = records.get(line["iteration"])
            if record is None or line["me"] not in record["participants"]:
                yield f"iteration {line['iteration']}: {line['me']} trains and does not take part"


def monotonic(history: History) -> Iterator[str]:
    """S5: what a rank sees never goes back, over restarts too."""
    last: dict[int, int] = defaultdict(int)
    for life, line in history.decided():
        if line["iteration"] <= last[life.rank]:
            yield f"{life.name} sees iteration {line['iteration']} after {last[life.rank]}"
        last[life.rank] = line["iteration"]


def one_incarnation(history: History) -> Iterator[str]:
    """S6: of each rank one process takes part at a time, and an older one never again."""
    for number, line in history.records().items():
        ranks = [member.partition(".")[0] for member in line["participants"]]
        if len(ranks) != len(set(ranks)):
            yield f"iteration {number}: a rank takes part twice: {line['participants']}"
    order = {life.rank: -1 for life in history.lives}
    for life, line in history.decided():
        if life.restarts < order[life.rank]:
            yield f"iteration {line['iteration']}: {life.name} takes part after process {order[life.rank]}"
        order[life.rank] = max(order[life.rank], life.restarts)


def state(history: History) -> Iterator[str]:
    """S7: who is listed as a holder holds the state: nobody sends it one, and all begin each iteration with the same bits."""
    records = history.records()
    weights: dict[int, tuple[str, str]] = {}
    for life in history.lives:
        for line in life.of("received"):
            record = records.get(line["iteration"], {"participants": [], "holders": []})
            holders = dict(zip(record["participants"], record["holders"], strict=False))
            if holders.get(line["me"]):
                yield f"iteration {line['iteration']}: {line['me']} is listed as a holder and received the state"
        for line in life.of("step"):
            who, first = weights.setdefault(line["iteration"], (line["me"], line["weights"]))
            if line["weights"] != first:
                yield f"iteration {line['iteration']}: {line['me']} and {who} begin with different weights"


def commit(history: History) -> Iterator[str]:
    """S8: an update counts only if it worked for every member that goes on."""
    records = history.records()
    worked = {(line["me"], line["iteration"]) for life in history.lives for line in life.of("averaged")}
    for number, line in records.items():
        if not line["record"] or number - 1 not in records:
            continue
        stay = set(line["participants"]) & set(records[number - 1]["participants"])
        if not stay:
            yield f"iteration {number - 1} counts, and nobody of it goes on"
        for member in sorted(stay):
            if (member, number - 1) not in worked:
                yield f"iteration {number - 1} counts, and it had not worked for {member}"


def progress(history: History) -> Iterator[str]:
    """L1: the crew goes on after every fault."""
    longest, at = stand_still(history)
    if longest > STAND_STILL:
        yield f"nothing was decided for {longest:.1f} s after iteration {at}"


def stand_still(history: History) -> tuple[float, int]:
    """The longest time between two decisions, and the iteration before it."""
    times = [(line["t"], number) for number, line in history.records().items()]
    return max(((b - a, number) for (a, number), (b, _) in pairwise(times)), default=(0.0, 0))


def rejoin(history: History) -> Iterator[str]:
    """L2: a process that lives takes part."""
    for life in history.lives:
        end = life.ended if life.ended is not None else history.ended
        begin = life.lines[0]["t"] if life.lines else end
        silent = sum(min(b, end) - a for a, b in (*life.silences, *history.store_losses) if begin <= a < end)
        if end - begin - silent > COMES_BACK and not life.of("decided"):
            yield f"{life.name} lived for {end - begin:.0f} s and never took part"


def bounded_store(history: History) -> Iterator[str]:
    """L3: the number of keys does not grow with the number of iterations."""
    if history.keys is not None and history.keys > KEYS:
        yield f"{history.keys} keys are left in the store"


def endings(history: History) -> Iterator[str]:
    """Nobody ends but by a SIGKILL or, having finished, by itself; and all four finish."""
    for life in history.lives:
        if life.code not in (0, -9):
            yield f"{life.name} ended with {life.code}"
    finished = {life.rank for life in history.lives if life.of("finished")}
    if missing := {life.rank for life in history.lives} - finished:
        yield f"ranks {sorted(missing)} did not finish"


def same_weights(history: History) -> Iterator[str]:
    """All end with the same bits."""
    ends = {(line["position"], line["weights"]) for life in history.lives for line in life.of("finished")}
    if len(ends) != 1:
        yield f"{len(ends)} different ends: {sorted(ends)[:4]}"


def as_one_process(history: History) -> Iterator[str]:
    """One process that makes the committed updates, with their participants, comes to the same bits."""
    from .rank import alone  # torch

    records = history.records()
    known = [number for number in history.committed() if number in records]  # one that is missing is S2's business
    updates = [(index, number, records[number]["participants"]) for index, number in enumerate(known)]
    expected = (len(updates), alone(updates))
    for life in history.lives:
        for line in life.of("finished"):
            if (line["position"], line["weights"]) != expected:
                yield f"{life.name} ends at {line['position']} {line['weights']}, one process at {expected[0]} {expected[1]}"


CHECKS: dict[str, Callable[[History], Iterator[str]]] = {
    "S1 agreement": agreement,
    "S2 no gap, no double": no_gap,
    "S3 barrier": barrier,
    "S4 membership": membership,
    "S5 monotonic": monotonic,
    "S6 one incarnation": one_incarnation,
    "S7 state": state,
    "S8 commit": commit,
    "L1 progress": progress,
    "L2 rejoin": rejoin,
    "L3 bounded store": bounded_store,
    "all end well": endings,
    "final weights identical": same_weights,
    "as one process": as_one_process,
}


def violations(history: History) -> dict[str, list[str]]:
    """What is wrong, by check; empty when nothing is."""
    found = {name: list(check(history)) for name, check in CHECKS.items()}
    return {name: wrong for name, wrong in found.items() if wrong}
