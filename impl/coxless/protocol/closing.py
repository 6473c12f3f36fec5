"""Closing the barrier of k with a new membership list (steps 14 to 18)."""

from .. import keys
from ..records import Flag, Listed, Member, Record, Signature, encode_members, epoch_of, parse_record
from .joining import parse_register, renew, superseded
from .operations import CompareSet, JoinTimedOut, Read, ReadHeartbeat, Set, Steps
from .state import Phase, RankState

_WORST = "ofj"  # a member that signed twice (after a reconnection) counts by the worse flag


def close(state: RankState) -> Steps:
    """Look who has come, and if that is enough, propose the next iteration with them (steps 14 to 18). Returns the phase to go on with."""
    current, k = state.record, state.record.iteration
    text = yield Read("read_arrived", keys.arrived(k))
    signatures = state.signatures_in(text or "")
    newer = max((s.member for s in signatures if s.member.replaces(state.me)), default=None)
    if newer is not None and state.is_member:
        raise superseded(state.me, newer)
    if newer is not None:  # as in joining.join: another process, or one from before the store lost its counters
        yield from renew(state, newer)
        return Phase.SIGN_AS_JOINER
    if not state.full and all(s.member != state.me for s in signatures):
        state.signed = False  # a late clean-up deleted it: say it again, or the others would wait for us for ever
        return Phase.SIGN

    candidates = yield from _enough(state, signatures)
    if not candidates:
        return Phase.AWAIT_FULL

    listed = tuple(Listed(member, flag != "j") for member, flag in candidates)
    encoded = encode_members(listed)
    epoch = epoch_of(k + 1, encoded)
    proposal = Record(current.generation, k + 1, epoch, committed_by(state.listed, candidates), attention=False, winner=state.me)
    state.written[epoch] = listed
    yield Set("write_members", keys.members(epoch), encoded)
    expected, desired = str(current), str(proposal)
    text = yield CompareSet("propose_new_epoch", keys.REGISTER, expected, desired)
    if text == desired:
        return state.decide(proposal, listed, text)
    if text == expected:  # the key is missing: the store lost its data
        return Phase.RECOVER
    record = parse_record(text)
    if record.same_decision(current):  # attention came up since we read: someone signed, look again
        state.record = record
        return Phase.CLOSE
    return parse_register(state, text)


def candidates_of(signatures: tuple[Signature, ...], counted: tuple[Listed, ...]) -> tuple[Signature, ...]:
    """Of each rank the newest incarnation among those that signed and those that a full barrier counted (flag o when unsigned),
    by rank (property S6)."""
    flags: dict[Member, Flag] = {member: "o" for member, _ in counted}
    signed: dict[Member, Flag] = {}
    for member, flag in signatures:
        if member not in signed or _WORST.index(flag) > _WORST.index(signed[member]):
            signed[member] = flag
    flags |= signed
    newest: dict[int, Member] = {}
    for member in flags:
        if member.rank not in newest or member > newest[member.rank]:
            newest[member.rank] = member
    return tuple(Signature(member, flags[member]) for _, member in sorted(newest.items()))


def committed_by(members: tuple[Listed, ...], candidates: tuple[Signature, ...]) -> bool:
    """The update of k counts when some member of k goes on, and all that do voted ok (property S8)."""
    old = {member for member, _ in members}
    votes = [flag for member, flag in candidates if member in old]
    return bool(votes) and all(flag == "o" for flag in votes)


def _enough(state: RankState, signatures: tuple[Signature, ...]) -> Steps:
    """The candidates that the barrier may be closed with (property S3); none if it may not."""
    if state.record.iteration == 0:
        return (yield from _founders(state, signatures))
    candidates = candidates_of(signatures, state.listed if state.full else ())
    state.seen = tuple(c.member for c in candidates)
    enough = candidates if len(candidates) >= state.min_ranks else ()
    if state.full:
        state.missing = ()
        return enough
    # All look here, so with a thousand ranks nothing may compare all with all.
    newest = {c.member.rank: c.member for c in candidates}
    present = []  # neither signed nor replaced by a newer incarnation, nor suspected
    for member, _ in state.listed:
        if member.rank in newest and newest[member.rank] >= member:
            continue
        suspected = yield ReadHeartbeat("read_heartbeat", member)
        if not suspected:
            present.append(member)
    state.missing = tuple(present)
    return () if present else enough


def _founders(state: RankState, signatures: tuple[Signature, ...]) -> Steps:
    """Everybody; once the join timeout has passed, whoever has come."""
    # While hundreds of ranks found, all of them look here over and over: nothing is worked out as long as there are too few signatures.
    candidates = candidates_of(signatures, ()) if len(signatures) >= state.world_size else ()
    if len(candidates) >= state.world_size:
        return candidates
    state.seen = tuple(s.member for s in signatures)
    timed_out = yield JoinTimedOut("read_arrived")
    if not timed_out:
        return ()
    candidates = candidates_of(signatures, ())
    return candidates if len(candidates) >= state.min_ranks else ()
