"""When an operation has most likely taken effect, which is what the search tries first.

A line tells when an operation began and when its reply was there; of one without a reply it is only known that it was done when the next
reply was there. While dozens of ranks found, or run out of patience together, all these times overlap, and to try all orders is hopeless.
But the register goes forward, signatures become more and more, a barrier that is full stays so, and who is woken was not before: whoever
was shown less looked earlier.
A deletion or a store loss makes an exception, so these are guesses, and any other order is tried after them.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from coxless_model.environment import SPARED
from coxless_model.records import Record
from coxless_model.store import PROBE, THERE

from .recorded import Item, Recording

Key = tuple[Any, ...]
Place = tuple[int, int]
"""Which recording, and which item of its training thread."""
STEP = 2
"""Between what was shown less and what was shown more; there is room for a write between them."""


class Look(NamedTuple):
    """An operation whose reply shows how far a key has come."""

    place: Place
    begin: int
    end: int
    shown: tuple[int, ...]
    """Of one key, the more the later."""
    seen: frozenset[Any]
    """Which of the writes it shows."""


def with_guesses(recordings: list[Recording]) -> list[Recording]:
    """The recordings, with a guess at the moment of each operation where its times alone would mislead."""
    looks: dict[Key, list[Look]] = defaultdict(list)
    writes: dict[Key, dict[Place, Item]] = defaultdict(dict)
    for number, one in enumerate(recordings):
        for at, item in enumerate(one.main):
            if item.op is None or item.kind != "op":
                continue
            look = _look((number, at), item)
            if look is not None:
                looks[item.op[1]].append(look)
            elif _is_write(item):
                writes[item.op[1]][number, at] = item
    likely = {place: moment for key, some in looks.items() for place, moment in _of_looks(some, writes[key].values())}
    likely |= {place: moment for key, some in writes.items() for place, moment in _of_writes(some, looks[key], likely)}

    def guessed(item: Item, place: Place) -> Item:
        return item._replace(sent=likely[place]) if place in likely else item

    return [
        one._replace(main=tuple(guessed(item, (number, at)) for at, item in enumerate(one.main)))
        for number, one in enumerate(recordings)
    ]


def _look(place: Place, item: Item) -> Look | None:
    assert item.op is not None
    what, (kind, *_), *arguments = item.op
    seen: frozenset[Any] = frozenset()
    if kind == "register" and isinstance(item.result, Record):
        made = what == "compare_set" and item.result == arguments[1]
        shown: tuple[int, ...] = (item.result.iteration, item.result.attention, not made)
    elif (what, kind) == ("read", "arrived"):
        seen = frozenset(() if item.result == PROBE else item.result)
        shown = (len(seen),)
    elif (what, kind) in (("wait", "full"), ("barrier_reply", "count")):
        seen = frozenset((THERE,) if item.result == THERE else ())
        shown = (len(seen),)
    else:
        return None
    return Look(place, item.begin, item.end, shown, seen)


def _is_write(item: Item) -> bool:
    """Whether it may have taken effect well after it began, and others see whether it has. Of those that arrive at a barrier these are the ones
    that were let through: one of them was the last to come."""
    assert item.op is not None
    match item.op[0], item.op[1][0]:
        case "append", "arrived":
            return True
        case "set", "full":
            return bool(item.result != SPARED)
        case "barrier", "count":
            return bool(item.result == THERE)
    return False


def _written(item: Item) -> Any:
    """What a look shows that was after it."""
    assert item.op is not None
    return item.op[2] if item.op[0] == "append" else THERE


def _of_looks(looks: list[Look], writes: Iterable[Item]) -> Iterator[tuple[Place, int]]:
    """Each before those that were shown more, and before the end of the writes that it does not show, if it may have been."""
    due = sorted(((item.end, _written(item)) for item in writes if not item.unsure), key=lambda one: one[0])
    ends = [end for end, _ in due]
    groups: dict[tuple[int, ...], list[Look]] = defaultdict(list)
    for look in looks:
        groups[look.shown].append(look)
    later: list[tuple[int, int]] = []
    for _, group in sorted(groups.items(), reverse=True):
        settled = []
        for look in group:
            bounds = [likely for end, likely in later if end >= look.begin]
            bounds += [next((end for end, what in due[bisect_left(ends, look.begin) :] if what not in look.seen), look.end)]
            moment = min(look.end, min(bounds) - STEP)
            settled.append((look.end, moment))
            yield look.place, moment
        later = settled


def _of_writes(writes: dict[Place, Item], looks: list[Look], likely: dict[Place, int]) -> Iterator[tuple[Place, int]]:
    """After the looks that do not show it, and before those that do."""
    for place, item in writes.items():
        what = _written(item)
        around = [look for look in looks if look.end >= item.begin and look.begin <= item.end]
        after = max((likely[look.place] + 1 for look in around if what not in look.seen), default=0)
        before = min((likely[look.place] - 1 for look in around if what in look.seen), default=item.end)
        yield place, min(max(item.likely, after), before)
