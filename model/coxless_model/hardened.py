"""The hardened protocol, as the list of its steps. docs/protocol.md says the same in prose, in the same order.

A process of a rank is a value that says where it stands (`at`, the name of its next step) and what it knows. Each step is a
function that names the store operation it issues, and what the process becomes once it has the reply. What may go wrong on
the way (crashes, lost replies, ...) is not told here but in `environment`.

Each thing that makes the protocol safe is a *guard*, looked up by name, so that `mutants` can take one away.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from .process import (
    Move,
    Moves,
    Process,
    Setting,
    arrived_key,
    at_barrier,
    barrier_keys,
    constantly,
    count_key,
    full_key,
    members_key,
)
from .records import (
    Epoch,
    Listed,
    Member,
    Members,
    Record,
    Signature,
    Signatures,
    genesis,
    listed_as,
    names,
    newer,
    newest,
    worst,
)
from .store import MISSING, PROBE, REGISTER, THERE, Key, Operation

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
        return finish(setting, p)
    # The join timeout counts from the founding that it is about: after a store loss it starts again.
    same_founding = p.record is not None and record.generation == p.record.generation
    timeout = p.join_timeout and (same_founding or not setting.guards("fresh_timeout"))
    flag = "j" if setting.guards("drop_state") or not p.holds else "f"
    joiner = Process("", p.conn, p.me, record, flag=flag, queue=p.queue, join_timeout=timeout)
    if record.iteration == 0:
        return join(setting, joiner, ())
    return at_barrier(joiner, "read_members", mode="join") if members is None else join(setting, joiner, members)


def join(setting: Setting, p: Process, members: Members) -> Process:
    """3. With the list at hand: does it hold a newer incarnation of my rank?"""
    rival = newest_of_my_rank(p, names(members))
    if rival is None or not setting.guards("incarnation_check"):
        return at_barrier(p, "sign", members=members)
    return at_barrier(p, "check_incarnation", members=members, rival=rival)


def newest_of_my_rank(p: Process, others: Iterable[Member]) -> Member | None:
    """The newest incarnation of my rank among them, if it is newer than I am."""
    assert p.me is not None
    me = p.me
    return max((member for member in others if newer(member, me)), default=None)


def read_members(setting: Setting, rank: int, p: Process) -> Moves:
    """3 and 19. Read the list of the record that I join at, or that I learn. Gone: the register has moved on."""
    record = p.pending or p.record
    assert record is not None

    def read(members: Any) -> Process:
        if members == PROBE:
            return p._replace(at="read_register") if setting.guards("reread") else stop(p)
        return learned(setting, p, record, members) if p.mode == "learn" else join(setting, p, members)

    yield Move("read_members", ("read", members_key(setting, record.epoch)), read)


def check_incarnation(setting: Setting, rank: int, p: Process) -> Moves:
    """3 and 14. A newer incarnation of my rank is listed, or has signed: am I superseded, or did the counter get lost with the store?"""
    assert p.me is not None and p.rival is not None
    mine, theirs = p.me.number, p.rival.number

    def read(counter: Any) -> Process:
        counted = 0 if counter == PROBE else counter
        if (counted > mine and setting.guards("stand_down")) or not setting.guards("renew"):
            return stop(p)
        return at_barrier(p, "renew_incarnation", renewal=theirs - counted + 1 if setting.guards("outnumber") else 1)

    yield Move("check_incarnation", ("read", ("incarnation", rank)), read)


def renew_incarnation(setting: Setting, rank: int, p: Process) -> Moves:
    """3. Take a number above the other one's."""
    for nonce, note in nonces(setting, p):

        def named(number: int, nonce: int = nonce) -> Process:
            return at_barrier(p, "sign", me=Member(rank, number, nonce), signed=False)

        yield Move("renew_incarnation", ("add", ("incarnation", rank), p.renewal), named, note)


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
        ("wait", full_key(setting, p.k)),
        lambda reply: at_barrier(p, "read_register", mode="slow") if reply == THERE else slow(setting, p),
    )


