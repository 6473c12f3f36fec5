"""How a store's key lies in etcd: as a *cell*, the etcd keys that begin with its name and a bar.

    /coxless/{run}/key/{name}|          what was set
    /coxless/{run}/key/{name}|+{token}  what one append appended, in the order in which etcd created them
    /coxless/{run}/key/{name}|#         how many came to the barrier of this name: the version that etcd counts for each key
    /coxless/{run}/open/{name}          that barrier is open

So `append` and `barrier` change nothing that another client has to have read before: each is one transaction, however many do it at
once. The first key of a cell is written together with the deletion of the others, so it is always the oldest.
Names are %-escaped: neither a bar nor anything that sorts after it can be in one.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote_from_bytes, unquote_to_bytes

from aetcd import rpc

OPS = 100
"""So many operations are put into one transaction; etcd allows 128 unless told otherwise."""
_SAFE = ":/@+,;=?!()[]<> "
_ENTRY = b"\x01"  # sorts before every ending, and after the bare name
_END = b"}"  # the next character after the bar


class Cell(NamedTuple):
    """The names of one key's parts."""

    base: bytes
    opened: bytes

    @property
    def end(self) -> bytes:
        return self.base[:-1] + _END

    @property
    def counter(self) -> bytes:
        return self.base + b"#"

    def appended(self, token: bytes) -> bytes:
        return self.base + b"+" + token

    # --- operations of a transaction

    def read(self) -> Any:
        """All of it, what was created first first."""
        ascending, created = rpc.RangeRequest.ASCEND, rpc.RangeRequest.CREATE
        request = rpc.RangeRequest(key=self.base, range_end=self.end, sort_order=ascending, sort_target=created)
        return rpc.RequestOp(request_range=request)

    def count_parts(self) -> Any:
        return rpc.RequestOp(request_range=rpc.RangeRequest(key=self.base, range_end=self.end, count_only=True))

    def delete(self) -> list[Any]:
        """The first one's response tells whether there was something."""
        opened = rpc.RequestOp(request_delete_range=rpc.DeleteRangeRequest(key=self.opened))
        return [rpc.RequestOp(request_delete_range=rpc.DeleteRangeRequest(key=self.base, range_end=self.end)), opened]

    def overwrite(self, value: bytes, lease: int) -> list[Any]:
        rest = rpc.DeleteRangeRequest(key=self.base + _ENTRY, range_end=self.end)
        return [put(self.base, value, lease), rpc.RequestOp(request_delete_range=rest)]

    # --- conditions of a transaction

    def is_missing(self) -> list[Any]:
        return [_nothing_in(self.base, self.end)]

    def holds(self, value: bytes) -> list[Any]:
        """It was set to this value, and nothing was appended."""
        same = rpc.Compare(key=self.base, target=rpc.Compare.VALUE, result=rpc.Compare.EQUAL, value=value)
        return [same, _nothing_in(self.base + _ENTRY, self.end)]

    def unchanged(self, parts: Sequence[Any]) -> list[Any]:
        """It is as it was when `parts` were read. Parts are never deleted alone, so it is enough that the newest is still there and
        that none is newer."""
        if not parts:
            return self.is_missing()
        newest = max(parts, key=lambda part: part.mod_revision)
        revision = newest.mod_revision
        there = rpc.Compare(key=newest.key, target=rpc.Compare.MOD, result=rpc.Compare.EQUAL, mod_revision=revision)
        none_newer = rpc.Compare(
            key=self.base, range_end=self.end, target=rpc.Compare.MOD, result=rpc.Compare.LESS, mod_revision=revision + 1
        )
        return [there, none_newer]

    # --- reading

    def value(self, parts: Iterable[Any]) -> bytes | None:
        """What the key holds, None when it is missing."""
        value: bytes | None = None
        for part in parts:
            value = (value or b"") + (str(part.version).encode() if part.key == self.counter else part.value)
        return value


class Layout:
    """The names of one run."""

    def __init__(self, run: str) -> None:
        self.root = f"/coxless/{run}/".encode()
        self.lease = self.root + b"lease"
        self.openings = self.root + b"open/"
        self._keys = self.root + b"key/"

    def cell(self, key: str | bytes) -> Cell:
        """Raises TypeError for what is neither text nor bytes."""
        if not isinstance(key, str | bytes):
            raise TypeError(f"a key is str or bytes, not {type(key).__name__}")
        name = key.encode() if isinstance(key, str) else key
        escaped = quote_from_bytes(name, _SAFE).encode()
        return Cell(self._keys + escaped + b"|", self.openings + escaped)

    def slot(self, name: str) -> bytes:
        return self.root + b"slot/" + name.encode()

    def list_parts(self) -> Any:
        """The names of the parts of all cells."""
        return rpc.RequestOp(request_range=rpc.RangeRequest(key=self._keys, range_end=self._keys[:-1] + b"0", keys_only=True))

    def names(self, parts: Iterable[Any]) -> list[str]:
        """The keys that they belong to, each once. Raises UnicodeDecodeError for one that is not UTF-8."""
        bare = dict.fromkeys(part.key[len(self._keys) :].partition(b"|")[0] for part in parts)
        return [unquote_to_bytes(name).decode() for name in bare]


def put(key: bytes, value: bytes, lease: int) -> Any:
    return rpc.RequestOp(request_put=rpc.PutRequest(key=key, value=value, lease=lease))


def read(key: bytes) -> Any:
    return rpc.RequestOp(request_range=rpc.RangeRequest(key=key))


def revision_is(key: bytes, revision: int) -> Any:
    """The condition that the key was changed last at that revision; 0: that it is missing."""
    return rpc.Compare(key=key, target=rpc.Compare.MOD, result=rpc.Compare.EQUAL, mod_revision=revision)


def created_at(key: bytes, revision: int) -> Any:
    return rpc.Compare(key=key, target=rpc.Compare.CREATE, result=rpc.Compare.EQUAL, create_revision=revision)


def came_at_least(key: bytes, times: int) -> Any:
    """The condition that the key has been written at least so often since it was created."""
    return rpc.Compare(key=key, target=rpc.Compare.VERSION, result=rpc.Compare.GREATER, version=times - 1)


def nested(conditions: list[Any], success: list[Any], failure: list[Any]) -> Any:
    return rpc.RequestOp(request_txn=rpc.TxnRequest(compare=conditions, success=success, failure=failure))


def _nothing_in(key: bytes, end: bytes) -> Any:
    return rpc.Compare(key=key, range_end=end, target=rpc.Compare.CREATE, result=rpc.Compare.EQUAL, create_revision=0)
