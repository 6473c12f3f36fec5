"""A torch.distributed.Store over etcd v3: the same crew, process group or rendezvous with no single point of failure.

The client is grpcio's blocking channel with the protocol messages of aetcd: of the candidates it was the quicker by far (a compare-and-set
transaction took 0.26 ms, against 0.71 ms with etcd3gw's JSON gateway), and both are maintained and install on every supported Python without
a compiler. aetcd's own client is asyncio only, and none of them repeats a write whose reply was lost without risking to do it twice.

What each operation promises is TCPStore's, except that `set`, `append` and `multi_set` return when etcd's members have agreed on them.
docs/stores.md has the table, and what etcd has to be set to.
"""

import itertools
import os
import random
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

from aetcd import rpc
from torch.distributed import DistNetworkError, DistStoreError, Store

from ..address import EtcdAddress, parse
from .etcd_cells import OPS, Cell, came_at_least, nested, put
from .etcd_cluster import GRACE, Deadline, Refused
from .etcd_session import Outcome, Session, join, leave
from .etcd_waiting import SLICE, wait_until_there

DEFAULT_TIMEOUT = timedelta(seconds=300)  # TCPStore's
_REQUEST_BYTES = 1 << 20  # of the values that go into one transaction; etcd takes 1.5 MiB in all unless told otherwise
_INT64 = 1 << 63

# C++ holds its half of a store alive and not the Python half: PrefixStore("p", EtcdStore(…)) would call methods that are gone. So every
# store is kept here until it is closed. It has nothing of its own that would be worth more: connections are the session's.
_alive: dict[int, "EtcdStore"] = {}


