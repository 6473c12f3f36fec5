"""Binding a socket to one address, the only way to keep a TCPStore server off the other interfaces.

Left to itself TCPStore listens on all of them, whatever its host_name says, and it knows no authentication.
"""

import errno
import ipaddress
import socket

from .errors import CoxlessError


class AddressError(CoxlessError, OSError):
    """A server cannot be started at this address: taken, not of this machine, or not allowed."""


def resolve(host: str) -> str:
    """The IPv4 address of `host`. Raises AddressError when it has none."""
    try:
        return str(ipaddress.IPv4Address(host))
    except ValueError:
        pass
    try:
        found = socket.getaddrinfo(host, None, socket.AF_INET, socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError):
        raise AddressError(
            f"{host!r} is neither an IPv4 address nor a name that has one; the store listens on IPv4, such as 127.0.0.1"
        ) from None
    return str(found[0][4][0])


def bind(host: str, port: int) -> socket.socket:
    """A socket that is bound to exactly that address, not yet listening. Port 0: a free one.

    SO_REUSEADDR lets a server be started again at once on the port of one that died. It also lets a second socket be bound to the port as long
    as neither listens: a parent reserves a port in that way while its server is down.

    Raises AddressError.
    """
    address = resolve(host)
    if not 0 <= port < 65536:
        raise AddressError(f"{port} is not a port: it must be between 0 (any free one) and 65535")
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((address, port))
    except OSError as error:
        bound.close()
        raise AddressError(_reason(host, port, error)) from None
    return bound


def _reason(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} of {host} is taken by another process; give another port, or 0 for any free one"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{host} is not an address of this machine; give one of its own, such as 127.0.0.1 (this machine only) or 0.0.0.0 (all its addresses)"
    if error.errno == errno.EACCES:
        return f"port {port} may not be used by this user; give one above 1023, or 0 for any free one"
    return f"cannot listen on {host}:{port}: {error.strerror}"
