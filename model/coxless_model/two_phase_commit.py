"""Two-phase commit, after the TLA+ specification TwoPhase of Gray and Lamport: the yardstick that checkers share.

Resource managers (the ranks) prepare or abort on their own; a transaction manager collects who is prepared and decides.
Messages are never lost, they stay in a set. Everybody knows its numbers: 3, 5 and 7 resource managers have 288, 8 832 and
296 448 states, and 5 have 314 when the managers are interchangeable.

`flaw` breaks it on purpose, so that the checkers can be seen to fail:
  "hasty"   the manager commits without waiting for all to be prepared
  "deaf"    a resource manager that has prepared may still abort on its own
  "silent"  nobody promises that the transaction manager ever acts
"""

from collections.abc import Callable, Hashable, Iterable
from typing import Literal, NamedTuple

from coxless_model.machine import ENVIRONMENT, Action, Goal, Invariant, Situation, State, Step, Views
from coxless_model.parts import Layout, Piece

Flaw = Literal["hasty", "deaf", "silent"]

WORKING, PREPARED, COMMITTED, ABORTED = "working", "prepared", "committed", "aborted"


class Manager(NamedTuple):
    """The transaction manager and the messages."""

    prepared: frozenset[int]
    """The resource managers whose message it has received."""
    sent: frozenset[int]
    """Those that have sent it."""
    decision: str
    """What was sent to all: "", COMMITTED or ABORTED."""


class TwoPhaseCommit(NamedTuple):
    managers: int
    flaw: Flaw | None = None

    @property
    def name(self) -> str:
        return "two-phase-commit" if self.flaw is None else f"two-phase-commit-{self.flaw}"

    @property
    def invariants(self) -> tuple[Invariant, ...]:
        return (Invariant("consistent", _consistent, Views(_nothing, _outcome)),)

    @property
    def situations(self) -> tuple[Situation, ...]:
        return (Situation("commit", _decides(COMMITTED)), Situation("abort", _decides(ABORTED)))

    @property
    def goals(self) -> tuple[Goal, ...]:
        return (Goal("decided", _decided, _never),)

    @property
    def layout(self) -> Layout:
        return (Piece("sent", self.managers), Piece("prepared", self.managers), Piece("decision", 2))

    def initial(self) -> State:
        return State(Manager(frozenset(), frozenset(), ""), (WORKING,) * self.managers)

    def local_steps(self, rank: int, shared: Manager, local: str) -> Iterable[Step]:
        if local == WORKING:
            sent = shared._replace(sent=shared.sent | {rank})
            yield Step(Action(rank, "prepare", ("send", "prepared"), None), sent, PREPARED)
        if local == WORKING or (self.flaw == "deaf" and local == PREPARED):
            yield Step(Action(rank, "choose_to_abort", None, None), shared, ABORTED)
        if shared.decision:
            yield Step(Action(rank, "obey", ("receive", shared.decision), None), shared, shared.decision)

    def shared_steps(self, shared: Manager) -> Iterable[tuple[Action, Manager]]:
        if shared.decision:
            return
        for rank in sorted(shared.sent):
            # Receiving a message again changes nothing, but it is a step of the specification.
            action = Action(ENVIRONMENT, "receive_prepared", ("receive", rank), None)
            yield action, shared._replace(prepared=shared.prepared | {rank})
        if len(shared.prepared) == self.managers or self.flaw == "hasty":
            yield Action(ENVIRONMENT, "commit", ("send", COMMITTED), None), shared._replace(decision=COMMITTED)
        yield Action(ENVIRONMENT, "abort", ("send", ABORTED), None), shared._replace(decision=ABORTED)

    def permute_shared(self, shared: Manager, perm: tuple[int, ...]) -> Manager:
        prepared = frozenset(perm[rank] for rank in shared.prepared)
        return Manager(prepared, frozenset(perm[rank] for rank in shared.sent), shared.decision)

    def permute_local(self, local: str, perm: tuple[int, ...]) -> str:
        return local

    def permute_action(self, action: Action, perm: tuple[int, ...]) -> Action:
        if action.name == "receive_prepared":
            assert action.op is not None
            return action._replace(op=("receive", perm[action.op[1]]))
        return action if action.rank == ENVIRONMENT else action._replace(rank=perm[action.rank])

    def fair(self, action: Action) -> Hashable | None:
        if action.rank == ENVIRONMENT:
            # One promise for each message and one for deciding: a manager that only re-reads old messages is not fair.
            return None if self.flaw == "silent" else (action.op if action.name == "receive_prepared" else "decide")
        return action.rank

    def local_only(self, action: Action) -> bool:
        # Once decided, obeying the decision touches nothing but the resource manager. It is visible to the invariant.
        return False


def _consistent(state: State) -> str | None:
    """No resource manager has committed while another one has aborted."""
    if COMMITTED in state.ranks and ABORTED in state.ranks:
        return f"rank {state.ranks.index(COMMITTED)} has committed, rank {state.ranks.index(ABORTED)} has aborted"
    return None


def _nothing(shared: Manager) -> Hashable:
    """What the invariant looks at in the shared part."""
    return ()


def _outcome(local: str) -> Hashable:
    """What it looks at in a resource manager."""
    return local if local in (COMMITTED, ABORTED) else None


def _decided(state: State) -> bool:
    """Every resource manager commits or aborts in the end."""
    return all(local in (COMMITTED, ABORTED) for local in state.ranks)


def _never(state: State) -> bool:
    return False


def _decides(decision: str) -> Callable[[State, Action, State], bool]:
    return lambda before, action, after: not before.shared.decision and after.shared.decision == decision
