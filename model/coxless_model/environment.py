"""What can happen to a rank, its messages and the store, and the system that is made of it all.

Each fault has a budget in the shared state; once it is spent the fault does not happen any more. What is not a fault (a
patience or a join timeout that runs out, a dead member's heartbeat going stale) may happen at any time.

Not modelled are the beats themselves: `read_heartbeat` is answered by what the environment knows of the member. It is alive
(beating; or taken for silent, which is the fault of a wrong suspicion), fading (dead, which nobody can see yet), dead (a
supervisor said so), left, or silent.
"""

from collections.abc import Hashable, Iterable, Iterator
from typing import Any, NamedTuple

from .ghost import Ghost, Wrong, entered, forgotten, founded_early, given_up, heard, noting, observe
from .machine import ENVIRONMENT, Action, Goal, Invariant, Situation, State, Step, StepKind
from .parts import Layout, Mapped, Piece
from .process import BROKEN, RUN_OVER, Move, Process, Setting, start
from .properties import INVARIANTS, goals, leak, present
from .records import Member, Perm, newer, rename, rename_key
from .recovery import reconnected
from .situations import expected, situations
from .steps import moves
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
    spared_wakes: int = 0
    """No fault: a winner that knows by its clock that nobody can have run out of patience yet wakes nobody. The clock is not in the model, so
    that it may be mistaken at any time."""


class Shared(NamedTuple):
    store: Store
    pulse: tuple[tuple[Member, str], ...]
    """What a heartbeat would tell: alive, fading, dead or left. Whoever is not here is silent."""
    budgets: Budgets
    ghost: Ghost
    leaked: tuple[Key, ...] = ()
    """The keys that may stay behind because a fault destroyed the intention to delete them."""


class Rank(NamedTuple):
    processes: tuple[Process, ...]
    """Empty while it is down; two while an old process and its replacement both run."""
    highest: int = 0
    """The highest iteration in which a process of this rank took part. (This and what follows is for the properties: no process looks
    at it.)"""
    floors: tuple[int, ...] = (0,)
    """For each process the highest iteration in which it took part, or any process of its rank before it was started."""
    gone: Member | None = None
    """The newest of the processes that have ended while an older one goes on."""


def room(key: Key) -> int:
    """Bits for the values of a key. A list of members mostly has one, as its name says what is in it."""
    return {"register": 20, "arrived": 14, "members": 5}.get(key[0], 6)


def spend(shared: Shared, name: str) -> Shared | None:
    """The shared part with the fault paid for; None if the budget is spent."""
    if not name:
        return shared
    left: int = getattr(shared.budgets, name)
    if left == 0:
        return None
    return shared._replace(budgets=shared.budgets._replace(**{name: left - 1}))


