"""Random walks over the model, each named by its seed, and their replay."""

import random
from collections.abc import Iterator

from coxless_model.environment import Budgets, Hardened
from coxless_model.machine import Action, State, successors

from .replay import Lockstep
from .targets import Target

Step = tuple[State, Action, State]

ONE_OF_EACH = {name: 1 for name in Budgets._fields if name != "clock_skews"}
"""A budget for each fault that the hardened protocol takes notice of, once."""


def replayable(before: State, action: Action) -> bool:
    """The model admits any order of the missing members' heartbeats; the implementation asks in the order of the list."""
    if action.name != "read_heartbeat":
        return True
    assert action.op is not None
    process = before.ranks[action.rank].processes[1 if "second process" in action.note else 0]
    return bool(action.op[1][1] == process.unheard[0])


def walk(system: Hardened, seed: int, length: int, start: State | None = None) -> Iterator[Step]:
    """A random run, from the initial state unless another is given. Which rank comes next is drawn first, so that a rank with many
    choices does not crowd out the others; how often a fault is taken is drawn for the whole run, so that budgets are not always spent
    on the first steps."""
    chance = random.Random(seed)
    fault = chance.choice((0.02, 0.1, 0.5))
    state = system.initial() if start is None else start
    for _ in range(length):
        usual: dict[int, list[tuple[Action, State]]] = {}
        faults: dict[int, list[tuple[Action, State]]] = {}
        for action, after in successors(system, state):
            if replayable(state, action):
                kind = faults if system.fair(action) is None else usual
                kind.setdefault(action.rank, []).append((action, after))
        if not usual and not faults:
            return
        by_rank = faults if faults and (not usual or chance.random() < fault) else usual
        action, after = chance.choice(by_rank[chance.choice(sorted(by_rank))])
        yield state, action, after
        state = after


def replay_walk(system: Hardened, target: Target, seed: int, length: int) -> int:
    """How many steps were replayed. Raises Mismatch."""
    lockstep = Lockstep(system, target)
    try:
        for before, action, after in walk(system, seed, length):
            lockstep.step(before, action, after)
        return lockstep.steps
    finally:
        lockstep.close()
