"""A foreign or corrupt value in any key is one error that names key and value, at once, wherever it is read; and what is no error is safe."""

import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import timedelta
from typing import Any

import pytest
import torch
from torch import nn

import coxless
from coxless import CorruptStoreError, Crew, keys
from coxless.protocol.operations import CompareSet, Operation, Read
from coxless.records import encode_members, epoch_of, parse_record
from coxless.server import StoreServer
from coxless.supervisor import mark_dead
from coxless.training import Background, DataParallel, open_group

from .crews import crew_of, in_threads
from .lockstep import MemoryStore, Rank, found

pytestmark = pytest.mark.processes

PROBE = "the value that reads ask with"
FOREIGN: dict[str, bytes] = {
    "empty": b"",
    "of a mebibyte": b"x" * (1 << 20),
    "binary": bytes(range(256)),
    "not ASCII": "zwölf".encode(),
    "a number and more": b"12abc",
    "negative": b"-5",
    "with a leading zero": b"012",
    "in other digits": "١٢".encode(),
    "of too many digits": b"9" * 5000,
    "lines": b"1\n2\n",
    PROBE: keys.PROBE.encode(),
    "another program's": b'{"iteration": 7, "ranks": [0, 1]}',
}
# All members of a crew have written their first beat by then, and none writes another.
SILENT = {"heartbeat_interval": timedelta(seconds=50), "heartbeat_timeout": timedelta(seconds=55)}
SHORT = {"patience": timedelta(milliseconds=20), **SILENT}


@pytest.fixture
def store(address: str) -> Any:
    return coxless.connect(address)


class Scene:
    """Crews on the store, and a way to put something foreign into it."""

    def __init__(self, address: str, store: Any, stack: ExitStack) -> None:
        self.address, self.store, self._stack = address, store, stack

    def crew(self, rank: int = 0, size: int = 1) -> Crew:
        crew = crew_of(self.address, rank, size, **SHORT)
        self._stack.callback(crew.leave)
        return crew

    def alone(self) -> Crew:
        crew = self.crew()
        crew.advance()
        return crew

    def pair(self) -> tuple[Crew, Crew]:
        crews = (self.crew(0, 2), self.crew(1, 2))
        in_threads(2, lambda rank: crews[rank].advance())
        for crew in crews:
            while not self.store.check([keys.heartbeat(crew.member)]):
                time.sleep(0.001)
        return crews


Act = Callable[[], object]
Situation = Callable[[Scene], tuple[str, Act]]
"""Prepares everything, and returns the key to be spoilt and what is done then."""

SITUATIONS: dict[str, Situation] = {}
HARMLESS: dict[str, set[str]] = {}


def situation(name: str, *harmless: str) -> Callable[[Situation], Situation]:
    """harmless: the kinds of value that are none to be refused here."""

    def add(function: Situation) -> Situation:
        SITUATIONS[name], HARMLESS[name] = function, set(harmless)
        return function

    return add


@situation("an incarnation, when it is taken")
def _(scene: Scene) -> tuple[str, Act]:
    return keys.incarnation(0), lambda: scene.crew().advance()


@situation("an incarnation, when it is renewed")
def _(scene: Scene) -> tuple[str, Act]:
    scene.alone()
    crew = scene.crew()
    crew._state.nonce = "0"  # older than the one that is listed, once the counter is lost
    scene.store.delete_key(keys.incarnation(0))
    value: list[bytes] = []

    def spoil(state: object, operation: Operation, reply: object) -> None:
        if operation.step == "take_incarnation":
            scene.store.set(keys.incarnation(0), value[0])
            scene.store.check([keys.incarnation(0)])

    def act() -> None:
        value.append(scene.store.compare_set(keys.incarnation(0), keys.PROBE, keys.PROBE))
        scene.store.delete_key(keys.incarnation(0))
        crew._driver.watchers.append(spoil)
        crew.advance()

    return keys.incarnation(0), act


@situation("the register, when it would be created", "empty")  # an empty one counts as missing
def _(scene: Scene) -> tuple[str, Act]:
    return keys.REGISTER, lambda: scene.crew().advance()


@situation("the register, on the fast path")
def _(scene: Scene) -> tuple[str, Act]:
    crew = scene.alone()
    return keys.REGISTER, lambda: crew.advance()


@situation("the register, when attention is raised")
def _(scene: Scene) -> tuple[str, Act]:
    crew = scene.alone()
    return keys.REGISTER, lambda: crew.advance(ok=False)


