"""Random scenarios with a wanted fault in them: runs of the hardened protocol to be used as test input."""

import random
from collections import Counter
from collections.abc import Iterator, Sequence

from coxless_model import itf
from coxless_model.environment import hardened
from coxless_model.machine import Action, successors
from coxless_model.results import Trace

BUDGET_OF = {
    "crash": {"crashes": 1},
    "restart": {"crashes": 1, "restarts": 1},
    "suspicion": {"suspicions": 1},
    "lost_reply": {"lost_replies": 1},
    "failed_vote": {"failed_votes": 1},
    "store_loss": {"store_losses": 1},
    "second_process": {"second_processes": 1},
    "leave": {"leaves": 1},
    "dead_mark": {"crashes": 1, "dead_marks": 1},
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
        case "dead_mark":
            return action.name == "mark_dead"
        case _:
            return action.name == kind


def fault_scenarios(
    kinds: Sequence[str], *, ranks: int, iterations: int, length: int, seed: int, count: int
) -> Iterator[tuple[str, itf.TraceFile]]:
    """Named scenarios of at most `length` steps in which each of the faults happens. The same arguments give the same scenarios."""
    budgets: Counter[str] = Counter()
    for kind in kinds:
        budgets.update(BUDGET_OF[kind])
    system = hardened(ranks, iterations, missing=(), join_timeouts=ranks + budgets["restarts"], **budgets)
    chance = random.Random(f"{' '.join(kinds)} {ranks} {iterations} {length} {seed}")
    made = 0
    for _ in range(ATTEMPTS):
        state = system.initial()
        states, actions = [state], list[Action]()
        # Faults are offered at every step, so that an unweighted choice would have them all at the beginning.
        when = chance.randrange(length)
        while len(actions) < length:
            options = list(successors(system, state))
            rare = [
                option
                for option in options
                if any(happened(kind, option[0]) for kind in kinds) or option[0].name in ("crash", "restart")
            ]
            usual = [option for option in options if option not in rare]
            chosen = rare if rare and (len(actions) >= when or not usual) else usual
            if not chosen:
                break
            action, state = chance.choice(chosen)
            states.append(state)
            actions.append(action)
        if all(any(happened(kind, action) for action in actions) for kind in kinds):
            name = f"{'-'.join(kinds)}-{ranks}x{iterations}-{length}-{seed}-{made}"
            prose = f"A random run of the hardened protocol with {' and '.join(kinds).replace('_', ' ')}: nothing may come of it."
            yield name, itf.trace_file(system, Trace(tuple(states), tuple(actions)), title=name, prose=prose)
            made += 1
            if made == count:
                return
