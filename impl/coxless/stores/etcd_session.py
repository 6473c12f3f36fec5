"""This process's part in one run: the lease that all of the run's keys are under, and reads and writes that notice when it is gone.

The first process to come creates the lease and writes its number under a key of the lease itself; the others find it there. Every
process keeps it alive. When none has for the lease's time, etcd deletes all keys of the run at once. Every read and write carries the
condition that the key with the lease is still the one found at the start, so a process that was away for so long is told "the store
lost its data" by its very next call, and never mixes the old run's keys with new ones.
"""

import logging
import os
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NamedTuple

import grpc
from aetcd import rpc
from torch.distributed import DistNetworkError

from ..address import EtcdAddress
from .etcd_barrier import Openings
from .etcd_cells import Layout, created_at, nested, put, read, revision_is
from .etcd_cluster import GRANT, KEEP_ALIVE, RANGE, REVOKE, TXN, Cluster, Deadline, Refused, TurnedAway, Unanswered

logger = logging.getLogger(__name__)


class Outcome(NamedTuple):
    """Of a write."""

    applied: bool
    revision: int
    responses: Sequence[Any] | None
    """Of the operations of the branch that was taken; None when the write took effect and its reply was lost."""


@dataclass(slots=True)
class _Slot:
    """A key in which a writer leaves a receipt of each write, in the same transaction; used by one writer at a time.

    A write carries the condition that the slot has not changed since the writer's last one. So of several attempts at one write at most
    one takes effect, however late an earlier one arrives; and a writer that lost the reply finds its receipt.
    """

    key: bytes
    revision: int = 0
    writes: int = 0
    in_flight: bool = False
    """An attempt that was given up may still take effect."""

    def token(self) -> bytes:
        self.writes += 1
        return b"%d" % self.writes