def slow(setting: Setting, p: Process) -> Process:
    """12. The patience ran out: someone is missing. What the count said silently, the signature says by name."""
    if not setting.guards("patience"):
        return p
    if not setting.guards("persist"):
        return stop(p)
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
    proposal = record._replace(iteration=p.k + 1, committed=setting.guards("commit"), attention=False, winner=p.me)

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
        rival = newest_of_my_rank(p, present)
        if rival is not None and setting.guards("superseded"):
            return stop(p) if p.member or not setting.guards("ask_counter") else at_barrier(p, "check_incarnation", rival=rival)
        if me not in present and not p.full and setting.guards("sign_again"):
            return at_barrier(p, "sign", mode="slow", signed=False)

        def replaced(member: Member) -> bool:
            return setting.guards("replaced") and any(newer(other, member) for other in present)

        missing = () if p.full else tuple(m for m in names(members) if m not in present and not replaced(m))
        q = at_barrier(p, "read_heartbeat", signatures=signatures, unheard=missing)
        return q if missing and setting.guards("heartbeats") else close(setting, q)

    yield Move("read_arrived", ("read", arrived_key(setting, p.k)), read)


def read_heartbeat(setting: Setting, rank: int, p: Process) -> Moves:
    """15. Of the missing, who has been silent for the timeout? In any order."""
    for member in p.unheard:
        rest = tuple(other for other in p.unheard if other != member)

        def heard(beat: Any, member: Member = member, rest: tuple[Member, ...] = rest) -> Process:
            beats = beat == "beating" and setting.guards("listen")
            beating = p.beating or beats or not setting.guards("suspicion")
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
    flags |= worst(p.signatures)
    candidates = newest(flags) if setting.guards("newest") else tuple(sorted(flags))
    enough = len(candidates) >= setting.min_ranks or not setting.guards("min_ranks")
    founded = p.k > 0 or len(candidates) >= setting.ranks or p.join_timeout or not setting.guards("founding")
    if p.beating or not enough or not founded:
        return at_barrier(p, "await_full")
    members = tuple(Listed(member, flags[member] != "j" and setting.guards("tell_holders")) for member in candidates)
    continuing = [member for member in names(p.members or ()) if member in candidates]
    committed = bool(continuing) or not setting.guards("somebody_voted")
    if setting.guards("votes"):
        committed = committed and all(flags[member] == "o" for member in continuing)
    committed = committed and setting.guards("slow_commit")
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
        ("set", full_key(setting, p.k - 1), 1),
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
    if not setting.guards("rejoin"):
        return stop(p)
    assert p.record is not None
    garbage: tuple[Key, ...] = ()
    if v.iteration > p.k and setting.guards("clean_up_behind"):
        garbage = in_vain(setting, p, v) + barrier_keys(setting, p.k - 1)
    if v.iteration >= p.k + 2 and setting.guards("clean_up_late"):
        garbage += barrier_keys(setting, p.k)
        if v.epoch != p.record.epoch and p.k > 0:  # perhaps it was me who replaced that list, and the reply was lost
            garbage += (members_key(setting, p.record.epoch),)
    return join_at(setting, p._replace(queue=queued(setting, p, garbage)), v, members)


def next_iteration(setting: Setting, v: Record) -> str:
    return "arrive" if v.iteration < setting.iterations else "done"


def finish(setting: Setting, p: Process) -> Process:
    """The model's last iteration has been decided: this process has seen enough. What it would clean up from here on stays to be done."""
    late: tuple[Key, ...] = tuple(members_key(setting, epoch) for epoch in p.wrote)
    if p.record is not None:
        late += barrier_keys(setting, p.k - 1) + barrier_keys(setting, p.k)
    return Process("done", p.conn, p.me, queue=queued(setting, p, late))


def stop(p: Process) -> Process:
    """Superseded by a newer incarnation of the same rank."""
    return Process("stopped", p.conn, p.me)


# --- Clean-up -----------------------------------------------------------------------------------------------------------


def in_vain(setting: Setting, p: Process, v: Record) -> tuple[Key, ...]:
    """The lists that I wrote at this barrier and that nothing points at."""
    return tuple(members_key(setting, epoch) for epoch in p.wrote if epoch != v.epoch)


def queued(setting: Setting, p: Process, garbage: tuple[Key, ...]) -> tuple[Key, ...]:
    return tuple(dict.fromkeys((*p.queue, *garbage))) if setting.guards("clean_up") else ()


def clean_up(setting: Setting, rank: int, p: Process) -> Moves:
    """21. At any later time, while the process goes on with its own steps: delete one key, by its exact name."""
    if p.queue:
        yield Move("clean_up", ("delete_key", p.queue[0]), lambda _: p._replace(queue=p.queue[1:]))


def recover(setting: Setting, p: Process) -> Process:
    """22. From here on a rank is not counted at this barrier again: the slow path takes over."""
    signed = p.signed and not setting.guards("sign_again")
    return at_barrier(p, "recover", signed=signed, full=False)
