"""Process groups that live as long as an epoch, and collectives that give up together.

A collective of Gloo does not notice every crash: the neighbours of a killed rank get an error, the others hang until the group's
timeout. So nothing here blocks in the backend. Work is polled, and after a short while the crew is asked as well whether the step
can still complete (`watch`). Whoever gets an error drops the group, which closes its sockets and so frees those still in it.
"""

from __future__ import annotations

import logging
import re
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import Store

from coxless.client import fresh_client
from coxless.connection import Connection
from coxless.ending import start_in_torch
from coxless.errors import CorruptStoreError, CoxlessError
from coxless.outage import Outage
from coxless.protocol.operations import ConnectionBroken
from coxless.training.background import Background
from coxless.training.sealed import NamedPrefix, SealedStore

_log = logging.getLogger(__name__)

Watch = Callable[[], "str | None"]
MakeBackend = Callable[[Store, int, int, timedelta], Any]

WATCH_AFTER = 0.05  # seconds of waiting before the crew is asked for the first time: a healthy collective is over by then
WATCH_EVERY = 0.1  # seconds between two questions
RECONNECT_LIMIT = 5.0  # seconds
FIRST_NAP, LONGEST_NAP = 50e-6, 1e-3  # seconds between two looks at pending work; grows by half each time


class CollectiveFailed(CoxlessError):
    """A collective, or the making of its group, cannot complete. The message says why. The group is gone already."""


def make_gloo(store: Store, rank: int, size: int, timeout: timedelta) -> Any:
    """A Gloo group. The interface is chosen as everywhere in torch: GLOO_SOCKET_IFNAME, else the one of the host name."""
    sealed = SealedStore(store)
    group = dist.ProcessGroupGloo(sealed, rank, size, timeout)
    weakref.finalize(group, _forget, sealed).atexit = False  # keeps it alive as long as the group
    return group


def _forget(store: SealedStore) -> None:
    pass


def make_nccl(store: Store, rank: int, size: int, timeout: timedelta) -> Any:
    """An NCCL group on the current CUDA device."""
    options = dist.ProcessGroupNCCL.Options()
    options._timeout = timeout
    return dist.ProcessGroupNCCL(store, rank, size, options)


BACKENDS: dict[str, MakeBackend] = {"gloo": make_gloo, "nccl": make_nccl}


class EpochGroup:
    """The process group of one epoch: `size` participants, of which this is number `index`.

    Every collective either completes, or raises `CollectiveFailed` and leaves the group closed.
    """

    def __init__(self, backend: Any, index: int, size: int, *, watch: Watch, background: Background) -> None:
        self.index = index
        self.size = size
        self._backend = backend  # None when closed, or when there is nobody to talk to
        self._watch = watch
        self._background = background
        self._closed = False

    @property
    def closed(self) -> bool:
        """Whether no collective is possible any more."""
        return self._closed

    def all_reduce(self, tensor: torch.Tensor) -> None:
        """Replaces `tensor` by the sum over all participants, bit-identical on all of them."""
        self._run(lambda backend: backend.allreduce([tensor]), tensor)

    def broadcast(self, tensor: torch.Tensor, source: int) -> None:
        """Replaces `tensor` by that of participant `source`."""
        options = dist.BroadcastOptions()
        options.rootRank, options.rootTensor = source, 0
        self._run(lambda backend: backend.broadcast([tensor], options), tensor)

    def close(self) -> None:
        """Drops the group. It must have no pending work, which holds outside of a collective."""
        self._closed = True
        self._backend = None

    def _run(self, launch: Callable[[Any], Any], tensor: torch.Tensor) -> None:
        if self._closed:
            raise CollectiveFailed("the process group of this epoch is closed")
        if self.size == 1:
            return
        try:
            work = launch(self._backend)
        except RuntimeError as error:
            reason = _reason(error)
        else:
            try:
                trouble = self._wait(work)
            except BaseException:  # Ctrl-C, or what `watch` raises: dropping the group with its work pending would block
                self._background.hold(work, self._backend, tensor)
                self.close()
                raise
            if trouble is None:
                try:
                    work.wait()  # completed: returns, or raises, at once
                except RuntimeError as error:
                    reason = _reason(error)
                else:
                    return
            else:
                reason = trouble
                self._background.hold(work, self._backend, tensor)
            del work  # it refers to the group
        self.close()
        raise CollectiveFailed(reason)

    def _wait(self, work: Any) -> str | None:
        """Returns None when the work has completed (well or not), or why it will not."""
        started = asked = time.monotonic()
        nap = FIRST_NAP
        while not work.is_completed():
            now = time.monotonic()
            if now - started >= WATCH_AFTER and (asked == started or now - asked >= WATCH_EVERY):
                trouble = self._watch()
                if trouble is not None and not work.is_completed():
                    return trouble
                asked = time.monotonic()
            time.sleep(nap)
            nap = min(1.5 * nap, LONGEST_NAP)
        return None


