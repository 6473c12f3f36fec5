"""What can happen to a rank, its messages and the store, and the system that is made of it all.

Each fault has a budget in the shared state; once it is spent the fault does not happen any more. What is not a fault (a
patience or a join timeout that runs out, a dead member's heartbeat going stale) may happen at any time.

Not modelled are the beats themselves: `read_heartbeat` is answered by what the environment knows of the member. It is alive
(beating; or taken for silent, which is the fault of a wrong suspicion), fading (dead, which nobody can see yet), dead (a
supervisor said so), left, or silent.
"""

from collections.abc import Hashable, Iterable, Iterator
from typing import Any, NamedTuple

from .hardened import BROKEN, RUN_OVER, Move, Process, Setting, moves, reconnected, start
from .machine import ENVIRONMENT, Action, Goal, Invariant, Situation, State, Step
from .parts import Layout, Mapped, Piece
from .properties import INVARIANTS, Ghost, entered, forgotten, goals, observe
from .records import Member, Perm, rename, rename_key
from .situations import situations
from .store import BLOCKING, EMPTY, REPLYLESS, SILENT_WHEN_LOST, THERE, Key, Store, execute, lost


class Budgets(NamedTuple):
    crashes: int = 0
    restarts: int = 0
    suspicions: int = 0
    failed_votes: int = 0
    lost_replies: int = 0
    store_losses: int = 0
    second_processes: int = 0
    leaves: int = 0
    dead_marks: int = 0
    clock_skews: int = 0
    """Only a mutant compares the clocks of two hosts."""
    join_timeouts: int = 0


class Shared(NamedTuple):
    store: Store
    pulse: tuple[tuple[Member, str], ...]
    """What a heartbeat would tell: alive, fading, dead or left. Whoever is not here is silent."""
    budgets: Budgets
    ghost: Ghost
    faults: int = 0
    """How many have happened, of those that can leave a key behind."""


class Rank(NamedTuple):
    processes: tuple[Process, ...]
    """None while it is down; two while an old process and its replacement both run."""
    floor: int = 0
    """The highest iteration in which a process of this rank took part that is no more."""


def room(key: Key) -> int:
    """Bits for the values of a key. A list of members mostly has one, as its name says what is in it."""
    return {"register": 20, "arrived": 14, "members": 5}.get(key[0], 6)


LEAKY = ("crashes", "lost_replies", "store_losses", "suspicions", "second_processes", "leaves")


def spend(shared: Shared, name: str) -> Shared | None:
    """The shared part with the fault paid for; None if the budget is spent."""
    if not name:
        return shared
    left: int = getattr(shared.budgets, name)
    if left == 0:
        return None
    return shared._replace(budgets=shared.budgets._replace(**{name: left - 1}), faults=shared.faults + (name in LEAKY))


def pulse(shared: Shared, member: Member) -> str:
    return next((status for other, status in shared.pulse if other == member), "silent")


def with_pulse(shared: Shared, member: Member | None, status: str) -> Shared:
    if member is None:
        return shared
    others = [entry for entry in shared.pulse if entry[0] != member]
    return shared._replace(pulse=tuple(sorted(others if status == "silent" else [*others, (member, status)])))


