"""The hardened protocol, as the list of its steps. docs/protocol.md says the same in prose, in the same order.

A process of a rank is a value that says where it stands (`at`, the name of its next step) and what it knows. Each step is a
function that names the store operation it issues, and what the process becomes once it has the reply. What may go wrong on
the way (crashes, lost replies, ...) is not told here but in `environment`.

Each thing that makes the protocol safe is a *guard*, looked up by name, so that `mutants` can take one away.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from .records import Epoch, Listed, Member, Members, Record, Signature, Signatures, genesis, listed_as, names, newer, newest
from .store import MISSING, PROBE, REGISTER, THERE, Key, Operation


class Setting(NamedTuple):
    """What every process was told when it started."""

    ranks: int
    min_ranks: int
    iterations: int
    """Where the model stops looking: who learns the decision of this iteration is done."""
    lag: int = 99
    """How many deletions a process may put off while it goes on with its own steps; with 0 it cleans up before the next one. (In
    either case the others may go on as far as they like before it does.)"""
    missing: tuple[str, ...] = ()
    """The guards that a mutant lacks."""

    def guards(self, guard: str) -> bool:
        return guard not in self.missing


class Process(NamedTuple):
    at: str
    conn: int
    """The store instance that it is connected to; BROKEN after a message was lost."""
    me: Member | None = None
    record: Record | None = None
    """R: the latest record that it accepted, as the exact value last read."""
    members: Members | None = None
    """L: the list of R's epoch; None while it has not been read."""
    member: bool = False
    """It takes part in the iteration of R, so it is a member at this barrier; otherwise it is a joiner."""
    flag: str = "j"
    """What it says of itself at this barrier; empty while it trains."""
    holds: bool = False
    """Whether it has the model state in truth, which `flag` should tell."""
    signed: bool = False
    full: bool = False
    """It knows that the barrier is complete."""
    mode: str = ""
    """Why it takes the step at which it stands, where there are several ways to go on after it."""
    pending: Record | None = None
    """The newer record whose list it has to read; while restoring, the older one that it found."""
    signatures: Signatures = ()
    unheard: tuple[Member, ...] = ()
    """Missing members whose heartbeats it has yet to read."""
    suspected: tuple[Member, ...] = ()
    beating: bool = False
    """One of the missing members was heard: this pass cannot close."""
    proposal: Record | None = None
    wrote: tuple[Epoch, ...] = ()
    """The lists that it wrote at this barrier, in this order."""
    queue: tuple[Key, ...] = ()
    """What its clean-up has yet to delete."""
    join_timeout: bool = False
    floor: int = 0
    """The highest iteration in which its rank took part, where R does not say so."""

    @property
    def k(self) -> int:
        assert self.record is not None
        return self.record.iteration


BROKEN = -1
RUN_OVER = ("done", "stopped", "left")


class Move(NamedTuple):
    """One way to take a step: the operation, and what the process becomes when it has the reply."""

    name: str
    op: Operation
    then: Callable[[Any], Process]
    note: str = ""
    cost: str = ""
    """The budget that pays for it, if the move is a fault."""


Moves = Iterator[Move]


def constantly(after: Process) -> Callable[[Any], Process]:
    return lambda _: after


def start(conn: int, floor: int = 0) -> Process:
    return Process("take_incarnation", conn, floor=floor)


def members_key(setting: Setting, epoch: Epoch) -> Key:
    return ("members", epoch) if setting.guards("content_addressed") else ("members", (epoch.since,))


def count_key(setting: Setting, k: int) -> Key:
    return ("count", k) if setting.guards("fresh_count") else ("count", 0)


def arrived_key(setting: Setting, k: int) -> Key:
    return ("arrived", k) if setting.guards("fresh_arrived") else ("arrived", 0)


def barrier_keys(setting: Setting, k: int) -> tuple[Key, ...]:
    return (count_key(setting, k), ("full", k), arrived_key(setting, k)) if k >= 0 else ()


