"""The store: an immutable mapping with the operations of torch's TCPStore, quirks included.

Keys and values are small tuples, numbers and strings rather than text, so that a model state can be compared, renamed and
read; `key_text` gives the key as it is written in the real store. What TCPStore does with them is kept:

- `compare_set` on a present key stores `desired` if the value is `expected`, and returns what the key then holds.
  On a missing key it creates the key if `expected` is empty; otherwise it stores nothing and *returns `expected`*.
- `read` is `compare_set(key, PROBE, PROBE)`: the value of a present key, PROBE for a missing one, and never a change.
- `set` and `append` have no reply. `add` returns the sum. `delete_key` says whether there was something to delete.
- `barrier(key, n)` is one command of TCPStore, told here in two steps, since others go on meanwhile: `barrier` counts the caller in
  and answers "there" if n have been counted, and None (the caller is blocked) otherwise; `barrier_reply` is the end of the blocked
  call. It is for one use only, and whoever was counted stays counted, dead or not.
- Any `compare_set` of the key of a barrier, whatever it compares, lets through whoever is blocked there. (In the store each of those
  gets its reply at once, and who comes later is blocked again. Here who comes later is let through too, which is more than can
  happen where more than two are counted; the count is kept as a negative number from then on.) No step of the protocol does that.
- `wait` answers "there" for a present key and cannot answer for a missing one (None here: the caller goes on waiting).

One abstraction: what is appended is kept as a sorted tuple without repetitions, since every reader takes it as a set.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

PROBE = "PROBE"
"""A value that no key ever holds."""
MISSING = ""
"""The expected value with which compare_set creates a key."""
THERE = "there"

Key = tuple[Any, ...]
Value = Any
Operation = tuple[Any, ...]

REGISTER: Key = ("register",)


class Store(NamedTuple):
    instance: int
    """Counts the servers: a client that was connected to an earlier one finds its connection broken."""
    entries: tuple[tuple[Key, Value], ...]
    """Sorted by key."""

    def get(self, key: Key, default: Value = None) -> Value:
        for present, value in self.entries:
            if present == key:
                return value
        return default

    @property
    def keys(self) -> tuple[Key, ...]:
        return tuple(key for key, _ in self.entries)

    def put(self, key: Key, value: Value) -> "Store":
        entries = [entry for entry in self.entries if entry[0] != key]
        entries.append((key, value))
        entries.sort(key=lambda entry: entry[0])
        return Store(self.instance, tuple(entries))

    def drop(self, key: Key) -> "Store":
        return Store(self.instance, tuple(entry for entry in self.entries if entry[0] != key))


EMPTY = Store(instance=0, entries=())


def lost(store: Store) -> Store:
    """The server died and another took its port: nothing is kept, nobody is connected."""
    return Store(store.instance + 1, ())


def execute(store: Store, operation: Operation) -> tuple[Store, Value]:
    """The store after the operation, and the reply."""
    name, key, *arguments = operation
    return OPERATIONS[name](store, key, *arguments)


def _add(store: Store, key: Key, amount: int) -> tuple[Store, Value]:
    total = store.get(key, 0) + amount
    return store.put(key, total), total


def _set(store: Store, key: Key, value: Value) -> tuple[Store, Value]:
    return store.put(key, value), None


def _append(store: Store, key: Key, value: Value) -> tuple[Store, Value]:
    return store.put(key, tuple(sorted({*store.get(key, ()), value}))), None


def _compare_set(store: Store, key: Key, expected: Value, desired: Value) -> tuple[Store, Value]:
    found = store.get(key)
    if key[0] == "count" and found is not None:
        return store.put(key, -abs(found)), abs(found)
    if found is None:
        return (store.put(key, desired), desired) if expected == MISSING else (store, expected)
    return (store.put(key, desired), desired) if found == expected else (store, found)


def _read(store: Store, key: Key) -> tuple[Store, Value]:
    return store, store.get(key, PROBE)


def _wait(store: Store, key: Key) -> tuple[Store, Value]:
    return store, THERE if store.get(key) is not None else None


def _barrier(store: Store, key: Key, size: int) -> tuple[Store, Value]:
    found = store.get(key, 0)
    count = abs(found) + 1
    return store.put(key, -count if found < 0 else count), THERE if count >= size else None


def _barrier_reply(store: Store, key: Key, size: int) -> tuple[Store, Value]:
    count = store.get(key, 0)
    return store, THERE if count < 0 or count >= size else None


def _delete_key(store: Store, key: Key) -> tuple[Store, Value]:
    return store.drop(key), store.get(key) is not None


OPERATIONS: dict[str, Callable[..., tuple[Store, Value]]] = {
    "add": _add,
    "set": _set,
    "append": _append,
    "compare_set": _compare_set,
    "read": _read,
    "wait": _wait,
    "barrier": _barrier,
    "barrier_reply": _barrier_reply,
    "delete_key": _delete_key,
}
REPLYLESS = ("set", "append")
"""They "succeed" on a dead connection too: the next operation with a reply finds out."""
BLOCKING = ("wait", "barrier_reply")
"""They end when what they wait for is there, or when the patience runs out."""
SILENT_WHEN_LOST = ("read", "wait", "barrier_reply")
"""They change nothing, so it makes no difference whether the request or the reply is lost."""

TEXTS: dict[str, Callable[..., str]] = {
    # The hardened protocol.
    "register": lambda: "global_iteration_counter",
    "incarnation": lambda rank: f"rank_{rank}_incarnation",
    "members": lambda epoch: f"global_iteration_members:{epoch_text(epoch)}",
    "count": lambda k: f"global_iteration_barrier:{k}:count",
    "full": lambda k: f"global_iteration_barrier:{k}:full",
    "arrived": lambda k: f"global_iteration_barrier:{k}:arrived",
    "heartbeat": lambda member: f"heartbeat_{member_text(member)}",
    # The drawn one, whose keys carry neither iteration nor incarnation.
    "counter": lambda: "global_iteration_counter",
    "ready": lambda: "global_iteration_ready",
    "drawn_heartbeat": lambda rank: f"heartbeat_{rank}",
    "last_iteration": lambda rank: f"rank_{rank}_last_iteration",
    "drawn_arrived": lambda: "global_iteration_barrier:arrived",
    "consensus": lambda: "global_iteration_barrier:consensus",
}


def key_text(key: Key) -> str:
    """The key as the documents, and the real store, write it."""
    return TEXTS[key[0]](*key[1:])


def member_text(member: tuple[int, int, int]) -> str:
    rank, number, nonce = member
    return f"{rank}.{number}-{nonce}"


def epoch_text(epoch: tuple[Any, ...]) -> str:
    """The iteration at which the list took effect, and (for the digest) the list itself: `*` marks who lacks the state."""
    since, *listed = epoch
    if not listed:
        return str(since)
    return f"{since}-{','.join(member_text(member) + ('' if holds else '*') for member, holds in listed[0])}"
