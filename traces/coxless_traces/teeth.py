"""The validator's teeth: a recording is changed in many ways, and what is still admitted has to be something that the model may do."""

import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from .mutation import MUTATIONS, Changed, Line, Mutation, mutate
from .validation import validate


class Bite(NamedTuple):
    """One changed recording, and what was said of it."""

    mutation: Mutation
    seed: int
    changed: Changed
    word: str
    why: str
    """Of an admitted one: why the model may do that; empty if nobody knows."""


def bites(folder: Path, each: int) -> Iterator[Bite]:
    """Change the recordings in a folder, in each way so many times, and judge what comes of it."""
    for mutation in MUTATIONS:
        for seed in range(each):
            with tempfile.TemporaryDirectory(prefix="coxless-teeth-") as place:
                changed = mutate(folder, Path(place), mutation, seed)
                if changed is None:
                    break
                word = validate(Path(place)).word
            yield Bite(mutation, seed, changed, word, reason(mutation.name, changed) if word == "admitted" else "")


def reason(kind: str, changed: Changed) -> str:
    """Why the model may do that as well; empty if there is no reason known."""
    first, second = changed.before[0], changed.before[1] if len(changed.before) > 1 else {}
    match kind:
        case "a reply changed" if _looks_at_a_heartbeat(first) and first["r"]:
            return "nobody has to suspect anyone: 'not suspected' is always admitted"
        case "a reply changed" if first["t"] == "op" and first["o"] == "Wait" and first["r"]:
            return "a wait that was woken: its patience may as well be over before the wake, which has no reply, takes effect"
        case "a line dropped" if _found_nothing(first):
            return "a wait that found nothing: its patience may be over later, or it was never begun"
        case "a line dropped" if _looks_at_a_heartbeat(first) and not first["r"]:
            return "a heartbeat that told nothing: it need not be looked at again"
        case "a line dropped" if first["t"] == "op" and first["o"] == "JoinTimedOut" and not first["r"]:
            return "that the join timeout is not over: the same as not to have asked"
        case "two lines swapped" if _found_nothing(first) or _found_nothing(second):
            return "a wait that found nothing: its patience may be over earlier or later"
        case "two lines swapped" if _looks_at_a_heartbeat(first) and _looks_at_a_heartbeat(second):
            return "two heartbeats are looked at in either order"
        case "a vote changed" if changed.last:
            return "the last thing that was heard of a process: nothing tells how it would have gone on"
        case _ if changed.last and first.get("t") == "op":
            return "the last operation of a process: its reply changed nothing that anybody saw"
    return ""


def _found_nothing(line: Line) -> bool:
    return line.get("t") == "op" and line["o"] == "Wait" and line["r"] is False


def _looks_at_a_heartbeat(line: Line) -> bool:
    return line.get("t") == "op" and line["o"] == "ReadHeartbeat"


def table(found: list[Bite]) -> str:
    """Kind by kind, as Markdown; below it the changed recordings that were admitted, and why."""
    counted = Counter((bite.mutation.name, bite.word) for bite in found)
    rows = ["| changed | tried | rejected | admitted | undetermined |", "|---|---|---|---|---|"]
    names = [mutation.name for mutation in MUTATIONS]
    for name in names:
        numbers = [counted[name, word] for word in ("rejected", "admitted", "undetermined")]
        rows.append(f"| {name} | {sum(numbers)} | " + " | ".join(map(str, numbers)) + " |")
    sums = [sum(counted[name, word] for name in names) for word in ("rejected", "admitted", "undetermined")]
    rows.append(f"| all | {sum(sums)} | " + " | ".join(map(str, sums)) + " |")
    admitted = [bite for bite in found if bite.word == "admitted"]
    if admitted:
        rows.append("")
    for (name, why), number in Counter((bite.mutation.name, bite.why) for bite in admitted).items():
        rows.append(f"- {name}, {number} admitted: {why or 'NO REASON KNOWN'}")
    for bite in admitted:
        if not bite.why:
            rows.append(f"  - seed {bite.seed}, {bite.changed.file}:{bite.changed.at + 1}: {bite.changed.before[0]}")
    return "\n".join(rows)
