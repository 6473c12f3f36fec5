"""The protocol as generators, one for each phase: they yield one store operation at a time and receive its reply.

No socket, thread, clock or randomness is in here. A driver runs them on a real store; the replay harness runs the same generators
in any order that a trace asks for, and a crash is dropping the generator. docs/protocol.md numbers and names the steps.
"""

from collections.abc import Callable, Generator
from contextlib import suppress

from .. import keys
from ..records import Flag
from .barrier import arrive, await_full, propose_same_epoch, read_register, sign
from .closing import close
from .joining import create_register, join, sign_as_joiner, take_incarnation
from .learning import learn
from .operations import ConnectionBroken, Operation, Set, Steps
from .recovery import recover as recover_phase
from .state import Decision, Phase, RankState

__all__ = ["ConnectionBroken", "Decision", "Operation", "Phase", "RankState", "advance", "enter", "recover"]

PHASES: dict[int, Callable[[RankState], Steps]] = {
    Phase.TAKE_INCARNATION: take_incarnation,
    Phase.CREATE_REGISTER: create_register,
    Phase.JOIN: join,
    Phase.SIGN_AS_JOINER: sign_as_joiner,
    Phase.ARRIVE: arrive,
    Phase.AWAIT_FULL: await_full,
    Phase.PROPOSE_SAME_EPOCH: propose_same_epoch,
    Phase.SIGN: sign,
    Phase.READ_REGISTER: read_register,
    Phase.CLOSE: close,
    Phase.LEARN: learn,
    Phase.RECOVER: recover_phase,
}


def enter(state: RankState) -> Generator[Operation, object, Decision]:
    """From nothing to the first iteration that this rank takes part in."""
    return _run(state, Phase.TAKE_INCARNATION)


def advance(state: RankState, flag: Flag) -> Generator[Operation, object, Decision]:
    """From the iteration that this rank takes part in to the next one, with its vote on the present one.

    Usually that is the following iteration. A rank that was left out comes back at a later one, as a joiner.
    """
    state.flag = flag
    return _run(state, Phase.ARRIVE)


def recover(state: RankState) -> Generator[Operation, object, Decision]:
    """What `enter` and `advance` do from a ConnectionBroken on, for a driver whose generator was itself interrupted: its state stands
    between two steps, and what it had asked may have been done."""
    state.deletions = []
    return _run(state, Phase.RECOVER)


def _run(state: RankState, phase: int) -> Generator[Operation, object, Decision]:
    while phase:
        try:
            phase = yield from PHASES[phase](state)
        except ConnectionBroken:
            state.deletions = []  # what they name may be in use again, should the store have lost its data
            phase = Phase.RECOVER
    if state.record.winner == state.me:
        # Those who run out of patience, and joiners, wait for this key. Only to spare them the rest of their patience: the register has
        # moved already, so a failure costs nothing.
        with suppress(ConnectionBroken):
            yield Set("wake", keys.full(state.record.iteration - 1), "1")
    return Decision(state.record, state.listed, state.me)
