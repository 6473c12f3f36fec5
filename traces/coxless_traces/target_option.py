"""The options of a command that replays on a store, and what it says of a store that it cannot use."""

import contextlib
from collections.abc import Iterator
from typing import Any

import click

from coxless.errors import CoxlessError

from .targets import NAMES, Target, target

TARGETS = click.Choice(NAMES)
SHARED = ("tcp", "etcd")
"""The targets that have an address."""


class WrongInput(click.ClickException):
    """A file, a store or a process that nothing can be replayed with: one sentence, and exit code 2, since nobody has parted from anybody."""

    exit_code = 2


def target_options(command: Any) -> Any:
    for option in (
        click.option(
            "--address", metavar="ADDRESS", help="Of a TCPStore or etcd that runs already, and is empty; else one is started."
        ),
        click.option("--target", "kind", type=TARGETS, default="tcp", show_default=True, help="The store to replay on."),
    ):
        command = option(command)
    return command


@contextlib.contextmanager
def opened(kind: str, address: str | None) -> Iterator[Target]:
    """The target; what is wrong with it is one sentence."""
    if address is not None and kind not in SHARED:
        raise click.UsageError(f"--address is for the targets tcp and etcd, not for {kind}")
    with contextlib.ExitStack() as stack:
        try:
            store = stack.enter_context(target(kind, address))
        except (CoxlessError, ValueError) as error:
            raise WrongInput(str(error)) from None
        yield store
