"""The library with one guard taken away, again and again, under the names that the model's mutants have.

A mutant is a few replacements in the source of the protocol. The functions that change are given the code of the mutated source, so
whoever has imported them runs the mutant.
"""

import inspect
from collections.abc import Iterator
from types import CodeType, FunctionType, ModuleType
from typing import Any, NamedTuple

import pytest

import coxless.protocol
from coxless.protocol import barrier, closing, joining, learning, recovery, state


class Edit(NamedTuple):
    module: ModuleType
    old: str
    new: str
    """Takes the place of `old` wherever that stands."""


class Mutant(NamedTuple):
    guard: str
    """As the model calls it (coxless_model.mutants)."""
    edits: tuple[Edit, ...]


def mutant(guard: str, *edits: tuple[ModuleType, str, str]) -> Mutant:
    return Mutant(guard, tuple(Edit(*edit) for edit in edits))


END = "from coxless.errors import SupersededError; raise SupersededError('a mutant ends')"
PROPOSE_SAME = 'text = yield CompareSet("propose_same_epoch", keys.REGISTER, expected, desired)'
PROPOSE_NEW = 'text = yield CompareSet("propose_new_epoch", keys.REGISTER, expected, desired)'
COMMITTED = 'return bool(votes) and all(flag == "o" for flag in votes)'
COUNT_IN = """    state.full = yield Barrier("arrive", keys.count(k), len(state.listed))
    return Phase.PROPOSE_SAME_EPOCH if state.full else Phase.SIGN
"""
NOT_COUNTED = "return Phase.PROPOSE_SAME_EPOCH if state.full else Phase.SIGN"
NOT_WOKEN = "return Phase.READ_REGISTER if woken else Phase.SIGN"
SIGN_FIRST = inspect.getsource(barrier.arrive).partition("    if state.flag")[2]
HEARD = 'suspected = yield ReadHeartbeat("read_heartbeat", member)'
LISTED = 'listed = tuple(Listed(member, flag != "j") for member, flag in candidates)'
EPOCH = "epoch = epoch_of(k + 1, encoded)"
ENOUGH = "len(candidates) >= state.min_ranks"
RENEWED = 'number = yield Add("renew_incarnation", key, rival.number - counter + 1)'
REPLACED = "deletions.append(keys.members(before.epoch))"

