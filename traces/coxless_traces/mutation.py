"""Recorded runs with one thing changed: a validator that admits them would prove nothing."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

Line = dict[str, Any]
TIMES = ("b", "e")


class Mutation(NamedTuple):
    """A kind of change: where it can be made, and how (from the chosen line on; `chance` where there is more than one way)."""

    name: str
    fits: Callable[[list[Line], int], bool]
    change: Callable[[list[Line], int, random.Random], None]


class Changed(NamedTuple):
    """What was changed: the file, the place of the line, and the lines from there on, as they were and as they are."""

    file: str
    at: int
    before: tuple[Line, ...]
    after: tuple[Line, ...]
    last: bool
    """Nothing that the training thread did comes after it in the file."""


def another(reply: Any) -> Any:
    """A reply of the same kind that says something else."""
    if isinstance(reply, bool):
        return not reply
    if isinstance(reply, int):
        return reply + 1
    for one, other in (
        (" 0 0 ", " 1 0 "),
        (" 1 0 ", " 0 0 "),
        (" 0 1 ", " 0 0 "),
        (".o,", ".f,"),
        (".j,", ".h,"),
        (".h,", ".j,"),
    ):
        if one in reply:
            return reply.replace(one, other, 1)
    return None


def _is(*kinds: str) -> Callable[[list[Line], int], bool]:
    return lambda lines, at: lines[at]["t"] in kinds


def _has_a_reply(lines: list[Line], at: int) -> bool:
    return lines[at]["t"] == "op" and lines[at]["r"] not in (None, "")


def _reply(lines: list[Line], at: int, chance: random.Random) -> None:
    lines[at]["r"] = another(lines[at]["r"])


def _has_a_neighbour(lines: list[Line], at: int) -> bool:
    """Another line of the training thread, which does not say the same."""
    if at == 0 or at + 1 >= len(lines) or any(line["t"] in ("delete", "forgot") for line in lines[at : at + 2]):
        return False
    return _untimed(lines[at]) != _untimed(lines[at + 1])


def _untimed(line: Line) -> Line:
    return {name: value for name, value in line.items() if name not in (*TIMES, "n")}


def _swap(lines: list[Line], at: int, chance: random.Random) -> None:
    """Where both have times these stay where they are, so that it is not they that give it away."""
    one, other = lines[at], lines[at + 1]
    if all(name in line for name in TIMES for line in (one, other)):
        one, other = ({**this, **{name: that[name] for name in TIMES}} for this, that in ((one, other), (other, one)))
    lines[at], lines[at + 1] = other, one


def _double(lines: list[Line], at: int, chance: random.Random) -> None:
    lines.insert(at, dict(lines[at]))


def _has_a_follower(lines: list[Line], at: int) -> bool:
    """The last line of a killed process may be missing in truth."""
    return at + 1 < len(lines) and lines[at]["t"] in ("op", "decision", "vote", "fast")


def _drop(lines: list[Line], at: int, chance: random.Random) -> None:
    del lines[at]


def _vote(lines: list[Line], at: int, chance: random.Random) -> None:
    lines[at]["flag"] = chance.choice([flag for flag in "ofj" if flag != lines[at]["flag"]])


def _record(lines: list[Line], at: int, chance: random.Random) -> None:
    lines[at]["record"] = _other_record(lines[at]["record"], chance)


def _fast_reply(lines: list[Line], at: int, chance: random.Random) -> None:
    lines[at]["r"] = _other_record(lines[at]["r"], chance)


def _other_record(text: str, chance: random.Random) -> str:
    """Another iteration, the other commit, or another winner."""
    words = text.split(" ")
    match chance.choice(("iteration", "commit", "winner")):
        case "iteration":
            words[2] = str(int(words[2]) + 1)
        case "commit":
            words[4] = "0" if words[4] == "1" else "1"
        case "winner":
            rank, _, rest = words[6].partition(".")
            words[6] = f"{int(rank) + 1}.{rest}"
    return " ".join(words)


def _participants(lines: list[Line], at: int, chance: random.Random) -> None:
    """One of them is left out, or holds the state and is said not to (or the other way round)."""
    listed = lines[at]["members"].split(",")[:-1]
    which = chance.randrange(len(listed))
    if chance.random() < 0.5:
        del listed[which]
    else:
        listed[which] = listed[which][:-1] + ("j" if listed[which].endswith("h") else "h")
    lines[at]["members"] = "".join(f"{one}," for one in listed)


MUTATIONS = (
    Mutation("a reply changed", _has_a_reply, _reply),
    Mutation("a fast line's reply changed", _is("fast"), _fast_reply),
    Mutation("two lines swapped", _has_a_neighbour, _swap),
    Mutation("a decision doubled", _is("decision", "fast"), _double),
    Mutation("a line dropped", _has_a_follower, _drop),
    Mutation("a vote changed", _is("vote"), _vote),
    Mutation("a decision's record changed", _is("decision"), _record),
    Mutation("participants changed", _is("decision"), _participants),
)


def mutate(source: Path, target: Path, mutation: Mutation, seed: int) -> Changed | None:
    """Copy the recordings, one line (or two) of them changed, and the lines counted anew so that the change itself has to be noticed.
    A torn last line is left out. None if there is no line to change in this way."""
    chance = random.Random(f"{mutation.name} {seed}")
    target.mkdir(parents=True, exist_ok=True)
    files: dict[str, list[Line]] = {}
    for path in sorted(source.glob("*.jsonl")):
        if path.name.startswith("rank"):
            whole = path.read_text().splitlines(keepends=True)
            files[path.name] = [json.loads(line) for line in whole if line.endswith("\n")]
        else:
            shutil.copy(path, target)
    places = [(name, at) for name, lines in files.items() for at in range(len(lines)) if mutation.fits(lines, at)]
    if not places:
        return None
    chosen, at = chance.choice(places)
    lines = files[chosen]
    before = tuple(map(dict, lines[at : at + 2]))
    last = all(line["t"] in ("delete", "forgot") for line in lines[at + 1 :])
    mutation.change(lines, at, chance)
    for name, each in files.items():
        (target / name).write_text("".join(json.dumps({**line, "n": n}) + "\n" for n, line in enumerate(each)))
    return Changed(chosen, at, before, tuple(map(dict, lines[at : at + 2])), last)
