"""The listener bank: every listening socket of a server, opened once, before the first fork.

The supervisor holds them all for life, so that a worker's death closes no queue: what waits there waits for the
successor. A TCP address gets one SO_REUSEPORT listener per shard, each with an accept queue of its own in the kernel.
The order in which the listeners of a group start to listen is their index in it, stable as long as none is closed.
Unix sockets know no such groups, and of an inherited socket there is one: those are *shared*, one listener on which all
workers accept.

Lives here: addresses, options of listening sockets, opening and closing. Must not live here: accepting.
"""

from shardnet.listen.address import (
    Address,
    AddressHeld,
    InheritedAddress,
    TcpAddress,
    UnixAddress,
    parse_address,
    parse_tcp_address,
)
from shardnet.listen.bank import HAND_OVER_VERSION, ListenerBank
from shardnet.listen.options import SocketOptions
from shardnet.listen.tcp import open_metrics_listener

__all__ = [
    "HAND_OVER_VERSION",
    "Address",
    "AddressHeld",
    "InheritedAddress",
    "ListenerBank",
    "SocketOptions",
    "TcpAddress",
    "UnixAddress",
    "open_metrics_listener",
    "parse_address",
    "parse_tcp_address",
]
