"""Starting and joining: take an incarnation, find or create the register, sign the barrier, raise attention (steps 1 to 6)."""

from .. import keys
from ..errors import CorruptStoreError, SupersededError
from ..records import Member, Signature, genesis, parse_counter, parse_members, parse_record
from .operations import Add, Append, CompareSet, Read, Steps
from .state import Phase, RankState


def take_incarnation(state: RankState) -> Steps:
    """This process becomes the newest of its rank."""
    number = yield Add("take_incarnation", keys.incarnation(state.rank), 1)
    state.me = Member(state.rank, number, state.nonce)
    return Phase.CREATE_REGISTER


def create_register(state: RankState) -> Steps:
    """Whoever comes first creates it; everyone gets what is there in the same reply."""
    text = yield CompareSet("create_register", keys.REGISTER, "", str(genesis(state.generation)))
    record = parse_record(text)
    if state.record.iteration == 0 and record.iteration > 0:  # after a reconnection: it may list us
        state.news = record
        return Phase.LEARN
    state.start_barrier(record, None, member=False)
    return Phase.JOIN


def join(state: RankState) -> Steps:
    """Read the list of the register's epoch, unless it is known, and see whether this rank's incarnation is still the newest."""
    if state.record.iteration == 0:
        state.members = ()
    elif state.members is None:
        epoch = state.record.epoch
        text = yield Read("read_members", keys.members(epoch))
        if text is None:
            return (yield from _start_again(state, epoch))
        state.members = parse_members(epoch, text)
    newer = next((member for member, _ in state.listed if member.replaces(state.me)), None)
    if newer is not None:
        yield from renew(state, newer)
    return Phase.SIGN_AS_JOINER


def _start_again(state: RankState, epoch: str) -> Steps:
    """The list is gone, so the register has moved on since it was read."""
    text = yield Read("read_register", keys.REGISTER)
    if text is None:
        return Phase.CREATE_REGISTER
    record = parse_record(text)
    if record.epoch == epoch:
        raise CorruptStoreError(f"the store's key {keys.members(epoch)!r} is missing although the register names it: {text!r}")
    state.start_barrier(record, None, member=False)  # nothing was written at the barrier that it did not come to
    return Phase.JOIN


def renew(state: RankState, rival: Member) -> Steps:
    """A newer incarnation of this rank is listed, or has signed: it is either another process, or one with a number (or with an equal
    number and a higher nonce) from before the store lost its counters. The counter tells: a newer process has moved it beyond ours."""
    key = keys.incarnation(state.rank)
    text = yield Read("check_incarnation", key)
    counter = 0 if text is None else parse_counter(key, text)
    if counter > state.me.number:
        raise superseded(state.me, rival)
    number = yield Add("renew_incarnation", key, rival.number - counter + 1)
    state.me = Member(state.rank, number, state.nonce)


def superseded(me: Member, newer: Member) -> SupersededError:
    """The error of a process whose rank has a newer one."""
    return SupersededError(
        f"rank {me.rank}: incarnation {me.incarnation} (this process) was replaced by {newer.incarnation}, "
        "a newer process of the same rank: end this one"
    )


def sign_as_joiner(state: RankState) -> Steps:
    """Sign first, raise attention second: whoever closes after the flag is up reads `arrived` after the signature."""
    k = state.record.iteration
    state.flag, state.signed = "j", True
    yield Append("sign", keys.arrived(k), str(Signature(state.me, "j")))
    if not state.record.attention:
        phase = yield from raise_attention(state)
        if phase is not None:
            return phase
    # Founding: look at once, so that the last of world_size to come closes without waiting for the patience.
    return Phase.CLOSE if k == 0 else Phase.AWAIT_FULL


def raise_attention(state: RankState) -> Steps:
    """Returns None when the flag is up, else the phase to go on with."""
    raised = state.record._replace(attention=True)
    expected, desired = state.record_text(), str(raised)
    text = yield CompareSet("raise_attention", keys.REGISTER, expected, desired)
    if text == desired:
        state.record = raised
        return None
    if text == expected:  # TCPStore returns what was expected when the key is missing: the store lost its data
        return Phase.RECOVER
    return parse_register(state, text)


def parse_register(state: RankState, text: str) -> int:
    """Where to go on with a register value that is not the record this rank knows."""
    record = parse_record(text)
    if record.iteration <= state.record.iteration:
        return Phase.RECOVER
    state.news = record
    return Phase.LEARN