class Session:
    """One for all stores of a process with the same address. Made by `join`."""

    def __init__(self, cluster: Cluster, deadline: Deadline) -> None:
        """Raises DistNetworkError, Refused."""
        self.cluster = cluster
        self.layout = Layout(cluster.address.run)
        self.lost = ""
        """Why its keys are gone, once they are."""
        self.users = 0
        self.openings = Openings(self)
        self._name = os.urandom(6).hex()
        self._slots: deque[_Slot] = deque()
        self._doubtful: deque[_Slot] = deque()
        self._made = 0
        self._making = threading.Lock()
        self._stop = threading.Event()
        self.lease, self.created, self.ttl = self._take_lease(deadline)
        threading.Thread(target=self._keep_alive, name="coxless-etcd-lease", daemon=True).start()

    def token(self) -> bytes:
        """A name that no other process uses, and this one only once."""
        with self._making:
            self._made += 1
            return f"{self._name}.{self._made}".encode()

    # --- reads and writes

    def read(self, operations: Sequence[Any], deadline: Deadline) -> tuple[Sequence[Any], int]:
        """The responses to reading operations, all of one moment, and the revision of the store then. Raises DistNetworkError, Refused."""
        self._check()
        request = rpc.TxnRequest(compare=[created_at(self.layout.lease, self.created)], success=operations)
        response = self.cluster.call(TXN, request, deadline)
        if not response.succeeded:
            raise self._lose()
        return response.responses, response.header.revision

    def write(self, conditions: list[Any], success: list[Any], failure: list[Any], deadline: Deadline) -> Outcome:
        """Do `success` if the conditions hold, else `failure` (which only reads): exactly once, or DistNetworkError, after which it
        may take effect late or never. Raises Refused."""
        self.settle(deadline)
        guard = [created_at(self.layout.lease, self.created)]
        with self._slot() as slot:
            token, doubt, found = slot.token(), False, [read(self.layout.lease), read(slot.key)]
            for _ in self.cluster.attempts(deadline):
                done = put(slot.key, token + b"+", self.lease)
                unmoved = [*guard, revision_is(slot.key, slot.revision)]
                if doubt:
                    # Whether or not the conditions hold, the slot moves: no earlier attempt can take effect after this one.
                    void = put(slot.key, token + b"-", self.lease)
                    either = nested(conditions, [*success, done], [*failure, void])
                    request = rpc.TxnRequest(compare=unmoved, success=[either], failure=found)
                else:
                    request = rpc.TxnRequest(
                        compare=[*unmoved, *conditions], success=[*success, done], failure=[*found, *failure]
                    )
                slot.in_flight = True
                try:
                    response = self.cluster.once(TXN, request, deadline)
                except TurnedAway:
                    slot.in_flight = doubt
                    continue  # the same again: etcd does not count nested operations against what it has room for
                except Unanswered:
                    doubt = True
                    continue
                except Refused as refusal:
                    slot.in_flight = doubt
                    if refusal.code is grpc.StatusCode.NOT_FOUND:  # the lease
                        raise self._lose() from None
                    raise
                slot.in_flight = False
                revision = response.header.revision
                if response.succeeded:
                    slot.revision = revision
                    inner = response.responses[0].response_txn if doubt else response
                    return Outcome(inner.succeeded, revision, inner.responses)
                moved, receipt = self._moved(response.responses)
                if moved == slot.revision:
                    return Outcome(False, revision, response.responses[2:])
                slot.revision = moved
                if receipt == token + b"+":
                    return Outcome(True, moved, None)
                # An attempt before this one moved the slot without effect, or one of an earlier write did, long given up.
                token, doubt = slot.token(), False
        raise self.cluster.unreachable(deadline)

    def settle(self, deadline: Deadline) -> None:
        """See that no write of this process that was given up can take effect any more. Then, as a new connection would, a write knows what
        became of those before it, and so does a read after a reconnection. Raises DistNetworkError, Refused."""
        self._check()
        while True:
            try:
                slot = self._doubtful.pop()
            except IndexError:
                return
            unmoved = [created_at(self.layout.lease, self.created), revision_is(slot.key, slot.revision)]
            move = rpc.TxnRequest(
                compare=unmoved,
                success=[put(slot.key, slot.token() + b"-", self.lease)],
                failure=[read(self.layout.lease), read(slot.key)],
            )
            try:
                response = self.cluster.call(TXN, move, deadline)
                moved = response.header.revision if response.succeeded else self._moved(response.responses)[0]
                slot.revision, slot.in_flight = moved, False
            finally:
                (self._doubtful if slot.in_flight else self._slots).append(slot)

    def _moved(self, found: Sequence[Any]) -> tuple[int, bytes]:
        """Where a slot stands and what is in it, from the responses about the lease's key and the slot. Raises DistNetworkError."""
        lease, slot = (each.response_range.kvs for each in found[:2])
        if not lease or lease[0].create_revision != self.created:
            raise self._lose()
        return (slot[0].mod_revision, slot[0].value) if slot else (0, b"")

    def at_revision(self, request: Any, deadline: Deadline) -> Any:
        """The response to a range request about the past. Raises Refused when etcd has forgotten it."""
        return self.cluster.call(RANGE, request, deadline)

    @contextmanager
    def _slot(self) -> Iterator[_Slot]:
        try:
            slot = self._slots.pop()
        except IndexError:
            slot = _Slot(self.layout.slot(self.token().decode()))
        try:
            yield slot
        finally:
            (self._doubtful if slot.in_flight else self._slots).append(slot)

    # --- the lease

    def _take_lease(self, deadline: Deadline) -> tuple[int, int, int]:
        """The number of the run's lease, the revision at which its key was created, and its time to live (s)."""
        cluster, key = self.cluster, self.layout.lease
        granted = 0
        for _ in cluster.attempts(deadline):
            kvs = cluster.call(RANGE, rpc.RangeRequest(key=key), deadline).kvs
            if kvs:
                lease = int(kvs[0].value)
                if granted and granted != lease:
                    self._revoke(granted)
                    granted = 0
                ttl = self._renew(lease, deadline)
                if ttl > 0:
                    return lease, kvs[0].create_revision, ttl
                continue  # it has just run out
            granted = granted or cluster.call(GRANT, rpc.LeaseGrantRequest(TTL=cluster.address.lease), deadline).ID
            first = rpc.TxnRequest(compare=[revision_is(key, 0)], success=[put(key, str(granted).encode(), granted)])
            try:
                cluster.once(TXN, first, deadline)  # whoever was first, the next look says
            except Unanswered:
                continue
            except Refused as refusal:
                if refusal.code is not grpc.StatusCode.NOT_FOUND:
                    raise
                granted = 0  # it ran out before it was used
        raise cluster.unreachable(deadline)

    def _renew(self, lease: int, deadline: Deadline) -> int:
        ttl: int = self.cluster.call(KEEP_ALIVE, rpc.LeaseKeepAliveRequest(ID=lease), deadline).TTL
        return ttl

    def _revoke(self, lease: int) -> None:
        """Of a lease that is under no key; should it fail, it runs out by itself."""
        try:
            self.cluster.once(REVOKE, rpc.LeaseRevokeRequest(ID=lease), Deadline(timedelta(seconds=1)))
        except (Unanswered, Refused) as error:
            logger.debug("a lease that was not needed stays until it runs out: %s", error)

    def _keep_alive(self) -> None:
        pause = self.ttl / 3
        while not self._stop.wait(pause):
            try:
                if self._renew(self.lease, Deadline(timedelta(seconds=pause))) <= 0:
                    self._lose()
                    return
            except (DistNetworkError, Refused) as error:
                # As long as etcd has no leader no lease runs out; a new leader gives each its whole time again.
                logger.debug("the lease of %s was not renewed: %s", self.cluster.address, error)

    def _check(self) -> None:
        if self.lost:
            raise DistNetworkError(self.lost)

    def _lose(self) -> DistNetworkError:
        if not self.lost:
            self.lost = f"the keys of {self.cluster.address} are gone: their lease of {self.ttl} s ran out, since no process of the run renewed it"
            logger.warning("%s", self.lost)
        return DistNetworkError(self.lost)

    def close(self) -> None:
        """Stop renewing the lease and close the connections; the run's keys stay for as long as others renew it."""
        self.lost = self.lost or f"this client of {self.cluster.address} was closed"
        self._stop.set()
        self.openings.close()
        self.cluster.close()


