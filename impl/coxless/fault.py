"""Dying, or being frozen, at an exact point, for demonstrations and tests: a SIGKILL from outside cannot hit a place that lasts microseconds."""

import os
import re
import signal

from .driver import Watcher
from .protocol import Operation, RankState
from .protocol.operations import CompareSet

STEPS = (
    *("take_incarnation", "create_register", "read_members", "check_incarnation", "renew_incarnation", "sign", "raise_attention"),
    *("arrive", "await_full", "propose_same_epoch", "read_register", "read_arrived", "read_heartbeat", "write_members"),
    *("propose_new_epoch", "wake", "restore_members", "restore_register", "won"),
)
"""Where: the steps of docs/protocol.md that have a reply for this process, and `won`."""


def fault_from(text: str) -> Watcher:
    """A watcher that kills or stops this process at an exact point, for demonstrations and tests.

    `step@k`: SIGKILL right after the named step (docs/protocol.md) at the barrier of iteration k, where 0 is also what comes before a
    process has seen any iteration: `take_incarnation@0` and `create_register@0` strike as it starts. `won@k`: right after winning the decision
    of iteration k, before anybody is told. `stop@step@k`: SIGSTOP there, once; somebody else has to send SIGCONT. Raises ValueError
    for anything else.
    """
    signal_number = signal.SIGSTOP if text.startswith("stop@") else signal.SIGKILL
    step, _, number = text.removeprefix("stop@").partition("@")
    if step not in STEPS or not re.fullmatch("[0-9]{1,18}", number):
        raise ValueError(
            f"COXLESS_FAULT={text!r}: expected STEP@ITERATION, such as arrive@40 or won@80, or stop@STEP@ITERATION, "
            f"with a step of {', '.join(STEPS)}"
        )
    iteration = int(number)
    struck = False

    def watch(state: RankState, operation: Operation, reply: object) -> None:
        nonlocal struck
        k = max(0, state.record.iteration)  # -1 until the register was read
        won = isinstance(operation, CompareSet) and operation.step.startswith("propose") and reply == operation.desired
        if not struck and ((step == "won" and won and k + 1 == iteration) or (step == operation.step and k == iteration)):
            struck = True
            os.kill(os.getpid(), signal_number)

    return watch
