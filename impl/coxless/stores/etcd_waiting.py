"""Waiting for a key: a look, then a watch, from the moment on at which etcd has confirmed it.

A watch "from revision R" would say the same, but one whose R is already in the past is served by etcd from a queue that it comes to every
100 ms only. So the watch is opened for what comes from now on, etcd's confirmation says from which revision that is, and if anything in
etcd has changed since the look there is another look.
"""

from contextlib import closing
from typing import TYPE_CHECKING, Any

import grpc
from aetcd import rpc
from torch.distributed import DistNetworkError

from .etcd_cluster import PROMPT, WATCH, Deadline, Refused, Unanswered

if TYPE_CHECKING:
    from .etcd_session import Session

_FOREVER = float("inf")
SLICE = 3.0
"""After so long (s) without news a watch is given up for another look, which goes elsewhere should the member have fallen silent."""


class Watch:
    """The puts on the keys from `first` up to, but without, `end` (empty: `first` alone), for at most `limit` seconds; None: until it is closed."""

    def __init__(self, session: "Session", first: bytes, end: bytes, limit: float | None, deadline: Deadline) -> None:
        """Only asks; reading the answers raises what went wrong."""
        self._session = session
        self._cluster = session.cluster
        self._limit = _FOREVER if limit is None else limit
        self._deadline = deadline
        self._began = deadline.left()
        only_puts = [rpc.WatchCreateRequest.NODELETE]
        create = rpc.WatchCreateRequest(key=first, range_end=end, filters=only_puts)
        self._call, self.member, self._metadata = self._cluster.stream(
            WATCH, rpc.WatchRequest(create_request=create), limit, deadline
        )
        self._confirmed = self._closed = False

    def revision(self) -> int:
        """That after which it sees everything, once etcd has confirmed it. Raises Unanswered, Refused; TimeoutError when `limit` is over."""
        answer = self._next()
        self._confirmed = True
        revision: int = answer.header.revision
        return revision

    def puts(self) -> list[tuple[bytes, int]]:
        """The next keys that are put, with their revisions. Raises as `revision` does."""
        while True:
            # What is under another lease is of a later run, after ours has lost its own.
            lease = self._session.lease
            found = [(event.kv.key, event.kv.mod_revision) for event in self._next().events if event.kv.lease == lease]
            if found:
                return found

    def close(self) -> None:
        self._closed = True
        self._call.cancel()

    def _next(self) -> Any:
        try:
            answer = next(self._call, None)
        except grpc.RpcError as error:
            if self._closed:
                raise Unanswered("the watch was closed") from None  # which says nothing about the member
            # Whoever counts the time first, gRPC here or the server there, gives the error another name.
            over = self._began - self._deadline.left() >= self._limit - 0.01
            if over and (self._confirmed or self._limit < PROMPT):
                raise TimeoutError from None
            raise self._cluster.judged(error, self.member, self._metadata, self._limit) from None
        if answer is None or answer.canceled:
            reason = "" if answer is None else answer.cancel_reason
            if "permission denied" in reason:
                raise Refused(grpc.StatusCode.PERMISSION_DENIED, reason)
            self._cluster.move_on(self.member)
            raise Unanswered(reason or "the watch ended")
        return answer


def wait_until_there(session: "Session", first: bytes, end: bytes, deadline: Deadline, *, missing_at: int = 0) -> bool:
    """Whether there is a key in the range before the time is over.

    missing_at: the revision at which there was none, if that is known.
    Raises DistNetworkError when the time is over and etcd has not answered for long, Refused.
    """
    look = rpc.RequestOp(request_range=rpc.RangeRequest(key=first, range_end=end, count_only=True))
    answered = deadline.left() if missing_at else None

    def is_there() -> bool:
        nonlocal missing_at, answered
        (response,), missing_at = session.read([look], deadline)
        answered = deadline.left()
        return bool(response.response_range.count)

    for _ in session.cluster.attempts(deadline):
        try:
            while True:
                if not missing_at and is_there():
                    return True
                if deadline.left_to_wait() <= 0:
                    return False
                with closing(Watch(session, first, end, min(deadline.left_to_wait(), SLICE), deadline)) as opened:
                    if opened.revision() > missing_at and is_there():
                        return True
                    answered = deadline.left()
                    try:
                        opened.puts()
                        return True
                    except TimeoutError:
                        missing_at = 0
                if deadline.left_to_wait() <= 0.01:
                    return False
        except TimeoutError:
            return False  # too little was left for a watch
        except Unanswered:
            pass
        except DistNetworkError:  # of the look, for which all the time was used up
            if session.lost:
                raise
        missing_at = 0
    if answered is not None and answered - deadline.left() < 2 * SLICE:
        return False
    raise session.cluster.unreachable(deadline)
