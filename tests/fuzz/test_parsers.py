"""Every parser, with whatever Hypothesis comes up with: what is well-formed comes back, anything else is a value or the one named error."""

import json
from collections.abc import Callable
from contextlib import suppress
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from coxless import keys, records
from coxless.address import EtcdAddress, parse, redacted
from coxless.config import Timing, World, world_from
from coxless.errors import CorruptStoreError, CoxlessError
from coxless.fault import STEPS, fault_from
from coxless.litter import litter
from coxless.recording import recorder_from_env
from coxless.records import Beat, Listed, Member, Record, Signature
from coxless.store import parse_address
from coxless.training.sealed import seal, unseal
from coxless.training.transfer import CorruptStateError, pack, tensors_of, unpack
from coxless_model import itf
from coxless_model.results import Trace
from coxless_model.two_phase_commit import TwoPhaseCommit

MANY = settings(settings.get_profile("ci"), max_examples=200)

numbers = st.one_of(st.integers(0, 20), st.integers(0, 10**18 - 1))
hexadecimal = st.text("0123456789abcdef", min_size=1, max_size=16)
members = st.builds(Member, st.integers(0, records.MOST_RANKS - 1), numbers, hexadecimal)
beats = st.builds(Beat, numbers, numbers, st.integers(0, 10**12).map(lambda ms: ms / 1000))
signatures = st.builds(Signature, members, st.sampled_from("ofj"))
lists = st.lists(st.builds(Listed, members, st.booleans()), min_size=1, max_size=6, unique_by=lambda one: one.member.rank).map(
    lambda some: tuple(sorted(some))
)


@st.composite
def decisions(draw: st.DrawFn) -> Record:
    since = draw(st.integers(1, 10**18 - 1))
    epoch = records.epoch_of(since, records.encode_members(draw(lists)))
    iteration = draw(st.integers(since, 10**18 - 1))
    return Record(draw(hexadecimal), iteration, epoch, draw(st.booleans()), draw(st.booleans()), draw(members))


# Text that looks like ours: pieces of it, cut and joined.
pieces = st.sampled_from(
    [
        "c1 ",
        "ab ",
        "0",
        "1",
        "01",
        "-",
        ".",
        ",",
        "o",
        "h",
        "dead",
        "left",
        "٣",
        "\n",
        "\0",
        "é",
        "9" * 20,
        "0.1-a",
        "1-0123456789ab",
        " ",
    ]
)
anything = st.one_of(st.text(max_size=40), st.lists(pieces, max_size=12).map("".join))


@MANY
@given(decisions())
def test_a_record_comes_back(record: Record) -> None:
    assert records.parse_record(str(record)) == record


@MANY
@given(members, beats, st.lists(signatures, max_size=6), lists, numbers)
def test_members_beats_signatures_and_lists_come_back(
    member: Member, beat: Beat, signed: list[Signature], listed: tuple[Listed, ...], number: int
) -> None:
    assert records.parse_member(str(member)) == member
    assert records.parse_heartbeat("k", str(beat)) == beat
    assert records.parse_signatures(1, "".join(map(str, signed))) == tuple(signed)
    text = records.encode_members(listed)
    assert records.parse_members(records.epoch_of(3, text), text) == listed
    assert records.parse_counter("k", str(number)) == number
    assert keys.iteration_of_barrier(keys.arrived(number)) == number


PARSERS: dict[str, Callable[[str], object]] = {
    "record": records.parse_record,
    "heartbeat": lambda text: records.parse_heartbeat("k", text),
    "signatures": lambda text: "".join(map(str, records.parse_signatures(1, text))),
    "members": lambda text: records.encode_members(records.parse_members("3-0123456789ab", text)),
    "counter": lambda text: records.parse_counter("k", text),
    "member": records.parse_member,
}


@pytest.mark.parametrize("name", PARSERS)
@MANY
@given(text=anything)
@example(text="0.1-a.o,\n")
@example(text="1.1-a.o,٣.1-a.o,")
@example(text="9" * 5000)
def test_any_text_is_a_value_that_is_written_so_or_the_one_error(name: str, text: str) -> None:
    try:
        value = PARSERS[name](text)
    except ValueError as error:
        message, kind = str(error), type(error)
        assert name == "member" or kind is CorruptStoreError
        assert len(message) < 1000
        assert name == "member" or message.isprintable()
    else:
        assert str(value) == text