class EtcdStore(Store):  # type: ignore[misc]  # torch's types are not followed
    """A store whose keys are those of one run in etcd, shared by all processes that name the same run.

    Safe for several threads, whose calls do not wait for each other. Not usable across fork: make it in the process that uses it.
    Raises DistNetworkError when no member of etcd answered in time, and DistError when etcd refuses.
    """

    native_barrier = True
    """`barrier` is one transaction, not several operations."""

    def __init__(self, address: str, timeout: timedelta = DEFAULT_TIMEOUT) -> None:
        """Connect to "etcd://host:2379,host:2379/run"; see `coxless.address` for what else it may say.

        timeout: the limit of every operation that is not given its own.

        Raises ValueError for an address that is none, DistNetworkError, DistError.
        """
        parsed = parse(address)
        if not isinstance(parsed, EtcdAddress):
            raise ValueError(f"{address!r} is not the address of an etcd: it has the form etcd://host:2379,host:2379/run")
        super().__init__()
        self._begin(parsed, join(parsed, Deadline(timeout)), timeout)

    def _begin(self, address: EtcdAddress, session: Session, timeout: timedelta) -> None:
        self.etcd = address
        self._session = session
        self._pid = os.getpid()
        self._closed = False
        self.set_timeout(timeout)
        _alive[id(self)] = self

    def clone(self) -> "EtcdStore":
        """Another store of the same run; a fresh start, should this one have lost its keys. Raises DistNetworkError, DistError."""
        twin = EtcdStore.__new__(EtcdStore)
        Store.__init__(twin)
        twin._begin(self.etcd, join(self.etcd, Deadline(self.timeout)), self.timeout)
        return twin

    def close(self) -> None:
        """The store cannot be used any more. With the last one of its run this process lets go of the run."""
        if not self._closed:
            self._closed = True
            _alive.pop(id(self), None)
            if self._pid == os.getpid():
                leave(self._session)

    def __repr__(self) -> str:
        return f"EtcdStore({str(self.etcd)!r})"

    # --- values

    def set(self, key: str, value: str | bytes) -> None:
        cell, data = self._cell(key), _bytes(value)
        self._write(key, [], cell.overwrite(data, self._session.lease), [], self._deadline())

    def get(self, key: str) -> bytes:
        """Waits for the key. Raises DistStoreError when it is not there in time."""
        cell, deadline = self._cell(key), self._deadline()
        while True:
            value, revision = self._look(cell, deadline)
            if value is not None:
                return value
            if not wait_until_there(self._session, cell.base, cell.end, deadline, missing_at=revision):
                raise _timed_out("get", deadline, [key])

    def add(self, key: str, amount: int) -> int:
        """Raises ValueError for a key that holds no number, or when the sum is too large for 64 bits."""
        cell, deadline, parts = self._cell(key), self._deadline(), ()
        for _ in _contended(deadline):
            held = cell.value(parts)
            if held is not None and amount == 0:
                return _number(key, held)
            number = _number(key, held or b"0") + amount
            if not -_INT64 <= number < _INT64:
                raise ValueError(f"add: {key!r} + {amount} is {number}, which has more than 64 bits")
            overwrite = cell.overwrite(str(number).encode(), self._session.lease)
            outcome = self._write(key, cell.unchanged(parts), overwrite, [cell.read()], deadline)
            if outcome.applied:
                return number
            parts = _parts(outcome)
        raise _outrun("add", key, deadline)

    def append(self, key: str, value: str | bytes) -> None:
        cell, session = self._cell(key), self._session
        fragment = put(cell.appended(session.token()), _bytes(value), session.lease)
        self._write(key, [], [fragment], [], self._deadline())

    def compare_set(self, key: str, expected: str | bytes, desired: str | bytes) -> bytes:
        """`desired` if the key held `expected`, or was missing and `expected` is empty; else what it holds, or `expected` if it is missing."""
        return self._compare_set(key, expected, desired, [])

    def compare_set_and_wake(self, key: str, expected: str | bytes, desired: str | bytes, wake: str) -> bytes:
        """`compare_set`, and if it changes the key then `set(wake, "1")` in the same transaction: to tell those who wait for that."""
        return self._compare_set(key, expected, desired, self._cell(wake).overwrite(b"1", self._session.lease))

    def _compare_set(self, key: str, expected: str | bytes, desired: str | bytes, also: list[Any]) -> bytes:
        cell, deadline = self._cell(key), self._deadline()
        old, new = _bytes(expected), _bytes(desired)
        if old == new and old:
            # It would change nothing: a read, for which etcd writes nothing to its disks.
            value, _ = self._look(cell, deadline)
            return old if value is None else value
        conditions = cell.holds(old) if old else cell.is_missing()
        overwrite = cell.overwrite(new, self._session.lease)
        for _ in _contended(deadline):
            outcome = self._write(key, conditions, [*overwrite, *also], [cell.read()], deadline)
            if outcome.applied:
                return new
            parts = _parts(outcome)
            value = cell.value(parts)
            if value is None and old:
                return old
            if value is not None and value != old:
                return value
            conditions = cell.unchanged(parts)  # it holds it, in parts; or it is empty, which counts as missing
        raise _outrun("compare_set", key, deadline)

    def delete_key(self, key: str) -> bool:
        cell, deadline = self._cell(key), self._deadline()
        outcome = self._write(key, [], cell.delete(), [], deadline)
        if outcome.responses is not None:
            return bool(outcome.responses[0].response_delete_range.deleted)
        # The reply was lost; what there was just before it took effect tells the same.
        before = rpc.RangeRequest(key=cell.base, range_end=cell.end, count_only=True, revision=outcome.revision - 1)
        try:
            return bool(self._session.at_revision(before, deadline).count)
        except Refused:  # etcd has been compacted meanwhile
            raise DistNetworkError(f"delete_key: the reply about {key!r} was lost; it is deleted") from None

    # --- several keys

    def multi_set(self, keys: Sequence[str], values: Sequence[str | bytes]) -> None:
        """All at once, or, when they are many or large, a hundred and a megabyte at a time."""
        if len(keys) != len(values):
            raise ValueError(f"multi_set: {len(keys)} keys and {len(values)} values")
        deadline = self._deadline()
        latest = dict(zip(keys, map(_bytes, values), strict=True))  # etcd refuses a key twice
        batch: dict[str, bytes] = {}
        for key, value in latest.items():
            if batch and (len(batch) >= OPS // 2 or sum(map(len, batch.values())) + len(value) > _REQUEST_BYTES):
                self._set_all(batch, deadline)
                batch = {}
            batch[key] = value
        if batch:
            self._set_all(batch, deadline)

    def _set_all(self, batch: dict[str, bytes], deadline: Deadline) -> None:
        lease = self._session.lease
        operations = [each for key, value in batch.items() for each in self._cell(key).overwrite(value, lease)]
        self._write(max(batch, key=lambda key: len(batch[key])), [], operations, [], deadline)

    def multi_get(self, keys: Sequence[str]) -> list[bytes]:
        """Waits for all of them. Raises DistStoreError when one is not there in time."""
        deadline = self._deadline()
        while True:
            self._wait("multi_get", keys, deadline)
            values = self._values([self._cell(key) for key in keys], deadline)
            found = [value for value in values if value is not None]
            if len(found) == len(keys):
                return found

    def check(self, keys: Sequence[str]) -> bool:
        return not self._missing(keys, self._deadline())

    def wait(self, keys: Sequence[str], timeout: timedelta | None = None) -> None:
        """Raises DistStoreError when they are not all there in time."""
        self._wait("wait", keys, self._deadline(timeout))

    def num_keys(self) -> int:
        return len(self.list_keys())

    def list_keys(self) -> list[str]:
        """Of this run. Raises UnicodeDecodeError if one is not UTF-8."""
        self._here()
        layout = self._session.layout
        (response,), _ = self._session.read([layout.list_parts()], self._deadline())
        return layout.names(response.response_range.kvs)

    def has_extended_api(self) -> bool:
        """Whether append, multi_get and multi_set are there."""
        return True

    # --- meeting

    def barrier(self, key: str, world_size: int, timeout: timedelta | None = None) -> None:
        """Count this caller in at `key`, and wait until `world_size` have been counted: for one use of each key, which is used for nothing
        else, and names a number of callers when it is read. Whoever ran out of time stays counted.

        One transaction, which tells each caller whether it is the last one and opens the barrier for all; the others wait for that.
        Raises DistStoreError when the others did not come in time.
        """
        cell, deadline, session = self._cell(key), self._deadline(timeout), self._session
        with session.openings.expected(cell.opened, deadline) as opening:
            count, opened = put(cell.counter, b"", session.lease), put(cell.opened, b"", session.lease)
            arrive = nested([came_at_least(cell.counter, world_size - 1)], [count, opened], [count])
            outcome = self._write(key, [], [arrive], [], deadline)
            closed_at = 0  # not known when the reply was lost
            if outcome.responses is not None:
                if outcome.responses[0].response_txn.succeeded:
                    return
                closed_at = outcome.revision
                if opening.wait(closed_at, min(deadline.left_to_wait(), SLICE)):
                    return
            if opening.covered_since:
                closed_at = 0  # it was not told of, which is no proof
            began = deadline.left_to_wait()
            if not wait_until_there(session, cell.opened, b"", deadline, missing_at=closed_at):
                raise _timed_out("barrier", deadline, [key])
            if opening.covered_since and began - deadline.left_to_wait() < GRACE:
                session.openings.distrust()

    # The names by which C++ calls these two; it calls the others by theirs.
    deleteKey = delete_key
    getNumKeys = num_keys

    # --- how

    def _here(self) -> None:
        if self._pid != os.getpid():
            raise RuntimeError(
                f"this EtcdStore was made in process {self._pid}, and connections do not survive a fork: make another one here"
            )

    def _cell(self, key: str) -> Cell:
        self._here()
        return self._session.layout.cell(key)

    def _deadline(self, timeout: timedelta | None = None) -> Deadline:
        return Deadline(self.timeout if timeout is None else timeout)

    def _look(self, cell: Cell, deadline: Deadline) -> tuple[bytes | None, int]:
        (response,), revision = self._session.read([cell.read()], deadline)
        return cell.value(response.response_range.kvs), revision

    def _values(self, cells: Sequence[Cell], deadline: Deadline) -> list[bytes | None]:
        values = []
        for start in range(0, len(cells), OPS):
            some = cells[start : start + OPS]
            responses, _ = self._session.read([cell.read() for cell in some], deadline)
            values += [cell.value(each.response_range.kvs) for cell, each in zip(some, responses, strict=True)]
        return values

    def _missing(self, keys: Sequence[str], deadline: Deadline) -> list[str]:
        missing = []
        for start in range(0, len(keys), OPS):
            some = keys[start : start + OPS]
            responses, _ = self._session.read([self._cell(key).count_parts() for key in some], deadline)
            missing += [key for key, each in zip(some, responses, strict=True) if not each.response_range.count]
        return missing

    def _wait(self, what: str, keys: Sequence[str], deadline: Deadline) -> None:
        missing = list(keys) if len(keys) == 1 else self._missing(keys, deadline)
        while missing:
            cell = self._cell(missing[0])
            if not wait_until_there(self._session, cell.base, cell.end, deadline):
                raise _timed_out(what, deadline, missing)
            # One that was seen counts, even if it is deleted before the last one comes.
            missing = self._missing(missing[1:], deadline)

    def _write(self, key: str, conditions: list[Any], success: list[Any], failure: list[Any], deadline: Deadline) -> Outcome:
        try:
            return self._session.write(conditions, success, failure, deadline)
        except Refused as refusal:
            if refusal.too_large:
                raise ValueError(
                    f"the value for {key!r} is too large: etcd takes 1.5 MiB in one request, unless its --max-request-bytes says otherwise"
                ) from None
            raise


def _contended(deadline: Deadline) -> Iterator[None]:
    """Rounds of reading and writing, until the time is over: the second at once, further ones, which others have outrun, spread out."""
    for number in itertools.count():
        yield
        if deadline.left() <= 0:
            return
        if number:
            time.sleep(random.random() * min(0.0005 * 2**number, 0.05))


def _bytes(value: str | bytes) -> bytes:
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    raise TypeError(f"a value is str or bytes, not {type(value).__name__}")


def _number(key: str, held: bytes) -> int:
    try:
        return int(held)
    except ValueError:
        raise ValueError(f"add: {key!r} holds {held[:60]!r}, which is not a number") from None


def _parts(outcome: Outcome) -> Any:
    """Of the cell that was read because the conditions did not hold."""
    assert outcome.responses is not None
    return outcome.responses[0].response_range.kvs


def _timed_out(what: str, deadline: Deadline, keys: Sequence[str]) -> DistStoreError:
    return DistStoreError(f"{what} timeout after {deadline.limit * 1000:.0f}ms, keys: {', '.join(keys)}")


def _outrun(what: str, key: str, deadline: Deadline) -> DistNetworkError:
    return DistNetworkError(f"{what}: others changed {key!r} each time before this client could, for {deadline.total:g} s")
