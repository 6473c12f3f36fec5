"""The steps of the hardened protocol by their names, which are those of docs/protocol.md."""

from collections.abc import Callable

from .hardened import (
    arrive,
    await_barrier,
    await_full,
    check_incarnation,
    clean_up,
    count_in,
    create_register,
    propose_new_epoch,
    propose_same_epoch,
    raise_attention,
    read_arrived,
    read_heartbeat,
    read_members,
    read_register,
    renew_incarnation,
    sign,
    take_incarnation,
    wake,
    write_members,
)
from .process import Moves, Process, Setting
from .recovery import finished, look_at_count, look_at_register, restore_members, restore_register

STEPS: dict[str, Callable[[Setting, int, Process], Moves]] = {
    "take_incarnation": take_incarnation,
    "create_register": create_register,
    "read_members": read_members,
    "check_incarnation": check_incarnation,
    "renew_incarnation": renew_incarnation,
    "sign": sign,
    "raise_attention": raise_attention,
    "arrive": arrive,
    "count_in": count_in,
    "await_barrier": await_barrier,
    "await_full": await_full,
    "propose_same_epoch": propose_same_epoch,
    "read_register": read_register,
    "read_arrived": read_arrived,
    "read_heartbeat": read_heartbeat,
    "write_members": write_members,
    "propose_new_epoch": propose_new_epoch,
    "wake": wake,
    "look_at_count": look_at_count,
    "recover": look_at_register,
    "restore_members": restore_members,
    "restore_register": restore_register,
    "done": finished,
}


def moves(setting: Setting, rank: int, p: Process) -> Moves:
    """Every way in which the process can go on."""
    if p.at in STEPS and (len(p.queue) <= setting.lag or p.at == "done"):
        yield from STEPS[p.at](setting, rank, p)
    if p.at != "done":
        yield from clean_up(setting, rank, p)
