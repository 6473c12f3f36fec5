"""The ghost: the little history that the promises of the hardened protocol need, and that no process knows.

Some promises can be read off a state (properties.py). Others are about what has happened: for those the ghost keeps how far the
decisions have come, and who has arrived at the open barrier and with which vote, and it notes a broken promise at the step that breaks it.
It judges by what happened on the store and in the environment, never by what a process believes: who was suspected, say, is what
the store answered, not what the closer made of it.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from .process import Process, Setting, arrived_key
from .records import Member, Record, Signature, Signatures, names, newer, worst
from .store import REGISTER, Operation, Store


class Wrong(NamedTuple):
    property: str
    what: str
    """With {} where the member belongs: a state must not name ranks in text, or it could not be renamed."""
    member: Member | None = None


class Silence(NamedTuple):
    """At its present look at the barrier, `by` was told that `of` is silent, dead or gone."""

    by: Member
    of: Member


class Ghost(NamedTuple):
    decided: int = 0
    """The highest iteration that was ever decided. (A decision that the store lost before anyone learned of it was none.)"""
    learned: int = 0
    """The highest iteration in which anyone took part."""
    arrivals: Signatures = ()
    """Who has arrived at the barrier of that iteration, and what it voted."""
    promised: tuple[Member, ...] = ()
    """The joiners that nobody may overlook: they signed, and attention is up because of them."""
    silent: tuple[Silence, ...] = ()
    losing: bool = False
    """The store may lose its data. What follows, but for `wrong`, is kept only then."""
    knowers: tuple[Member, ...] = ()
    """The living that have learned the last decision as members of the iteration before it, and are not given up on."""
    astray: tuple[Member, ...] = ()
    """The living that were left out and have yet to learn so."""
    adrift: bool = False
    """The store has lost its data, and the register is not yet back where it was."""
    void: bool = False
    """Nobody was left who could have put it back: from here on nothing is claimed (docs/protocol.md, the store-loss clause)."""
    wrong: tuple["Wrong", ...] = ()
    """The promises broken so far."""


def observe(
    setting: Setting, ghost: Ghost, p: Process, op: Operation, stores: tuple[Store, Store], alive: Callable[[Member], bool]
) -> Ghost:
    """The ghost after the operation was applied (whether or not its reply arrives). `stores`: before it and after it."""
    match op:
        case ("barrier", ("count", _), _) if p.k == ghost.decided and p.me and p.me not in (one.member for one in ghost.arrivals):
            return ghost._replace(arrivals=tuple(sorted((*ghost.arrivals, Signature(p.me, p.flag or "o")))))
        case ("append", key, signature) if p.k == ghost.decided and key == arrived_key(setting, p.k):
            return replacing(ghost, p)._replace(arrivals=tuple(sorted({*ghost.arrivals, signature})))
        case ("append", _, _):
            return replacing(ghost, p)
        case (_, ("register",), *_):
            was, now = (store.get(REGISTER) for store in stores)
            if p.at == "raise_attention" and was != now and not p.member and p.me:
                return ghost._replace(promised=tuple(sorted({*ghost.promised, p.me})))
            if p.at == "restore_register" and now is not None and now.iteration >= ghost.learned:
                back = ghost._replace(adrift=False)
                if now.iteration <= ghost.decided:
                    return back
                # A joiner has put back a decision that no member of it had learned of: it has happened after all.
                return back._replace(decided=now.iteration, arrivals=(), promised=(), silent=())
            if was is not None and now is not None and was != now and p.at not in ("raise_attention", "restore_register"):
                return decision(setting, ghost, p, was, now, alive)
    return ghost


def heard(setting: Setting, ghost: Ghost, p: Process, op: Operation, answer: Any) -> Ghost:
    """The ghost after the process has read something that a closing look rests on."""
    assert p.me is not None
    if op[1] == arrived_key(setting, p.k):
        kept = tuple(each for each in ghost.silent if each.by != p.me)
        return ghost if kept == ghost.silent else ghost._replace(silent=kept)
    if op[1][0] == "heartbeat" and answer != "beating":
        told = ghost._replace(silent=tuple(sorted({*ghost.silent, Silence(p.me, op[1][1])})))
        return given_up(told, op[1][1]) if ghost.adrift else told
    return ghost


def decision(setting: Setting, ghost: Ghost, p: Process, was: Record, now: Record, alive: Callable[[Member], bool]) -> Ghost:
    """The register went from `was` to `now`."""
    wrong = {*ghost.wrong, *_wrongs(setting, ghost, p, was, now)}
    decided = max(ghost.decided, now.iteration)
    ghost = ghost._replace(decided=decided, arrivals=(), promised=(), silent=(), wrong=tuple(sorted(wrong)))
    left = {*names(was.epoch.members)} - {*names(now.epoch.members)} if ghost.losing else set()
    living = [member for member in left if alive(member)]
    return ghost._replace(astray=tuple(sorted({*ghost.astray, *living}))) if living else ghost


def _wrongs(setting: Setting, ghost: Ghost, p: Process, was: Record, now: Record) -> Iterator[Wrong]:
    if now.iteration <= ghost.decided:
        yield Wrong("S2", f"iteration {now.iteration} was decided again")
    if now.iteration > ghost.decided + 1:
        yield Wrong("S2", f"iteration {ghost.decided + 1} was skipped")
    flags = worst(ghost.arrivals)
    listed = names(now.epoch.members)
    for member in listed:
        if member not in flags:
            yield Wrong("S3", f"{{}} is listed for {now.iteration} without having arrived at the barrier before it", member)
    for member in names(was.epoch.members):
        replaced = any(newer(other, member) for other in listed)
        if member not in listed and not replaced and (p.me, member) not in ghost.silent:
            yield Wrong("S3", f"{{}} was left out of {now.iteration} though it was not silent", member)
    if was.iteration == 0 and len(listed) < setting.ranks and not p.join_timeout:
        yield Wrong("S3", "the job is founded without a rank that was never seen, before the join timeout")
    if len(listed) < setting.min_ranks:
        yield Wrong("S3", f"iteration {now.iteration} has fewer than min_ranks participants")
    if len({member.rank for member in listed}) < len(listed):
        yield Wrong("S6", f"two incarnations of one rank are listed for {now.iteration}")
    for member in listed:
        if any(newer(other, member) for other in names(was.epoch.members)):
            yield Wrong("S6", f"{{}} is listed for {now.iteration} in the place of a newer incarnation", member)
    kept = now.epoch == was.epoch
    for member, holds in now.epoch.members:
        flag = flags.get(member)
        if flag is not None and (holds or kept) != (flag != "j"):
            yield Wrong("S7", f"{{}} arrived with {flag}, and is listed for {now.iteration} as if it had not", member)
    votes = [flags[member] for member in names(was.epoch.members) if member in listed and member in flags]
    good = bool(votes) and all(flag == "o" for flag in votes)
    if now.committed != good:
        counts = "counts" if now.committed else "does not count"
        yield Wrong("S8", f"iteration {now.iteration - 1} {counts}, with the votes {','.join(sorted(votes)) or 'of nobody'}")
    for member in ghost.promised:
        if member not in listed and not any(newer(other, member) for other in listed):
            yield Wrong("L2", "{} had raised attention to join, and was overlooked", member)


def entered(ghost: Ghost, before: Process, after: Process, floor: int) -> Ghost:
    """The ghost after a step that may have made the process take part in another iteration, or announced it as a joiner. `floor`: the
    highest iteration in which it took part so far, or any process of its rank before it was started."""
    assert after.record is not None
    assert before.record is not None
    if after.member and not (before.member and after.record.same(before.record)):
        assert after.me is not None
        if ghost.losing and after.k >= ghost.learned:
            before_that = ghost.knowers if after.k == ghost.learned else ()
            own = (after.me,) if before.member or after.k == 1 else ()
            ghost = ghost._replace(knowers=tuple(sorted({*before_that, *own})))
        if after.k > ghost.learned:
            ghost = ghost._replace(learned=after.k)
        if after.k <= floor:
            what = f"the rank of {{}} took part in iteration {floor}, and now takes part in {after.k}"
            return noting(ghost, Wrong("S5", what, after.me))
    elif before.member and not after.member and before.me in ghost.astray:
        ghost = ghost._replace(astray=tuple(member for member in ghost.astray if member != before.me))
    if after.at == "await_full" and before.at != "await_full" and not after.member and not after.record.attention and after.me:
        return ghost._replace(promised=tuple(sorted({*ghost.promised, after.me})))
    return ghost


def noting(ghost: Ghost, wrong: Wrong) -> Ghost:
    return ghost._replace(wrong=tuple(sorted({*ghost.wrong, wrong})))


# --- The store-loss clause ----------------------------------------------------------------------------------------------


def forgotten(ghost: Ghost) -> Ghost:
    """The ghost after the store lost its data: what nobody had learned has not happened, and everyone has to arrive anew."""
    ghost = ghost._replace(decided=ghost.learned, arrivals=(), promised=(), silent=(), adrift=ghost.learned > 0)
    return ghost._replace(void=True) if ghost.adrift and ghost.astray else _claimed(ghost)


def given_up(ghost: Ghost, member: Member | None) -> Ghost:
    """The member has died, or left, or is replaced or, while the register is to be put back, suspected: it is not counted upon."""
    if member in ghost.astray:
        ghost = ghost._replace(astray=tuple(other for other in ghost.astray if other != member))
    if member not in ghost.knowers:
        return ghost
    return _claimed(ghost._replace(knowers=tuple(other for other in ghost.knowers if other != member)))


def replacing(ghost: Ghost, p: Process) -> Ghost:
    """The process has signed, while the register is to be put back: it stands for its rank, and another one of it is not waited for."""
    if ghost.adrift and p.me is not None:
        for member in ghost.knowers:
            if member.rank == p.me.rank and member != p.me:
                ghost = given_up(ghost, member)
    return ghost


def founded_early(ghost: Ghost) -> Ghost:
    """The join timeout of a process has passed. While the register is to be put back, that was too early."""
    return ghost._replace(void=True) if ghost.adrift else ghost


def _claimed(ghost: Ghost) -> Ghost:
    return ghost._replace(void=True) if ghost.adrift and not ghost.knowers else ghost
