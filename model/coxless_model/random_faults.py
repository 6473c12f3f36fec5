"""Random scenarios with a wanted fault in them: runs of the hardened protocol to be used as test input."""

import random
from collections.abc import Iterator
from typing import Any

from coxless_model import itf
from coxless_model.environment import hardened
from coxless_model.explore import Trace
from coxless_model.machine import Action, successors

BUDGET_OF = {
    "crash": {"crashes": 1},
    "restart": {"crashes": 1, "restarts": 1},
    "suspicion": {"suspicions": 1},
    "lost_reply": {"lost_replies": 1},
    "failed_vote": {"failed_votes": 1},
    "store_loss": {"store_losses": 1},
    "second_process": {"second_processes": 1},
    "leave": {"leaves": 1},
}
"""For each kind of fault, the budgets under which it can happen."""
KINDS = tuple(BUDGET_OF)
ATTEMPTS = 10_000


def happened(kind: str, action: Action) -> bool:
    """Is this action the fault of that kind?"""
    match kind:
        case "suspicion":
            return "wrong suspicion" in action.note
        case "lost_reply":
            return "reply lost" in action.note or "not applied" in action.note
        case "failed_vote":
            return "the step failed" in action.note
        case "store_loss":
            return action.name == "lose_store"
        case _:
            return action.name == kind


def fault_scenarios(
    kind: str, *, ranks: int, iterations: int, length: int, seed: int, count: int
) -> Iterator[tuple[str, itf.TraceFile]]:
    """Named scenarios of at most `length` steps in which the fault happens. The same arguments give the same scenarios."""
    budgets: dict[str, Any] = dict(BUDGET_OF[kind])
    system = hardened(ranks, iterations, join_timeouts=ranks + budgets.get("restarts", 0), **budgets)
    chance = random.Random(f"{kind} {ranks} {iterations} {length} {seed}")
    made = 0
    for _ in range(ATTEMPTS):
        state = system.initial()
        states, actions = [state], list[Action]()
        # Faults are offered at every step, so that an unweighted choice would have them all at the beginning.
        when = chance.randrange(length)
        while len(actions) < length:
            options = list(successors(system, state))
            rare = [option for option in options if happened(kind, option[0]) or option[0].name in ("crash", "restart")]
            usual = [option for option in options if option not in rare]
            chosen = rare if rare and (len(actions) >= when or not usual) else usual
            if not chosen:
                break
            action, state = chance.choice(chosen)
            states.append(state)
            actions.append(action)
        if any(happened(kind, action) for action in actions):
            name = f"{kind}-{ranks}x{iterations}-{length}-{seed}-{made}"
            prose = f"A random run of the hardened protocol with {kind.replace('_', ' ')}: nothing may come of it."
            yield name, itf.trace_file(system, Trace(tuple(states), tuple(actions)), title=name, prose=prose)
            made += 1
            if made == count:
                return
