"""The protocol as it was drawn (Decentralized Global Iteration System), phase by phase, with what is wrong with it left in.

The keys carry neither the iteration nor the incarnation. A rank is active when its heartbeat is fresh on the *reader's*
clock; consensus may start when every active rank is in `arrived`. Every rank then sets `consensus` to its own number, and
who reads itself back has won. The winner moves the counter, records the iteration for each rank, clears and sets `ready`,
and cleans up; the others wait for `ready`, as long as it takes.

The environment crashes and restarts ranks, lets the heartbeat of a dead rank go stale, and may let one reader's clock be
ahead so far that a live rank looks stale.
"""

from collections.abc import Callable, Hashable, Iterator
from typing import Any, NamedTuple

from .machine import Action, Goal, Invariant, Situation, State, Step
from .records import Perm, rename_key
from .store import EMPTY, MISSING, PROBE, THERE, Key, Operation, Store, execute

COUNTER: Key = ("counter",)
READY: Key = ("ready",)
ARRIVED: Key = ("drawn_arrived",)
CONSENSUS: Key = ("consensus",)


class Process(NamedTuple):
    at: str
    iteration: int = 0
    next: int = 0
    """What the winner has moved the counter to."""
    arrived: tuple[int, ...] = ()
    """As last read; kept until this rank has won or lost."""
    unheard: tuple[int, ...] = ()
    waiting: bool = False
    """An active rank had not arrived in this look around."""
    recorded: tuple[int, ...] = ()


DOWN = Process("down")


class Budgets(NamedTuple):
    crashes: int = 0
    restarts: int = 0
    skews: int = 0


class Ghost(NamedTuple):
    decided: int = 0
    arrivals: tuple[tuple[int, int], ...] = ()
    """(rank, iteration) of each arrival by the process that is now this rank."""
    died_at: str = ""
    """The step before which a winner died."""
    wrong: tuple[tuple[str, str], ...] = ()


class Shared(NamedTuple):
    store: Store
    pulse: tuple[str, ...]
    """Of each rank: never, beating, fading (dead, and the last beat is still fresh), stale."""
    budgets: Budgets
    ghost: Ghost


class Move(NamedTuple):
    name: str
    op: Operation
    then: Callable[[Any], Process]


def constantly(after: Process) -> Callable[[Any], Process]:
    return lambda _: after