def leaking(shared: Shared, keys: tuple[Key, ...]) -> Shared:
    return shared if not keys else shared._replace(leaked=tuple(sorted({*shared.leaked, *keys})))


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
    beyond: bool = False
    """Go on where the store-loss clause does not hold any more, and so nothing is claimed."""

    @property
    def invariants(self) -> tuple[Invariant, ...]:
        return INVARIANTS

    @property
    def situations(self) -> tuple[Situation, ...]:
        return situations(self.setting, self.budgets)

    @property
    def expected(self) -> tuple[str, ...]:
        return expected(self.setting, self.budgets)

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
            Piece("ghost.arrivals", 12),
            Piece("ghost.promised", 8),
            Piece("ghost.silent", 10),
            Piece("ghost.wrong", 8),
            Piece("ghost.decided", numbers),
            Piece("ghost.learned", numbers),
            Piece("leaked", 16),
            *budgets,
            *(self._for_store_losses() if self.budgets.store_losses else ()),
            Mapped("store.entries", room),
        )

    def _for_store_losses(self) -> Layout:
        kept = (Piece("ghost.knowers", 8), Piece("ghost.astray", 6), Piece("ghost.adrift", 1), Piece("ghost.void", 1))
        return (*kept, Piece("store.instance", self.budgets.store_losses.bit_length()))

    def initial(self) -> State:
        shared = Shared(EMPTY, (), self.budgets, Ghost(losing=self.budgets.store_losses > 0))
        return State(shared, tuple(Rank((start(EMPTY.instance),)) for _ in range(self.setting.ranks)))

    @property
    def step_kinds(self) -> tuple[StepKind, ...]:
        return (self._protocol_steps, self._fates)

    def local_steps(self, rank: int, shared: Shared, local: Rank) -> Iterator[Step]:
        for kind in self.step_kinds:
            yield from kind(rank, shared, local)

    def _protocol_steps(self, rank: int, shared: Shared, local: Rank) -> Iterator[Step]:
        if shared.ghost.void and not self.beyond:
            return
        for i, p in enumerate(local.processes):
            if p.at == "done" and p.conn == shared.store.instance:
                continue
            for move in moves(self.setting, rank, p):
                for action, after, q in outcomes(self.setting, rank, shared, p, move):
                    note = ", ".join(filter(None, (action.note, "second process" if i else "")))
                    yield Step(action._replace(note=note), self.followed(after, local, i, q), with_process(local, i, q))

    def _fates(self, rank: int, shared: Shared, local: Rank) -> Iterator[Step]:
        """What befalls the rank: a crash, a leave, a start."""
        if shared.ghost.void and not self.beyond:
            return
        for i, p in enumerate(local.processes):
            for step in self._ends(rank, shared, p, "second process" if i else ""):
                yield step._replace(local=with_process(local, i, step.local))
        yield from self._starts(rank, shared, local)

    def _ends(self, rank: int, shared: Shared, p: Process, note: str) -> Iterator[Step]:
        """`local` is what becomes of the process, None where it ends without a trace."""
        if p.at in RUN_OVER:
            return
        crashed = spend(shared, "crashes")
        if crashed is not None:
            yield Step(Action(rank, "crash", None, None, note), self._ended(crashed, p, "fading"), None)
        left = spend(shared, "leaves") if p.at == "arrive" and not p.queue else None
        if left is not None:
            op = ("set", ("heartbeat", p.me), "left")
            yield Step(Action(rank, "leave", op, None, note), self._ended(left, p, "left"), Process("left", p.conn, p.me))
        passed = spend(shared, "join_timeouts")
        if passed is not None and p.record is not None and p.k == 0 and not p.join_timeout:
            passed = passed._replace(ghost=founded_early(passed.ghost))
            yield Step(Action(rank, "join_timeout", None, None, note), passed, p._replace(join_timeout=True))

    def _ended(self, shared: Shared, p: Process, status: str) -> Shared:
        """The process is no more; `status` is what its heartbeat tells from now on."""
        shared = leaking(with_pulse(shared, p.me, status), leak(p, shared.store))
        return shared._replace(ghost=given_up(shared.ghost, p.me))

    def followed(self, shared: Shared, local: Rank, i: int, after: Process) -> Shared:
        """What a step of a process means for its heartbeat, for the ghost and for the keys that it was to delete."""
        before = local.processes[i]
        if after.me != before.me:
            shared = with_pulse(with_pulse(shared, before.me, "silent"), after.me, "alive")
            if before.me is not None and shared.store.instance == 0:
                wrong = Wrong("S6", "{} takes the place of a newer process, though the store has not lost the counter", before.me)
                shared = shared._replace(ghost=noting(shared.ghost, wrong))
        if after.at == "stopped":
            shared = self._ended(shared, before, "silent")
            successors = (*(other.me for other in local.processes), local.gone)
            if after.me is not None and not any(other is not None and newer(other, after.me) for other in successors):
                shared = shared._replace(
                    ghost=noting(shared.ghost, Wrong("L2", "{} gave up, and nobody has taken its place", after.me))
                )
        elif after.at == "done" and len(local.processes) == 2:  # it will be forgotten, with what it has yet to clean up
            shared = leaking(shared, present(shared.store, after.queue))
        elif before.queue and not after.queue:  # the last one was deleted, or the connection broke
            shared = leaking(shared, present(shared.store, before.queue))
        if after.record is not None and before.record is not None:
            ghost = entered(shared.ghost, before, after, local.floors[i])
            shared = shared if ghost is shared.ghost else shared._replace(ghost=ghost)
        return shared

    def _starts(self, rank: int, shared: Shared, local: Rank) -> Iterator[Step]:
        if not local.processes:
            name, paid = "restart", spend(shared, "restarts")
        elif len(local.processes) == 1 and local.processes[0].at not in RUN_OVER:
            name, paid = "second_process", spend(shared, "second_processes")
        else:
            return
        if paid is not None:
            yield Step(Action(rank, name, None, None), paid, with_another(local, start(shared.store.instance)))

    def shared_steps(self, shared: Shared) -> Iterator[tuple[Action, Shared]]:
        if shared.ghost.void and not self.beyond:
            return
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
                gone._replace(store=lost(shared.store), ghost=forgotten(shared.ghost), leaked=()),
            )

    def permute_shared(self, shared: Shared, perm: Perm) -> Shared:
        entries = sorted(
            ((rename_key(key, perm), rename(value, perm)) for key, value in shared.store.entries), key=lambda e: e[0]
        )
        return shared._replace(
            store=Store(shared.store.instance, tuple(entries)),
            pulse=tuple(sorted((rename(member, perm), status) for member, status in shared.pulse)),
            ghost=rename(shared.ghost, perm),
            leaked=tuple(sorted(rename_key(key, perm) for key in shared.leaked)),
        )

    def permute_local(self, local: Rank, perm: Perm) -> Rank:
        processes = tuple(renamed_process(p, perm) for p in local.processes)
        return Rank(processes, local.highest, local.floors, rename(local.gone, perm))

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


