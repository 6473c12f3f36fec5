"""The mapping table: which step of the model is which store operation, and which step of the implementation.

It is the one place that ties the two sides. Replay and validation go by it, docs/mapping.md is printed from it, and a test fails
when either side has a step that is not in it, or when it has one that neither side takes.
"""

from typing import NamedTuple

from coxless.protocol import operations


class Row(NamedTuple):
    step: str
    """The model's action."""
    call: str
    """The store operation, as the documents write it; empty where there is none."""
    implementation: str
    """Where the implementation takes the step."""
    remark: str = ""


STEPS = (
    Row("take_incarnation", "add(rank_{r}_incarnation, 1)", "joining.take_incarnation"),
    Row("create_register", 'compare_set(register, "", genesis)', "joining.create_register"),
    Row("read_members", "read(members:{epoch})", "joining.join, learning.learn"),
    Row("check_incarnation", "read(rank_{r}_incarnation)", "joining.join, closing.close"),
    Row("renew_incarnation", "add(rank_{r}_incarnation, n' - counter + 1)", "joining.join, closing.close"),
    Row("sign", "append(arrived, member.flag)", "joining.sign_as_joiner, barrier.arrive, barrier.sign, recovery.recover"),
    Row("raise_attention", "compare_set(register, R, R with attention)", "joining.raise_attention"),
    Row(
        "arrive",
        "barrier(count, members), the command",
        "barrier.arrive",
        "the driver starts it with the vote: advance(state, flag)",
    ),
    Row(
        "await_barrier",
        "barrier(count, members), its end",
        "barrier.arrive",
        "the same operation; the driver answers whether the patience ran out",
    ),
    Row("await_full", "wait(full)", "barrier.await_full", "the driver answers whether the patience ran out"),
    Row("propose_same_epoch", "compare_set(register, R, next(R))", "barrier.propose_same_epoch"),
    Row(
        "read_register",
        "read(register)",
        "barrier.read_register, joining.join, learning.learn, recovery.recover",
        "the model calls its place `recover` after a broken connection",
    ),
    Row("read_arrived", "read(arrived)", "closing.close", "founding: the driver answers whether the join timeout has passed"),
    Row(
        "read_heartbeat",
        "read(heartbeat_{member})",
        "closing.close",
        "the driver answers whether the member is suspected; the model admits any order of the missing members, the "
        "implementation asks in the order of the list",
    ),
    Row("write_members", "set(members:{epoch}, list)", "closing.close"),
    Row("propose_new_epoch", "compare_set(register, R, next with a new epoch)", "closing.close"),
    Row("wake", "set(full, 1)", "protocol._run", "on the fast path the driver may leave it out"),
    Row("restore_members", "set(members:{epoch}, L)", "recovery.recover"),
    Row("restore_register", "compare_set(register, found, R)", "recovery.recover"),
    Row("clean_up", "delete_key(key)", "RankState.deletions", "the driver does it beside the protocol, on another connection"),
)

ONLY_A_MUTANTS = (
    Row(
        "look_at_count",
        "compare_set(count, ?, ?)",
        "Driver._refuse_foreign_count",
        "after each reconnection; the driver looks with check and get, which change nothing",
    ),
)
"""Steps that no process of the whole protocol takes."""

ENVIRONMENT = (
    Row("crash", "", "the generator is dropped, its connection closed"),
    Row("restart", "", "enter(a new RankState)"),
    Row("second_process", "", "enter(a new RankState), while the older one goes on"),
    Row("leave", "set(heartbeat_{member}, left)", "Crew.leave"),
    Row("mark_dead", "set(heartbeat_{member}, dead)", "the supervisor"),
    Row("go_stale", "", "HeartbeatObserver: no change for the timeout"),
    Row("join_timeout", "", "the driver's answer to JoinTimedOut from then on"),
    Row("lose_store", "", "ConnectionBroken at the next operation with a reply; the store is empty"),
)

VARIANTS = {
    "": "the operation works",
    "patience ran out": "the wait, or the barrier, ends with False",
    "wrong suspicion": "the member is alive, and is suspected",
    "the step failed": "the vote is f, or j without the model state",
    "reply lost": "performed; then ConnectionBroken is thrown into the generator",
    "not applied": "not performed; ConnectionBroken is thrown, or (set, append) noticed at the next operation with a reply",
    "connection lost": "not performed, the server is gone; ConnectionBroken is thrown",
    "not delivered": "a set or append to a server that is gone: not performed, nobody notices",
    "spared": "a wake that the driver leaves out, as nobody can have run out of patience: not performed",
    "a higher nonce": "the driver draws it; after a store loss the order of two nonces matters",
    "a lower nonce": "the same",
    "second process": "taken by the younger of two processes of the rank",
}
"""What the notes of an action say, and what it means for the implementation. A note may hold several, joined by commas."""

AT = {"recover": "read_register", "count_in": "arrive", "await_barrier": "arrive"}
"""Where a model process stands, by the step that it takes next; the other names are step names already."""
TRAINING = "arrive"
"""Where a model process stands while it trains: the implementation has no generator then."""

QUESTIONS = {"read_arrived": "JoinTimedOut"}
"""Questions about time that touch no store and are no step of the model, by the step name that they carry."""

OPERATIONS: dict[str, type] = {
    "add": operations.Add,
    "set": operations.Set,
    "append": operations.Append,
    "compare_set": operations.CompareSet,
    "read": operations.Read,
    "wait": operations.Wait,
    "barrier": operations.Barrier,
    "barrier_reply": operations.Barrier,
    "delete_key": operations.Delete,
}


def variants(note: str) -> frozenset[str]:
    return frozenset(note.split(", ")) if note else frozenset()


def page() -> str:
    """docs/mapping.md."""
    rows = "\n".join(_line(row) for row in STEPS)
    mutants = "\n".join(_line(row) for row in ONLY_A_MUTANTS)
    environment = "\n".join(_line(row) for row in ENVIRONMENT)
    notes = "\n".join(f"| {note or '(none)'} | {meaning} |" for note, meaning in VARIANTS.items())
    return f"""# What in the model is what in the implementation

Printed from `traces/coxless_traces/mapping.py` by `coxless mapping`; a test compares. docs/protocol.md says what each step is for.

## Steps of a rank

Each is one store operation. `register`, `arrived`, `count`, `full` and `members` stand for the keys of the barrier and the epoch.

| model action | store operation | implementation | |
|---|---|---|---|
{rows}

Only a mutant takes this one:

| model action | store operation | implementation | |
|---|---|---|---|
{mutants}

## What the environment does

| model action | store operation | implementation | |
|---|---|---|---|
{environment}

## Variants

| note of the action | what happens to the implementation |
|---|---|
{notes}

## Values

Keys and values are tuples in the model and text in the store. The model's nonces (0; after the n-th store loss n and -n) and
generations become two hexadecimal digits in the same order. An epoch is the list itself in the model and a digest of it in the store.
What is appended is compared as a set.
"""


def _line(row: Row) -> str:
    call = f"`{row.call}`" if row.call else ""
    return f"| `{row.step}` | {call} | {row.implementation} | {row.remark} |"
