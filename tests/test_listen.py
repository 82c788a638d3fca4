from __future__ import annotations

import errno
import os
import select
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from shardnet.errors import SystemFault, UsageError
from shardnet.listen import (
    AddressHeld,
    ListenerBank,
    SocketOptions,
    TcpAddress,
    open_metrics_listener,
    parse_address,
    parse_tcp_address,
)

ANY_PORT = "127.0.0.1:0"


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")


@pytest.fixture
def banks() -> Iterator[list[ListenerBank]]:
    banks: list[ListenerBank] = []
    yield banks
    for bank in banks:
        bank.close()


def open_bank(banks: list[ListenerBank], *addresses: str, shards: int = 2) -> ListenerBank:
    banks.append(ListenerBank.open([parse_address(address) for address in addresses], shards))
    return banks[-1]


def open_fds() -> list[str]:
    return sorted(path.name for path in Path("/proc/self/fd").iterdir())


def port_of(bank: ListenerBank) -> int:
    """The port of its first address."""
    address = bank.addresses[0]
    assert isinstance(address, TcpAddress)
    return address.port


def accept_any(listeners: Sequence[socket.socket]) -> tuple[int, socket.socket]:
    """The index of the listener that a connection has come to, and the connection."""
    readable, _, _ = select.select(listeners, [], [], 10)
    return listeners.index(readable[0]), readable[0].accept()[0]


@pytest.mark.parametrize(
    ("text", "family", "shown"),
    [
        ("127.0.0.1:9000", socket.AF_INET, "127.0.0.1:9000"),
        (":9000", socket.AF_INET, "0.0.0.0:9000"),
        ("0.0.0.0:0", socket.AF_INET, "0.0.0.0:0"),
        ("localhost:9000", socket.AF_INET, "127.0.0.1:9000"),
        ("[::1]:9000", socket.AF_INET6, "[::1]:9000"),
        ("[::]:65535", socket.AF_INET6, "[::]:65535"),
        ("[0:0:0:0:0:0:0:1]:9000", socket.AF_INET6, "[::1]:9000"),
        ("[fe80::1%lo]:9000", socket.AF_INET6, "[fe80::1%lo]:9000"),
        ("*:9000", socket.AF_INET6, "*:9000"),
    ],
)
def test_address_is_parsed(text: str, family: socket.AddressFamily, shown: str) -> None:
    address = parse_address(text)
    assert isinstance(address, TcpAddress)
    assert address.family is family
    assert str(address) == shown
    assert parse_address(shown) == address


