"""Calls to an etcd cluster: each goes to one member, has a time limit of its own, and the next one tries another member."""

import itertools
import logging
import os
import random
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import grpc
from aetcd import rpc
from grpc.experimental import ChannelOptions
from torch.distributed import DistError, DistNetworkError

from ..address import EtcdAddress

logger = logging.getLogger(__name__)

GRACE = 0.5
"""A call whose time limit is shorter than this (s) still gets so long for its round trips; 0 means "do not wait", not "do not ask"."""
LONGEST_ATTEMPT = 5.0
PROMPT = 0.2
"""A member that has not answered within less than this (s) is not blamed for it."""
_FOREVER = 10 * 365 * 86400.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.02, 0.2

# Answers that repeating the call would not change.
_FINAL = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.OUT_OF_RANGE,
    grpc.StatusCode.UNIMPLEMENTED,
}
_STALE_LOGIN = ("invalid auth token", "revision of auth store is old")
_TOO_LARGE = ("request is too large", "larger than max")

_CHANNEL_OPTIONS = [
    # What may be repeated is known here and not there.
    ("grpc.enable_retries", 0),
    # Two sessions must not share a connection, nor must a proxy of the environment stand before a store on a private network.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 2000),  # in fact the time limit of one attempt to connect
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),  # etcd says better what is too large for it
    # A watch is read in the thread that waits, without another one between.
    (ChannelOptions.SingleThreadedUnaryStream, 1),
]


class Method(NamedTuple):
    """One of etcd's remote procedures."""

    path: str
    request: Any
    response: Any


TXN = Method("/etcdserverpb.KV/Txn", rpc.TxnRequest, rpc.TxnResponse)
RANGE = Method("/etcdserverpb.KV/Range", rpc.RangeRequest, rpc.RangeResponse)
GRANT = Method("/etcdserverpb.Lease/LeaseGrant", rpc.LeaseGrantRequest, rpc.LeaseGrantResponse)
REVOKE = Method("/etcdserverpb.Lease/LeaseRevoke", rpc.LeaseRevokeRequest, rpc.LeaseRevokeResponse)
AUTHENTICATE = Method("/etcdserverpb.Auth/Authenticate", rpc.AuthenticateRequest, rpc.AuthenticateResponse)
# Streams in both directions, used for one request each: to the server that is a client that has no more to say.
KEEP_ALIVE = Method("/etcdserverpb.Lease/LeaseKeepAlive", rpc.LeaseKeepAliveRequest, rpc.LeaseKeepAliveResponse)
WATCH = Method("/etcdserverpb.Watch/Watch", rpc.WatchRequest, rpc.WatchResponse)


class Unanswered(Exception):
    """One attempt at one member came to nothing that can be relied on; whether it did what was asked is not known."""


class TurnedAway(Unanswered):
    """The member did not do it, and may do it another time: etcd is full, or has too much to do."""