# --- the sessions of this process

_sessions: dict[EtcdAddress, Session] = {}
_lock = threading.Lock()


def _forget_the_parents() -> None:
    """In the child of a fork, which must not touch what its parent uses."""
    global _lock
    _lock = threading.Lock()
    _sessions.clear()


os.register_at_fork(after_in_child=_forget_the_parents)


def join(address: EtcdAddress, deadline: Deadline) -> Session:
    """This process's session with that address, made if there is none that has not lost its keys. To be given back by `leave`.

    Raises DistNetworkError, Refused; ValueError for a file that cannot be read.
    """
    with _lock:
        session = _sessions.get(address)
        if session is not None:
            session.users += 1
    if session is not None:
        try:
            # As a new connection would, it finds out whether the keys are still there, and leaves nothing behind of those before it.
            session.settle(deadline)
            session.read([], deadline)
            return session
        except DistNetworkError:
            lost = session.lost
            leave(session)
            if not lost:
                raise
        except BaseException:
            leave(session)
            raise
    cluster = Cluster(address)
    try:
        made = Session(cluster, deadline)
    except BaseException:
        cluster.close()
        raise
    with _lock:
        # Another thread may have been quicker; theirs is then the one that is shared, and this one is nobody else's.
        current = _sessions.get(address)
        if current is None or current.lost:
            _sessions[address] = made
        made.users += 1
        return made


def leave(session: Session) -> None:
    """Give it back; the last to do so closes it."""
    with _lock:
        session.users -= 1
        if session.users > 0:
            return
        if _sessions.get(session.cluster.address) is session:
            del _sessions[session.cluster.address]
    session.close()
