"""The one machine that every protocol here is an instance of: immutable states, named actions, pure functions.

A *state* is a shared part (the store, the budgets of the environment, the ghost history) and one local part for each
rank. A *step* of a rank reads and writes the shared part and its own local part, never another rank's; it issues at most
one store operation. Because a step depends on nothing else, an engine may compute the steps of each (shared, local) pair
once and reuse them in every state that contains the pair.

An action carries everything that tells it apart from the other actions of its state (who, which step, which operation,
which reply, which variant), so `apply(state, action)` has one answer. Nothing here iterates over a set or depends on the
order of hashing: the same system gives the same actions in the same order in every process.
"""

from collections.abc import Callable, Hashable, Iterable
from typing import Any, NamedTuple, Protocol

ENVIRONMENT = -1
"""The acting "rank" of an action of the environment as a whole, such as the loss of the store."""


class Action(NamedTuple):
    """One atomic step: who took it, what it is called, and the store operation with its reply."""

    rank: int
    name: str
    """A step name of docs/protocol.md, or an action of the environment: crash, restart, lose_store, ..."""
    op: tuple[Any, ...] | None
    """The store operation as issued: ("add", key, amount), ("set", key, value), ("append", key, value),
    ("compare_set", key, expected, desired), ("read", key), ("wait", key), ("barrier", key, size), ("barrier_reply", key, size),
    ("delete_key", key); or None."""
    result: Hashable
    """The reply; None where there is none."""
    note: str = ""
    """The variant: "reply lost", "not applied", "patience ran out", "suspected", ..."""


class State(NamedTuple):
    shared: Any
    ranks: tuple[Any, ...]


class Step(NamedTuple):
    """What an action of a rank makes of the shared part and of that rank's local part."""

    action: Action
    shared: Any
    local: Any


StepKind = Callable[[int, Any, Any], Iterable[Step]]
"""Some of the steps of a rank, as `System.local_steps` gives all."""


class Views(NamedTuple):
    """What a property looks at, of the shared part and of each local part. Where the views are the same, so is the answer: a
    search asks once for each combination."""

    shared: Callable[[Any], Hashable]
    """None: the property holds, whatever the local parts are."""
    local: Callable[[Any], Hashable]


class Invariant(NamedTuple):
    """A property of every reachable state. `check` gives None where it holds, otherwise what is wrong."""

    id: str
    check: Callable[[State], str | None]
    views: Views | None = None
    """None: it may look at everything."""

    @property
    def meaning(self) -> str:
        return (self.check.__doc__ or "").strip()


class Situation(NamedTuple):
    """Something that has to be reached, or the search proves less than it seems to. `holds` is asked of each step: the
    state before the action, the action, and the state after it."""

    name: str
    holds: Callable[[State, Action, State], bool]


class Goal(NamedTuple):
    """A property of every fair run: it comes to a state where `reached` holds, and so do all its continuations, or `excused`
    holds from some point on (what was promised no longer applies: nobody is left alive, say)."""

    id: str
    reached: Callable[[State], bool]
    excused: Callable[[State], bool]

    @property
    def meaning(self) -> str:
        return (self.reached.__doc__ or "").strip()


class System(Protocol):
    """What a checkable thing offers. All of it is pure."""

    @property
    def name(self) -> str: ...

    @property
    def invariants(self) -> tuple[Invariant, ...]: ...

    @property
    def situations(self) -> tuple[Situation, ...]: ...

    @property
    def goals(self) -> tuple[Goal, ...]: ...

    def initial(self) -> State: ...

    def local_steps(self, rank: int, shared: Any, local: Any) -> Iterable[Step]:
        """The steps of one rank, those the environment takes with it (a crash, a restart) included."""
        ...

    def shared_steps(self, shared: Any) -> Iterable[tuple[Action, Any]]:
        """The environment's steps that touch only the shared part."""
        ...

    def permute_shared(self, shared: Any, perm: tuple[int, ...]) -> Any:
        """The shared part with the ranks renamed: perm[old rank] is the new one."""
        ...

    def permute_local(self, local: Any, perm: tuple[int, ...]) -> Any:
        """A local part with the ranks in it renamed. Its place in State.ranks moves as well; the caller does that."""
        ...

    def permute_action(self, action: Action, perm: tuple[int, ...]) -> Action:
        """The action as it is called after the ranks were renamed."""
        ...

    def fair(self, action: Action) -> Hashable | None:
        """The fairness class: an action that stays enabled is taken in the end, some action of the class at least. None:
        nobody promises that it happens (a crash, a wrong suspicion, a lost reply)."""
        ...

    def local_only(self, action: Action) -> bool:
        """True when the step touches only the acting rank's local part, no property can see it, and nothing that another
        rank does can disable it or change what it does."""
        ...


def step_kinds(system: System) -> tuple[StepKind, ...]:
    """The kinds of steps of which `local_steps` gives one after the other, where the system tells them apart (`step_kinds`). What a
    step depends on is found out for each kind apart, so a step that looks at much does not make others be computed anew."""
    kinds: tuple[StepKind, ...] = getattr(system, "step_kinds", (system.local_steps,))
    return kinds


def expected_actions(system: System) -> tuple[str, ...]:
    """The names of the actions that should be seen within the system's bounds, where it says so (`expected`)."""
    return tuple(getattr(system, "expected", ()))


def successors(system: System, state: State) -> Iterable[tuple[Action, State]]:
    """Every action that is enabled in the state, with the state that it leads to; in a fixed order."""
    shared, ranks = state
    for rank, local in enumerate(ranks):
        for step in system.local_steps(rank, shared, local):
            yield step.action, State(step.shared, (*ranks[:rank], step.local, *ranks[rank + 1 :]))
    for action, after in system.shared_steps(shared):
        yield action, State(after, ranks)


def enabled(system: System, state: State) -> tuple[Action, ...]:
    """The actions that may happen next."""
    return tuple(action for action, _ in successors(system, state))


def apply(system: System, state: State, action: Action) -> State:
    """The state after the action. An action that is not enabled is an error that says what was."""
    offered: list[Action] = []
    for candidate, after in successors(system, state):
        if candidate == action:
            return after
        offered.append(candidate)
    raise ValueError(f"{describe(action)} is not enabled; enabled: {'; '.join(map(describe, offered)) or 'nothing'}")


def run(system: System, actions: Iterable[Action]) -> State:
    """The state that the actions lead to from the initial one."""
    state = system.initial()
    for action in actions:
        state = apply(system, state, action)
    return state


def violations(system: System, state: State) -> tuple[tuple[str, str], ...]:
    """The properties that the state breaks: (id, what is wrong)."""
    found = ((invariant.id, invariant.check(state)) for invariant in system.invariants)
    return tuple((name, wrong) for name, wrong in found if wrong is not None)


def describe(action: Action) -> str:
    """One line for people: `rank 1: arrive add(('count', 1), 1) -> 2 [reply lost]`."""
    who = "environment" if action.rank == ENVIRONMENT else f"rank {action.rank}"
    call = "" if action.op is None else f" {action.op[0]}({', '.join(map(repr, action.op[1:]))})"
    reply = "" if action.result is None else f" -> {action.result!r}"
    note = f" [{action.note}]" if action.note else ""
    return f"{who}: {action.name}{call}{reply}{note}"