def steps(ranks: int, bound: int, rank: int, p: Process) -> Iterator[Move]:
    """The phases, in order."""
    everyone = tuple(range(ranks))
    k = p.iteration
    match p.at:
        # A restarted rank first finds out where the others are.
        case "restart_handling":
            op: Operation = ("read", ("last_iteration", rank))
            yield Move("read_last_iteration", op, lambda v: p._replace(at="restart_beat", iteration=0 if v == PROBE else v))
        case "restart_beat":
            yield Move("send_heartbeat", ("set", ("drawn_heartbeat", rank), "beat"), lambda _: p._replace(at="catch_up"))
        case "catch_up":
            yield Move("catch_up", ("read", COUNTER), lambda v: Process("train", k if v == PROBE else v))
        # Phase 1: train, with a heartbeat every 5 s.
        case "train":
            beaten = p._replace(at="ready")
            yield Move("send_heartbeat", ("set", ("drawn_heartbeat", rank), "beat"), lambda _: beaten)
        # Phase 2: ready.
        case "ready":
            yield Move("signal_arrival", ("append", ARRIVED, rank), lambda _: p._replace(at="look"))
        # Phase 3: is every active rank here?
        case "look":

            def looked(v: Any) -> Process:
                others = tuple(other for other in everyone if other != rank)
                return p._replace(at="ask_active", arrived=() if v == PROBE else v, unheard=others, waiting=False)

            yield Move("read_arrived", ("read", ARRIVED), looked)
        case "ask_active":
            for other in p.unheard:
                rest = tuple(each for each in p.unheard if each != other)

                def heard(v: Any, other: int = other, rest: tuple[int, ...] = rest) -> Process:
                    waiting = p.waiting or (v == "fresh" and other not in p.arrived) or rank not in p.arrived
                    if rest:
                        return p._replace(unheard=rest, waiting=waiting)
                    return Process("look", k) if waiting else Process("compete", k, arrived=p.arrived)

                yield Move("read_heartbeat", ("read", ("drawn_heartbeat", other)), heard)
        # Phase 4: "only one rank succeeds".
        case "compete":
            yield Move("set_consensus", ("set", CONSENSUS, rank), lambda _: p._replace(at="check"))
        case "check":
            yield Move(
                "read_consensus",
                ("read", CONSENSUS),
                lambda v: p._replace(at="increment") if v == rank else Process("await_ready", k),
            )
        # Phase 5: the winner advances the iteration.
        case "increment":
            yield Move("increment_global_iteration", ("add", COUNTER, 1), lambda c: Process("record", k, c))
        case "record":
            for other in everyone:
                if other not in p.recorded:
                    recorded = tuple(sorted((*p.recorded, other)))
                    done = p._replace(recorded=recorded) if len(recorded) < ranks else Process("clear_ready", k, p.next)
                    yield Move("record_iteration_for_rank", ("set", ("last_iteration", other), p.next), constantly(done))
        case "clear_ready":
            yield Move("clear_global_iteration_ready", ("delete_key", READY), lambda _: p._replace(at="signal_ready"))
        case "signal_ready":
            yield Move("signal_global_iteration_ready", ("set", READY, p.next), lambda _: p._replace(at="clean_arrived"))
        case "clean_arrived":
            yield Move("clean_arrived", ("delete_key", ARRIVED), lambda _: p._replace(at="clean_consensus"))
        case "clean_consensus":
            yield Move("clean_consensus", ("delete_key", CONSENSUS), lambda _: begin(bound, p.next))
        # Phase 6: the others.
        case "await_ready":
            yield Move("await_ready", ("wait", READY), lambda _: p._replace(at="read_ready"))
        case "read_ready":
            yield Move("read_ready", ("read", READY), lambda v: p._replace(at="await_ready") if v == PROBE else begin(bound, v))


def begin(bound: int, iteration: int) -> Process:
    return Process("train" if iteration < bound else "done", iteration)


WINNING = ("increment", "record", "clear_ready", "signal_ready", "clean_arrived", "clean_consensus")


