"""How etcd may be set up: TLS, users, limits, compaction; and what is said when it does not fit."""

import logging
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from aetcd import rpc
from torch.distributed import DistError, DistNetworkError, DistStoreError

from coxless.client import address
from coxless.connection import Connection
from coxless.errors import CoxlessError, StoreUnreachableError
from coxless.store import connect
from coxless.stores.etcd import EtcdStore
from coxless.stores.etcd_cluster import Cluster, Deadline, Method
from coxless.stores.local_etcd import LocalEtcd, find_etcd

from ...conftest import NO_ETCD, NewRun, needs_etcd

SOON = timedelta(seconds=2)
PASSWORD = "pass/word@1"
ESCAPED = "pass%2Fword%401"


def ask(cluster: LocalEtcd, path: str, request: Any, response: Any) -> Any:
    """One call to the cluster as an operator makes it."""
    with grpc.insecure_channel(f"127.0.0.1:{cluster.ports[0]}") as channel:
        call = channel.unary_unary(
            path, request_serializer=type(request).SerializeToString, response_deserializer=response.FromString
        )
        return call(request, timeout=10)


# -- TLS


@dataclass(frozen=True)
class Keys:
    ca: Path
    cert: Path
    key: Path


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    """An authority, and one certificate of it for servers at 127.0.0.1 and for clients."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed: it makes the certificates of this test")
    folder = tmp_path_factory.mktemp("keys")
    extensions = folder / "extensions"
    extensions.write_text("subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n")

    def run(*arguments: str) -> None:
        subprocess.run([openssl, *arguments], cwd=folder, check=True, capture_output=True)

    new_key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    run("req", "-x509", *new_key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=test authority", "-days", "2")
    run("req", *new_key, "-keyout", "key.pem", "-out", "request.pem", "-subj", "/CN=test")
    run("x509", "-req", "-in", "request.pem", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2",
        "-extfile", "extensions", "-out", "cert.pem")  # fmt: skip
    return Keys(folder / "ca.pem", folder / "cert.pem", folder / "key.pem")


@needs_etcd()
def test_tls_with_certificates_on_both_sides(keys: Keys) -> None:
    arguments = (
        "--cert-file",
        str(keys.cert),
        "--key-file",
        str(keys.key),
        "--trusted-ca-file",
        str(keys.ca),
        "--client-cert-auth",
    )
    cluster = LocalEtcd(1, arguments=arguments, scheme="https")
    try:
        cluster.start_member(0)
        store = connect(cluster.address("r", f"ca={keys.ca}&cert={keys.cert}&key={keys.key}"), timeout=timedelta(seconds=30))
        store.set("k", "1")
        store.barrier("b", 1, SOON)
        assert store.get("k") == b"1"
        for options in ("", f"ca={keys.ca}"):
            with pytest.raises(StoreUnreachableError, match="no member of etcd://"):
                connect(cluster.address("r", options), timeout=timedelta(seconds=1))
    finally:
        cluster.close()


def test_a_file_that_is_not_there_is_named() -> None:
    with pytest.raises(
        ValueError, match=r"'/nowhere/ca.pem', which the address of the store names, cannot be read: no such file"
    ):
        connect("etcd://127.0.0.1:1/r?ca=/nowhere/ca.pem")


# -- users


@pytest.fixture(scope="module")
def guarded() -> Iterator[LocalEtcd]:
    """A cluster with users: `job` may use what is below /coxless/job/. Its tokens last a second."""
    if find_etcd() is None:
        pytest.skip(NO_ETCD)
    with LocalEtcd(1, arguments=("--auth-token-ttl", "1")) as cluster:
        for user, password in (("root", "r"), ("job", PASSWORD)):
            ask(
                cluster,
                "/etcdserverpb.Auth/UserAdd",
                rpc.AuthUserAddRequest(name=user, password=password),
                rpc.AuthUserAddResponse,
            )
            ask(cluster, "/etcdserverpb.Auth/RoleAdd", rpc.AuthRoleAddRequest(name=user), rpc.AuthRoleAddResponse)
            grant = rpc.AuthUserGrantRoleRequest(user=user, role=user)
            ask(cluster, "/etcdserverpb.Auth/UserGrantRole", grant, rpc.AuthUserGrantRoleResponse)
        below = rpc.Permission(permType=rpc.Permission.READWRITE, key=b"/coxless/job/", range_end=b"/coxless/job0")
        permit = rpc.AuthRoleGrantPermissionRequest(name="job", perm=below)
        ask(cluster, "/etcdserverpb.Auth/RoleGrantPermission", permit, rpc.AuthRoleGrantPermissionResponse)
        ask(cluster, "/etcdserverpb.Auth/AuthEnable", rpc.AuthEnableRequest(), rpc.AuthEnableResponse)
        yield cluster


def test_a_user_with_the_rights_to_his_runs_keys_needs_no_others(guarded: LocalEtcd) -> None:
    store = connect(guarded.address("job", login=f"job:{ESCAPED}"))
    store.set("k", "1")
    store.append("k", "2")
    assert store.add("n", 1) == 1
    store.barrier("b", 1, SOON)
    assert store.get("k") == b"12"
    assert store.num_keys() == 3
    with pytest.raises(DistStoreError):
        store.wait(["missing"], timedelta(seconds=0.3))


def test_a_token_that_has_expired_is_renewed(guarded: LocalEtcd) -> None:
    store = connect(guarded.address("job", login=f"job:{ESCAPED}"))
    assert isinstance(store, EtcdStore)
    for call in (lambda: store.set("t", "1"), lambda: store.get("t"), lambda: store.barrier("late", 1, SOON)):
        store._session.cluster._token = "as good as expired.1"
        call()
    store._session.cluster._token = "as good as expired.1"
    waiter = threading.Thread(target=store.wait, args=(["u"], timedelta(seconds=20)))
    waiter.start()
    time.sleep(2.5)  # the real one expires
    store.set("u", "1")
    waiter.join(20)
    assert not waiter.is_alive()


@pytest.mark.parametrize(
    ("run", "login", "says"),
    [
        ("job", f"job:{ESCAPED}x", "authentication failed, invalid user ID or password"),
        ("job", "nobody:x", "authentication failed, invalid user ID or password"),
        ("job", "", "user name is empty"),
        ("other", f"job:{ESCAPED}", "permission denied"),
    ],
)
def test_who_may_not_is_told_at_once(guarded: LocalEtcd, run: str, login: str, says: str) -> None:
    began = time.monotonic()
    with pytest.raises(StoreUnreachableError, match=f"etcd refuses: {says}") as caught:
        connect(guarded.address(run, login=login), timeout=timedelta(seconds=30))
    assert time.monotonic() - began < 5
    assert PASSWORD not in str(caught.value)
    assert ESCAPED not in str(caught.value)


def test_no_secret_is_ever_printed(guarded: LocalEtcd, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    where = guarded.address("job", login=f"job:{ESCAPED}")
    store = connect(where)
    assert isinstance(store, EtcdStore)
    connection = Connection(store)
    told = [repr(store), str(store), repr(store.etcd), address(store), repr(store._session.cluster.address)]
    store._session._lose()
    with pytest.raises(DistNetworkError) as caught:
        store.get("k")
    told += [str(caught.value), caplog.text]
    connection.close()
    with pytest.raises(StoreUnreachableError) as unreachable:
        connect(where.replace(str(guarded.ports[0]), "1"), timeout=timedelta(seconds=0.1))
    told.append(str(unreachable.value))
    assert not [each for each in told if "pass" in each]


# -- limits


def test_a_value_that_is_too_large_is_one_clear_error_and_the_store_goes_on(new_run: NewRun) -> None:
    store = EtcdStore(new_run())
    store.set("k", b"x" * (1 << 20))
    for size in (1_600_000, 3_000_000):
        for write in (store.set, store.append, lambda key, value: store.compare_set(key, "", value)):
            with pytest.raises(ValueError, match=r"the value for 'large' is too large: etcd takes 1.5 MiB in one request"):
                write("large", b"x" * size)
    assert not store.check(["large"])
    assert len(store.get("k")) == 1 << 20


def test_appends_may_add_up_to_more_than_one_request_holds(new_run: NewRun) -> None:
    store = EtcdStore(new_run())
    for _ in range(5):
        store.append("k", b"x" * 1_000_000)
    assert len(store.get("k")) == 5_000_000


def test_many_large_values_are_set_and_read(new_run: NewRun) -> None:
    store = EtcdStore(new_run())
    names = [f"k{n}" for n in range(12)]
    store.multi_set(names, [b"x" * 400_000] * 12)
    assert [len(value) for value in store.multi_get(names)] == [400_000] * 12


def test_a_sum_of_more_than_64_bits_is_refused(new_run: NewRun) -> None:
    store = EtcdStore(new_run())
    assert store.add("n", (1 << 63) - 1) == (1 << 63) - 1
    with pytest.raises(ValueError, match="has more than 64 bits"):
        store.add("n", 1)


@needs_etcd()
def test_a_full_etcd_is_said_to_be_full() -> None:
    """Not final: an operator can make room, and the job goes on."""
    with LocalEtcd(1, arguments=("--quota-backend-bytes", "1000000")) as cluster:
        store = EtcdStore(cluster.address("r"), timedelta(seconds=1))
        began, written = time.monotonic(), 0
        with pytest.raises(DistNetworkError, match="database space exceeded"):  # noqa: PT012  (how many fit is etcd's affair)
            while written < 50:
                store.set("k", b"x" * 500_000)
                written += 1
        assert time.monotonic() - began < 10
        assert len(store.get("k")) == 500_000


# -- compaction


def test_compaction_disturbs_nobody(etcd: LocalEtcd, new_run: NewRun) -> None:
    store = EtcdStore(new_run())
    store.append("k", "1")
    waiter = store.clone()
    thread = threading.Thread(target=waiter.wait, args=(["later"], timedelta(seconds=30)))
    thread.start()
    for n in range(5):
        store.set("n", str(n))
        latest = ask(etcd, "/etcdserverpb.KV/Range", rpc.RangeRequest(key=b"x"), rpc.RangeResponse).header.revision
        ask(etcd, "/etcdserverpb.KV/Compact", rpc.CompactionRequest(revision=latest, physical=True), rpc.CompactionResponse)
        store.append("k", "1")
        assert store.compare_set("n", str(n), "new") == b"new"
    store.set("later", "1")
    thread.join(20)
    assert not thread.is_alive()
    assert store.get("k") == b"111111"


# -- what else may go wrong


def test_nobody_at_the_address(free_port_address: str) -> None:
    began = time.monotonic()
    with pytest.raises(
        StoreUnreachableError, match=f"no member of {free_port_address} answered within 1 s: .*[Cc]onnection refused"
    ):
        connect(free_port_address, timeout=timedelta(seconds=1))
    assert time.monotonic() - began < 1.5


@pytest.fixture
def free_port_address() -> str:
    from coxless.binding import bind

    with bind("127.0.0.1", 0) as reserved:
        return f"etcd://127.0.0.1:{reserved.getsockname()[1]}/r"


@needs_etcd()
def test_a_cluster_that_comes_late_is_waited_for() -> None:
    cluster = LocalEtcd(1)
    found: list[bytes] = []

    def open_and_use() -> None:
        store = connect(cluster.address("r"), timeout=timedelta(seconds=60))
        store.set("k", "1")
        found.append(store.get("k"))

    thread = threading.Thread(target=open_and_use)
    thread.start()
    try:
        time.sleep(1)
        cluster.start_member(0)
        thread.join(60)
        assert found == [b"1"]
    finally:
        cluster.close()


def test_what_etcd_does_not_know_is_an_error_at_once(etcd: LocalEtcd, new_run: NewRun) -> None:
    store = EtcdStore(new_run())
    nonsense = Method("/etcdserverpb.KV/Nonsense", rpc.TxnRequest, rpc.TxnResponse)
    with pytest.raises(DistError, match="etcd refuses"):
        store._session.cluster.call(nonsense, rpc.TxnRequest(), Deadline(timedelta(seconds=30)))
    assert isinstance(store._session.cluster, Cluster)


def test_without_the_extra_one_sentence_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "aetcd", None)
    for name in [name for name in sys.modules if name.startswith("coxless.stores.etcd")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(CoxlessError, match=r"etcd://h:2379/r needs the extra 'etcd' .*: pip install 'coxless\[etcd\]'"):
        connect("etcd://h/r")