class Hardened(NamedTuple):
    """The hardened protocol, or a mutant of it, in its environment."""

    setting: Setting
    budgets: Budgets
    name: str = "hardened"

    @property
    def invariants(self) -> tuple[Invariant, ...]:
        return INVARIANTS

    @property
    def situations(self) -> tuple[Situation, ...]:
        return situations(self.setting, self.budgets)

    @property
    def goals(self) -> tuple[Goal, ...]:
        return goals(self.setting.min_ranks)

    @property
    def layout(self) -> Layout:
        """Key by key the store, and apart from it the budgets and what the ghost remembers: few steps look at more than two of them."""
        numbers = (self.setting.iterations + 2).bit_length()
        budgets = (Piece(f"budgets.{name}", left.bit_length()) for name, left in self.budgets._asdict().items() if left)
        return (
            Piece("pulse", 8),
            Piece("ghost.arrivals", 10),
            Piece("ghost.promised", 8),
            Piece("ghost.wrong", 8),
            Piece("ghost.decided", numbers),
            Piece("ghost.learned", numbers),
            Piece("faults", sum(self.budgets).bit_length(), tally=True),
            *budgets,
            *([Piece("store.instance", self.budgets.store_losses.bit_length())] if self.budgets.store_losses else []),
            Mapped("store.entries", room),
        )

    def initial(self) -> State:
        shared = Shared(EMPTY, (), self.budgets, Ghost())
        return State(shared, tuple(Rank((start(EMPTY.instance),)) for _ in range(self.setting.ranks)))

    def local_steps(self, rank: int, shared: Shared, local: Rank) -> Iterator[Step]:
        for i, p in enumerate(local.processes):
            for step in self._process_steps(rank, shared, p, i):
                others = local.processes
                if isinstance(step.local, Process):
                    yield step._replace(local=settled(local._replace(processes=(*others[:i], step.local, *others[i + 1 :]))))
                else:
                    floor = max(local.floor, step.local)
                    yield step._replace(local=Rank((*others[:i], *others[i + 1 :]), floor))
        yield from self._starts(rank, shared, local)

    def _process_steps(self, rank: int, shared: Shared, p: Process, i: int) -> Iterator[Step]:
        """The steps of one process. Where it ends, `local` is the highest iteration in which it took part."""
        if p.at == "done" and p.conn == shared.store.instance:
            return
        for move in moves(self.setting, rank, p):
            for action, after, q in outcomes(self.setting, rank, shared, p, move):
                note = ", ".join(filter(None, (action.note, "second process" if i else "")))
                yield Step(action._replace(note=note), *self._followed(after, p, q))
        if p.at in RUN_OVER:
            return
        note = "second process" if i else ""
        crashed = spend(shared, "crashes")
        if crashed is not None:
            yield Step(Action(rank, "crash", None, None, note), with_pulse(crashed, p.me, "fading"), highest(p))
        left = spend(shared, "leaves")
        if left is not None and p.at == "arrive" and p.me is not None:
            op = ("set", ("heartbeat", p.me), "left")
            yield Step(Action(rank, "leave", op, None, note), with_pulse(left, p.me, "left"), Process("left", p.conn, p.me))
        passed = spend(shared, "join_timeouts")
        if passed is not None and p.record is not None and p.k == 0 and not p.join_timeout:
            yield Step(Action(rank, "join_timeout", None, None, note), passed, p._replace(join_timeout=True))

    def _followed(self, shared: Shared, before: Process, after: Process) -> tuple[Shared, Process]:
        """What a step of a process means for its heartbeat and for the ghost."""
        if after.me != before.me:
            shared = with_pulse(with_pulse(shared, before.me, "silent"), after.me, "alive")
        if after.at == "stopped":
            shared = with_pulse(shared, after.me, "silent")
        if after.record is not None and before.record is not None:
            shared = shared._replace(ghost=entered(shared.ghost, before, after))
        return shared, after

    def _starts(self, rank: int, shared: Shared, local: Rank) -> Iterator[Step]:
        if not local.processes:
            name, paid = "restart", spend(shared, "restarts")
        elif len(local.processes) == 1 and local.processes[0].at not in RUN_OVER:
            name, paid = "second_process", spend(shared, "second_processes")
        else:
            return
        if paid is not None:
            floor = max([local.floor, *(highest(p) for p in local.processes)])
            new = start(shared.store.instance, floor)
            yield Step(Action(rank, name, None, None), paid, Rank((*local.processes, new)))

    def shared_steps(self, shared: Shared) -> Iterator[tuple[Action, Shared]]:
        for member, status in shared.pulse:
            if status == "fading":
                yield Action(member.rank, "go_stale", None, member), with_pulse(shared, member, "silent")
                marked = spend(shared, "dead_marks")
                if marked is not None:
                    op = ("set", ("heartbeat", member), "dead")
                    yield Action(member.rank, "mark_dead", op, None), with_pulse(marked, member, "dead")
        gone = spend(shared, "store_losses")
        if gone is not None:
            yield (
                Action(ENVIRONMENT, "lose_store", None, None),
                gone._replace(store=lost(shared.store), ghost=forgotten(shared.ghost)),
            )

    def permute_shared(self, shared: Shared, perm: Perm) -> Shared:
        entries = sorted(
            ((rename_key(key, perm), rename(value, perm)) for key, value in shared.store.entries), key=lambda e: e[0]
        )
        return shared._replace(
            store=Store(shared.store.instance, tuple(entries)),
            pulse=tuple(sorted((rename(member, perm), status) for member, status in shared.pulse)),
            ghost=rename(shared.ghost, perm),
        )

    def permute_local(self, local: Rank, perm: Perm) -> Rank:
        return Rank(tuple(renamed_process(p, perm) for p in local.processes), local.floor)

    def permute_action(self, action: Action, perm: Perm) -> Action:
        op = action.op and (action.op[0], rename_key(action.op[1], perm), *(rename(part, perm) for part in action.op[2:]))
        rank = action.rank if action.rank == ENVIRONMENT else perm[action.rank]
        return Action(rank, action.name, op, rename(action.result, perm), action.note)

    def fair(self, action: Action) -> Hashable | None:
        if action.name in UNPROMISED or any(word in action.note for word in FAULTY):
            return None
        second = "second process" in action.note
        if action.name in ("clean_up", "join_timeout"):
            return (action.rank, second, action.name)
        if action.name == "go_stale":
            return (action.rank, "go_stale", action.result)
        return (action.rank, second, "protocol")

    def local_only(self, action: Action) -> bool:
        return False


UNPROMISED = ("crash", "restart", "second_process", "leave", "mark_dead", "lose_store")
FAULTY = ("reply lost", "not applied", "wrong suspicion", "the step failed", "clock skew")