@situation("the register, on the slow path")
def _(scene: Scene) -> tuple[str, Act]:
    crew, _ = scene.pair()
    return keys.REGISTER, lambda: crew.advance()


@situation("the register, when it is asked for", PROBE)
def _(scene: Scene) -> tuple[str, Act]:
    crew = scene.alone()
    return keys.REGISTER, crew.get_global_iteration


@situation("the register, in a collective", PROBE)
def _(scene: Scene) -> tuple[str, Act]:
    crew = scene.alone()
    return keys.REGISTER, crew.trouble


@situation("the list of members, for a rank that joins")
def _(scene: Scene) -> tuple[str, Act]:
    crew = scene.alone()
    assert crew.iteration is not None
    return keys.members(crew.iteration.epoch), lambda: scene.crew(1, 2).advance()


@situation("the arrivals, when founding", "empty")
def _(scene: Scene) -> tuple[str, Act]:
    return keys.arrived(0), lambda: scene.crew().advance()


@situation("the arrivals, when attention is up", "empty")
def _(scene: Scene) -> tuple[str, Act]:
    crew = scene.alone()
    return keys.arrived(1), lambda: crew.advance(ok=False)


@situation("the arrivals, on the slow path", "empty")
def _(scene: Scene) -> tuple[str, Act]:
    crew, _ = scene.pair()
    return keys.arrived(1), lambda: crew.advance()


@situation("the arrivals, in a collective", "empty", PROBE)
def _(scene: Scene) -> tuple[str, Act]:
    crew = scene.alone()
    record = parse_record(scene.store.get(keys.REGISTER).decode())
    scene.store.set(keys.REGISTER, str(record._replace(attention=True)))
    return keys.arrived(1), crew.trouble


@situation("a heartbeat, on the slow path", PROBE)
def _(scene: Scene) -> tuple[str, Act]:
    crew, other = scene.pair()
    return keys.heartbeat(other.member), lambda: crew.advance()


@situation("a heartbeat, in a collective", PROBE)
def _(scene: Scene) -> tuple[str, Act]:
    crew, other = scene.pair()
    return keys.heartbeat(other.member), crew.trouble


@situation("a heartbeat, when the active ranks are asked for", PROBE)
def _(scene: Scene) -> tuple[str, Act]:
    crew, other = scene.pair()
    return keys.heartbeat(other.member), crew.get_active_ranks_for_coordination


# The server takes what begins with a number for a number: see the next test.
@situation("a count", "a number and more", "negative", "with a leading zero", "lines")
def _(scene: Scene) -> tuple[str, Act]:
    crew, _ = scene.pair()
    return keys.count(1), lambda: crew.advance()


@situation("the sign that an iteration is over")
def _(scene: Scene) -> tuple[str, Act]:
    crew, _ = scene.pair()
    return keys.full(1), lambda: crew.advance()


TEXTS = ("empty", "a number and more", "negative", "with a leading zero", "of too many digits", "lines", "another program's")


@situation("what was published", *TEXTS, PROBE)
def _(scene: Scene) -> tuple[str, Act]:
    crew = scene.alone()
    return keys.published("word"), lambda: crew.published("word")


@situation("where the training ended", PROBE)
def _(scene: Scene) -> tuple[str, Act]:
    model = nn.Linear(1, 1)
    trainer = DataParallel(scene.crew(), model, torch.optim.SGD(model.parameters(), lr=0.1))
    return keys.published("training_finished"), lambda: next(trainer.steps(3))


@pytest.mark.usefixtures("loopback")
@pytest.mark.parametrize("kind", [*FOREIGN, "another group's"])
def test_a_foreign_address_of_a_participant_never_gets_to_gloo(store: Any, kind: str) -> None:
    """An empty one would end the process with a segmentation fault, others make it ask for gigabytes."""
    key = "process_group:1-abc:1/0/1"
    store.set(key, FOREIGN.get(kind, b"\x02" + bytes(169)))
    with pytest.raises(CorruptStoreError) as caught:
        open_group(store, "1-abc:1", 0, 2, watch=lambda: None, background=Background())
    assert f"key {key!r} holds " in str(caught.value)


def escaped(value: bytes) -> str:
    try:
        return repr(value.decode("ascii"))[1:-1]
    except UnicodeDecodeError:
        return repr(value)[2:-1]


CASES = [(name, kind) for name in SITUATIONS for kind in FOREIGN if kind not in HARMLESS[name]]


