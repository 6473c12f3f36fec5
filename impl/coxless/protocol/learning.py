"""Learning a newer record: am I in it, or was I left out (steps 19 and 20)."""

from .. import keys
from ..errors import CorruptStoreError
from ..records import parse_members, parse_record
from .operations import Read, Steps
from .state import Phase, RankState


def learn(state: RankState) -> Steps:
    """Take over `state.news`: as a decision if this rank is in its list, else by joining there. Returns the phase to go on with."""
    record, news = state.record, state.news
    if state.is_member and news.epoch == record.epoch and news.iteration == record.iteration + 1:
        members = state.listed
    elif news.epoch in state.written:
        members = state.written[news.epoch]
    else:
        text = yield Read("read_members", keys.members(news.epoch))
        if text is None:
            return (yield from _newer_still(state))
        members = parse_members(news.epoch, text)
    # Further than k+1 it cannot list us rightly: nobody enters k+2 without having arrived at k+1 (property S4).
    if news.iteration == record.iteration + 1 and any(member == state.me for member, _ in members):
        if not state.is_member and news.epoch == record.epoch:  # a joiner is in no list that it did not sign for
            return state.leave_behind(news, members)
        return state.decide(news, members)
    return state.leave_behind(news, members)


def _newer_still(state: RankState) -> Steps:
    """The list is gone, so the register has moved on since."""
    text = yield Read("read_register", keys.REGISTER)
    if text is None:
        return Phase.RECOVER
    record = parse_record(text)
    if record.epoch == state.news.epoch:
        raise CorruptStoreError(
            f"the store's key {keys.members(record.epoch)!r} is missing although the register names it: {text!r}"
        )
    if record.iteration <= state.record.iteration:
        return Phase.RECOVER
    state.news = record
    return Phase.LEARN