def at_barrier(p: Process, at: str, **changes: Any) -> Process:
    """Go to another step of the same barrier; what the last closing pass found out is forgotten."""
    forgotten: dict[str, Any] = {"mode": "", "pending": None, "signatures": (), "unheard": (), "suspected": (), "beating": False}
    return p._replace(**{**forgotten, "proposal": None, "at": at, **changes})


# --- Starting -----------------------------------------------------------------------------------------------------------


def nonces(setting: Setting, p: Process) -> Iterator[tuple[int, str]]:
    """A nonce never repeats, and says nothing about who is newer. Numbers repeat only after a store loss, so there (and only
    there) it matters: it may come out higher or lower than the one before."""
    if p.conn == 0 or not setting.guards("nonce"):
        yield 0, ""
    else:
        yield p.conn, "a higher nonce"
        yield -p.conn, "a lower nonce"


def take_incarnation(setting: Setting, rank: int, p: Process) -> Moves:
    """1. Be a new member: whoever was this rank before is replaced by me."""
    for nonce, note in nonces(setting, p):

        def named(number: int, nonce: int = nonce) -> Process:
            return p._replace(at="create_register", me=Member(rank, number if setting.guards("incarnation") else 1, nonce))

        yield Move("take_incarnation", ("add", ("incarnation", rank), 1), named, note)


def create_register(setting: Setting, rank: int, p: Process) -> Moves:
    """2. The first ones create the register; the others take what is there. 22. Who stood at genesis before may be listed there."""

    def replied(v: Any) -> Process:
        founder = p.record is not None and p.k == 0
        return learn(setting, p, v) if founder and v.iteration > 0 else join_at(setting, p, v)

    yield Move("create_register", ("compare_set", REGISTER, MISSING, genesis(p.conn)), replied)


# --- Joining ------------------------------------------------------------------------------------------------------------


def join_at(setting: Setting, p: Process, record: Record, members: Members | None = None) -> Process:
    """Start joining at a record, whose list is read first unless it is known."""
    if record.iteration >= setting.iterations:
        return finish(p)
    floor = p.floor if p.floor > record.iteration else 0
    # The join timeout counts from the founding that it is about: after a store loss it starts again.
    timeout = p.join_timeout and p.record is not None and record.generation == p.record.generation
    flag = "j" if setting.guards("drop_state") or not p.holds else "f"
    joiner = Process("", p.conn, p.me, record, flag=flag, queue=p.queue, join_timeout=timeout, floor=floor)
    if record.iteration == 0:
        return join(setting, joiner, ())
    return at_barrier(joiner, "read_members", mode="join") if members is None else join(setting, joiner, members)


def join(setting: Setting, p: Process, members: Members) -> Process:
    """3. With the list at hand: does it hold a newer incarnation of my rank?"""
    assert p.me is not None
    replaced = any(newer(member, p.me) for member in names(members)) and setting.guards("incarnation_check")
    return at_barrier(p, "check_incarnation" if replaced else "sign", members=members)


def read_members(setting: Setting, rank: int, p: Process) -> Moves:
    """3 and 19. Read the list of the record that I join at, or that I learn. Gone: the register has moved on."""
    record = p.pending or p.record
    assert record is not None

    def read(members: Any) -> Process:
        if members == PROBE:
            return p._replace(at="read_register")
        return learned(setting, p, record, members) if p.mode == "learn" else join(setting, p, members)

    yield Move("read_members", ("read", members_key(setting, record.epoch)), read)


def check_incarnation(setting: Setting, rank: int, p: Process) -> Moves:
    """3. A newer incarnation of my rank is listed: am I superseded, or did the counter get lost with the store?"""
    assert p.me is not None
    mine = p.me.number

    def read(counter: Any) -> Process:
        if counter != PROBE and counter > mine:
            return stop(p)
        return p._replace(at="renew_incarnation", unheard=(Member(rank, 0 if counter == PROBE else counter, 0),))

    yield Move("check_incarnation", ("read", ("incarnation", rank)), read)