MUTANTS = (
    # --- The register ---
    mutant(
        "compare_set",
        (
            barrier,
            PROPOSE_SAME,
            "from .operations import Set; yield Set('propose_same_epoch', keys.REGISTER, desired); text = desired",
        ),
        (closing, PROPOSE_NEW, "yield Set('propose_new_epoch', keys.REGISTER, desired); text = desired"),
    ),
    mutant(
        "spare_the_register",
        (
            state,
            "        if record.winner == self.me:\n            # The winner",
            "        if record.winner == self.me:\n            self.deletions.append(keys.REGISTER)\n            # The winner",
        ),
    ),
    mutant("restore_record", (recovery, "if state.record.iteration == 0 or state.members is None:", "if True:")),
    mutant(
        "restore_list",
        (recovery, 'yield Set("restore_members", keys.members(decided.epoch), encode_members(state.listed))', ""),
        (recovery, "state.written[decided.epoch] = state.listed", "pass"),
    ),
    # --- Identity ---
    mutant("incarnation", (joining, "Member(state.rank, number, ", "Member(state.rank, 1, ")),
    mutant("nonce", (joining, "Member(state.rank, number, state.nonce)", "Member(state.rank, number, '80')")),
    mutant("stand_down", (joining, "if counter > state.me.number:", "if False:")),
    mutant("ask_counter", (closing, "if newer is not None and state.is_member:", "if newer is not None:")),
    mutant("renew", (joining, "if counter > state.me.number:", "if True:")),
    mutant("outnumber", (joining, RENEWED, 'number = yield Add("renew_incarnation", key, 1)')),
    mutant("newest", (closing, "for _, member in sorted(newest.items())", "for member in sorted(flags)")),
    mutant("superseded", (closing, "if newer is not None", "if False")),
    mutant("incarnation_check", (joining, "if newer is not None:", "if False:")),
    # --- Founding ---
    mutant(
        "founding",
        (closing, "if len(signatures) >= state.world_size else ()", ""),
        (closing, "if len(candidates) >= state.world_size:", "if True:"),
    ),
    mutant("min_ranks", (closing, ENOUGH, "True")),
    # --- The count ---
    mutant(
        "members_only",
        (
            joining,
            "return Phase.CLOSE if k == 0 else Phase.AWAIT_FULL",
            f"if k == 0:\n        return Phase.CLOSE\n    from .operations import Barrier\n{COUNT_IN}",
        ),
    ),
    mutant(
        "add_once",
        (
            barrier,
            COUNT_IN,
            "    from .operations import ConnectionBroken\n    try:\n"
            '        state.full = yield Barrier("arrive", keys.count(k), len(state.listed))\n'
            "    except ConnectionBroken:\n        state.deletions = []\n"
            '        state.full = yield Barrier("arrive", keys.count(k), len(state.listed))\n'
            f"    {NOT_COUNTED}\n",
        ),
    ),
    mutant(
        "fresh_count",
        (barrier, "keys.count(k)", "keys.count(0)"),
        (state, "keys.barrier(before.iteration - 1)", "(keys.count(0), *keys.barrier(before.iteration - 1)[1:])"),
    ),
    mutant(
        "peek",
        (
            recovery,
            '    text = yield Read("read_register", keys.REGISTER)\n    while True:',
            "    if state.is_member:\n"
            '        yield CompareSet("look_at_count", keys.count(state.record.iteration), keys.PROBE, keys.PROBE)\n'
            '    text = yield Read("read_register", keys.REGISTER)\n    while True:',
        ),
    ),
    mutant("timeout_decides_nothing", (barrier, NOT_COUNTED, "return Phase.PROPOSE_SAME_EPOCH if state.full else Phase.DECIDED")),
    # --- Attention ---
    mutant("joiner_attention", (joining, "    if not state.record.attention:", "    if False:")),
    mutant("failure_attention", (barrier, "if not state.record.attention:", "if False:")),
    mutant(
        "attention_first",
        (
            barrier,
            "    k = state.record.iteration\n    if state.flag",
            "    k = state.record.iteration\n"
            '    state.full = yield Barrier("arrive", keys.count(k), len(state.listed))\n    if state.flag',
        ),
        (
            barrier,
            "every member of k has arrived.\n" + COUNT_IN,
            f"every member of k has arrived.\n    {NOT_COUNTED}\n",
        ),
    ),
    mutant("look_after_full", (barrier, "if current.attention:", "if False:")),
    mutant(
        "look_again",
        (
            closing,
            PROPOSE_NEW,
            f"{PROPOSE_NEW}\n"
            "    if text != desired and parse_record(text).same_decision(current) and text != expected:\n"
            "        state.record = current = parse_record(text)\n"
            "        expected = text\n"
            f"        {PROPOSE_NEW}",
        ),
    ),
    # --- The slow path ---
    mutant(
        "patience",
        (barrier, NOT_WOKEN, "return Phase.READ_REGISTER if woken else Phase.AWAIT_FULL"),
        (barrier, NOT_COUNTED, "return Phase.PROPOSE_SAME_EPOCH if state.full else Phase.AWAIT_FULL"),
    ),
    mutant("suspicion", (closing, "if not suspected:", "if True:")),
    mutant(
        "persist",
        (barrier, NOT_WOKEN, f"if woken:\n        return Phase.READ_REGISTER\n    {END}"),
        (barrier, NOT_COUNTED, f"if state.full:\n        return Phase.PROPOSE_SAME_EPOCH\n    {END}"),
    ),
    mutant("listen", (closing, "if not suspected:", "if False:")),
    mutant("heartbeats", (closing, HEARD, "suspected = True")),
    mutant(
        "sign_again",
        (recovery, "= False, False, NOTHING", "= False, state.signed, NOTHING"),
        (closing, "if not state.full and all(s.member != state.me for s in signatures):", "if False:"),
    ),
    mutant(
        "fresh_arrived",
        (barrier, "keys.arrived(k)", "keys.arrived(0)"),
        (barrier, "keys.arrived(state.record.iteration)", "keys.arrived(0)"),
        (joining, "keys.arrived(k)", "keys.arrived(0)"),
        (recovery, "keys.arrived(state.record.iteration)", "keys.arrived(0)"),
        (closing, "keys.arrived(k)", "keys.arrived(0)"),
    ),
    # --- Lists and state ---
    mutant("content_addressed", (closing, EPOCH, 'epoch = epoch_of(k + 1, "")')),
    mutant(
        "state_in_epoch",
        (
            closing,
            EPOCH,
            f"{EPOCH}\n"
            "    if [member for member, _ in candidates] == [member for member, _ in state.listed]:\n"
            "        epoch, listed, encoded = current.epoch, state.listed, encode_members(state.listed)",
        ),
    ),
    mutant("tell_holders", (closing, LISTED, "listed = tuple(Listed(member, False) for member, flag in candidates)")),
    mutant("rejoin", (state, "        k = self.record.iteration\n", f"        {END}\n        k = self.record.iteration\n")),
    mutant(
        "reread",
        (joining, "return (yield from _start_again(state, epoch))", END),
        (learning, "return (yield from _newer_still(state))", END),
    ),
    mutant(
        "drop_state",
        (
            state,
            "        self.start_barrier(record, members, member=False)\n        return Phase.JOIN",
            '        held = self.is_member and self.flag != "j"\n'
            "        self.start_barrier(record, members, member=False)\n"
            '        self.flag = "f" if held else "j"\n'
            "        return Phase.JOIN",
        ),
        (joining, 'state.flag, state.signed = "j", True', "state.signed = True"),
        (joining, 'Signature(state.me, "j")', "Signature(state.me, state.flag)"),
    ),
    mutant("membership", (learning, "any(member == state.me for member, _ in members)", "True")),
    mutant(
        "commit",
        (state, 'f" {name} 1 0 "', 'f" {name} 0 0 "'),
        (barrier, "current.epoch, True, False, winner)", "current.epoch, False, False, winner)"),
    ),
    mutant("slow_commit", (closing, COMMITTED, "return False")),
    mutant("votes", (closing, COMMITTED, "return bool(votes)")),
    mutant("somebody_voted", (closing, COMMITTED, 'return all(flag == "o" for flag in votes)')),
    # --- Clean-up ---
    mutant(
        "spare_the_next",
        (
            state,
            "            if before.iteration >= 1:",
            "            self.deletions += keys.barrier(before.iteration + 1)\n            if before.iteration >= 1:",
        ),
    ),
    mutant(
        "spare_the_list",
        (
            state,
            "            if before.iteration >= 1:",
            "            self.deletions.append(keys.members(record.epoch))\n            if before.iteration >= 1:",
        ),
    ),
    mutant("clean_up", (state, "self.deletions +=", "_ ="), (state, "self.deletions.append", "str")),
    mutant(
        "fresh_full",
        (barrier, "keys.full(state.record.iteration)", "keys.full(0)"),
        (coxless.protocol, "keys.full(state.record.iteration - 1)", "keys.full(0)"),
    ),
    mutant(
        "clean_up_behind",
        (
            state,
            "            if k >= 1:\n                self.deletions += keys.barrier(k - 1)\n            if record.iteration >= k + 2:",
            "            if record.iteration >= k + 2:",
        ),
        (
            state,
            "                    self.deletions.append(keys.members(self.record.epoch))\n            self._delete_vain_lists(record)",
            "                    self.deletions.append(keys.members(self.record.epoch))",
        ),
    ),
    mutant("clean_up_late", (state, "if record.iteration >= k + 2:", "if False:")),
    mutant("clean_up_restored", (recovery, "state.written[decided.epoch] = state.listed", "pass")),
    # --- Equivalent in the model's eyes: no property suffers; replay sees the difference all the same ---
    mutant("wake", (coxless.protocol, "if state.record.winner == state.me:", "if False:")),
    mutant(
        "replaced",
        (closing, "newest[member.rank] >= member:", "newest[member.rank] == member:"),
    ),
)