class Drawn(NamedTuple):
    ranks: int
    iterations: int
    budgets: Budgets
    name: str = "drawn"

    @property
    def invariants(self) -> tuple[Invariant, ...]:
        return INVARIANTS

    @property
    def situations(self) -> tuple[Situation, ...]:
        return ()

    @property
    def goals(self) -> tuple[Goal, ...]:
        return (Goal("L1", advanced, nobody_left),)

    def initial(self) -> State:
        shared = Shared(EMPTY, ("never",) * self.ranks, self.budgets, Ghost())
        return State(shared, (Process("train"),) * self.ranks)

    def local_steps(self, rank: int, shared: Shared, local: Process) -> Iterator[Step]:
        for move in steps(self.ranks, self.iterations, rank, local):
            for reply, note, paid in replies(shared, move.op):
                store, _ = execute(shared.store, move.op) if move.op[1][0] != "drawn_heartbeat" else (shared.store, None)
                after = move.then(reply)
                seen = paid._replace(store=store, ghost=observe(paid, rank, local, after, move, reply))
                if move.name == "send_heartbeat":
                    seen = seen._replace(pulse=replaced(seen.pulse, rank, "beating"))
                yield Step(Action(rank, move.name, move.op, reply, note), seen, after)
        budgets, ghost = shared.budgets, shared.ghost
        if budgets.crashes and local.at not in ("down", "done"):
            fading = replaced(shared.pulse, rank, "fading") if shared.pulse[rank] == "beating" else shared.pulse
            died = ghost._replace(died_at=local.at) if local.at in WINNING else ghost
            crashed = Shared(shared.store, fading, budgets._replace(crashes=budgets.crashes - 1), died)
            yield Step(Action(rank, "crash", None, None), crashed, DOWN)
        if budgets.restarts and local.at == "down":
            fresh = ghost._replace(arrivals=tuple(arrival for arrival in ghost.arrivals if arrival[0] != rank))
            restarted = shared._replace(budgets=budgets._replace(restarts=budgets.restarts - 1), ghost=fresh)
            yield Step(Action(rank, "restart", None, None), restarted, Process("restart_handling"))

    def shared_steps(self, shared: Shared) -> Iterator[tuple[Action, Shared]]:
        for rank, status in enumerate(shared.pulse):
            if status == "fading":
                yield Action(rank, "go_stale", None, None), shared._replace(pulse=replaced(shared.pulse, rank, "stale"))

    def permute_shared(self, shared: Shared, perm: Perm) -> Shared:
        entries = sorted((rename_key(key, perm), renamed_value(key, value, perm)) for key, value in shared.store.entries)
        pulse = tuple(status for _, status in sorted(zip(perm, shared.pulse, strict=True)))
        arrivals = tuple(sorted((perm[rank], iteration) for rank, iteration in shared.ghost.arrivals))
        return shared._replace(
            store=Store(shared.store.instance, tuple(entries)), pulse=pulse, ghost=shared.ghost._replace(arrivals=arrivals)
        )

    def permute_local(self, local: Process, perm: Perm) -> Process:
        def moved(ranks: tuple[int, ...]) -> tuple[int, ...]:
            return tuple(sorted(perm[rank] for rank in ranks))

        return local._replace(arrived=moved(local.arrived), unheard=moved(local.unheard), recorded=moved(local.recorded))

    def permute_action(self, action: Action, perm: Perm) -> Action:
        op, result = action.op, action.result
        if op is not None:
            key = op[1]
            op = (op[0], rename_key(key, perm), *(renamed_value(key, value, perm) for value in op[2:]))
            result = renamed_value(key, result, perm) if action.name in ("read_consensus", "read_arrived") else result
        return Action(perm[action.rank], action.name, op, result, action.note)

    def fair(self, action: Action) -> Hashable | None:
        if action.name in ("crash", "restart") or action.note == "clock skew":
            return None
        return (action.rank, action.name if action.name == "go_stale" else "protocol")

    def local_only(self, action: Action) -> bool:
        return False


def replies(shared: Shared, op: Operation) -> Iterator[tuple[Any, str, Shared]]:
    if op[0] == "read" and op[1][0] == "drawn_heartbeat":
        status = shared.pulse[op[1][1]]
        yield {"never": PROBE, "beating": "fresh", "fading": "fresh", "stale": "stale"}[status], "", shared
        if status == "beating" and shared.budgets.skews:
            budgets = shared.budgets._replace(skews=shared.budgets.skews - 1)
            yield "stale", "clock skew", shared._replace(budgets=budgets)
        return
    _, reply = execute(shared.store, op)
    if op[0] != "wait" or reply == THERE:
        yield reply, "", shared


def replaced(pulse: tuple[str, ...], rank: int, status: str) -> tuple[str, ...]:
    return (*pulse[:rank], status, *pulse[rank + 1 :])


def renamed_value(key: Key, value: Any, perm: Perm) -> Any:
    if value is None or value in (PROBE, MISSING):
        return value
    if key == CONSENSUS:
        return perm[value]
    return (
        tuple(sorted(perm[rank] for rank in value))
        if key == ARRIVED and isinstance(value, tuple)
        else (perm[value] if key == ARRIVED else value)
    )


# --- What it does not keep ----------------------------------------------------------------------------------------------