@MANY
@given(
    st.lists(st.one_of(anything, anything.map("heartbeat_{}".format), anything.map("global_iteration_barrier:{}:full".format)))
)
@example([f"global_iteration_barrier:{'9' * 5000}:count"])
@example(["global_iteration_barrier:٣:count", "heartbeat_٣.1-a"])
def test_keys_of_any_name_can_be_listed(names: list[str]) -> None:
    doomed = litter(names, 5, [Member(0, 2, "a")])
    assert set(doomed) <= set(names)
    assert all(name.isascii() for name in doomed)


@MANY
@given(st.binary(max_size=60), st.binary(max_size=60))
def test_only_what_was_sealed_is_unsealed(value: bytes, foreign: bytes) -> None:
    assert unseal("k", seal(value)) == value
    with pytest.raises(CorruptStoreError):
        unseal("k", foreign)


# --- addresses and the environment --------------------------------------------------------------------------------------------

secrets = st.text(min_size=6, max_size=12).filter(lambda s: not set(s) <= set("host:/.,@redis2379 "))
addresses = st.one_of(
    st.text(max_size=60),
    st.lists(
        st.sampled_from(["etcd://", "tcp://", "file://", "h", ":", "1", "/", "@", "?", "&", "=", "lease", "[", "]", "::1", "%", "%00", "\n", ","]),
        max_size=14,
    ).map("".join),
)  # fmt: skip


@MANY
@given(addresses)
@example("file:///%00")
@example("a b:1")
@example("[x]:1")
def test_any_text_is_an_address_or_is_told_not_to_be(text: str) -> None:
    try:
        address = parse(text)
    except ValueError as error:
        message, kind = str(error), type(error)
        assert kind is ValueError
        assert "is not the address of a store" in message
        return
    if not isinstance(address, EtcdAddress):  # whose text leaves out what is secret
        assert parse(str(address)) == address or "%" in str(address)
    with suppress(ValueError):
        parse_address(text)


@MANY
@given(
    secrets,
    st.sampled_from(
        ["etcd://user:{}@h/r/x", "etcd://user:{}@", "tcp://u:{}@h:1", "u:{}@h:1", "http://{}@h:1", "etcd://u:{}@h/r?x=y"]
    ),
)
@example("pa\nssword", "tcp://u:{}@h:1")
@example("what?ever", "etcd://user:{}@h/r/x")
@example("se://cret", "u:{}@h:1")
def test_no_message_repeats_a_password(secret: str, form: str) -> None:
    text = form.format(secret)
    assert secret not in redacted(text)
    try:
        address = parse(text)
    except ValueError as error:
        message = str(error)
        assert secret not in message
        assert repr(secret)[1:-1] not in message
    else:
        assert secret not in str(address) + repr(address)


@MANY
@given(st.one_of(anything, st.integers().map(str)), st.one_of(anything, st.integers().map(str)))
@example("٣", "4")
@example("1_0", "20")
@example(" 1", "2")
@example("0", "9" * 5000)
def test_any_rank_in_the_environment_is_one_or_is_told_not_to_be(rank: str, size: str) -> None:
    try:
        world = world_from(None, None, 1, {"RANK": rank, "WORLD_SIZE": size})
    except ValueError as error:
        message = str(error)
        assert len(message) < 300
    else:
        assert rank.isascii() and rank.removeprefix("-").isdigit()
        assert world == World(int(rank), int(size), 1)
    with suppress(ValueError):
        fault_from(rank)
    with suppress(ValueError):
        fault_from(f"{STEPS[0]}@{rank}")


@MANY
@given(st.lists(st.one_of(st.timedeltas(), st.integers(), st.none()), min_size=5, max_size=5))
def test_any_durations_are_a_timing_or_are_told_not_to_be(durations: list[Any]) -> None:
    with suppress(ValueError, TypeError):
        timing = Timing(*durations)
        assert timing.heartbeat_interval < timing.heartbeat_timeout
        assert timing.patience < timing.timeout


