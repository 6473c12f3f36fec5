"""A system with its parts interned: a state is one integer, and a step is the difference between two of them.

The specification works on nested immutable tuples, which are slow to hash and large to keep. Here each shared part and
each rank's local part gets a small number, once. A state is packed as

    shared number | local number of rank n-1 | ... | local number of rank 0

A shared part is itself an integer, `wide`, made of the numbers of its pieces (parts.py). What a rank may do depends only on
some of the pieces and on its own local part. So the steps are asked of the specification once for each such combination,
and kept as two differences: one of the `wide`, one of the local number. The shared number stands on top, without a limit
on its width.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

from coxless_model.keyed import TooMany
from coxless_model.looks import Looks
from coxless_model.machine import Action, State, Step, StepKind, System
from coxless_model.parts import WHOLE, Layout, Parts

LOCAL_BITS = 18
"""Room for a quarter of a million different local parts. With two ranks and 16 million shared parts a state takes 60 bits,
which CPython keeps in 32 bytes."""


class TooManyLocals(TooMany):
    """More different local parts than LOCAL_BITS can number."""


class Pair(NamedTuple):
    """What one actor (a rank, or the environment) may do in one state."""

    differences: tuple[int, ...]
    actions: tuple[Action, ...]


class Steps(NamedTuple):
    """What one actor may do, wherever the pieces in `looks` and its local part are the same."""

    looks: Looks
    onto_shared: tuple[int, ...]
    onto_local: tuple[int, ...]
    actions: tuple[Action, ...]

    @property
    def mask(self) -> int:
        return sum(self.looks)


class Packed:
    """The interned form of a system. Numbers are given in order of appearance, so that they are the same in every run."""

    def __init__(self, system: System) -> None:
        self.system = system
        initial = system.initial()
        layout: Layout = getattr(system, "layout", WHOLE)
        self.parts = Parts(layout, initial.shared)
        self.wides: list[int] = []
        self.numbers: dict[int, int] = {}
        self.locals: list[Any] = []
        self._local_numbers: dict[Any, int] = {}
        self.ranks = len(initial.ranks)
        self.shift = LOCAL_BITS * self.ranks
        self.places = tuple(range(0, self.shift, LOCAL_BITS))
        self.local_mask = (1 << LOCAL_BITS) - 1
        # The bits of a state that decide what an actor may do: the shared part, and for a rank its own local part.
        top = -1 << self.shift
        self.masks = (*(top | self.local_mask << (LOCAL_BITS * rank) for rank in range(self.ranks)), top)
        self.initial = self.pack(initial)

    def number_of_wide(self, wide: int) -> int:
        number = self.numbers.setdefault(wide, len(self.wides))
        if number == len(self.wides):
            self.wides.append(wide)
        return number

    def number_of_shared(self, shared: Any) -> int:
        return self.number_of_wide(self.parts.wide(shared))

    def shared(self, number: int) -> Any:
        return self.parts.whole(self.wides[number])

    def number_of_local(self, local: Any) -> int:
        number = self._local_numbers.setdefault(local, len(self.locals))
        if number == len(self.locals):
            if number > self.local_mask:
                raise TooManyLocals(f"more than {self.local_mask + 1} different local parts")
            self.locals.append(local)
        return number

    def pack(self, state: State) -> int:
        key = self.number_of_shared(state.shared)
        for local in reversed(state.ranks):
            key = key << LOCAL_BITS | self.number_of_local(local)
        return key

    def unpack(self, key: int) -> State:
        return State(self.shared(key >> self.shift), self.local_parts(key))

    def local_parts(self, key: int) -> tuple[Any, ...]:
        parts, mask = self.locals, self.local_mask
        return tuple([parts[key >> place & mask] for place in self.places])

    def ask(self, actor: int, wide: int, own: int, kind: StepKind) -> Steps:
        """What the actor (a rank, or `self.ranks` for the environment) may do, asked of the specification. `kind`: of a rank only such
        steps."""
        shared, seen = self.parts.noting(wide)
        onto_shared: list[int] = []
        onto_local: list[int] = []
        actions: list[Action] = []
        if actor == self.ranks:
            for action, after in self.system.shared_steps(shared):
                onto_shared.append(self.parts.difference(shared, after, seen))
                onto_local.append(0)
                actions.append(action)
        else:
            step: Step
            for step in kind(actor, shared, self.locals[own]):
                onto_shared.append(self.parts.difference(shared, step.shared, seen))
                onto_local.append((self.number_of_local(step.local) - own) << (LOCAL_BITS * actor))
                actions.append(step.action)
        return Steps(self.parts.looks(seen), tuple(onto_shared), tuple(onto_local), tuple(actions))

    def steps(self, actor: int, key: int) -> Pair:
        """What the actor may do in the state, asked of the specification."""
        number = key >> self.shift
        wide = self.wides[number]
        own = key >> (LOCAL_BITS * actor) & self.local_mask if actor < self.ranks else 0
        steps = self.ask(actor, wide, own, self.system.local_steps)
        differences = tuple(
            ((self.number_of_wide(wide + onto) - number) << self.shift) + difference
            for onto, difference in zip(steps.onto_shared, steps.onto_local, strict=True)
        )
        return Pair(differences, steps.actions)

    def successors(self, key: int) -> Iterator[tuple[Action, int]]:
        """Every action that is enabled, with the state after it: for rebuilding traces, not for searching."""
        for actor in range(self.ranks + 1):
            pair = self.steps(actor, key)
            for action, difference in zip(pair.actions, pair.differences, strict=True):
                yield action, key + difference