@pytest.mark.parametrize(("name", "kind"), CASES, ids=[f"{name}: {kind}" for name, kind in CASES])
def test_a_foreign_value_is_one_error_at_once(server: StoreServer, store: Any, name: str, kind: str) -> None:
    with ExitStack() as stack:
        key, act = SITUATIONS[name](Scene(server.address, store, stack))
        store.set(key, FOREIGN[kind])
        store.check([key])
        began = time.monotonic()
        with pytest.raises(CorruptStoreError) as caught:
            act()
        message = str(caught.value)
        if (name, kind) == ("the list of members, for a rank that joins", PROBE):
            assert f"key {key!r} is missing although the register names it" in message
        else:
            assert f"key {key!r} holds " in message
            assert escaped(FOREIGN[kind][:20]) in message
        assert len(message) < 600
        assert message.isascii()
        assert message.isprintable()
        assert time.monotonic() - began < 30  # of the 60 that an advance may take


# --- what is written as the crew itself would write it ------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["12abc", "7", "-5", "007", "1\n2\n"])
def test_a_foreign_number_in_a_count_opens_or_closes_a_barrier_but_decides_nothing_twice(
    server: StoreServer, store: Any, text: str
) -> None:
    """A count is compared by the server and read by nobody: a rank may be let through early, or wait for its patience in vain."""
    with ExitStack() as stack:
        crews = Scene(server.address, store, stack).pair()
        store.set(keys.count(1), text)
        for number in (2, 3):
            iterations = in_threads(2, lambda rank: crews[rank].advance())
            assert [(i.number, i.epoch) for i in iterations] == [(number, iterations[0].epoch)] * 2


def test_a_foreign_sign_that_an_iteration_is_over_does_not_keep_a_rank_busy(server: StoreServer, store: Any) -> None:
    """It looks like the crew's own: the rank looks again each patience, not each microsecond, and goes on when the other comes."""
    with ExitStack() as stack:
        crew, other = Scene(server.address, store, stack).pair()
        store.set(keys.full(1), "1")
        looks: list[str] = []
        crew._driver.watchers.append(lambda state, operation, reply: looks.append(operation.step))
        crew._timeout = 1.0
        with pytest.raises(coxless.IterationTimeoutError, match="rank 1"):
            crew.advance()
        assert looks.count("read_register") <= 1.0 / 0.020 + 2
        crew._timeout = 60.0
        iterations = in_threads(2, lambda rank: (crew, other)[rank].advance())
        assert [i.number for i in iterations] == [2, 2]


def test_a_foreign_key_does_not_end_the_heartbeats(server: StoreServer, store: Any) -> None:
    """The housekeeper lists the keys when somebody has gone: names that look like ours, but are none, must not disturb it."""
    for key in (
        f"global_iteration_barrier:{'9' * 5000}:count",
        "global_iteration_barrier:٣:count",
        "global_iteration_barrier:007:full",
        f"heartbeat_{'9' * 5000}.1-a",
        "heartbeat_٣.1-a",
    ):
        store.set(key, "x")
    with ExitStack() as stack:
        crews = Scene(server.address, store, stack).pair()
        mark_dead(store, [str(crews[1].member)])
        crew = crews[0]
        crew.advance()
        crew._housekeeper._interval = 0.05
        crew.send_heartbeat()
        beat, key = b"", keys.heartbeat(crew.member)
        for _ in range(3):  # it goes on
            deadline = time.monotonic() + 30
            while (found := store.get(key)) == beat:
                assert time.monotonic() < deadline, "no more heartbeats"
                time.sleep(0.01)
            beat = found
        assert not store.check([keys.heartbeat(crews[1].member)])  # and has swept
        assert store.check(["global_iteration_barrier:٣:count", "global_iteration_barrier:007:full", "heartbeat_٣.1-a"])


def test_what_cannot_be_read_again_is_not_published(server: StoreServer, store: Any) -> None:
    with ExitStack() as stack:
        crew = Scene(server.address, store, stack).alone()
        for name, value in (("word", "ü"), ("word", "x" * 70_000), ("wörd", "x"), ("", "x"), ("a\nb", "x"), ("n" * 9000, "x")):
            with pytest.raises(ValueError, match="publish"):
                crew.publish(name, value)
        with pytest.raises(ValueError, match="publish"):
            crew.published("n" * 9000)


def test_a_heartbeat_that_is_no_text_cannot_be_marked_dead_and_is_told(store: Any) -> None:
    store.set(keys.heartbeat("0.1-a"), b"\xff")
    assert mark_dead(store, ["0.1-a"]) == ()
    assert store.get(keys.heartbeat("0.1-a")) == b"\xff"


