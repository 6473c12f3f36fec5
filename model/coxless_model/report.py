"""What a checker found, for people and for programs: a counterexample as a table that can be followed step by step."""

from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from coxless_model.deaths import Death
from coxless_model.itf import encode_action, encode_state
from coxless_model.liveness import Lasso, LivenessResult
from coxless_model.machine import ENVIRONMENT, Action, State
from coxless_model.mutants import Mutant
from coxless_model.records import Epoch, Listed, Member, Record, Signature
from coxless_model.results import Counterexample, Result, Trace, Verdict
from coxless_model.store import TEXTS, Store, epoch_text, key_text, member_text

UNSEEN = ("ghost", "pulse", "budgets", "faults")
"""Parts of the shared state that are bookkeeping of the model; nobody in the story can see them."""
LONGEST = 90
COLORS = {Verdict.HOLDS: "green", Verdict.VIOLATED: "red", Verdict.UNDETERMINED: "yellow"}

# --- Values and differences, in words -----------------------------------------------------------------------------------


def text(value: Any) -> str:
    """A value as one would write it on a board."""
    match value:
        case None:
            return "nothing"
        case Member():
            return member_text(value)
        case Epoch():
            return epoch_text(value)
        case Listed():
            return member_text(value.member) + ("" if value.holds else "*")
        case Signature():
            return f"{member_text(value.member)}.{value.flag}"
        case Record():
            winner = "" if value.winner is None else f", won by {member_text(value.winner)}"
            raised = ", attention" if value.attention else ""
            committed = ", committed" if value.committed else ""
            return f"<{value.iteration}, epoch {epoch_text(value.epoch)}{committed}{raised}{winner}>"
        case tuple() if value and value[0] in TEXTS and not hasattr(value, "_fields"):
            return key_text(value)
        case tuple() if hasattr(value, "_fields"):
            return f"{type(value).__name__}({', '.join(map(text, value))})"
        case tuple():
            return f"[{', '.join(map(text, value))}]"
        case frozenset():
            return f"{{{', '.join(sorted(map(text, value)))}}}"
        case _:
            return str(value)


def call(action: Action) -> str:
    """The store operation of an action."""
    if action.op is None:
        return ""
    return f"{action.op[0]}({', '.join(map(text, action.op[1:]))})"


def changes(before: State, after: State) -> Iterator[str]:
    """What a step changed, without the model's own bookkeeping."""
    yield from _changes("", before.shared, after.shared)
    for rank, (was, now) in enumerate(zip(before.ranks, after.ranks, strict=True)):
        yield from _changes(f"rank {rank}", was, now)


def _changes(where: str, was: Any, now: Any) -> Iterator[str]:
    if was == now:
        return
    if isinstance(was, Store) and isinstance(now, Store):
        old, new = dict(was.entries), dict(now.entries)
        for key in sorted({*old, *new}, key=key_text):
            if old.get(key) != new.get(key):
                yield f"{key_text(key)}: {text(old[key]) if key in old else '∅'} → {text(new[key]) if key in new else '∅'}"
    elif type(was) is type(now) and hasattr(was, "_fields") and not isinstance(was, Record | Member | Epoch):
        for field in was._fields:
            if field not in UNSEEN:
                yield from _changes(f"{where} {field}".strip(), getattr(was, field), getattr(now, field))
    elif (
        isinstance(was, tuple)
        and isinstance(now, tuple)
        and len(was) == len(now)
        and any(hasattr(part, "_fields") for part in was)
    ):
        for old, new in zip(was, now, strict=True):
            yield from _changes(where.removesuffix(" processes"), old, new)
    else:
        yield f"{where}: {_short(was)} → {_short(now)}"


def _short(value: Any) -> str:
    written = text(value)
    return written if len(written) <= LONGEST else written[: LONGEST - 1] + "…"


# --- For people ---------------------------------------------------------------------------------------------------------


def table(trace: Trace, title: str = "", first: int = 1) -> Table:
    """One line for each step: who, which store operation, what came back, what changed."""
    lines = Table(title=title or None, title_justify="left", show_edge=False, pad_edge=False)
    for heading in ("step", "rank", "action", "store operation", "result", "what changed"):
        lines.add_column(heading, overflow="fold", justify="right" if heading in ("step", "rank") else "left")
    for number, (before, action, after) in enumerate(trace.steps, start=first):
        who = "env" if action.rank == ENVIRONMENT else str(action.rank)
        name = action.name + (f" [{action.note}]" if action.note else "")
        result = "" if action.result is None else _short(action.result)
        cells = (str(number), who, name, call(action), result, "\n".join(changes(before, after)))
        lines.add_row(*map(escape, cells))
    return lines


def counterexample(found: Counterexample, meaning: str = "") -> RenderableType:
    length = len(found.trace.actions)
    head = Text.assemble((f"{found.property} is broken", "bold red"), f" after {length} steps: {found.wrong}")
    return Group(head, *([Text(_flowed(meaning), style="dim")] if meaning else []), table(found.trace))


def lasso(found: Lasso, meaning: str = "") -> RenderableType:
    head = Text.assemble((f"{found.goal} is broken", "bold red"), f": {found.wrong}")
    parts: list[RenderableType] = [head, *([Text(_flowed(meaning), style="dim")] if meaning else []), table(found.prefix)]
    if found.cycle.actions:
        parts.append(table(found.cycle, title="and from here round and round:", first=len(found.prefix.actions) + 1))
    return Group(*parts)