@settings(MANY, max_examples=40)
@given(st.one_of(anything, st.integers().map(str)))
@example("-1")
@example("1_000")
def test_any_limit_of_a_recording_is_one_or_is_told_not_to_be(limit: str) -> None:
    with TemporaryDirectory() as folder, suppress(CoxlessError):
        assert recorder_from_env("rank0", {"COXLESS_TRACE": folder, "COXLESS_TRACE_LIMIT": limit}) is not None
        assert limit.isascii() and int(limit) > 0


# --- the state of the training ------------------------------------------------------------------------------------------------

leaves = st.one_of(st.none(), st.booleans(), st.integers(-(2**60), 2**60), st.floats(allow_nan=False), st.text(max_size=5))
trees = st.recursive(
    leaves, lambda inner: st.one_of(st.lists(inner, max_size=3), st.tuples(inner), st.dictionaries(st.text(max_size=3), inner, max_size=3))
)  # fmt: skip
json_values = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.one_of(st.sampled_from(["tensor", "dict", "tuple", "#tup", "#map", "tag"]), st.text(max_size=2)), inner, max_size=2
        ),
    ),
)


@MANY
@given(trees)
def test_a_state_comes_back(tree: object) -> None:
    shape, tensors = pack({"state": tree, "weights": torch.zeros(2)})
    assert [(dtype, sizes) for dtype, sizes in tensors_of(shape)] == [(torch.float32, [2])]
    assert unpack(shape, tensors)["state"] == tree


@MANY
@given(st.one_of(json_values.map(json.dumps), st.text(max_size=20)))
@example('{"tensor": ["float32", -1]}')
@example('{"tensor": ["float32", 99999999, 99999999]}')
@example('{"tensor": ["complex999", 1]}')
@example('{"tensor": []}')
@example('{"dict": [[[], 1]]}')
@example('{"dict": [[1]]}')
@example("[" * 100_000)
@example("9" * 5000)
def test_any_shape_is_one_of_a_state_or_is_told_not_to_be(shape: str) -> None:
    with suppress(CorruptStateError):
        for _, sizes in tensors_of(shape):
            assert all(size >= 0 for size in sizes)
    with suppress(CorruptStateError):
        unpack(shape, [torch.zeros(1)])


# --- traces ----------------------------------------------------------------------------------------------------

model_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=3)),
    lambda inner: st.one_of(st.lists(inner, max_size=3).map(tuple), st.frozensets(inner, max_size=3)),
)


@MANY
@given(model_values)
def test_a_value_of_the_model_comes_back(value: object) -> None:
    assert itf.decode(json.loads(json.dumps(itf.encode(value)))) == value


GOOD = json.loads(itf.dumps(itf.trace_file(TwoPhaseCommit(2), Trace((TwoPhaseCommit(2).initial(),), ()), title="t")))


@MANY
@given(st.data())
def test_any_trace_file_is_one_or_is_told_not_to_be(data: st.DataObject) -> None:
    """Something somewhere in a good one is replaced."""
    whole = json.loads(json.dumps(GOOD))
    node, key = whole, data.draw(st.sampled_from(sorted(whole)))
    while data.draw(st.booleans()):
        below = node[key]
        if isinstance(below, dict) and below:
            node, key = below, data.draw(st.sampled_from(sorted(below)))
        elif isinstance(below, list) and below:
            node, key = below, data.draw(st.integers(0, len(below) - 1))
        else:
            break
    node[key] = data.draw(json_values)
    with suppress(itf.CorruptTrace):
        trace = itf.loads(json.dumps(whole))
        assert itf.loads(itf.dumps(trace)) == trace


@MANY
@given(st.one_of(st.text(max_size=30), json_values.map(json.dumps)))
@example("9" * 5000)
@example("[" * 100_000)
@example('{"#meta": "\\ud800"}')
def test_any_text_is_a_trace_or_is_told_not_to_be(text: str) -> None:
    with pytest.raises(itf.CorruptTrace) as caught:
        itf.loads(text)
    assert str(caught.value).encode()
