"""Exhaustive breadth-first search with shortest counterexamples.

Every reachable state is visited once, in order of its distance from the initial one, so the first state found to break a
property is one of the nearest. A state is one integer (packed.py), and the only thing kept for it is an entry in a
dictionary that maps it to its parent: the parent's integer exists anyway, so a parent costs eight bytes. Which action led
there is not stored. It is found again, by asking the specification, for the few states of a counterexample.

A search that comes to a limit has not shown anything, unless it found a violation before: its verdict is UNDETERMINED.
"""

import gc
import time
from collections import Counter
from collections.abc import Callable, Iterable

from coxless_model.keyed import TooMany
from coxless_model.lanes import IDLE, NOTHING, Known, Lane, Unpacked
from coxless_model.looks import Branch
from coxless_model.machine import Action, Invariant, System, expected_actions, step_kinds
from coxless_model.memory import resident
from coxless_model.packed import Packed, Steps
from coxless_model.reduction import Ample
from coxless_model.results import NO_LIMITS, Counterexample, Limits, Progress, Result, Trace, Verdict
from coxless_model.symmetry import Symmetry
from coxless_model.viewed import Noting, Viewed
from coxless_model.watched import Watched

CHUNK = 4096
"""States between two looks at the clock and the memory."""
DEADLOCK = "deadlock"


def explore(
    system: System,
    *,
    limits: Limits = NO_LIMITS,
    symmetry: bool = False,
    reduction: bool = False,
    properties: Iterable[str] | None = None,
    invariants: Iterable[Invariant] | None = None,
    every_property: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
) -> Result:
    """Visit every reachable state.

    `properties` names the invariants to check, "deadlock" among them (default: all); `invariants` gives others in their
    place, such as one that breaks where something is to be shown. The search stops at the first
    violation; with `every_property` it goes on until each of them has a shortest counterexample, or everything was seen.
    With `symmetry` one state stands for all that differ by renaming ranks; with `reduction` local steps that nobody can see
    are not interleaved, and counterexamples need not be the shortest.
    """
    search = Search(system, symmetry, reduction, properties, every_property, invariants)
    result = search.run(limits, on_progress)
    if search.ample is None or search.ample.trusted():
        return result
    return explore(
        system,
        limits=limits,
        symmetry=symmetry,
        properties=properties,
        invariants=invariants,
        every_property=every_property,
        on_progress=on_progress,
    )


SharedKnown = tuple[tuple[Invariant, ...], tuple[tuple[set[int], tuple[tuple[int, list[int]], ...], int, Viewed], ...]]
"""The invariants to ask in each state with the shared part; and how to put together what the others see of it."""


class LimitReached(Exception):
    """The search has come to one of its limits."""


