"""Recorded runs with one thing changed: a validator that admits them would prove nothing."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

Line = dict[str, Any]


def reply_changed(lines: list[Line], chance: random.Random) -> None:
    line = chance.choice([line for line in lines if line["t"] == "op" and line["r"] not in (None, "")])
    line["r"] = another(line["r"])


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


def swapped(lines: list[Line], chance: random.Random) -> None:
    """Two neighbours of the training thread."""
    at = chance.choice([i for i in range(1, len(lines) - 1) if "delete" not in (lines[i]["t"], lines[i + 1]["t"])])
    lines[at], lines[at + 1] = lines[at + 1], lines[at]


def decision_doubled(lines: list[Line], chance: random.Random) -> None:
    at = chance.choice([i for i, line in enumerate(lines) if line["t"] == "decision"])
    lines.insert(at, dict(lines[at]))


def dropped(lines: list[Line], chance: random.Random) -> None:
    """A line that had others after it: the last one of a killed process may be missing in truth."""
    del lines[chance.choice([i for i, line in enumerate(lines[:-1]) if line["t"] in ("op", "decision", "vote")])]


MUTATIONS: tuple[Callable[[list[Line], random.Random], None], ...] = (reply_changed, swapped, decision_doubled, dropped)


def mutate(source: Path, target: Path, mutation: Callable[[list[Line], random.Random], None], seed: int) -> str:
    """Copy the recordings, one of them changed, and the lines counted anew so that the change itself has to be noticed. Returns the
    name of the file that was changed."""
    chance = random.Random(seed)
    files = {
        path.name: [json.loads(line) for line in path.read_text().splitlines()] for path in sorted(source.glob("rank*.jsonl"))
    }
    chosen = chance.choice([name for name, lines in files.items() if any(line["t"] == "decision" for line in lines)])
    mutation(files[chosen], chance)
    target.mkdir(parents=True, exist_ok=True)
    for name, lines in files.items():
        (target / name).write_text("".join(json.dumps({**line, "n": n}) + "\n" for n, line in enumerate(lines)))
    return chosen