def summary(result: Result) -> RenderableType:
    """The verdict, the size of the search, and what it did not come to."""
    color = COLORS[result.verdict]
    head = Text.assemble((f"{result.system}: {result.verdict}", f"bold {color}"), f" ({result.reason})" if result.reason else "")
    size = (
        f"{result.states} states, {result.transitions} transitions, depth {result.depth}, {result.seconds:.1f} s, "
        f"{result.rate:.0f} states/s, {result.bytes_per_state:.0f} bytes/state"
    )
    parts: list[RenderableType] = [head, size]
    missed = [name for name, reached in result.reached.items() if not reached]
    if missed:
        parts.append(Text(f"never reached: {', '.join(missed)}", style="red"))
    if result.never_taken and result.verdict is Verdict.HOLDS:
        parts.append(Text(f"warning: never taken within these bounds: {', '.join(result.never_taken)}", style="yellow"))
    return Group(*parts)


def actions_taken(result: Result) -> Table:
    taken = Table("action", "taken", show_edge=False, pad_edge=False)
    for name, number in sorted(result.taken.items(), key=lambda entry: (-entry[1], entry[0])):
        taken.add_row(name, str(number))
    return taken


def liveness_summary(result: LivenessResult) -> RenderableType:
    color = COLORS[result.verdict]
    head = Text.assemble((f"{result.system}, every fair run: {result.verdict}", f"bold {color}"))
    tail = f" ({result.reason})" if result.reason else ""
    return Group(
        head + Text(tail), f"{result.states} states, {result.components} components without a goal, {result.seconds:.1f} s"
    )


def death_table(deaths: Sequence[Death], equivalent: Sequence[Mutant]) -> RenderableType:
    """Each mutant with the property that killed it, and the score."""
    lines = Table(
        "without the guard", "the mutant", "killed by", "steps", "states", "how it shows", show_edge=False, pad_edge=False
    )
    for each in deaths:
        fate = each.killed_by or ("equivalent" if each.mutant in equivalent else "undetermined" if each.wrong else "SURVIVES")
        steps = str(each.length) if each.killed_by else ""
        lines.add_row(each.mutant.guard, escape(each.mutant.removed), fate, steps, str(each.states), escape(each.wrong))
    counted = [each for each in deaths if each.mutant not in equivalent]
    killed = sum(each.verdict is Verdict.VIOLATED for each in counted)
    score = f"{killed} of {len(counted)} mutants killed ({100 * killed / max(len(counted), 1):.0f} %)"
    argued = len(deaths) - len(counted)
    return Group(lines, score + (f"; {argued} argued equivalent" if argued else ""))


def mutant_list(mutants: Sequence[Mutant]) -> Table:
    lines = Table("without the guard", "the mutant", "what a training job suffers", show_edge=False, pad_edge=False)
    for each in mutants:
        lines.add_row(each.guard, escape(each.removed), escape(each.suffers))
    return lines


def _flowed(prose: str) -> str:
    return " ".join(prose.split())


def to_console(rendered: RenderableType, console: Console | None = None) -> None:
    """Print; a pipe gets lines wide enough not to be folded."""
    console = console or Console()
    if not console.is_terminal:
        console = Console(file=console.file, width=220)
    console.print(rendered)


# --- For programs -------------------------------------------------------------------------------------------------------


def trace_json(trace: Trace) -> list[dict[str, Any]]:
    first = {"state": encode_state(trace.states[0])}
    return [first, *({"action": encode_action(action), "state": encode_state(after)} for _, action, after in trace.steps)]


def result_json(result: Result) -> dict[str, Any]:
    return {
        "system": result.system,
        "verdict": str(result.verdict),
        "reason": result.reason,
        "states": result.states,
        "transitions": result.transitions,
        "depth": result.depth,
        "seconds": round(result.seconds, 3),
        "states_per_second": round(result.rate),
        "bytes_per_state": round(result.bytes_per_state),
        "taken": dict(result.taken),
        "reached": dict(result.reached),
        "never_taken": list(result.never_taken),
        "stuck": result.stuck,
        "counterexamples": [
            {
                "property": found.property,
                "wrong": found.wrong,
                "length": len(found.trace.actions),
                "trace": trace_json(found.trace),
            }
            for found in result.counterexamples
        ],
    }


def liveness_json(result: LivenessResult) -> dict[str, Any]:
    return {
        "system": result.system,
        "verdict": str(result.verdict),
        "reason": result.reason,
        "states": result.states,
        "components": result.components,
        "seconds": round(result.seconds, 3),
        "lassos": [
            {"goal": each.goal, "wrong": each.wrong, "prefix": trace_json(each.prefix), "cycle": trace_json(each.cycle)}
            for each in result.lassos
        ],
    }


def death_json(found: Death) -> dict[str, Any]:
    return {
        "guard": found.mutant.guard,
        "removed": found.mutant.removed,
        "verdict": str(found.verdict),
        "killed_by": found.killed_by,
        "wrong": found.wrong,
        "length": found.length,
        "states": found.states,
        "seconds": round(found.seconds, 3),
    }
