"""The hardened protocol after the connection broke, or the store lost its data (step 22), and how the model looks on at its end.

The steps of `hardened` come here by becoming `recover`; from here they go on as they do there.
"""

from .hardened import join, join_at, learn, left_out, recover
from .process import Move, Moves, Process, Setting, at_barrier, constantly, count_key, members_key
from .records import Record
from .store import MISSING, PROBE, REGISTER


def reconnected(setting: Setting, p: Process, instance: int) -> Process:
    """The connection broke under an operation that has a reply, and there is a new one. Was the operation applied? Nobody knows."""
    q = p._replace(conn=instance, queue=())
    if p.at in ("arrive", "count_in", "await_barrier") and not setting.guards("add_once"):
        return q._replace(at="count_in")
    if q.member and not setting.guards("peek"):
        return recover(setting, q)._replace(at="look_at_count")
    return q if p.record is None else recover(setting, q)


def look_at_count(setting: Setting, rank: int, p: Process) -> Moves:
    """22. Is the count no number? Then it was the server that hung up. It is asked in a way that changes nothing, so the protocol has no
    such step; only a mutant asks by compare_set."""
    looking = ("compare_set", count_key(setting, p.k), PROBE, PROBE)
    yield Move("look_at_count", looking, constantly(recover(setting, p)))


def look_at_register(setting: Setting, rank: int, p: Process) -> Moves:
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
    wrote = tuple(dict.fromkeys((*p.wrote, p.record.epoch))) if setting.guards("clean_up_restored") else p.wrote
    restored = p._replace(at="restore_register", wrote=wrote)
    yield Move("restore_members", ("set", members_key(setting, p.record.epoch), p.members), constantly(restored))


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
