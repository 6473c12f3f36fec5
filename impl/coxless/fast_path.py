"""The short cut through an iteration in which nothing is amiss.

Where several ranks share a core, whatever Python does in here is felt, since it is done with a cold cache: so this is one function that calls
little but the store, and what stays as it is while an epoch lasts lies ready in its cells.
"""

import math
import time
from collections.abc import Callable

from torch.distributed import DistNetworkError

from . import keys
from .driver import BARRIER, Driver, FastRun
from .errors import CorruptStoreError
from .housekeeping import Housekeeper
from .iteration import Iteration
from .recording import now
from .records import Record, corrupt

FastPath = Callable[[Iteration | None, float], Iteration | None]
"""Given the present iteration and the time on time.monotonic(): the next iteration, or None."""


def fast_path(
    driver: Driver, housekeeper: Housekeeper, iteration: Iteration, *, timeout: float = math.inf, watched: bool = False
) -> FastPath:
    """What `advance` of the protocol does from this iteration, and from those that follow it in its epoch, with a vote of "o", when nothing is
    amiss, without its generator: the barrier, and one compare_set, which somebody of this epoch wins. Of any other reply the generator is
    told, as if it had asked; then, and when there was something amiss before, the answer is None, and the driver goes on with it.
    tests/impl/test_fast_path.py holds it against the generator.

    timeout: how long (s) the call, and what the driver makes of it, may take. watched: whether the housekeeper is to know that the training
    thread is in it.

    It is good until the driver has run, which leaves another record; then the epoch may be another one, too, and the others may have been
    waiting. It is made as soon as that has happened, and not while the others wait at the next barrier: to write out who is in the epoch takes
    a thousand ranks on two cores longer than their patience.

    The winner spares itself the wake where nobody can be waiting for it: no wait at this barrier began before this rank came to the
    one before, and since then no patience has run out. Should somebody wait all the same (its connection broke, its patience is a
    shorter one), its own patience ends that. docs/protocol.md, step 20; the model's `spared_wakes`.
    """
    state, connection, recorder, patience = driver.state, driver.connection, driver.recorder, driver.patience
    longest = patience.total_seconds()
    _, before, after, me, members = state.epoch_text()
    k, name, participants, index, *_ = iteration
    size = len(participants)
    all_hold = (True,) * size
    text, generation, last = state.record_text(), state.record.generation, iteration
    record = None if state.record.attention else state.record  # with attention up, not even the first time
    entered = -math.inf
    new = tuple.__new__  # of a named tuple: what its own name does, in one call less

    def advance(present: Iteration | None, began: float) -> Iteration | None:
        nonlocal k, record, text, last, entered
        # Where the present iteration or the record is another one, the driver has run since, or the caller has not got the last answer.
        if present is not last or state.record is not record or driver.unfinished or driver.in_doubt or driver.watchers:
            return None
        following = k + 1
        head = f"{before}{following}{after}"
        desired = head + me
        state.flag = "o"
        connection.deadline = began + timeout
        driver.since = k
        driver.unfinished = driver.in_doubt = True
        if watched:
            housekeeper.in_call()
        if recorder is not None:
            cut = driver.cut = FastRun(now(), k, size, text, desired)
            driver.let_through = False
        if connection.broken:
            return None
        # As Connection.barrier and then Connection.compare_set.
        compare_set_and_wake = connection.compare_set_and_wake
        connection.flight += 1
        try:
            connection.arrive(f"{BARRIER}{k}:count", size, patience)
            if recorder is not None:
                driver.let_through = True
            connection.flight += 2
            if compare_set_and_wake is None:
                reply = connection.store.compare_set(keys.REGISTER, text, desired)
            else:
                reply = compare_set_and_wake(keys.REGISTER, text, desired, f"{BARRIER}{k}:full")
            answer = reply.decode("ascii")
        except DistNetworkError:
            connection.broken = True
            return None
        except CorruptStoreError:
            raise
        except RuntimeError as error:
            connection.timed_out(error)
            answer = None
        except UnicodeDecodeError:
            raise corrupt(keys.REGISTER, reply, "text in ASCII") from None
        except BaseException:  # from a signal handler; as in Connection._call
            connection.broken = True
            raise
        finally:
            connection.flight += 1
            if watched:
                housekeeper.alive()
        if answer is None:
            driver.fall_back(False)
            return None
        winner = members.get(answer.removeprefix(head))  # no member's name looks like a record
        if winner is None:
            driver.fall_back(True, answer)
            return None
        won = answer == desired
        spared = won and compare_set_and_wake is None and time.monotonic() - entered < longest
        if recorder is not None:
            recorder.fast(k, size, text, desired, answer, cut.began, spared=spared)
            driver.cut, driver.recorded = None, following
        if won:
            housekeeper.delete(keys.barrier(k - 1))
        # As `RankState.decide`, where nothing but the record changes: from the start of a barrier to the start of the next.
        state.record = new(Record, (generation, following, name, True, False, winner))
        if won and not spared and compare_set_and_wake is None:
            connection.set(keys.full(k), "1")
        driver.unfinished = driver.in_doubt = False
        housekeeper.iteration = following
        # As `iteration_from`. First: an exception from a signal handler must not leave here that the caller has an answer which it
        # has not; it asks again with the one that it has, and that is not `last` any more.
        last = new(Iteration, (following, name, participants, index, all_hold, (), (), True, winner, False))
        k, record, text, entered = following, state.record, answer, began
        return last

    return advance