NONE_IN_THE_LIBRARY = {
    "fresh_timeout": "the driver's: it answers JoinTimedOut by its own clock (Driver), and replay gives the trace's answer",
    "own_clock": "the driver's: HeartbeatObserver says who is suspected, and replay gives the trace's answer",
    "outrun": "nothing to see: a rank that is not listed by iteration k+2 unless it arrived at k+1 stands nowhere else (EQUIVALENT)",
}
"""Guards of the model without a mutant here, and why."""


def apply(given: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the mutant from here on, until the monkeypatch is undone."""
    for module in dict.fromkeys(edit.module for edit in given.edits):
        source = inspect.getsource(module)
        for _, old, new in (edit for edit in given.edits if edit.module is module):
            assert old in source, f"{given.guard}: the library has changed, so change the mutant too: {old!r}"
            source = source.replace(old, new)
        names: dict[str, Any] = dict(vars(module))
        exec(compile(source, str(module.__file__), "exec"), names)
        for function, code in changed(vars(module), names):
            monkeypatch.setattr(function, "__code__", code)


def changed(before: dict[str, Any], after: dict[str, Any]) -> Iterator[tuple[FunctionType, CodeType]]:
    """The functions, and the methods of classes, that were defined anew with another code."""
    for name, old in before.items():
        new = after.get(name)
        if new is old:
            continue
        if isinstance(old, FunctionType) and isinstance(new, FunctionType):
            yield old, new.__code__
        elif isinstance(old, type) and isinstance(new, type):
            yield from changed(dict(vars(old)), dict(vars(new)))
