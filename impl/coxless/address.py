"""Addresses of stores, the only place that reads them: `host:port`, `tcp://host:port`, `etcd://host:2379,…/run`, `file:///path`."""

import ipaddress
import re
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qsl, unquote

FORMS = "host:port (such as 127.0.0.1:29400), etcd://host:2379,host:2379/run or file:///path"
ETCD_PORT = 2379
DEFAULT_LEASE = 60
"""For how long (s) the keys of a run outlive its last process."""
SHORTEST_LEASE = 2  # etcd itself grants no shorter one
LONGEST_LEASE = 7 * 24 * 3600
_HOST = re.compile(r"[A-Za-z0-9._-]{1,253}")
_RUN = re.compile(r"[A-Za-z0-9._-]{1,200}")


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """A TCPStore server."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class FileAddress:
    """A file that all ranks see, for a FileStore."""

    path: Path

    def __str__(self) -> str:
        return f"file://{self.path}"


@dataclass(frozen=True, slots=True)
class EtcdAddress:
    """The members of an etcd cluster, and the run whose keys are meant. `str()` and `repr()` say nothing secret."""

    endpoints: tuple[str, ...]
    """host:port of each member that is known."""
    run: str
    user: str = ""
    password: str = field(default="", repr=False)
    ca: str = ""
    """File of the authority that signed the members' certificates; with any of the three files the connection is TLS."""
    cert: str = ""
    key: str = ""
    lease: int = DEFAULT_LEASE
    """Seconds."""

    @property
    def tls(self) -> bool:
        return bool(self.ca or self.cert or self.key)

    def __str__(self) -> str:
        return f"etcd://{','.join(self.endpoints)}/{self.run}"


Address = TcpAddress | FileAddress | EtcdAddress


def parse(address: str) -> Address:
    """What the text means. Raises ValueError, in one sentence that never repeats a password."""
    scheme, separator, rest = address.partition("://")
    if not separator:
        return _tcp(address, address)
    if scheme == "tcp":
        return _tcp(address, rest)
    if scheme == "file":
        return _file(address, rest)
    if scheme == "etcd":
        return _etcd(address)
    raise _wrong(address, f"it has the form {FORMS}")


def redacted(address: str) -> str:
    """The text without user, password and everything after a question mark: for messages and logs."""
    # The last @ first: a password may hold a question mark, a line end, or what looks like a scheme.
    head, at, rest = address.rpartition("@")
    scheme = re.match(r"[a-z0-9+.-]{1,20}://", head)
    return f"{scheme.group() if scheme else ''}{rest}".partition("?")[0] if at else address.partition("?")[0]


def is_local(address: str) -> bool:
    """Whether every part of it is on this machine, as far as the text says. False for what is no address."""
    try:
        parsed = parse(address)
    except ValueError:
        return False
    match parsed:
        case TcpAddress(host, _):
            return _is_loopback(host)
        case EtcdAddress():
            return all(_is_loopback(endpoint.rpartition(":")[0].strip("[]")) for endpoint in parsed.endpoints)
    return False


def _is_loopback(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")


def _wrong(address: str, why: str) -> ValueError:
    return ValueError(f"{redacted(address)!r} is not the address of a store: {why}")


def _tcp(address: str, rest: str) -> TcpAddress:
    found = _host_and_port(rest)
    if found is None or "@" in rest:
        raise _wrong(address, f"it has the form {FORMS}")
    return TcpAddress(*found)


def _host_and_port(text: str, default: int | None = None) -> tuple[str, int] | None:
    """host:port or [v6]:port; None if it is neither."""
    if default is not None and (text.endswith("]") or ":" not in text):
        text = f"{text}:{default}"
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        if not _is_v6(host):
            return None
    elif not _HOST.fullmatch(host):
        return None
    if not colon or not re.fullmatch("[0-9]{1,5}", port) or not 0 < int(port) < 65536:
        return None
    return host, int(port)


def _is_v6(host: str) -> bool:
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        return False
    return True


def _file(address: str, rest: str) -> FileAddress:
    path = unquote(rest)
    if not path.startswith("/") or path == "/" or "\0" in path:
        raise _wrong(address, "a file is named by its whole path, as in file:///shared/job-17/store")
    return FileAddress(Path(path))


def _etcd(address: str) -> EtcdAddress:
    body, _, query = address.removeprefix("etcd://").partition("?")
    if "@" in query:  # what is before it may be half a password
        raise _wrong(address, "a question mark in a password is written %3F, an @ in an option %40")
    # The last @ and the first slash after it: a slash in a password that was not escaped must not end up in a message as a run.
    login, _, rest = body.rpartition("@")
    members, _, run = rest.partition("/")
    user, _, password = map(unquote, login.partition(":"))
    endpoints = []
    for member in members.split(","):
        found = _host_and_port(member, ETCD_PORT)
        if found is None:
            raise _wrong(address, f"{member!r} is no member of etcd: each is host:2379, with commas between them")
        endpoints.append(str(TcpAddress(*found)))
    run = unquote(run)
    if not _RUN.fullmatch(run):
        raise _wrong(
            address,
            f"{run!r} names no run: give each job a name of its own after the members, of letters, digits and ._- , as in etcd://host:2379/job-17",
        )
    options = _options(address, query)
    if bool(options.get("cert")) != bool(options.get("key")):
        raise _wrong(address, "cert= and key= are needed together")
    if login and not (user and password):
        raise _wrong(address, "a login has the form user:password@, with %-escapes for what is special in either")
    lease = options.pop("lease", str(DEFAULT_LEASE))
    if not re.fullmatch("[0-9]{1,7}", lease) or not SHORTEST_LEASE <= int(lease) <= LONGEST_LEASE:
        raise _wrong(address, f"lease={lease} must be whole seconds from {SHORTEST_LEASE} to {LONGEST_LEASE}")
    return EtcdAddress(tuple(dict.fromkeys(endpoints)), run, user, password, lease=int(lease), **options)


def _options(address: str, query: str) -> dict[str, str]:
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True) if query else []
    except ValueError:
        raise _wrong(address, "after the question mark it has name=value, with & between them") from None
    options: dict[str, str] = {}
    for name, value in pairs:
        if name not in ("ca", "cert", "key", "lease"):
            raise _wrong(address, f"it has no option {name!r}; there are ca, cert, key and lease")
        if name in options or not value:
            raise _wrong(address, f"{name}= is given {'twice' if name in options else 'without a value'}")
        options[name] = value
    return options
