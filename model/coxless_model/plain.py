"""The search that everybody would write first: whole states in a dictionary, the specification asked in each of them.

It is the oracle that the engine is tested against, and the yardstick for its speed and memory.
"""

import time
from typing import NamedTuple

from coxless_model.machine import Action, State, System, successors, violations
from coxless_model.memory import resident


class PlainResult(NamedTuple):
    states: int
    transitions: int
    depth: int
    seconds: float
    memory: int
    broken: str
    """The first property found broken; empty if none."""
    length: int
    """The number of steps to that state."""


def plain_search(system: System, max_states: int | None = None) -> PlainResult:
    started, memory_before = time.monotonic(), resident()
    initial = system.initial()
    parents: dict[State, tuple[State, Action] | None] = {initial: None}
    layer, depth, transitions, broken = [initial], 0, 0, ""
    while layer and not broken and (max_states is None or len(parents) < max_states):
        following = []
        for state in layer:
            for action, after in successors(system, state):
                transitions += 1
                if after not in parents:
                    parents[after] = (state, action)
                    following.append(after)
                    if not broken and (wrong := violations(system, after)):
                        broken = wrong[0][0]
        layer = following
        depth += bool(layer)
    seconds, memory = time.monotonic() - started, resident() - memory_before
    return PlainResult(len(parents), transitions, depth, seconds, memory, broken, depth if broken else 0)