def observe(shared: Shared, rank: int, before: Process, after: Process, move: Move, reply: Any) -> Ghost:
    """The history that the properties need, and what this step breaks."""
    ghost, k = shared.ghost, before.iteration
    if move.name == "signal_arrival":
        return ghost._replace(arrivals=tuple(sorted({*ghost.arrivals, (rank, k)})))
    if move.name == "read_consensus" and after.at == "increment":
        wrong = []
        if ghost.decided >= k + 1:
            wrong.append(("S1", f"iteration {k + 1} has two winners"))
        for other, status in enumerate(shared.pulse):
            if not any(arrival[0] == other and arrival[1] >= k for arrival in ghost.arrivals) and status != "stale":
                wrong.append(("S3", f"iteration {k + 1} is decided before {MISSED[status]} has arrived"))
        kept = tuple(arrival for arrival in ghost.arrivals if arrival[1] >= k)
        return ghost._replace(decided=max(ghost.decided, k + 1), arrivals=kept, wrong=tuple(sorted({*ghost.wrong, *wrong})))
    if move.name == "increment_global_iteration" and reply != k + 1:
        return broken(ghost, "S2", f"the winner of iteration {k + 1} moved the counter to {reply}")
    if move.name == "read_ready" and reply != PROBE and reply <= k:
        return broken(ghost, "S5", f"a stale ready signal took a rank from {k} to {reply}")
    if move.name == "read_ready" and reply != PROBE and reply > k + 1:
        return broken(ghost, "S4", f"the ready signal of another round took a rank from {k} to {reply}")
    if move.name == "clean_arrived":
        gone = shared.store.get(ARRIVED, ())
        if any(arrival[1] == before.next and arrival[0] in gone and arrival[0] != rank for arrival in ghost.arrivals):
            return broken(ghost, "L1", f"the clean-up deleted an arrival at {before.next}; it is waited for for ever")
    return ghost


MISSED = {"never": "a rank that was never seen", "beating": "a live rank", "fading": "a rank that has just been restarted"}


def broken(ghost: Ghost, name: str, what: str) -> Ghost:
    return ghost._replace(wrong=tuple(sorted({*ghost.wrong, (name, what)})))


def _noted(name: str, meaning: str) -> Invariant:
    def check(state: State) -> str | None:
        return next((what for broken, what in state.shared.ghost.wrong if broken == name), None)

    check.__doc__ = meaning
    return Invariant(name, check)


INVARIANTS = (
    _noted("S1", "At most one rank decides an iteration. Two winners both advance the job."),
    _noted("S2", "The counter goes 1, 2, 3, ... Otherwise a batch of data is skipped."),
    _noted("S3", "Nobody advances before every rank that is not silent has arrived. Otherwise ranks train without each other."),
    _noted("S4", "A rank takes part in each iteration for which it arrived. Otherwise the others wait for its gradients."),
    _noted("S5", "The iteration that a rank sees only grows. Otherwise it trains a batch twice."),
    _noted("L1", "An arrival is not lost. Otherwise everyone waits for a rank that has arrived."),
)


def advanced(state: State) -> bool:
    """The iteration advances as long as one rank is alive. Otherwise the job hangs."""
    return all(p.at in ("done", "down") for p in state.ranks)


def nobody_left(state: State) -> bool:
    return all(p.at == "down" for p in state.ranks)


def drawn(ranks: int, iterations: int, **budgets: int) -> Drawn:
    """The drawn protocol within bounds."""
    return Drawn(ranks, iterations, Budgets(**budgets))


# --- Its flaws ----------------------------------------------------------------------------------------------------------


class Flaw(NamedTuple):
    """One thing that goes wrong, with the smallest bounds under which it does."""

    name: str
    story: str
    bounds: Drawn
    property: str
    shows: Callable[[State], bool]
    """The state in which the flaw shows. For L1 the state has to be stuck as well: nothing that is promised can happen."""
    stuck: bool = False


def _wrong(name: str, words: str) -> Callable[[State], bool]:
    return lambda state: any(broken == name and words in what for broken, what in state.shared.ghost.wrong)


def _alone(name: str, words: str, *died_at: str) -> Callable[[State], bool]:
    """Nothing else has gone wrong before, so that the trace tells one story."""

    def shows(state: State) -> bool:
        ghost: Ghost = state.shared.ghost
        alone = len(ghost.wrong) == 1 and ghost.wrong[0][0] == name and words in ghost.wrong[0][1]
        return alone and (not died_at or ghost.died_at in died_at)

    return shows