# --- every reply of every run -------------------------------------------------------------------------------------------------


class Spoilt(MemoryStore):
    """Gives a foreign text in place of the reply to the n-th question that is answered with a text."""

    spoil_at = -1
    text = "another program's"
    asked = 0
    spoilt: Read | CompareSet | None = None

    def perform(self, operation: Operation) -> object:
        reply = super().perform(operation)
        if not isinstance(operation, Read | CompareSet):
            return reply
        self.asked += 1
        if self.asked - 1 != self.spoil_at:
            return reply
        self.spoilt = operation
        return self.text


def _recovered(rank: Rank, store: MemoryStore) -> None:
    """Its connection breaks, and the store has lost all."""
    store.data.clear()
    rank.step(breaks="before")
    rank.run()


def _join_and_be_left_out(store: MemoryStore) -> list[Rank]:
    """A run through every phase: founding, joining, the fast and the slow path, being left out, learning, recovery."""
    store, ranks = found(2, store=store)
    for rank in ranks:
        rank.vote()
        rank.run()
    for rank in ranks:
        rank.run()
    ranks[0].vote()
    ranks[0].run()
    store.suspected.add(ranks[1].state.me)
    ranks[0].lose_patience()  # goes on without rank 1
    ranks[1].vote()
    ranks[1].run()
    if ranks[1].error is None and ranks[1].waits:
        ranks[1].lose_patience()  # learns so, and joins
    ranks[0].vote()
    ranks[0].run()
    for rank in (ranks[1], ranks[0]):
        if rank.error is None and rank.operation is not None:
            rank.run()
    ranks[0].vote("f")
    _recovered(ranks[0], store)
    return ranks


def _errors(spoil_at: int, text: str) -> tuple[Spoilt, list[Exception]]:
    store = Spoilt()
    store.spoil_at, store.text = spoil_at, text
    ranks: list[Rank] = []
    errors: list[Exception] = []
    original = Rank._resume

    def noting(self: Rank, resume: Callable[[], Operation]) -> None:
        original(self, resume)
        ranks.append(self)
        if self.error is not None:
            errors.append(self.error)
            raise self.error

    Rank._resume = noting  # type: ignore[method-assign]
    try:
        _join_and_be_left_out(store)
    except CorruptStoreError:
        pass
    finally:
        Rank._resume = original  # type: ignore[method-assign]
    return store, errors


def test_a_foreign_reply_at_any_point_of_a_run_is_one_error() -> None:
    whole, errors = _errors(-1, "")
    assert errors == []
    assert whole.asked > 20
    steps = set()
    for text in ("another program's", "", "c1 a 5 9-0123456789ab 1 0 0.1-a", "0.1-a.x,"):
        for point in range(whole.asked):
            store, errors = _errors(point, text)
            assert store.spoilt is not None
            steps.add(store.spoilt.step)
            if text == "" and store.spoilt.step == "read_arrived":
                continue  # nobody has arrived
            if text == "" and store.spoilt.step == "restore_register":
                continue  # never the reply to compare_set("", …)
            assert [type(error) for error in errors] == [CorruptStoreError], store.spoilt
            key = store.spoilt[1]
            assert f"{key!r} holds {text!r}" in str(errors[0])
    assert steps >= {
        *("create_register", "read_members", "read_register", "read_arrived", "raise_attention"),
        *("propose_same_epoch", "propose_new_epoch", "restore_register"),
    }


def test_only_what_somebody_can_have_decided_is_a_record() -> None:
    listed = encode_members(())
    epoch = epoch_of(3, listed)
    good = f"c1 ab 3 {epoch} 1 0 0.1-a"
    assert str(parse_record(good)) == good
    for text in (
        f"c1 ab 2 {epoch} 1 0 0.1-a",  # before its epoch
        "c1 ab 3 0 1 0 0.1-a",  # an iteration without members
        f"c1 ab 3 {epoch} 1 0 -",  # that nobody won
        f"c1 ab 0 {epoch} 1 0 0.1-a",
        "c1 ab 0 0 1 1 -",  # genesis, committed
        f"c1 ab 3 {epoch} 1 0 1000000.1-a",  # no such rank
        f"c1 ab 03 {epoch} 1 0 0.1-a",
        f"c1 ab 3 {epoch} 1 0 0.1-A",
        f"c2 ab 3 {epoch} 1 0 0.1-a",
        good + "\n",
        good + " ",
    ):
        with pytest.raises(CorruptStoreError):
            parse_record(text)