def renew_incarnation(setting: Setting, rank: int, p: Process) -> Moves:
    """3. Take a number above the listed one."""
    assert p.members is not None
    counter = p.unheard[0].number
    listed = max(member.number for member in names(p.members) if member.rank == rank)
    for nonce, note in nonces(setting, p):

        def named(number: int, nonce: int = nonce) -> Process:
            return at_barrier(p, "sign", me=Member(rank, number, nonce))

        yield Move("renew_incarnation", ("add", ("incarnation", rank), listed - counter + 1), named, note)


def sign(setting: Setting, rank: int, p: Process) -> Moves:
    """4, 7 and 12. Put my name and my flag down where every closer looks."""
    assert p.me is not None
    for flag, note, cost in votes(p):
        op = ("append", arrived_key(setting, p.k), Signature(p.me, flag))
        yield Move("sign", op, constantly(signed(setting, vote(p, flag))), note, cost)


def votes(p: Process) -> Iterator[tuple[str, str, str]]:
    """What a member that is still training may come to say; otherwise what it has said."""
    if p.flag:
        yield p.flag, "", ""
    else:
        if p.at != "arrive":
            yield "o", "", ""
        yield "f" if p.holds else "j", "the step failed", "failed_votes"


def vote(p: Process, flag: str) -> Process:
    return p._replace(flag=flag, holds=p.holds or flag == "o")


def signed(setting: Setting, p: Process) -> Process:
    """Signed. Only o goes without saying; anything else has to be announced."""
    assert p.record is not None
    q = at_barrier(p, "", signed=True)
    if p.mode == "slow":
        return q._replace(at="read_register", mode="slow")
    silent = not setting.guards("failure_attention" if p.member else "joiner_attention")
    if p.flag != "o" and not p.record.attention and not silent:
        return q._replace(at="raise_attention", mode=p.mode)
    return announced(setting, q, p.mode)


def raise_attention(setting: Setting, rank: int, p: Process) -> Moves:
    """5 and 7. Whoever closes now must look at the signatures first, or loses the race."""
    assert p.record is not None
    record = p.record

    def raised(v: Any) -> Process:
        if v == record.raised():
            return announced(setting, p._replace(record=v), p.mode)
        return recover(setting, p) if v == record else learn(setting, p, v)

    yield Move("raise_attention", ("compare_set", REGISTER, record, record.raised()), raised)


def announced(setting: Setting, p: Process, mode: str) -> Process:
    """6 and 7. My signature and the flag are up: members count themselves in, joiners wait (founders look at once)."""
    if mode == "again":
        return p._replace(at="read_register", mode="slow")
    if mode == "counted":
        return p._replace(at="await_barrier", mode="")
    if p.member or (p.k > 0 and not setting.guards("members_only")):
        return p._replace(at="count_in", mode="")
    return p._replace(at="read_arrived" if p.k == 0 else "await_full", mode="")


# --- Arriving at the barrier --------------------------------------------------------------------------------------------


def arrive(setting: Setting, rank: int, p: Process) -> Moves:
    """7 and 8, as training ends: with a vote of ok count myself in, otherwise sign first."""
    yield from count_in(setting, rank, vote(p, "o"))
    if setting.guards("attention_first"):
        yield from sign(setting, rank, p)
        return
    for flag, note, cost in votes(p):
        late = at_barrier(vote(p, flag), "sign", mode="counted")
        yield Move("arrive", ("barrier", count_key(setting, p.k), len(p.members or ())), constantly(late), note, cost)


def count_in(setting: Setting, rank: int, p: Process) -> Moves:
    """8. One more has arrived; the store lets everybody through once all have. Never repeated when the reply is lost: the count must be
    exact."""
    assert p.members is not None

    def counted(reply: Any) -> Process:
        return complete(setting, p) if reply == THERE else at_barrier(p, "await_barrier")

    yield Move("arrive", ("barrier", count_key(setting, p.k), len(p.members)), counted)


