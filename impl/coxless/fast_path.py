"""The short cut through an iteration in which nothing is amiss.

Where several ranks share a core, whatever Python does in here is felt, since it is done with a cold cache: so this is one function that calls
little but the store, and what stays as it is while an epoch lasts lies ready in its cells.
"""

import math
import time
from collections.abc import Callable, Iterable

from torch.distributed import DistNetworkError

from . import keys
from .driver import BARRIER, Driver, FastRun
from .errors import CorruptStoreError
from .iteration import Iteration
from .recording import now
from .records import Record, corrupt

FastPath = Callable[[int, float, float], Iteration | None]
"""Given the present iteration's number, the time, and the deadline (both on time.monotonic()): the next iteration, or None."""


def fast_path(driver: Driver, iteration: Iteration, delete: Callable[[Iterable[str]], object]) -> FastPath:
    """What `advance` of the protocol does from an iteration of this one's epoch, with a vote of "o", when nothing is amiss, without its
    generator: the barrier, and one compare_set, which somebody of this epoch wins. Of any other reply the generator is told, as if it had
    asked; then, and when there was something amiss before, the answer is None, and the driver goes on with it. `delete`: what becomes of
    the keys that are not needed any more. tests/impl/test_fast_path.py holds it against the generator.

    It is good until the driver has run: then the epoch may be another one, and the others may have been waiting.

    The winner spares itself the wake where nobody can be waiting for it: no wait at this barrier began before this rank came to the
    one before, and since then no patience has run out. Should somebody wait all the same (its connection broke, its patience is a
    shorter one), its own patience ends that. docs/protocol.md, step 20; the model's `spared_wakes`.
    """
    state, connection, recorder, patience = driver.state, driver.connection, driver.recorder, driver.patience
    longest = patience.total_seconds()
    generation, name = state.record.generation, iteration.epoch
    _, before, after, me, members = state.epoch_text()
    participants, index, size = iteration.participants, iteration.index, len(iteration.participants)
    all_hold = (True,) * size
    entered = -math.inf
    new = tuple.__new__  # of a named tuple: what its own name does, in one call less

    def advance(number: int, began: float, deadline: float) -> Iteration | None:
        nonlocal entered
        current = state.record
        known, expected = state.known_text
        _, k, epoch, _, attention, _ = current
        if (
            k != number or attention or known is not current or epoch != name
            or driver.unfinished or driver.in_doubt or driver.watchers
        ):  # fmt: skip
            return None
        following = k + 1
        head = f"{before}{following}{after}"
        desired = head + me
        state.flag = "o"
        connection.deadline = deadline
        driver.since = k
        driver.unfinished = driver.in_doubt = True
        if recorder is not None:
            cut = driver.cut = FastRun(now(), k, size, expected, desired)
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
                reply = connection.store.compare_set(keys.REGISTER, expected, desired)
            else:
                reply = compare_set_and_wake(keys.REGISTER, expected, desired, f"{BARRIER}{k}:full")
            text = reply.decode("ascii")
        except DistNetworkError:
            connection.broken = True
            return None
        except CorruptStoreError:
            raise
        except RuntimeError as error:
            connection.timed_out(error)
            text = None
        except UnicodeDecodeError:
            raise corrupt(keys.REGISTER, reply, "text in ASCII") from None
        except BaseException:  # from a signal handler; as in Connection._call
            connection.broken = True
            raise
        finally:
            connection.flight += 1
        if text is None:
            driver.fall_back(False)
            return None
        winner = members.get(text.removeprefix(head))  # no member's name looks like a record
        if winner is None:
            driver.fall_back(True, text)
            return None
        won = text == desired
        spared = won and compare_set_and_wake is None and time.monotonic() - entered < longest
        if recorder is not None:
            recorder.fast(k, size, expected, desired, text, cut.began, spared=spared)
            driver.cut, driver.recorded = None, following
        if won:
            delete(keys.barrier(k - 1))
        # As `RankState.decide`, where nothing but the record changes: from the start of a barrier to the start of the next.
        record = new(Record, (generation, following, name, True, False, winner))
        state.record, state.known_text = record, (record, text)
        if won and not spared and compare_set_and_wake is None:
            connection.set(keys.full(k), "1")
        entered = began
        driver.unfinished = driver.in_doubt = False
        # As `Iteration.followed_by`.
        return new(Iteration, (following, name, participants, index, all_hold, (), (), True, winner, False))

    return advance