class Refused(DistError):  # type: ignore[misc]  # torch's types are not followed
    """etcd answered that it will not do this, and would answer the same again."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(f"etcd refuses: {details.removeprefix('etcdserver: ')}")
        self.code = code
        self.too_large = any(words in details for words in _TOO_LARGE)


class Deadline:
    """The time that one call of a caller has, all its attempts together."""

    def __init__(self, limit: timedelta) -> None:
        seconds = limit.total_seconds()
        seconds = _FOREVER if seconds < 0 else seconds  # as in TCPStore
        self.limit = seconds
        self.total = max(seconds, GRACE)
        now = time.monotonic()
        self._at, self._wait_at = now + self.total, now + seconds

    def left(self) -> float:
        """For round trips (s)."""
        return max(0.0, self._at - time.monotonic())

    def left_to_wait(self) -> float:
        """For waiting that something happens (s): the limit as it was given."""
        return max(0.0, self._wait_at - time.monotonic())

    @property
    def attempt(self) -> float:
        """How long the next attempt may take: short enough that another member can be asked after it."""
        return min(self.left(), LONGEST_ATTEMPT, max(0.2, self.total / 3))


class Cluster:
    """Channels to the members, for all threads of a process. Not usable across fork."""

    def __init__(self, address: EtcdAddress) -> None:
        self.address = address
        credentials = _credentials(address)
        self._channels = [
            grpc.secure_channel(endpoint, credentials, _CHANNEL_OPTIONS)
            if credentials is not None
            else grpc.insecure_channel(endpoint, _CHANNEL_OPTIONS)
            for endpoint in address.endpoints
        ]
        self._stubs: dict[tuple[int, Method], Any] = {}
        # Which member is asked. Processes begin with different ones, so that no single one carries them all.
        self.current = random.Random(os.getpid()).randrange(len(self._channels))
        self._login = threading.Lock()
        self._token = ""
        self.trouble = ""
        """Why the last attempt that failed did."""

    # --- calls

    def call(self, method: Method, request: Any, deadline: Deadline) -> Any:
        """The answer, whichever member gives it: only for what may be done twice. Raises DistNetworkError and Refused."""
        for _ in self.attempts(deadline):
            try:
                return self.once(method, request, deadline)
            except Unanswered:
                continue
        raise self.unreachable(deadline)

    def once(self, method: Method, request: Any, deadline: Deadline) -> Any:
        """One attempt at the member that answered last. Raises Unanswered, and the next attempt goes to another one; Refused."""
        member = self.current
        metadata = self._metadata(deadline)
        limit = deadline.attempt
        try:
            return self._stub(member, method, False)(request, timeout=limit, metadata=metadata)
        except grpc.RpcError as error:
            raise self.judged(error, member, metadata, limit) from None
        except ValueError as error:  # the channel was closed meanwhile
            raise Unanswered(str(error)) from None

    def stream(self, method: Method, request: Any, limit: float | None, deadline: Deadline) -> tuple[Any, int, Any]:
        """The stream of answers to one request, which ends after `limit` seconds, and what `judged` is to be told about its errors."""
        member = self.current
        metadata = self._metadata(deadline)
        try:
            return self._stub(member, method, True)(request, timeout=limit, metadata=metadata), member, metadata
        except ValueError as error:
            raise Unanswered(str(error)) from None

    def attempts(self, deadline: Deadline) -> Iterator[int]:
        """Counts attempts until the time is over, with a pause after each round of the members."""
        pause = _FIRST_PAUSE
        for number in itertools.count():
            yield number
            if deadline.left() <= 0:
                return
            if (number + 1) % len(self._channels) == 0:
                time.sleep(min(pause, deadline.left()))
                pause = min(2 * pause, _LONGEST_PAUSE)

    def judged(self, error: Any, member: int, metadata: Any, limit: float) -> Exception:
        """What an error of gRPC means for the caller, after at most `limit` seconds: Refused, or Unanswered, after which another member
        is the current one."""
        code, details = error.code(), error.details() or ""
        if any(words in details for words in _STALE_LOGIN):
            self._forget(metadata)
            return Unanswered(details)
        if code in _FINAL or any(words in details for words in _TOO_LARGE):
            return Refused(code, details)
        if code is grpc.StatusCode.DEADLINE_EXCEEDED and limit < PROMPT:
            return Unanswered("no answer in time")  # which says nothing about the member
        self.trouble = _reason(code, details)
        self.move_on(member)
        return (TurnedAway if code is grpc.StatusCode.RESOURCE_EXHAUSTED else Unanswered)(self.trouble)

    def move_on(self, member: int) -> None:
        """Ask another member from now on, unless another thread has seen to that."""
        if self.current == member:
            self.current = (member + 1) % len(self._channels)

    def unreachable(self, deadline: Deadline) -> DistNetworkError:
        return DistNetworkError(
            f"no member of {self.address} answered within {deadline.total:g} s: {self.trouble or 'it had no time to'}"
        )

    def close(self) -> None:
        for channel in self._channels:
            channel.close()

    # --- what calls need

    def _stub(self, member: int, method: Method, streamed: bool) -> Any:
        stub = self._stubs.get((member, method))
        if stub is None:
            channel = self._channels[member]
            make = channel.unary_stream if streamed else channel.unary_unary
            stub = self._stubs[member, method] = make(
                method.path,
                request_serializer=method.request.SerializeToString,
                response_deserializer=method.response.FromString,
            )
        return stub

    def _metadata(self, deadline: Deadline) -> tuple[tuple[str, str], ...]:
        """With `hasleader` a member that is cut off from the others says so at once, and ends its watches."""
        base = (("hasleader", "true"),)
        if not self.address.user:
            return base
        token = self._token
        if not token:
            if not self._login.acquire(timeout=deadline.attempt):  # another thread is at it, and gets no answer
                raise Unanswered("no answer in time")
            try:
                token = self._token = self._token or self._authenticate(deadline)
            finally:
                self._login.release()
        return (*base, ("token", token))

    def _authenticate(self, deadline: Deadline) -> str:
        request = rpc.AuthenticateRequest(name=self.address.user, password=self.address.password)
        member, limit = self.current, deadline.attempt
        try:
            stub = self._stub(member, AUTHENTICATE, False)
            return str(stub(request, timeout=limit, metadata=(("hasleader", "true"),)).token)
        except grpc.RpcError as error:
            raise self.judged(error, member, (), limit) from None

    def _forget(self, metadata: Any) -> None:
        """The token has expired, or its member was started again; one that another thread got meanwhile stays."""
        if ("token", self._token) in metadata:
            self._token = ""


def _credentials(address: EtcdAddress) -> grpc.ChannelCredentials | None:
    if not address.tls:
        return None
    ca, key, cert = (_contents(path) for path in (address.ca, address.key, address.cert))
    return grpc.ssl_channel_credentials(ca, key, cert)


def _contents(path: str) -> bytes | None:
    if not path:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ValueError(
            f"the file {path!r}, which the address of the store names, cannot be read: {(error.strerror or str(error)).lower()}"
        ) from None


def _reason(code: grpc.StatusCode, details: str) -> str:
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return "no answer in time"
    return details.removeprefix("etcdserver: ") or code.name.lower().replace("_", " ")