def await_barrier(setting: Setting, rank: int, p: Process) -> Moves:
    """9. Until the barrier is complete, or until the patience runs out."""
    assert p.members is not None

    def waited(reply: Any) -> Process:
        if reply == THERE:
            return complete(setting, p)
        if not setting.guards("timeout_decides_nothing"):
            return at_barrier(p, "arrive", flag="", signed=False)
        return slow(setting, p)

    yield Move("await_barrier", ("barrier_reply", count_key(setting, p.k), len(p.members)), waited)


def await_full(setting: Setting, rank: int, p: Process) -> Moves:
    """10. In the slow path, and for joiners: until whoever decides wakes me, or until the patience runs out."""
    yield Move(
        "await_full",
        ("wait", ("full", p.k)),
        lambda reply: at_barrier(p, "read_register", mode="slow") if reply == THERE else slow(setting, p),
    )


def slow(setting: Setting, p: Process) -> Process:
    """12. The patience ran out: someone is missing. What the count said silently, the signature says by name."""
    if not setting.guards("patience"):
        return p
    return at_barrier(p, "read_register" if p.signed else "sign", mode="slow")


def complete(setting: Setting, p: Process) -> Process:
    """The barrier is full. Unless someone has raised attention, the epoch is kept and every member competes for the decision."""
    assert p.record is not None
    look = p.record.attention and setting.guards("look_after_full")
    return at_barrier(p, "read_arrived" if look else "propose_same_epoch", full=True)


def propose_same_epoch(setting: Setting, rank: int, p: Process) -> Moves:
    """11. The fast path: one compare_set decides, and its reply tells the others who did."""
    assert p.record is not None
    record = p.record
    proposal = record._replace(iteration=p.k + 1, committed=True, attention=False, winner=p.me)

    def replied(v: Any) -> Process:
        if v == proposal or not setting.guards("compare_set"):
            return decided(setting, p, proposal, p.members or ())
        if v == record:
            return recover(setting, p)
        if v == record.raised():
            return complete(setting, p._replace(record=v))
        return learn(setting, p, v)

    yield Move("propose_same_epoch", proposing(setting, record, proposal), replied)


def proposing(setting: Setting, record: Record, proposal: Record) -> Operation:
    return ("compare_set", REGISTER, record, proposal) if setting.guards("compare_set") else ("set", REGISTER, proposal)


# --- The slow path ------------------------------------------------------------------------------------------------------


def read_register(setting: Setting, rank: int, p: Process) -> Moves:
    """13 in the slow path; also where a list was gone (3, 19)."""
    assert p.record is not None
    record = p.record

    def read(v: Any) -> Process:
        if v == PROBE or v.iteration < record.iteration:
            return recover(setting, p)
        if p.mode == "join":
            return join_at(setting, p, v)
        if v.iteration > record.iteration:
            return learn(setting, p, v)
        return at_barrier(p, "read_arrived", record=v) if v.same(record) else left_out(setting, p, v, None)

    yield Move("read_register", ("read", REGISTER), read)


# --- Closing ------------------------------------------------------------------------------------------------------------


def read_arrived(setting: Setting, rank: int, p: Process) -> Moves:
    """14. Who has signed? Read after R was, so that whoever signs later loses me the race by raising attention."""
    assert p.me is not None
    me, members = p.me, p.members or ()

    def read(v: Any) -> Process:
        signatures: Signatures = () if v == PROBE else v
        present = [signature.member for signature in signatures]
        if any(newer(member, me) for member in present) and setting.guards("superseded"):
            return stop(p)
        if me not in present and not p.full and setting.guards("sign_again"):
            return at_barrier(p, "sign", mode="slow", signed=False)
        missing = () if p.full else tuple(m for m in names(members) if m not in present and not any(newer(s, m) for s in present))
        q = at_barrier(p, "read_heartbeat", signatures=signatures, unheard=missing)
        return q if missing and setting.guards("heartbeats") else close(setting, q)

    yield Move("read_arrived", ("read", arrived_key(setting, p.k)), read)