def open_group(
    store: Store,
    epoch: str,
    index: int,
    size: int,
    *,
    watch: Watch,
    background: Background,
    backend: str | MakeBackend = "gloo",
    timeout: timedelta = timedelta(minutes=5),
) -> EpochGroup:
    """Makes the process group of `epoch` with the other participants, who meet under that name in `store`.

    The meeting blocks inside the backend until all have come, and, on a store that is stopped, until it resumes. It runs on a thread and
    a connection of its own, so that it can be left behind when `watch` gives a reason, or after `timeout`. A name is for one meeting:
    its keys lead to participants of then. Raises `CollectiveFailed`; CorruptStoreError for a key that no participant wrote; ValueError for
    an unknown backend.
    """
    if isinstance(backend, str) and backend not in BACKENDS:
        raise ValueError(f"backend {backend!r} is not one of {', '.join(BACKENDS)}; pass a function that makes the group instead")
    make = BACKENDS[backend] if isinstance(backend, str) else backend
    if size == 1:
        return EpochGroup(None, index, size, watch=watch, background=background)

    met = threading.Event()
    made: list[Any] = []
    failures: list[BaseException] = []

    def meet() -> None:
        try:
            made.append(make(NamedPrefix(_prefix(epoch), fresh_client(store)), index, size, timeout))
        except BaseException as error:  # noqa: BLE001  (raised below, in the caller's thread)
            failures.append(error)
        met.set()

    # When it is left behind, `made` dies with this thread: an unused group without work is destroyed without waiting.
    start_in_torch(meet, f"coxless-group-{epoch}")
    wait = WATCH_AFTER
    deadline = time.monotonic() + timeout.total_seconds() + WATCH_EVERY  # the backend's own error says more
    while not met.wait(wait):
        trouble = watch()
        if trouble is None and time.monotonic() > deadline:
            trouble = f"not all have met within {timeout.total_seconds():g} s"
        if trouble is not None and not met.is_set():
            raise CollectiveFailed(f"while the group was made: {trouble}")
        wait = WATCH_EVERY
    if failures:
        # No network's doing: another attempt would end in the same way.
        if not isinstance(failures[0], RuntimeError | OSError) or isinstance(failures[0], CorruptStoreError):
            raise failures[0]
        raise CollectiveFailed(f"while the group was made: {_reason(failures[0])}")
    return EpochGroup(made.pop(), index, size, watch=watch, background=background)


class Cleaner:
    """Deletes what the meetings of participants have left in the store; for the background thread.

    Over a connection of its own, since the crew's may be blocked in a wait, which is made at first use.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._connection: Connection | None = None

    def delete(self, epoch: str, indices: Iterable[int], *, backend: str | MakeBackend = "gloo") -> None:
        """Delete what these participants of `epoch` have left. Raises CoxlessError or ConnectionBroken; it may be left.

        Gloo leaves one address for each of them, under a known name. Of other backends all that is under the epoch's prefix goes.
        A participant deletes its own; those of the dead are deleted by one of the living. Nobody reads them after the epoch.
        """
        mine = list(indices)
        try:
            self._delete(epoch, mine, backend)
        except ConnectionBroken:  # that shows only when it is used
            self._delete(epoch, mine, backend)

    def _delete(self, epoch: str, indices: list[int], backend: str | MakeBackend) -> None:
        if self._connection is None:
            self._connection = Connection(self._store, outage=Outage(logging.DEBUG))  # the crew's own say it
        elif self._connection.broken:
            self._connection.reconnect(time.monotonic() + RECONNECT_LIMIT)
        prefix = f"{_prefix(epoch)}/"
        names = [f"{prefix}0/{index}" for index in indices]
        for key in names if backend == "gloo" else self._connection.list_keys():
            if key.startswith(prefix):
                self._connection.delete(key)


def _prefix(epoch: str) -> str:
    return f"process_group:{epoch}"


def _reason(error: BaseException) -> str:
    """What Gloo says, without the place in its source and its advice."""
    line = str(error).partition("\n")[0].partition(" This is typically")[0]
    return re.sub(r"^\[[^\]]*:\d+\] ", "", line) or type(error).__name__
