"""Traces as files, in the JSON format of Apalache (ITF, "informal trace format").

A file holds the states of a run; the action that led to a state, with its store operation and reply, is in that state's
`#meta`. The file's own `#meta` holds a title and a few lines of prose, and the configuration of the system, so that the run
can be executed again, here or on a real store. The same trace gives the same bytes.

Values: numbers, strings and truth values are themselves, a tuple is {"#tup": [...]}, a set {"#set": [...]}, a mapping
{"#map": [[key, value], ...]}, a number beyond 2^53 {"#bigint": "..."}, a named tuple is an object with its fields, and None
is the variant {"tag": "None", "value": {"#tup": []}}.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from coxless_model.bounds import configuration, configured
from coxless_model.machine import Action, State, System, describe, successors
from coxless_model.results import Trace

FORMAT = "https://apalache-mc.org/docs/adr/015adr-trace.html"
NONE: Mapping[str, Any] = {"tag": "None", "value": {"#tup": []}}
LARGEST = 2**53 - 1
ACTION = ("rank", "name", "op", "result", "note")


class CorruptTrace(ValueError):
    """A trace file that cannot be read; the message names the file and the place in it."""


class TraceFile(NamedTuple):
    """A trace as it is written: everything encoded."""

    title: str
    prose: str
    configuration: Mapping[str, Any]
    broken: str
    """The property that the run breaks, or an empty string."""
    wrong: str
    """How it breaks it."""
    variables: tuple[str, ...]
    states: tuple[Mapping[str, Any], ...]
    actions: tuple[Mapping[str, Any], ...]
    """One less than states."""
    loop: int | None = None
    """For a run that goes on for ever: the state to which it returns from the last one."""

    @property
    def system(self) -> System:
        return configured(self.configuration)


def trace_file(
    system: System, trace: Trace, *, title: str, prose: str = "", broken: str = "", wrong: str = "", loop: int | None = None
) -> TraceFile:
    """The trace of a system as a file's content."""
    states = tuple(map(encode_state, trace.states))
    actions = tuple(map(encode_action, trace.actions))
    return TraceFile(title, prose, configuration(system), broken, wrong, tuple(states[0]), states, actions, loop)


def encode(value: Any) -> Any:
    """A value of the model as JSON."""
    if value is None:
        return dict(NONE)
    if isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return value if abs(value) <= LARGEST else {"#bigint": str(value)}
    if isinstance(value, tuple):
        if hasattr(value, "_fields"):
            return {field: encode(part) for field, part in zip(value._fields, value, strict=True)}
        return {"#tup": [encode(part) for part in value]}
    if isinstance(value, frozenset):
        return {"#set": sorted((encode(part) for part in value), key=_order)}
    if isinstance(value, Mapping):
        pairs = [[encode(key), encode(part)] for key, part in value.items()]
        return {"#map": sorted(pairs, key=_order)}
    raise TypeError(f"{type(value).__name__} has no place in a trace: {value!r}")


def decode(value: Any) -> Any:
    """The value again; what was a named tuple is a dictionary."""
    match value:
        case bool() | int() | str():
            return value
        case {"#tup": list(parts), **rest} if not rest:
            return tuple(map(decode, parts))
        case {"#set": list(parts), **rest} if not rest:
            return frozenset(map(decode, parts))
        case {"#map": list(pairs), **rest} if not rest and all(type(pair) is list for pair in pairs):
            return {decode(key): decode(part) for key, part in pairs}
        case {"#bigint": str(digits), **rest} if not rest and re.fullmatch("-?[1-9][0-9]{0,999}", digits):
            return int(digits)
        case {"tag": "None"} if value == NONE:
            return None
        case dict() if not any(key.startswith("#") for key in value):
            return {key: decode(part) for key, part in value.items()}
    raise ValueError(f"{json.dumps(value)[:60]} is not a value")


def encode_state(state: State) -> dict[str, Any]:
    """The shared part's fields and the ranks, each as a variable."""
    shared = encode(state.shared)
    variables = shared if hasattr(state.shared, "_fields") else {"shared": shared}
    return {**variables, "ranks": encode(state.ranks)}


def encode_action(action: Action) -> dict[str, Any]:
    return {field: encode(part) for field, part in zip(ACTION, action, strict=True)}