def read_heartbeat(setting: Setting, rank: int, p: Process) -> Moves:
    """15. Of the missing, who has been silent for the timeout? In any order."""
    for member in p.unheard:
        rest = tuple(other for other in p.unheard if other != member)

        def heard(beat: Any, member: Member = member, rest: tuple[Member, ...] = rest) -> Process:
            beating = p.beating or beat == "beating" or not setting.guards("suspicion")
            q = p._replace(unheard=rest, beating=beating, suspected=() if beating else tuple(sorted((*p.suspected, member))))
            q = q._replace(signatures=()) if beating else q
            return q if rest else close(setting, q)

        op = ("read", ("heartbeat", member))
        yield Move("read_heartbeat", op, heard)
        if not setting.guards("own_clock"):
            yield Move("read_heartbeat", op, constantly(close(setting, p._replace(unheard=rest))), "clock skew", "clock_skews")


def close(setting: Setting, p: Process) -> Process:
    """16. Every member of L has signed, is replaced by a newer incarnation that signed, or is suspected: propose who goes on."""
    assert p.record is not None
    flags = dict.fromkeys(names(p.members or ()), "o") if p.full else {}
    flags |= dict(p.signatures)
    candidates = newest(flags) if setting.guards("newest") else tuple(sorted(flags))
    enough = len(candidates) >= setting.min_ranks or not setting.guards("min_ranks")
    founded = p.k > 0 or len(candidates) >= setting.ranks or p.join_timeout or not setting.guards("founding")
    if p.beating or not enough or not founded:
        return at_barrier(p, "await_full")
    members = tuple(Listed(member, flags[member] != "j") for member in candidates)
    continuing = [member for member in names(p.members or ()) if member in candidates]
    committed = bool(continuing) or not setting.guards("somebody_voted")
    if setting.guards("votes"):
        committed = committed and all(flags[member] == "o" for member in continuing)
    epoch = Epoch(p.k + 1, members)
    if not setting.guards("state_in_epoch") and candidates == names(p.members or ()):
        epoch = p.record.epoch
    proposal = p.record._replace(iteration=p.k + 1, epoch=epoch, committed=committed, attention=False, winner=p.me)
    return at_barrier(p, "write_members", proposal=proposal, suspected=p.suspected)


def write_members(setting: Setting, rank: int, p: Process) -> Moves:
    """17. The list is written before the register points at it."""
    assert p.proposal is not None
    epoch = p.proposal.epoch
    written = p._replace(at="propose_new_epoch", wrote=tuple(dict.fromkeys((*p.wrote, epoch))))
    yield Move("write_members", ("set", members_key(setting, epoch), epoch.members), lambda _: written)


def propose_new_epoch(setting: Setting, rank: int, p: Process) -> Moves:
    """18. Compete with the new list."""
    assert p.record is not None and p.proposal is not None
    record, proposal = p.record, p.proposal

    def replied(v: Any) -> Process:
        if v == proposal or not setting.guards("compare_set"):
            return decided(setting, p, proposal, proposal.epoch.members)
        if v == record:
            return recover(setting, p)
        if v == record.raised():
            return at_barrier(p, "read_arrived", record=v) if setting.guards("look_again") else p._replace(record=v)
        return learn(setting, p, v)

    yield Move("propose_new_epoch", proposing(setting, record, proposal), replied)


def wake(setting: Setting, rank: int, p: Process) -> Moves:
    """20. The winner tells those who wait at the barrier of the iteration before: they need not run out of patience."""
    assert p.record is not None
    record = p.record
    yield Move(
        "wake",
        ("set", ("full", p.k - 1), 1),
        lambda _: p._replace(at=next_iteration(setting, record)),
    )


# --- Learning -----------------------------------------------------------------------------------------------------------


