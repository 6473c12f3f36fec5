"""Binding a socket to one address, the only way to keep a TCPStore server off the other interfaces.

Left to itself TCPStore listens on all of them, whatever its host_name says, and it knows no authentication.
"""

import errno
import importlib.metadata
import ipaddress
import logging
import os
import re
import socket
from typing import TYPE_CHECKING, Any

from .errors import CoxlessError

if TYPE_CHECKING:
    from torch.distributed import TCPStore

logger = logging.getLogger(__name__)


class AddressError(CoxlessError, OSError):
    """A server cannot be started at this address: taken, not of this machine, or not allowed."""


def resolve(host: str) -> str:
    """The IP address of `host`: of a name with several, an IPv4 one if there is one. Raises AddressError when it has none."""
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        pass
    found = []
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            found += socket.getaddrinfo(host or " ", None, family, socket.SOCK_STREAM)
        except (OSError, ValueError):  # of which UnicodeError, and a NUL within
            continue
    if not found:
        raise AddressError(f"{host[:200]!r} is neither an IP address nor a name that has one; such as 127.0.0.1")
    return str(found[0][4][0])


def wildcard(address: str) -> bool:
    """Whether it means all addresses of the machine."""
    return ipaddress.ip_address(address).is_unspecified


def reachable(address: str) -> str:
    """The address by which this machine reaches a server that is bound to `address`."""
    if not wildcard(address):
        return address
    return "::1" if ":" in address else "127.0.0.1"


def takes_a_socket() -> bool:
    """Whether this torch's TCPStore server can be given the socket that it listens on; before 2.8 only the one without libuv could, which
    wakes no waiter. Does not import torch."""
    numbers = re.findall("[0-9]+", _torch_version())
    return [int(number) for number in numbers[:2]] >= [2, 8]


def _torch_version() -> str:
    try:
        return importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:  # one that was built and never installed
        import torch

        return str(torch.__version__)


def listen(bound: socket.socket, host: str, **options: Any) -> "TCPStore":
    """A TCPStore server at a socket that `bind` has made for `host`, and which is used up. On every address of the machine where torch
    cannot take the socket. `options`: further ones of TCPStore."""
    from torch.distributed import TCPStore

    with bound:
        # libuv only: without it compare_set wakes no waiter, and one half-sent command blocks the server for all.
        options |= {"is_master": True, "wait_for_workers": False, "use_libuv": True}
        if takes_a_socket():
            options["master_listen_fd"] = os.dup(bound.fileno())  # the server's own from here on
        return TCPStore(reachable(resolve(host)), bound.getsockname()[1], **options)


def warn_if_open(address: str) -> None:
    """A word in the log where a store would listen to strangers."""
    if not takes_a_socket():
        logger.warning(
            "the store listens on every address of this machine, although %s was asked for, since torch %s cannot do otherwise (2.8 can): it "
            "has no passwords, and whoever reaches it can change everything in it; see docs/security.md",
            address,
            _torch_version(),
        )
    elif wildcard(address) or not ipaddress.ip_address(address).is_private:
        where = "every address of this machine" if wildcard(address) else f"{address}, which is no private address"
        logger.warning(
            "the store listens on %s: it has no passwords, and whoever reaches it can change everything in it; see docs/security.md",
            where,
        )


def bind(host: str, port: int) -> socket.socket:
    """A socket that is bound to exactly that address, not yet listening. Port 0: a free one.

    SO_REUSEADDR lets a server be started again at once on the port of one that died. It also lets a second socket be bound to the port as long
    as neither listens: a parent reserves a port in that way while its server is down.

    Raises AddressError.
    """
    address = resolve(host)
    if not 0 <= port < 65536:
        raise AddressError(f"{port} is not a port: it must be between 0 (any free one) and 65535")
    try:
        bound = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
    except OSError as error:  # a machine without IPv6
        raise AddressError(_reason(host, port, error)) from None
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if bound.family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # :: is not 0.0.0.0 too
        bound.bind((address, port))
    except OSError as error:
        bound.close()
        raise AddressError(_reason(host, port, error)) from None
    warn_if_open(address)
    return bound


def _reason(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} of {host} is taken by another process; give another port, or 0 for any free one"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{host} is not an address of this machine; give one of its own, such as 127.0.0.1 (this machine only) or 0.0.0.0 (all its addresses)"
    if error.errno == errno.EACCES:
        return f"port {port} may not be used by this user; give one above 1023, or 0 for any free one"
    return f"cannot listen on {host}:{port}: {error.strerror}"