def with_another(local: Rank, new: Process) -> Rank:
    """The rank with a new process."""
    return local._replace(processes=(*local.processes, new), floors=(*local.floors, local.highest))


def with_process(local: Rank, place: int, after: Process | None) -> Rank:
    """The rank with that process replaced by what has become of it. Of two processes, one that has ended is forgotten."""
    old = local.processes[place]
    took_part = after.k if after is not None and after.member else 0
    floors = [*local.floors]
    floors[place] = max(floors[place], took_part)
    becoming = [after if at == place else p for at, p in enumerate(local.processes)]
    if len(becoming) == 2 and after is not None and after.at in RUN_OVER:
        becoming[place] = None
    kept = [(p, floor) for p, floor in zip(becoming, floors, strict=True) if p is not None]
    gone = local.gone
    if len(kept) < len(becoming) and old.me is not None and (gone is None or newer(old.me, gone)):
        gone = old.me
    if gone is not None and not any(p.at not in RUN_OVER and p.me is not None and newer(gone, p.me) for p, _ in kept):
        gone = None
    return Rank(tuple(p for p, _ in kept), max(local.highest, took_part), tuple(floor for _, floor in kept), gone)


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
        rival=rename(p.rival, perm),
        wrote=tuple(rename(epoch, perm) for epoch in p.wrote),
        queue=tuple(rename_key(key, perm) for key in p.queue),
    )


# --- One operation ------------------------------------------------------------------------------------------------------

Outcome = tuple[Action, Shared, Process]
SPARED = "spared"
"""The note and the result of a wake that was left out."""


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
    spared = spend(paid, "spared_wakes") if name == "wake" else None
    if spared is not None:
        yield Action(rank, name, op, SPARED, joined(note, SPARED)), spared, move.then(None)
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
        answer = "beating" if status in ("alive", "fading") else status
        yield answer, shared._replace(ghost=heard(setting, shared.ghost, p, op, answer)), ""
        mistaken = spend(shared, "suspicions")
        if status == "alive" and mistaken is not None:
            yield "silent", mistaken._replace(ghost=heard(setting, shared.ghost, p, op, "silent")), "wrong suspicion"
    elif op[0] == "read" and p.at == "read_arrived":
        _, reply = execute(shared.store, op)
        yield reply, shared._replace(ghost=heard(setting, shared.ghost, p, op, reply)), ""
    else:
        _, reply = execute(shared.store, op)
        yield reply, seen(setting, shared, p, op), ""


def seen(setting: Setting, shared: Shared, p: Process, op: tuple[Any, ...]) -> Shared:
    """The shared part after the operation was applied: the store, and what the ghost saw."""
    if op[0] in SILENT_WHEN_LOST:
        return shared
    store, _ = execute(shared.store, op)
    ghost = observe(setting, shared.ghost, p, op, (shared.store, store), lambda member: pulse(shared, member) == "alive")
    shared = shared._replace(store=store, ghost=ghost)
    if op[0] == "delete_key" and op[1] in shared.leaked:
        return shared._replace(leaked=tuple(key for key in shared.leaked if key != op[1]))
    return shared


def hardened(
    ranks: int, iterations: int, min_ranks: int = 1, lag: int = 99, missing: Iterable[str] = (), **budgets: int
) -> Hardened:
    """The hardened protocol within bounds; `missing` are guards that it is to lack.

    Raises ValueError for min_ranks above ranks, with which nothing could ever be decided."""
    if min_ranks > ranks:
        raise ValueError(f"min_ranks ({min_ranks}) must be at most the number of ranks ({ranks})")
    missing = tuple(sorted(missing))
    name = "hardened" if not missing else f"hardened without {', '.join(missing)}"
    return Hardened(Setting(ranks, min_ranks, iterations, lag, missing), Budgets(**budgets), name)
