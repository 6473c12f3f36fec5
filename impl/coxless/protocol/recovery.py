"""After the connection broke, or the store lost its data (step 22).

From here on this rank is not counted at this barrier again: it does not know whether it was already, and a store that lost its data may
have lost somebody's failed vote, so only the slow path, which asks everyone by name, may close.
"""

from .. import keys
from ..records import Signature, encode_members, parse_record
from .joining import raise_attention
from .operations import Append, CompareSet, Read, Set, Steps
from .state import NOBODY, NOTHING, Phase, RankState


def recover(state: RankState) -> Steps:
    """Put back what the store has lost, and find the way back to the barrier. Returns the phase to go on with."""
    if state.me is NOBODY:
        return Phase.TAKE_INCARNATION
    if state.record is NOTHING:
        return Phase.CREATE_REGISTER
    state.full, state.signed, state.news = False, False, NOTHING
    text = yield Read("read_register", keys.REGISTER)
    while True:
        found = None if text is None else parse_record(text)
        if found is not None and found.iteration >= state.record.iteration:
            if found.same_decision(state.record):
                state.record = found
                return (yield from _rejoin_barrier(state))
            if found.iteration == state.record.iteration:
                return state.leave_behind(found, None)
            if state.members is None:  # it has not signed yet, so nobody can have listed it
                state.start_barrier(found, None, member=False)
                return Phase.JOIN
            state.news = found
            return Phase.LEARN
        # Missing, or older than what this rank knows: the store lost its data. Push the record forward, its list first.
        if state.record.iteration == 0 or state.members is None:
            return Phase.CREATE_REGISTER
        decided = state.record._replace(attention=False)
        state.written[decided.epoch] = state.listed  # in vain, should the register turn out to be further already
        yield Set("restore_members", keys.members(decided.epoch), encode_members(state.listed))
        expected = text or ""
        text = yield CompareSet("restore_register", keys.REGISTER, expected, str(decided))
        if text == expected:
            text = None


def _rejoin_barrier(state: RankState) -> Steps:
    if not state.is_member:
        return Phase.JOIN
    if state.flag != "o":
        state.signed = True
        yield Append("sign", keys.arrived(state.record.iteration), str(Signature(state.me, state.flag)))
        if not state.record.attention:
            phase = yield from raise_attention(state)
            if phase is not None:
                return phase
    return Phase.SIGN