def highest(p: Process) -> int:
    return max(p.floor, p.k if p.member else 0)


def settled(local: Rank) -> Rank:
    """Of two processes, one that has ended is forgotten."""
    if len(local.processes) == 2:
        for i, p in enumerate(local.processes):
            if p.at in RUN_OVER:
                other = local.processes[1 - i]
                return Rank((other,), local.floor)
    return local


def renamed_process(p: Process, perm: Perm) -> Process:
    return p._replace(
        me=rename(p.me, perm),
        record=rename(p.record, perm),
        members=rename(p.members, perm),
        pending=rename(p.pending, perm),
        signatures=rename(p.signatures, perm),
        unheard=rename(p.unheard, perm),
        suspected=rename(p.suspected, perm),
        proposal=rename(p.proposal, perm),
        wrote=tuple(rename(epoch, perm) for epoch in p.wrote),
        queue=tuple(rename_key(key, perm) for key in p.queue),
    )


# --- One operation ------------------------------------------------------------------------------------------------------

Outcome = tuple[Action, Shared, Process]


def outcomes(setting: Setting, rank: int, shared: Shared, p: Process, move: Move) -> Iterator[Outcome]:
    """Everything that can come of issuing the operation: that it works, and that the connection fails it."""
    paid = spend(shared, move.cost)
    if paid is None:
        return
    name, op, note = move.name, move.op, move.note
    silent = op[0] in REPLYLESS
    if p.conn != shared.store.instance:
        # The server that it was connected to is gone, or an earlier message was lost. Without a reply that goes unnoticed.
        failed = move.then(None)._replace(conn=p.conn) if silent else disconnected(setting, p, move, shared)
        yield Action(rank, name, op, None, joined(note, "not delivered" if silent else "connection lost")), paid, failed
        return
    if move.cost == "failed_votes":
        p = p._replace(flag="f" if p.holds else "j")
    for reply, after, said in replies(setting, paid, p, op):
        if move.then(reply) == p and op[0] in BLOCKING:
            continue  # A wait without patience.
        yield Action(rank, name, op, reply, joined(note, said)), after, move.then(reply)
    broken = spend(paid, "lost_replies") if name != "clean_up" else None
    if broken is not None:
        if silent:
            unnoticed = move.then(None)._replace(conn=BROKEN)
            yield Action(rank, name, op, None, joined(note, "not applied")), broken, unnoticed
            return
        again = disconnected(setting, p, move, shared)
        applied = seen(setting, broken, p, op)
        if applied.store != broken.store:
            yield Action(rank, name, op, None, joined(note, "not applied")), broken, again
        yield Action(rank, name, op, None, joined(note, "reply lost")), applied, again


def joined(*notes: str) -> str:
    return ", ".join(filter(None, notes))


def disconnected(setting: Setting, p: Process, move: Move, shared: Shared) -> Process:
    """The operation failed. What was decided as it was issued (the vote, say) stays decided."""
    if move.name == "clean_up":
        return p._replace(queue=())
    voted = p._replace(flag="o", holds=True) if p.at == "arrive" and move.name == "arrive" else p
    return reconnected(setting, voted, shared.store.instance)


def replies(setting: Setting, shared: Shared, p: Process, op: tuple[Any, ...]) -> Iterator[tuple[Any, Shared, str]]:
    """The replies that an operation can get on a connection that works: the reply, the shared part after it, what to note."""
    if op[0] in BLOCKING:
        _, there = execute(shared.store, op)
        yield there, shared, "" if there == THERE else "patience ran out"
    elif op[0] == "read" and op[1][0] == "heartbeat":
        status = pulse(shared, op[1][1])
        yield "beating" if status in ("alive", "fading") else status, shared, ""
        mistaken = spend(shared, "suspicions")
        if status == "alive" and mistaken is not None:
            yield "silent", mistaken, "wrong suspicion"
    else:
        _, reply = execute(shared.store, op)
        yield reply, seen(setting, shared, p, op), ""


def seen(setting: Setting, shared: Shared, p: Process, op: tuple[Any, ...]) -> Shared:
    """The shared part after the operation was applied: the store, and what the ghost saw."""
    if op[0] in SILENT_WHEN_LOST:
        return shared
    store, _ = execute(shared.store, op)
    ghost = observe(setting, shared.ghost, p, op, shared.store, store, lambda member: pulse(shared, member) != "alive")
    return shared._replace(store=store, ghost=ghost)


def hardened(
    ranks: int, iterations: int, min_ranks: int = 1, lag: int = 99, missing: Iterable[str] = (), **budgets: int
) -> Hardened:
    """The hardened protocol within bounds; `missing` are guards that it is to lack."""
    missing = tuple(sorted(missing))
    name = "hardened" if not missing else f"hardened without {', '.join(missing)}"
    return Hardened(Setting(ranks, min_ranks, iterations, lag, missing), Budgets(**budgets), name)