@pytest.mark.parametrize(
    ("text", "lesson"),
    [
        ("", "has no port"),
        ("9000", "has no port"),
        ("localhost", "has no port"),
        ("127.0.0.1:", "port '' is no number from 0 to 65535"),
        ("127.0.0.1:http", "port 'http' is no number"),
        ("127.0.0.1:65536", "from 0 to 65535"),
        ("127.0.0.1:-1", "from 0 to 65535"),
        ("127.0.0.1:\u0663", "is no number"),
        ("::1:9000", "stands in brackets"),
        ("[::1:9000", "stands in brackets"),
        ("[localhost]:9000", "is no IPv6 address"),
        ("[::ffff:127.0.0.1]:9000", "write 127.0.0.1:9000"),
        ("no-such-host.invalid:9000", "is not known here"),
        ("." * 70 + ":9000", "is not known here"),
        ("127.0.0.1:" + "9" * 5000, "is no number from 0 to 65535"),
        ("[*]:9000", "is no IPv6 address"),
    ],
)
def test_wrong_address_is_refused_with_a_lesson(text: str, lesson: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_address(text)
    assert lesson in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bank_has_one_listener_per_shard_and_address(banks: list[ListenerBank]) -> None:
    bank = open_bank(banks, ANY_PORT, ANY_PORT, shards=3)
    assert bank.shards == 3
    assert len(set(bank.addresses)) == 2
    assert bank.shared == (False, False)
    for shard in range(3):
        listeners = bank.listeners(shard)
        assert ["127.0.0.1:{1}".format(*sock.getsockname()) for sock in listeners] == list(map(str, bank.addresses))
        assert not any(sock.getblocking() for sock in listeners)
        assert not any(sock.get_inheritable() for sock in listeners)


def test_every_listener_of_a_group_gets_its_share(banks: list[ListenerBank]) -> None:
    bank = open_bank(banks, ANY_PORT, shards=4)
    listeners = [bank.listeners(shard)[0] for shard in range(4)]
    seen: set[int] = set()
    for _ in range(500):  # 3/4 ** 500 is how likely it is that one shard gets none.
        with socket.create_connection(("127.0.0.1", port_of(bank))):
            shard, accepted = accept_any(listeners)
            accepted.close()
            seen.add(shard)
    assert seen == {0, 1, 2, 3}


def test_accepted_connection_inherits_the_options(banks: list[ListenerBank]) -> None:
    """Set once on the listener, they cost nothing per connection."""
    bank = open_bank(banks, ANY_PORT, shards=1)
    with socket.create_connection(("127.0.0.1", port_of(bank))):
        _, accepted = accept_any(bank.listeners(0))
        with accepted:
            tcp = socket.IPPROTO_TCP
            assert accepted.getsockopt(tcp, socket.TCP_NODELAY) == 1
            assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert accepted.getsockopt(tcp, socket.TCP_KEEPIDLE) == 60
            assert accepted.getsockopt(tcp, socket.TCP_KEEPINTVL) == 10
            assert accepted.getsockopt(tcp, socket.TCP_KEEPCNT) == 6
            assert accepted.getsockopt(tcp, socket.TCP_USER_TIMEOUT) == 30_000


def test_backlog_effective_is_what_the_kernel_grants() -> None:
    somaxconn = int(Path("/proc/sys/net/core/somaxconn").read_text())
    for asked, granted in ((7, 7), (somaxconn + 1, somaxconn)):
        bank = ListenerBank.open([parse_address(ANY_PORT)], 1, SocketOptions(backlog=asked))
        assert bank.backlog_effective == granted
        bank.close()


@needs_ipv6
def test_both_wildcards_stand_side_by_side(banks: list[ListenerBank]) -> None:
    port = port_of(open_bank(banks, "[::]:0"))
    bank = open_bank(banks, f":{port}")
    with socket.create_connection(("127.0.0.1", port)):
        accept_any([bank.listeners(shard)[0] for shard in range(2)])[1].close()


@needs_ipv6
def test_dual_stack_is_one_socket_for_both(banks: list[ListenerBank]) -> None:
    bank = open_bank(banks, "*:0", shards=2)
    assert str(bank.addresses[0]) == f"*:{port_of(bank)}"
    listeners = [bank.listeners(shard)[0] for shard in range(2)]
    assert len({sock.fileno() for sock in listeners}) == 2
    for host in ("127.0.0.1", "::1"):
        with socket.create_connection((host, port_of(bank))):
            accept_any(listeners)[1].close()


@needs_ipv6
def test_ipv6_listener_leaves_ipv4_alone(banks: list[ListenerBank]) -> None:
    bank = open_bank(banks, "[::]:0", shards=1)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port_of(bank)))


@needs_ipv6
@pytest.mark.parametrize("other", ["127.0.0.1", "0.0.0.0", "[::]", "[::1]", "*"])
@pytest.mark.parametrize("dual_first", [True, False])
def test_dual_stack_and_another_instance_are_in_each_others_way(
    banks: list[ListenerBank], other: str, dual_first: bool
) -> None:
    first, second = ("*", other) if dual_first else (other, "*")
    port = port_of(open_bank(banks, f"{first}:0"))
    with pytest.raises(AddressHeld):
        ListenerBank.open([parse_address(f"{second}:{port}")], 2)


@needs_ipv6
def test_ipv6_listener_accepts(banks: list[ListenerBank]) -> None:
    bank = open_bank(banks, "[::1]:0", shards=1)
    with socket.create_connection(("::1", port_of(bank))):
        accept_any(bank.listeners(0))[1].close()


def test_second_instance_is_refused_and_told_the_holder(banks: list[ListenerBank]) -> None:
    address = open_bank(banks, ANY_PORT).addresses[0]
    with pytest.raises(AddressHeld) as caught:
        ListenerBank.open([address], 2)
    assert caught.value.address == address
    assert caught.value.holder_pid == os.getpid()
    assert f"{address} is already running, pid {os.getpid()}" in str(caught.value)


def test_second_instance_is_refused_when_a_hundred_were_before(banks: list[ListenerBank]) -> None:
    """Each refused start leaves an entry in the queue of the lock, until it is full."""
    address = open_bank(banks, ANY_PORT, shards=1).addresses[0]
    for _ in range(150):
        with pytest.raises(AddressHeld, match="already running") as caught:
            ListenerBank.open([address], 1)
    assert caught.value.holder_pid is None


@pytest.mark.parametrize("reuse_port", [False, True])
def test_address_of_somebody_else_is_in_use(reuse_port: bool) -> None:
    """With SO_REUSEPORT too: the kernel would let us join, and split the clients between two programs."""
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, reuse_port)
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = TcpAddress(socket.AF_INET, "127.0.0.1", other.getsockname()[1])
        with pytest.raises(AddressHeld, match=f"address {address} is in use") as caught:
            ListenerBank.open([address], 2)
        assert caught.value.address == address
        assert caught.value.holder_pid is None