def learn(setting: Setting, p: Process, v: Record) -> Process:
    """19. A newer record. Its list is known if it is mine, or the one that I am a member of; otherwise read it."""
    assert p.record is not None
    if p.member and v.iteration == p.k + 1 and v.epoch == p.record.epoch:
        return decided(setting, p, v, p.members or ())
    if v.epoch in p.wrote:
        return learned(setting, p, v, v.epoch.members)
    return at_barrier(p, "read_members", mode="learn", pending=v)


def learned(setting: Setting, p: Process, v: Record, members: Members) -> Process:
    """20. Listed for the next iteration: take part. Otherwise I was left out, or outrun."""
    assert p.me is not None
    listed = listed_as(members, p.me) is not None or not setting.guards("membership")
    if listed and (v.iteration == p.k + 1 or not setting.guards("outrun")):
        return decided(setting, p, v, members)
    return left_out(setting, p, v, members)


def decided(setting: Setting, p: Process, v: Record, members: Members) -> Process:
    """Take part in the iteration of v."""
    assert p.record is not None
    garbage = in_vain(setting, p, v)
    if v.winner == p.me:
        garbage += barrier_keys(setting, p.k - 1)
        if v.epoch != p.record.epoch and p.k > 0:
            garbage += (members_key(setting, p.record.epoch),)
        garbage += () if setting.guards("spare_the_next") else barrier_keys(setting, p.k + 1)
        garbage += () if setting.guards("spare_the_list") else (members_key(setting, v.epoch),)
        garbage += () if setting.guards("spare_the_register") else (REGISTER,)
    at = "wake" if v.winner == p.me and setting.guards("wake") else next_iteration(setting, v)
    return Process(at, p.conn, p.me, v, members, member=True, flag="", holds=p.holds, queue=queued(setting, p, garbage))


def left_out(setting: Setting, p: Process, v: Record, members: Members | None) -> Process:
    """20. Drop the model state, and join at v."""
    if v.iteration >= setting.iterations:
        return finish(p)
    assert p.record is not None
    garbage: tuple[Key, ...] = ()
    if v.iteration > p.k:
        garbage = in_vain(setting, p, v) + barrier_keys(setting, p.k - 1)
    if v.iteration >= p.k + 2:
        garbage += barrier_keys(setting, p.k)
    floor = max(p.floor, p.k if p.member else 0)
    q = p._replace(queue=queued(setting, p, garbage), floor=floor)
    return join_at(setting, q, v, members)


def next_iteration(setting: Setting, v: Record) -> str:
    return "arrive" if v.iteration < setting.iterations else "done"


def finish(p: Process) -> Process:
    """The model's last iteration has been decided: this process has seen enough."""
    return Process("done", p.conn, p.me)


def stop(p: Process) -> Process:
    """Superseded by a newer incarnation of the same rank."""
    return Process("stopped", p.conn, p.me, floor=max(p.floor, p.k if p.member else 0))


# --- Clean-up -----------------------------------------------------------------------------------------------------------


def in_vain(setting: Setting, p: Process, v: Record) -> tuple[Key, ...]:
    """The lists that I wrote at this barrier and that nothing points at."""
    return tuple(members_key(setting, epoch) for epoch in p.wrote if epoch != v.epoch)


def queued(setting: Setting, p: Process, garbage: tuple[Key, ...]) -> tuple[Key, ...]:
    return () if not setting.guards("clean_up") else p.queue + tuple(key for key in garbage if key not in p.queue)


def clean_up(setting: Setting, rank: int, p: Process) -> Moves:
    """21. At any later time, while the process goes on with its own steps: delete one key, by its exact name."""
    if p.queue:
        yield Move("clean_up", ("delete_key", p.queue[0]), lambda _: p._replace(queue=p.queue[1:]))


# --- Recovering ---------------------------------------------------------------------------------------------------------


