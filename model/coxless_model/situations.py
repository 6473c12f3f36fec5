"""What a search of the hardened protocol has to come across: a check that never met a lost race proves little about races.

Which of them can be met depends on the faults that the budgets allow and on the number of iterations.
"""

from collections.abc import Callable, Iterator
from typing import Any

from .machine import Action, Situation, State
from .process import Setting


def situations(setting: Setting, budgets: Any) -> tuple[Situation, ...]:
    """Those that have to be reached within the bounds."""
    return tuple(_wanted(setting, budgets))


def _wanted(setting: Setting, budgets: Any) -> Iterator[Situation]:
    several, longer = setting.ranks > 1, setting.iterations > 1
    if several:
        yield Situation("a lost race", lost_race)
    if longer:
        yield Situation("a fast close", won("propose_same_epoch", 2))
    if budgets.failed_votes and longer:
        yield Situation("a failed vote", failed_vote)
        yield Situation("an attention close", attention_close)
    fewer = setting.min_ranks < setting.ranks  # may go on
    if several and longer and fewer and (budgets.suspicions or budgets.crashes):
        yield Situation("a slow close", slow_close)
    if several and fewer and setting.iterations > 2 and budgets.suspicions:
        yield Situation("a fenced zombie", fenced_zombie)
    if several and longer and budgets.crashes and budgets.restarts:
        yield Situation("a rejoin", rejoin)
    if several and budgets.second_processes:
        yield Situation("a superseded process", superseded)
    if budgets.lost_replies and longer:
        yield Situation("an arrival whose reply was lost", lambda _, action, __: action[1::3] == ("arrive", "reply lost"))
        yield Situation("a recovered proposal", recovered_proposal)
    if budgets.store_losses and longer:
        yield Situation("a restored register", lambda _, action, __: action.name == "restore_register" and worked(action))
    if budgets.spared_wakes:
        yield Situation("a spared wake", lambda _, action, __: "spared" in action.note)
    if several and fewer and budgets.join_timeouts:
        yield Situation("a founding without everyone", founded_without(setting.ranks))


def expected(setting: Setting, budgets: Any) -> tuple[str, ...]:
    """The names of the actions that one should see taken within the bounds. One that is not is no error, but says that the bounds are
    too small for it."""
    several, longer, losing = setting.ranks > 1, setting.iterations > 1, budgets.store_losses > 0
    again = bool(budgets.crashes and budgets.restarts)
    wanted = {
        "take_incarnation": True,
        "create_register": True,
        "read_members": longer and (again or budgets.suspicions > 0),
        "check_incarnation": budgets.second_processes > 0 or (losing and again),
        "renew_incarnation": losing and (again or budgets.second_processes > 0),
        "sign": True,
        "raise_attention": longer and (again or budgets.failed_votes > 0),
        "arrive": longer,
        "await_barrier": several and longer,
        "await_full": several,
        "propose_same_epoch": longer,
        "read_register": several,
        "read_arrived": True,
        "read_heartbeat": several and longer,
        "write_members": True,
        "propose_new_epoch": True,
        "wake": True,
        "clean_up": longer,
        "restore_members": losing and longer,
        "restore_register": losing and longer,
        "crash": budgets.crashes > 0,
        "restart": again,
        "second_process": budgets.second_processes > 0,
        "leave": budgets.leaves > 0 and longer,
        "go_stale": budgets.crashes > 0,
        "mark_dead": bool(budgets.dead_marks and budgets.crashes),
        "lose_store": losing,
        "join_timeout": budgets.join_timeouts > 0,
    }
    return tuple(name for name, whether in wanted.items() if whether)


def worked(action: Action) -> bool:
    """The compare_set did what it was to do."""
    return action.op is not None and action.op[0] == "compare_set" and action.result == action.op[3]


def won(step: str, iteration: int) -> Callable[[State, Action, State], bool]:
    return lambda _, action, __: (
        action.name == step and worked(action) and action.op is not None and action.op[3].iteration >= iteration
    )


def lost_race(before: State, action: Action, after: State) -> bool:
    """Another decided the same iteration first."""
    if not action.name.startswith("propose_") or worked(action) or action.op is None or action.result is None:
        return False
    result: Any = action.result
    return bool(result.iteration == action.op[3].iteration)


def failed_vote(before: State, action: Action, after: State) -> bool:
    """The update of an iteration that was trained does not count."""
    return won("propose_new_epoch", 2)(before, action, after) and action.op is not None and not action.op[3].committed


def attention_close(before: State, action: Action, after: State) -> bool:
    return won("propose_new_epoch", 2)(before, action, after) and action.op is not None and bool(action.op[2].attention)


def slow_close(before: State, action: Action, after: State) -> bool:
    """Closed without waiting for everyone."""
    return won("propose_new_epoch", 2)(before, action, after) and any(p.at == "wake" for p in after.ranks[action.rank].processes)


def fenced_zombie(before: State, action: Action, after: State) -> bool:
    """A member that was taken for dead finds out, and joins again."""
    then, now = before.ranks[action.rank].processes, after.ranks[action.rank].processes
    return len(then) == len(now) == 1 and then[0].member and not now[0].member and now[0].at in ("sign", "read_members")


def rejoin(before: State, action: Action, after: State) -> bool:
    """A restarted rank takes part again."""
    return (
        any(p.member and p.me.number > 1 and p.k > 1 for p in after.ranks[action.rank].processes) if action.rank >= 0 else False
    )


def superseded(before: State, action: Action, after: State) -> bool:
    """An old process stops because a newer one of its rank has taken over."""
    if action.rank < 0 or action.name not in ("read_arrived", "check_incarnation"):
        return False
    return len(after.ranks[action.rank].processes) < len(before.ranks[action.rank].processes)


def recovered_proposal(before: State, action: Action, after: State) -> bool:
    """A winner whose reply was lost recognises itself by its name in the register."""
    result: Any = action.result
    now = after.ranks[action.rank].processes[0] if action.rank >= 0 and after.ranks[action.rank].processes else None
    return action.name == "read_register" and now is not None and now.member and now.record == result and result.winner == now.me


def founded_without(ranks: int) -> Callable[[State, Action, State], bool]:
    def holds(before: State, action: Action, after: State) -> bool:
        found = action.name == "propose_new_epoch" and worked(action) and action.op is not None and action.op[3].iteration == 1
        return found and action.op is not None and len(action.op[3].epoch.members) < ranks

    return holds