def _order(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


# --- Writing and reading ------------------------------------------------------------------------------------------------


def dumps(trace: TraceFile) -> str:
    """The text of the file: each state on a line of its own, so that differences can be read."""
    meta = {
        "format": "ITF",
        "format-description": FORMAT,
        "title": trace.title,
        "description": trace.prose,
        "property": trace.broken,
        "wrong": trace.wrong,
        "configuration": dict(trace.configuration),
    }
    parts = [f'"#meta": {json.dumps(meta, ensure_ascii=False, indent=1)}', f'"vars": {json.dumps(trace.variables)}']
    if trace.loop is not None:
        parts.append(f'"loop": {trace.loop}')
    lines = []
    for index, state in enumerate(trace.states):
        about: dict[str, Any] = {"index": index}
        if index:
            about["action"] = trace.actions[index - 1]
        lines.append(json.dumps({"#meta": about, **state}, ensure_ascii=False))
    parts.append('"states": [\n' + ",\n".join(lines) + "\n]")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def write(path: Path, trace: TraceFile) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(dumps(trace), encoding="utf-8")


def read(path: Path) -> TraceFile:
    """The file's content; CorruptTrace, in one sentence, if it is not a trace."""
    try:
        return loads(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise CorruptTrace(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise CorruptTrace(f"{path}: is not UTF-8 text") from None


def loads(text: str, name: str = "trace") -> TraceFile:
    try:
        whole = json.loads(text)
        json.dumps(whole, ensure_ascii=False).encode()  # half a surrogate pair is JSON, and no text
    except json.JSONDecodeError as error:
        raise CorruptTrace(f"{name}: is not JSON (line {error.lineno}, column {error.colno}: {error.msg})") from None
    except (ValueError, RecursionError) as error:
        where = "too deep" if isinstance(error, RecursionError) else "a number or a character that there is not"
        raise CorruptTrace(f"{name}: is not JSON ({where})") from None
    take = _Reader(name)
    meta = take.field(whole, "#meta", dict, "the file")
    texts = [take.field(meta, key, str, "#meta") for key in ("title", "description", "property", "wrong")]
    settings = take.field(meta, "configuration", dict, "#meta")
    variables = take.field(whole, "vars", list, "the file")
    loop = take.field(whole, "loop", int, "the file") if "loop" in whole else None
    states: list[Mapping[str, Any]] = []
    actions: list[Mapping[str, Any]] = []
    for index, entry in enumerate(take.field(whole, "states", list, "the file")):
        place = f"states[{index}]"
        about = take.field(entry, "#meta", dict, place)
        if about.get("index") != index:
            take.wrong(f"{place}: its index is {about.get('index')!r}")
        state = {key: value for key, value in entry.items() if key != "#meta"}
        if list(state) != variables:
            take.wrong(f"{place}: has the variables {', '.join(state)} and not those of `vars`")
        for variable, value in state.items():
            take.value(value, f"{place}.{variable}")
        states.append(state)
        if index:
            action = take.field(about, "action", dict, f"{place}.#meta")
            if tuple(action) != ACTION or type(action["rank"]) is not int or not isinstance(action["name"], str):
                take.wrong(f"{place}: its action has to have {', '.join(ACTION)}")
            take.value(action, f"{place}.#meta.action")
            actions.append(action)
    if not states:
        take.wrong("it has no states")
    if loop is not None and not 0 <= loop < len(states):
        take.wrong(f"it goes back to state {loop}, which there is not")
    return TraceFile(texts[0], texts[1], settings, texts[2], texts[3], tuple(variables), tuple(states), tuple(actions), loop)


class _Reader:
    def __init__(self, name: str) -> None:
        self.name = name

    def wrong(self, what: str) -> None:
        raise CorruptTrace(f"{self.name}: {what}")

    def field(self, holder: Any, key: str, kind: type, place: str) -> Any:
        if not isinstance(holder, dict):
            self.wrong(f"{place} is not an object")
        if key not in holder:
            self.wrong(f"{place}: {key} is missing")
        if type(holder[key]) is not kind:
            self.wrong(f"{place}: {key} is not {NAMES[kind]}")
        return holder[key]

    def value(self, value: Any, place: str) -> None:
        try:
            decode(value)
        except (ValueError, TypeError, RecursionError) as error:
            self.wrong(f"{place}: {error}")


NAMES = {dict: "an object", list: "a list", str: "a string", int: "a number"}

# --- Executing again ----------------------------------------------------------------------------------------------------


class Deviation(NamedTuple):
    """Where a trace is not a run of the system."""

    step: int
    """The index of the state at which they differ."""
    wrong: str


def deviation(system: System, trace: TraceFile) -> Deviation | None:
    """Execute the trace on the system; say where it deviates, if it does."""
    state = system.initial()
    if (found := encode_state(state)) != trace.states[0]:
        return Deviation(0, f"the initial state differs in {_differing(found, trace.states[0])}")
    for index, action in enumerate(trace.actions, start=1):
        offered = []
        for candidate, after in successors(system, state):
            if encode_action(candidate) == action:
                state = after
                break
            offered.append(describe(candidate))
        else:
            return Deviation(index, f"{action['name']} of rank {action['rank']} is not enabled; enabled: {'; '.join(offered)}")
        if (found := encode_state(state)) != trace.states[index]:
            return Deviation(index, f"after {action['name']} the state differs in {_differing(found, trace.states[index])}")
    if trace.loop is not None and trace.states[trace.loop] != trace.states[-1]:
        return Deviation(len(trace.actions), f"the last state is not state {trace.loop}, to which it is said to go back")
    return None


def executed(system: System, trace: TraceFile) -> Trace:
    """The states and actions of a trace that does not deviate."""
    state = system.initial()
    states, actions = [state], []
    for wanted in trace.actions:
        action, state = next(pair for pair in successors(system, state) if encode_action(pair[0]) == wanted)
        states.append(state)
        actions.append(action)
    return Trace(tuple(states), tuple(actions))


def _differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    return ", ".join(key for key in one if one[key] != other.get(key)) or "its variables"
