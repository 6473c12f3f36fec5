"""The one place that reads addresses: what each form means, what is no address, and that no message gives a password away."""

from pathlib import Path

import pytest

from coxless.address import EtcdAddress, FileAddress, TcpAddress, is_local, parse, redacted

SECRET = "s3cret"


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("a.b:1", TcpAddress("a.b", 1)),
        ("tcp://[::1]:80", TcpAddress("::1", 80)),
        ("file:///shared/a%20b", FileAddress(Path("/shared/a b"))),
        ("etcd://h/run", EtcdAddress(("h:2379",), "run")),
        ("etcd://h1:1,h2,[::1]:3,[::2],h1:1/run-1.a_b", EtcdAddress(("h1:1", "h2:2379", "[::1]:3", "[::2]:2379"), "run-1.a_b")),
        ("etcd://u:p%40%2F:@h/r", EtcdAddress(("h:2379",), "r", "u", "p@/:")),
        ("etcd://h/r?ca=/a/b.pem&cert=c&key=k&lease=9", EtcdAddress(("h:2379",), "r", ca="/a/b.pem", cert="c", key="k", lease=9)),
    ],
)
def test_what_an_address_means(text: str, meant: object) -> None:
    assert parse(text) == meant


def test_only_the_files_make_it_tls() -> None:
    assert not parse("etcd://h/r").tls  # type: ignore[union-attr]
    assert parse("etcd://h/r?ca=x").tls  # type: ignore[union-attr]


@pytest.mark.parametrize("form", ["h:1", "[::1]:1", "file:///a/b", "etcd://h:1,[::1]:2/run"])
def test_an_address_is_written_as_it_is_read(form: str) -> None:
    assert str(parse(form)) == form


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "it has the form host:port"),
        ("host", "it has the form host:port"),
        ("http://h:1", r"etcd://host:2379,host:2379/run or file:///path"),
        ("redis://h:1/x", "it has the form host:port"),
        ("tcp://u:p@h:1", "it has the form host:port"),
        ("file://relative", "a file is named by its whole path"),
        ("file:///", "a file is named by its whole path"),
        ("etcd://", "'' is no member of etcd"),
        ("etcd://h:2379", "names no run"),
        ("etcd://h:2379/", "names no run"),
        ("etcd://h:2379/a/b", "'a/b' names no run"),
        ("etcd://h:2379/a b", "names no run"),
        ("etcd://h:x/r", "'h:x' is no member of etcd"),
        ("etcd://h1,,h2/r", "'' is no member of etcd"),
        ("etcd://::1/r", "'::1' is no member of etcd"),
        ("etcd://user@h/r", "a login has the form user:password@"),
        ("etcd://h/r?lease=1", "lease=1 must be whole seconds from 2"),
        ("etcd://h/r?lease=soon", "lease=soon must be whole seconds"),
        ("etcd://h/r?cert=x", "cert= and key= are needed together"),
        ("etcd://h/r?colour=red", "no option 'colour'; there are ca, cert, key and lease"),
        ("etcd://h/r?ca=", "ca= is given without a value"),
        ("etcd://h/r?ca=x&ca=y", "ca= is given twice"),
        ("etcd://h/r?nonsense", "name=value"),
    ],
)
def test_what_is_no_address_says_why(text: str, why: str) -> None:
    with pytest.raises(ValueError, match="is not the address of a store") as caught:
        parse(text)
    assert why in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        f"etcd://user:{SECRET}@h/a/b",
        f"etcd://user:{SECRET}/x@h",
        f"etcd://user:{SECRET}@",
        f"tcp://user:{SECRET}@h:1",
        f"http://user:{SECRET}@h:1",
        f"etcd://h/r?password={SECRET}&lease=0",
        f"etcd://user:{SECRET}@h/r?lease=0",
    ],
)
def test_no_error_repeats_a_password(text: str) -> None:
    with pytest.raises(ValueError, match="is not the address") as caught:
        parse(text)
    assert SECRET not in str(caught.value)
    assert SECRET not in redacted(text)


def test_nothing_that_is_printed_of_an_address_holds_its_password() -> None:
    address = parse(f"etcd://user:{SECRET}@h/r")
    assert SECRET not in str(address) + repr(address)


@pytest.mark.parametrize(
    ("text", "local"),
    [
        ("127.0.0.1:1", True), ("localhost:1", True), ("[::1]:1", True), ("10.0.0.1:1", False), ("nonsense", False), ("", False),
        ("etcd://127.0.0.1:1,127.0.0.1:2/r", True), ("etcd://127.0.0.1:1,h/r", False), ("file:///a", False),
    ],
)  # fmt: skip
def test_what_is_on_this_machine_alone(text: str, local: bool) -> None:
    assert is_local(text) == local