def _counted_for_dead(state: State) -> bool:
    """The rank that is missed had arrived, died and been started again, and the winner has counted the old incarnation's arrival."""
    back = {rank for rank, status in enumerate(state.shared.pulse) if status == "fading" and state.ranks[rank] != DOWN}
    counted = any(p.at == "increment" and back.intersection(p.arrived) for p in state.ranks)
    return counted and _alone("S3", "just been restarted")(state)


def _died(*places: str) -> Callable[[State], bool]:
    def shows(state: State) -> bool:
        ghost: Ghost = state.shared.ghost
        return not ghost.wrong and ghost.died_at in places and not nobody_left(state) and not advanced(state)

    return shows


FLAWS = (
    Flaw(
        "two_winners",
        "Both ranks set `consensus`, one after the other, and each reads itself back: set is last-writer-wins, so nobody loses. "
        "Both advance the job.",
        drawn(2, 1),
        "S1",
        _wrong("S1", "two winners"),
    ),
    Flaw(
        "double_increment",
        "Two winners each add 1 to the counter. Iteration 1 is never trained, and its batch is skipped.",
        drawn(2, 1),
        "S2",
        _wrong("S2", "moved the counter"),
    ),
    Flaw(
        "stale_ready",
        "`ready` still holds the signal of the iteration before. A loser that waits for the next one returns at once, with the "
        "number it already had, and trains the same batch again.",
        drawn(2, 2),
        "S5",
        _alone("S5", "stale ready"),
    ),
    Flaw(
        "wake_by_the_wrong_round",
        "A loser sleeps through a whole round and is woken by the signal of the next. It never trains the iteration for which it "
        "had arrived; the others wait for its gradients.",
        drawn(2, 2),
        "S4",
        _wrong("S4", "another round"),
    ),
    Flaw(
        "winner_dies_after_winning",
        "The winner dies before it has moved the counter. The others wait for a `ready` that nobody will set; the job hangs.",
        drawn(2, 1, crashes=1),
        "L1",
        _died("increment"),
        stuck=True,
    ),
    Flaw(
        "winner_dies_between_increment_and_signal",
        "The counter says 1 and `ready` says nothing. The others wait for ever; the counter has moved without them.",
        drawn(2, 1, crashes=1),
        "L1",
        _died("record", "clear_ready", "signal_ready"),
        stuck=True,
    ),
    Flaw(
        "winner_dies_during_clean_up",
        "The arrivals of the iteration before stay. When the winner comes back, it counts as arrived by its old arrival, and the "
        "others advance without it, though it is there and beating.",
        drawn(2, 2, crashes=1, restarts=1),
        "S3",
        _alone("S3", "iteration 2 is decided before a live rank", "clean_arrived", "clean_consensus"),
    ),
    Flaw(
        "founder_advances_alone",
        "The first rank to start sees one heartbeat, its own. Every active rank has arrived, so it trains alone.",
        drawn(2, 1),
        "S3",
        _alone("S3", "never seen"),
    ),
    Flaw(
        "arrival_of_a_dead_incarnation",
        "A rank arrives, dies and comes back at once. Its old arrival still counts: the others advance with a rank that is only "
        "just starting.",
        drawn(2, 1, crashes=1, restarts=1),
        "S3",
        _counted_for_dead,
    ),
    Flaw(
        "arrival_lost_by_late_clean_up",
        "The winner of 1 is slow to clean up. Another rank has arrived for 2 already, and that arrival is deleted with the old "
        "ones. Everyone waits for a rank that thinks it has arrived.",
        drawn(2, 2),
        "L1",
        _alone("L1", "deleted an arrival"),
    ),
    Flaw(
        "clock_skew_exclusion",
        "The clock of one host is 30 s ahead. To it a live rank looks stale, so it advances without it.",
        drawn(2, 1, skews=1),
        "S3",
        _alone("S3", "before a live rank"),
    ),
)
