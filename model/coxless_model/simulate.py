"""Random walks, for depths that an exhaustive search does not reach: seeded, with the same properties and the same traces.

A walk proves nothing. Most of its steps are looked up and not computed, as in the exhaustive search (`make bench-model` says how many
it takes in a second). A counterexample is as long as the walk happened to be.
"""

import random
import time
from collections.abc import Callable, Iterable

from coxless_model.explore import LimitReached, Search, concrete_run
from coxless_model.keyed import TooMany
from coxless_model.machine import System
from coxless_model.results import NO_LIMITS, Counterexample, Limits, Progress, Result, Verdict

REMEMBERED = 1_000_000
"""States whose properties need not be checked again; forgotten when there are more."""


def simulate(
    system: System,
    *,
    seed: int,
    walks: int,
    length: int = 1000,
    limits: Limits = NO_LIMITS,
    properties: Iterable[str] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Result:
    """Walk at random from the initial state, `walks` times and at most `length` steps each; stop at the first violation.

    In the result, `states` counts the different states whose properties were checked, `transitions` the steps walked.
    """
    search = Search(system, symmetry=False, reduction=False, properties=properties, every_property=False)
    chance = random.Random(seed).random
    lanes, look_up = search.lanes, search.known
    checked: set[int] = set()
    different = steps = deepest = 0
    reason = ""
    path: list[int] = []
    started = time.monotonic()
    try:
        for _ in range(walks):
            search.look_at_limits(limits, on_progress, 0)
            key = search.packed.initial
            path = [key]
            while True:
                if key not in checked:
                    if len(checked) >= REMEMBERED:
                        checked.clear()
                    checked.add(key)
                    different += 1
                    search.check([key])
                    if search.found:
                        break
                options: tuple[tuple[int, int], ...] = ()
                lively = False
                for lane in lanes:
                    known = look_up(lane, key)
                    known.uses += 1
                    lively = lively or known.lively
                    options += known.differences
                if not lively:
                    search.note_stuck(key)
                    if search.found:
                        break
                if not options or len(path) > length:
                    break
                key = search.after(key, options[int(chance() * len(options))])
                path.append(key)
            steps += len(path) - 1
            deepest = max(deepest, len(path) - 1)
            if search.found:
                break
    except (LimitReached, TooMany) as limit:
        reason = str(limit)
    found = tuple(Counterexample(name, wrong, concrete_run(search.packed, path)) for name, (_, wrong) in search.found.items())
    search.found.clear()
    # Walks show the presence of a fault, never its absence.
    return search.result(reason or f"{walks} random walks prove nothing")._replace(
        verdict=Verdict.VIOLATED if found else Verdict.UNDETERMINED,
        counterexamples=found,
        states=different,
        transitions=steps,
        depth=deepest,
        seconds=time.monotonic() - started,
    )