def reconnected(setting: Setting, p: Process, instance: int) -> Process:
    """The connection broke under an operation that has a reply, and there is a new one. Was the operation applied? Nobody knows."""
    q = p._replace(conn=instance, queue=())
    if p.at in ("arrive", "count_in", "await_barrier") and not setting.guards("add_once"):
        return q._replace(at="count_in")
    return q if p.record is None else recover(setting, q)


def recover(setting: Setting, p: Process) -> Process:
    """22. From here on a rank is not counted at this barrier again: the slow path takes over."""
    signed = p.signed and not setting.guards("sign_again")
    return at_barrier(p, "recover", signed=signed, full=False)


def look_again(setting: Setting, rank: int, p: Process) -> Moves:
    """22. What does the register say now?"""
    yield Move("read_register", ("read", REGISTER), lambda v: found(setting, p, None if v == PROBE else v))


def found(setting: Setting, p: Process, v: Record | None) -> Process:
    """22. Push my record forward if the store has none or an older one; otherwise go on from what it has."""
    assert p.record is not None
    if v is None or v.iteration < p.k:
        if p.k == 0 or p.members is None or not setting.guards("restore_record"):
            return at_barrier(p, "create_register")
        return at_barrier(p, "restore_members" if setting.guards("restore_list") else "restore_register", pending=v)
    if v.same(p.record) and p.k >= setting.iterations:
        return at_barrier(p, "done", record=v)
    if v.same(p.record):
        q = at_barrier(p, "sign", mode="again" if p.member else "", record=v)
        if q.signed:
            return q._replace(at="read_register", mode="slow")
        if q.member:
            return q
        return at_barrier(q, "read_members", mode="join") if q.members is None else join(setting, q, q.members)
    if v.iteration == p.k:
        return left_out(setting, p, v, None)
    return join_at(setting, p, v) if p.members is None else learn(setting, p, v)


def finished(setting: Setting, rank: int, p: Process) -> Moves:
    """Not a step of the protocol: the model looks no further. Should the store be lost, the process still notices (its next
    arrival fails) and restores what it knows; the environment lets it take this step only then."""
    if p.record is not None:
        yield Move("arrive", ("barrier", count_key(setting, p.k), len(p.members or ())), constantly(p))


def restore_members(setting: Setting, rank: int, p: Process) -> Moves:
    """22. First the list ..."""
    assert p.record is not None
    yield Move(
        "restore_members",
        ("set", members_key(setting, p.record.epoch), p.members),
        lambda _: p._replace(at="restore_register"),
    )


def restore_register(setting: Setting, rank: int, p: Process) -> Moves:
    """22. ... then the register that points at it."""
    assert p.record is not None
    mine = p.record.lowered()
    expected = MISSING if p.pending is None else p.pending
    yield Move(
        "restore_register",
        ("compare_set", REGISTER, expected, mine),
        lambda w: found(setting, p, None if w == expected and w != mine else w),
    )


STEPS: dict[str, Callable[[Setting, int, Process], Moves]] = {
    "take_incarnation": take_incarnation,
    "create_register": create_register,
    "read_members": read_members,
    "check_incarnation": check_incarnation,
    "renew_incarnation": renew_incarnation,
    "sign": sign,
    "raise_attention": raise_attention,
    "arrive": arrive,
    "count_in": count_in,
    "await_barrier": await_barrier,
    "await_full": await_full,
    "propose_same_epoch": propose_same_epoch,
    "read_register": read_register,
    "read_arrived": read_arrived,
    "read_heartbeat": read_heartbeat,
    "write_members": write_members,
    "propose_new_epoch": propose_new_epoch,
    "wake": wake,
    "recover": look_again,
    "restore_members": restore_members,
    "restore_register": restore_register,
    "done": finished,
}


def moves(setting: Setting, rank: int, p: Process) -> Moves:
    """Every way in which the process can go on."""
    if p.at in STEPS and (len(p.queue) <= setting.lag or p.at == "done"):
        yield from STEPS[p.at](setting, rank, p)
    if p.at != "done":
        yield from clean_up(setting, rank, p)