class Search:
    def __init__(
        self,
        system: System,
        symmetry: bool = False,
        reduction: bool = False,
        properties: Iterable[str] | None = None,
        every_property: bool = False,
        invariants: Iterable[Invariant] | None = None,
    ) -> None:
        wanted = None if properties is None else frozenset(properties)
        self.system = system
        self.started = time.monotonic()
        self.memory_before = resident()
        self.packed = Packed(system)
        self.canonical = Symmetry(self.packed).canonical if symmetry else None
        self.ample = Ample(self.packed) if reduction else None
        # To expand a rank alone one has to know all that it may do.
        kinds = step_kinds(system) if self.ample is None else (system.local_steps,)
        self.lanes = (
            *(Lane(rank, kind, place, self.packed.local_mask) for rank, place in enumerate(self.packed.places) for kind in kinds),
            Lane(self.packed.ranks, system.local_steps, 0, 0),
        )
        asked = system.invariants if invariants is None else tuple(invariants)
        asked = tuple(each for each in asked if wanted is None or each.id in wanted)
        self.asked = asked
        self.invariants = tuple(each for each in asked if each.views is None)
        seen = dict.fromkeys(each.views for each in asked if each.views is not None)
        self.viewed = tuple(Viewed(self.packed, views, tuple(each for each in asked if each.views == views)) for views in seen)
        self.deadlock = bool(system.goals) and invariants is None and (wanted is None or DEADLOCK in wanted)
        self.every_property = every_property
        # For each shared number: the invariants that have to be asked in each state, as they look at local parts; and its views.
        self.shared_known: dict[int, SharedKnown] = {}
        self.alike: dict[tuple[tuple[int, ...], tuple[Invariant, ...]], SharedKnown] = {}
        self.missing = {each.name: each for each in system.situations}
        # The same few names and differences over and over: kept once.
        self.names: dict[tuple[str, ...], tuple[str, ...]] = {}
        self.pairs: dict[tuple[int, int], tuple[int, int]] = {}
        self.several: dict[tuple[tuple[int, int], ...], tuple[tuple[int, int], ...]] = {}
        self.parents: dict[int, int] = {self.packed.initial: -1}
        self.found: dict[str, tuple[int, str]] = {}
        self.stuck = 0
        self.depth = 0
        self._make_room()
        self.all_lanes = tuple(lane.unpacked for lane in self.lanes)

    def run(self, limits: Limits, on_progress: Callable[[Progress], None] | None) -> Result:
        layer = [self.packed.initial]
        reason = ""
        # Millions of integers make no reference cycles; looking for some costs a third of the time.
        collecting = gc.isenabled()
        gc.disable()
        try:
            self.check(layer)
            while layer and not self._finished():
                layer = self._expand(layer, limits, on_progress)
                self.depth += bool(layer)
        except (LimitReached, TooMany) as limit:
            reason = str(limit)
        finally:
            if collecting:
                gc.enable()
        return self.result(reason)

    def _finished(self) -> bool:
        if not self.every_property:
            return bool(self.found)
        return bool(self.asked) and len(self.found) == len(self.asked) + self.deadlock

    def _expand(self, layer: list[int], limits: Limits, on_progress: Callable[[Progress], None] | None) -> list[int]:
        following: list[int] = []
        for start in range(0, len(layer), CHUNK):
            self.look_at_limits(limits, on_progress, len(layer) - start)
            fresh: list[int] = []
            self._expand_chunk(layer[start : start + CHUNK], fresh)
            self.check(fresh)
            following += fresh
            if self._finished():
                break
        return following

    def _expand_chunk(self, chunk: list[int], fresh: list[int]) -> None:
        """The innermost loop: everything that is asked of the specification was asked before, but for new combinations."""
        parents, lanes, canonical, learn = self.parents, self.all_lanes, self.canonical, self.learn
        packed = self.packed
        shift, wides, numbers, new_number = packed.shift, packed.wides, packed.numbers, packed.number_of_wide
        for key in chunk:
            lively = False
            number = key >> shift
            wide = wides[number]
            for lane, place, mask, branches in lanes if self.ample is None else self._ample_lanes(key):
                branch = branches[key >> place & mask]
                known = branch.known.get(wide & branch.mask)
                while type(known) is Branch:
                    known = known.known.get(wide & known.mask)
                if known is IDLE:
                    continue
                if known is None:
                    known = learn(lane, key)
                known.uses += 1
                if known.lively:
                    lively = True
                if known.asks:
                    self._ask(known, key)
                for onto, difference in known.differences:
                    after = key + difference
                    if onto:
                        then = wide + onto
                        other = numbers.get(then)
                        if other is None:
                            other = new_number(then)
                        after += (other - number) << shift
                    if after not in parents:
                        if canonical is not None:
                            after = canonical(after)
                            if after in parents:
                                continue
                        parents[after] = key
                        fresh.append(after)
            if not lively:
                self.note_stuck(key)

    def _ample_lanes(self, key: int) -> tuple[Unpacked, ...]:
        for lane in self.lanes[:-1]:
            known = self.known(lane, key)
            if known.alone:
                for difference in known.differences:
                    after = self.after(key, difference)
                    if self.canonical is not None:
                        after = self.canonical(after)
                    if after not in self.parents:
                        return (lane.unpacked,)
        return self.all_lanes

    def after(self, key: int, difference: tuple[int, int]) -> int:
        """The state that a step leads to."""
        packed = self.packed
        number = key >> packed.shift
        other = packed.number_of_wide(packed.wides[number] + difference[0])
        return key + difference[1] + ((other - number) << packed.shift)

    def known(self, lane: Lane, key: int) -> Known:
        """What the actor may do in the state."""
        found = lane.known[key >> lane.place & lane.mask].find(self.packed.wides[key >> self.packed.shift])
        return found or self.learn(lane, key)

    def learn(self, lane: Lane, key: int) -> Known:
        """Ask the specification what the actor may do in this state, and keep the answer."""
        system, rank, packed = self.system, lane.actor, self.packed
        own, wide = key >> lane.place & lane.mask, packed.wides[key >> packed.shift]
        steps = packed.ask(rank, wide, own, lane.kind)
        names = tuple(action.name for action in steps.actions)
        lively = any(system.fair(action) is not None for action in steps.actions)
        alone = self.ample is not None and rank < packed.ranks and self.ample.alone(rank, own, steps.actions)
        together = zip(steps.onto_shared, steps.onto_local, strict=True)
        differences = tuple(self.pairs.setdefault(pair, pair) for pair in together if pair != (0, 0))
        differences = self.several.setdefault(differences, differences)
        known = Known(differences, self.names.setdefault(names, names), lively, alone) if names else IDLE
        lane.learned(own).add(wide, steps.looks, known)
        self._make_room()
        if self.missing:
            self._look_for_situations(known, key, rank, steps)
        return known

    def _make_room(self) -> None:
        new = len(self.packed.locals) - len(self.lanes[0].known)
        if new:
            for lane in self.lanes:
                lane.known += [NOTHING] * new

    def _look_for_situations(self, known: Known, key: int, rank: int, steps: Steps) -> None:
        # What was learned in one state stands for all where the pieces are the same that the steps looked at.
        before = Noting(self.packed, key)
        for action, *difference in zip(steps.actions, steps.onto_shared, steps.onto_local, strict=True):
            onto, own = difference
            after = Noting(self.packed, self.after(key, (onto, own)))
            for situation in tuple(self.missing.values()):
                before.forget()
                after.forget()
                if situation.holds(before.state, action, after.state):
                    del self.missing[situation.name]
                elif not before.ranks | after.ranks <= {rank} or (before.mask | after.mask) & ~steps.mask:
                    known.asks += ((situation, action, (onto, own)),)

    def _ask(self, known: Known, key: int) -> None:
        known.asks = tuple(ask for ask in known.asks if ask[0].name in self.missing)
        for situation, action, difference in known.asks:
            if situation.holds(self.packed.unpack(key), action, self.packed.unpack(self.after(key, difference))):
                self.missing.pop(situation.name, None)

    def check(self, fresh: list[int]) -> None:
        """Check the invariants in new states: each once for each combination of what it looks at."""
        shift, mask, shared_known = self.packed.shift, self.packed.local_mask, self.shared_known
        for each in self.viewed:
            each.look_at_locals()
        for key in fresh:
            known = shared_known.get(key >> shift)
            if known is None:
                known = shared_known[key >> shift] = self._check_shared(key)
            invariants, viewed = known
            if invariants:
                self._ask_invariants(invariants, key)
            for clean, lanes, view, each in viewed:
                for place, views in lanes:
                    view += views[key >> place & mask]
                if view not in clean:
                    clean.add(view)
                    self._ask_invariants(each.invariants, key)

    def _ask_invariants(self, invariants: tuple[Invariant, ...], key: int) -> None:
        state = self.packed.unpack(key)
        for invariant in invariants:
            wrong = invariant.check(state)
            if wrong is not None:
                self.found.setdefault(invariant.id, (key, wrong))

    def _check_shared(self, key: int) -> SharedKnown:
        """Those that depend on the shared part only, once for each shared part; the others are returned, and the views of it."""
        to_ask: list[Invariant] = []
        for invariant in self.invariants:
            state = Watched.of(self.packed.unpack(key))
            wrong = invariant.check(state)
            if state.looked:
                to_ask.append(invariant)
            elif wrong is not None:
                self.found.setdefault(invariant.id, (key, wrong))
        wide = self.packed.wides[key >> self.packed.shift]
        views = tuple([each.of_shared(wide) for each in self.viewed])
        known = self.alike.get((views, tuple(to_ask)))
        if known is None:
            together = zip(self.viewed, views, strict=True)
            known = tuple(to_ask), tuple((each.clean, each.lanes, view, each) for each, view in together if view >= 0)
            self.alike[views, known[0]] = known
        return known

    def note_stuck(self, key: int) -> None:
        self.stuck += 1
        if self.deadlock and DEADLOCK not in self.found:
            state = self.packed.unpack(key)
            for goal in self.system.goals:
                if not goal.reached(state) and not goal.excused(state):
                    self.found[DEADLOCK] = key, f"nothing is promised to happen any more, and {goal.id} has not come about"
                    return

    def look_at_limits(self, limits: Limits, on_progress: Callable[[Progress], None] | None, waiting: int) -> None:
        seconds = time.monotonic() - self.started
        if limits.states is not None and len(self.parents) >= limits.states:
            raise LimitReached(f"came to the limit of {limits.states} states")
        if limits.seconds is not None and seconds >= limits.seconds:
            raise LimitReached(f"came to the limit of {limits.seconds:g} s")
        if limits.memory is None and on_progress is None:
            return
        memory = resident()
        if limits.memory is not None and memory >= limits.memory:
            raise LimitReached(f"came to the limit of {limits.memory >> 20} MiB")
        if on_progress is not None:
            on_progress(Progress(len(self.parents), self.depth, waiting, seconds, memory))

    def memory(self) -> int:
        """Resident bytes that were added since the search began."""
        return max(resident() - self.memory_before, 0)

    def result(self, reason: str) -> Result:
        seconds = time.monotonic() - self.started
        memory = self.memory()
        taken: Counter[str] = Counter()
        for known in (known for lane in self.lanes for branch in lane.known for known in branch.answers()):
            for name in known.names:
                taken[name] += known.uses
        if self.found:
            verdict, reason = Verdict.VIOLATED, reason if self.every_property else ""
        else:
            verdict = Verdict.UNDETERMINED if reason else Verdict.HOLDS
        return Result(
            system=self.system.name,
            verdict=verdict,
            reason=reason,
            states=len(self.parents),
            transitions=sum(taken.values()),
            depth=self.depth,
            seconds=seconds,
            memory=memory,
            taken=dict(sorted(taken.items())),
            never_taken=tuple(name for name in expected_actions(self.system) if not taken.get(name)),
            reached={each.name: each.name not in self.missing for each in self.system.situations},
            stuck=self.stuck,
            counterexamples=tuple(Counterexample(name, wrong, self.trace(key)) for name, (key, wrong) in self.found.items()),
        )

    def trace(self, key: int) -> Trace:
        keys = [key]
        while (key := self.parents[key]) >= 0:
            keys.append(key)
        return concrete_run(self.packed, keys[::-1], self.canonical)


def concrete_run(packed: Packed, keys: list[int], canonical: Callable[[int], int] | None = None) -> Trace:
    """The run through the given states, or with `canonical` through states that differ from them by renaming."""
    key = keys[0]
    states, actions = [packed.unpack(key)], []
    for wanted in keys[1:]:
        action, key = _step_to(packed, key, wanted, canonical)
        states.append(packed.unpack(key))
        actions.append(action)
    return Trace(tuple(states), tuple(actions))


def _step_to(packed: Packed, key: int, wanted: int, canonical: Callable[[int], int] | None) -> tuple[Action, int]:
    for action, after in packed.successors(key):
        if after == wanted or (canonical is not None and canonical(after) == wanted):
            return action, after
    # It was there when the search asked for it.
    raise RuntimeError(f"{packed.system.name}: a step cannot be repeated; does it depend on the order of a set?")