@pytest.mark.parametrize(("first", "second"), [("127.0.0.1", "0.0.0.0"), ("0.0.0.0", "127.0.0.1")])
def test_wildcard_and_specific_address_are_in_each_others_way(
    banks: list[ListenerBank], first: str, second: str
) -> None:
    port = port_of(open_bank(banks, f"{first}:0"))
    with pytest.raises(AddressHeld, match=f"address {second}:{port} is in use"):
        ListenerBank.open([parse_address(f"{second}:{port}")], 2)


@pytest.mark.parametrize(
    ("texts", "lesson"),
    [
        ([], "no address to listen on"),
        (["127.0.0.1:9000", "127.0.0.1:9000"], "given twice"),
        (["127.0.0.1:9000", ":9000"], "0.0.0.0:9000 covers 127.0.0.1:9000"),
        (["[::]:9000", "[::1]:9000"], "[::]:9000 covers [::1]:9000"),
        (["*:9000", "*:9000"], "given twice"),
        (["*:9000", "127.0.0.1:9000"], "*:9000 covers 127.0.0.1:9000"),
        ([":9000", "*:9000"], "*:9000 covers 0.0.0.0:9000"),
        (["[::1]:9000", "*:9000"], "*:9000 covers [::1]:9000"),
        (["[::]:9000", "*:9000"], "*:9000 covers [::]:9000"),
        (["unix:/run/a", "127.0.0.1:9000", "unix:/run/a"], "unix:/run/a is given twice"),
        (["unix:/proc/self/a", "unix:/proc/./self/../self/a"], "covers unix:/proc/self/a already"),
        (["fd://7", "fd://7"], "fd://7 is given twice"),
    ],
)
def test_addresses_in_each_others_way_are_refused(texts: list[str], lesson: str) -> None:
    with pytest.raises(UsageError) as caught:
        ListenerBank.open([parse_address(text) for text in texts], 1)
    assert lesson in str(caught.value)


def test_address_that_this_machine_lacks_is_said_so() -> None:
    with pytest.raises(SystemFault, match=r"cannot listen on 192\.0\.2\.1:9000: this machine has no such") as caught:
        ListenerBank.open([parse_address("192.0.2.1:9000")], 1)
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.EADDRNOTAVAIL


def test_failure_leaves_nothing_open(banks: list[ListenerBank]) -> None:
    taken = open_bank(banks, ANY_PORT).addresses[0]
    before = open_fds()
    with pytest.raises(AddressHeld):
        ListenerBank.open([parse_address(ANY_PORT), taken], 4)
    assert open_fds() == before


def test_close_frees_the_address(banks: list[ListenerBank]) -> None:
    before = open_fds()
    bank = open_bank(banks, ANY_PORT)
    bank.close()
    bank.close()
    assert open_fds() == before
    open_bank(banks, str(bank.addresses[0]))


def test_address_is_free_again_with_connections_in_time_wait(banks: list[ListenerBank]) -> None:
    bank = open_bank(banks, ANY_PORT, shards=1)
    with socket.create_connection(("127.0.0.1", port_of(bank))) as client:
        accept_any(bank.listeners(0))[1].close()  # The side that closes first keeps the port in TIME_WAIT.
        assert client.recv(1) == b""
    bank.close()
    open_bank(banks, str(bank.addresses[0]))


@pytest.mark.parametrize("text", ["unix:/run/a", "fd://3", "9464"])
def test_metrics_address_is_tcp(text: str) -> None:
    with pytest.raises(UsageError, match="write HOST:PORT, for example"):
        parse_tcp_address(text)


def test_close_in_child_keeps_one_shard(banks: list[ListenerBank]) -> None:
    bank = open_bank(banks, ANY_PORT, ANY_PORT, shards=3)
    bank.close_in_child(1)
    assert [sock.fileno() >= 0 for shard in range(3) for sock in bank.listeners(shard)] == [
        *(False, False),
        *(True, True),
        *(False, False),
    ]


def test_metrics_listener_shares_with_nobody() -> None:
    with open_metrics_listener(parse_tcp_address(ANY_PORT)) as listener:
        address = TcpAddress(socket.AF_INET, *listener.getsockname())
        with pytest.raises(AddressHeld, match=f"address {address} is in use"):
            open_metrics_listener(address)
        with socket.create_connection(listener.getsockname()):
            accept_any([listener])[1].close()
