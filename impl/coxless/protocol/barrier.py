"""The barrier of iteration k: arriving, the fast path's proposal, and the way into the slow path (steps 7 to 13)."""

from .. import keys
from ..records import Record, Signature, parse_record
from .joining import parse_register, raise_attention
from .operations import Append, Barrier, CompareSet, Read, Steps, Wait
from .state import Phase, RankState


def arrive(state: RankState) -> Steps:
    """A rank with something to say signs and raises attention before it is counted: so a fast closer either sees the flag
    or loses its compare_set, and reads `arrived` before it proposes."""
    k = state.record.iteration
    if state.flag != "o":
        state.signed = True
        yield Append("sign", keys.arrived(k), str(Signature(state.me, state.flag)))
        if not state.record.attention:
            phase = yield from raise_attention(state)
            if phase is not None:
                return phase
    # Only members are counted, each identity once, so when the barrier lets us through every member of k has arrived.
    state.full = yield Barrier("arrive", keys.count(k), len(state.listed))
    return Phase.PROPOSE_SAME_EPOCH if state.full else Phase.SIGN


def propose_same_epoch(state: RankState) -> Steps:
    """Every member competes; one compare_set decides, and its reply tells the others who won."""
    current = state.record
    if current.attention:
        return Phase.CLOSE
    epoch, k = state.epoch_text(), current.iteration + 1
    head = f"{epoch.before}{k}{epoch.after}"
    expected, desired = state.record_text(), head + epoch.me
    text = yield CompareSet("propose_same_epoch", keys.REGISTER, expected, desired)
    winner = epoch.members.get(text[len(head) :]) if text.startswith(head) else None
    if winner is not None:
        return state.decide(Record(current.generation, k, current.epoch, True, False, winner), state.listed, text)
    if text == expected:  # the key is missing: the store lost its data
        return Phase.RECOVER
    record = parse_record(text)
    if record.same_decision(current):  # attention was raised before this barrier was full
        state.record = record
        return Phase.CLOSE
    return parse_register(state, text)


def await_full(state: RankState) -> Steps:
    """The slow path, and joiners: wait to be woken by whoever decides, but no longer than the patience."""
    woken = yield Wait("await_full", keys.full(state.record.iteration))
    return Phase.READ_REGISTER if woken else Phase.SIGN


def sign(state: RankState) -> Steps:
    """The slow path: someone is missing. What the count said silently, the signature says by name."""
    if not state.signed:
        state.signed = True
        yield Append("sign", keys.arrived(state.record.iteration), str(Signature(state.me, state.flag)))
    return Phase.READ_REGISTER


def read_register(state: RankState) -> Steps:
    """Before `arrived` is read, so that whoever signs after that read and raises attention makes our proposal fail."""
    text = yield Read("read_register", keys.REGISTER)
    if text is None:
        return Phase.RECOVER
    record = parse_record(text)
    if record.same_decision(state.record):
        state.record = record
        return Phase.CLOSE
    return parse_register(state, text)
