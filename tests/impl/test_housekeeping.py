"""What the background thread deletes, and what it need not delete since it is not there."""

import json
import math
from pathlib import Path
from typing import Any

import torch.distributed as dist

import coxless
from coxless import keys
from coxless.connection import Connection
from coxless.housekeeping import Housekeeper
from coxless.recording import Recorder
from coxless.records import Member

MANY = 300
"""So many barriers have more rare keys than are deleted without a look."""
ALL = [key for k in range(MANY) for key in keys.barrier(k)]


class Noting:
    """A store that notes what is deleted, and lets something happen between looking which keys it holds and saying so."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self.deleted: list[str] = []
        self.looks = 0
        self.before_answering: list[Any] = []

    def clone(self) -> "Noting":
        return self

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def delete_key(self, key: str) -> bool:
        self.deleted.append(keys.without_ending(key))
        return bool(self._store.delete_key(key))

    def list_keys(self) -> list[str]:
        listed: list[str] = self._store.list_keys()
        self.looks += 1
        for action in self.before_answering:
            action()
        return listed


def housekeeper_of(store: Any, recorder: Recorder | None = None) -> Housekeeper:
    for k in range(MANY):
        store.set(keys.count(k) + keys.ADDED, "2")  # a store that is no TCPStore has no barrier command
    return Housekeeper(Connection(store), interval=60, recorder=recorder)


def test_of_barriers_without_trouble_only_the_counts_are_deleted(address: str) -> None:
    store = Noting(coxless.connect(address))
    store.set(keys.REGISTER, "c1")
    store.set(keys.arrived(3), "1.1-a.o,")
    housekeeper = housekeeper_of(store)
    housekeeper.delete(ALL)
    housekeeper._delete_pending()
    assert {*store.deleted} == {*(key for key in ALL if key.endswith(":count")), keys.arrived(3)}
    assert store.list_keys() == [keys.REGISTER]


def test_for_a_few_rare_keys_nobody_looks_before_the_end(address: str) -> None:
    """A look stops the whole process for a moment."""
    store = Noting(coxless.connect(address))
    store.set(keys.REGISTER, "c1")
    store.set(keys.arrived(3), "1.1-a.o,")
    housekeeper = housekeeper_of(store)
    housekeeper.delete(ALL[:90])
    housekeeper._delete_pending()
    assert store.looks == 0
    assert {*store.deleted} == {keys.count(k) for k in range(30)}
    housekeeper.beat_as(Member(0, 1, "a"))
    housekeeper.leave(patience=5)
    assert store.looks == 1
    assert {*store.deleted} == {*(keys.count(k) for k in range(30)), keys.arrived(3)}


def test_the_key_that_opens_a_barrier_is_deleted_where_its_count_is_gone(address: str) -> None:
    store = Noting(coxless.connect(address))
    store.set(keys.REGISTER, "c1")
    housekeeper = housekeeper_of(store)
    store.delete_key(keys.count(4) + keys.ADDED)
    store.set(keys.count(4) + keys.OPENED, "1")
    housekeeper.delete(ALL)
    housekeeper._delete_pending()
    assert store.list_keys() == [keys.REGISTER]


def test_what_is_queued_while_the_store_is_asked_is_deleted_all_the_same(address: str) -> None:
    """It may have been written after the store had looked."""
    store = Noting(coxless.connect(address))
    store.set(keys.REGISTER, "c1")
    housekeeper = housekeeper_of(store)
    housekeeper.delete(ALL)

    def meanwhile() -> None:
        store.set(keys.full(11), "1")
        housekeeper.delete([keys.full(11)])

    store.before_answering = [meanwhile]
    housekeeper._delete_pending()
    assert store.looks == 1
    housekeeper._delete_pending(deadline=math.inf)  # as at the end
    assert keys.full(11) in store.deleted
    assert store._store.list_keys() == [keys.REGISTER]


def test_a_store_that_names_its_keys_otherwise_has_all_of_them_deleted() -> None:
    store = Noting(dist.HashStore())  # without the register among them, nothing is known of the others
    housekeeper = housekeeper_of(store)
    housekeeper.delete(ALL)
    housekeeper._delete_pending()
    assert {*store.deleted} == {*ALL}
    housekeeper.delete([keys.full(MANY)])
    housekeeper._delete_pending()
    assert store.deleted[-1] == keys.full(MANY), "it is not asked again"
    assert store.looks == 1


def test_what_was_not_there_is_recorded_as_deleted(address: str, tmp_path: Path) -> None:
    store = coxless.connect(address)
    store.set(keys.REGISTER, "c1")
    recorder = Recorder(tmp_path, "rank0")
    housekeeper = housekeeper_of(store, recorder)
    housekeeper.delete(ALL)
    housekeeper._delete_pending()
    lines = [json.loads(line) for line in recorder.path.read_text().splitlines()]
    assert sorted(line["a"][0] for line in lines if line["t"] == "delete") == sorted(ALL)
