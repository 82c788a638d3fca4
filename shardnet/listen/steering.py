"""Which listener of a group gets the next connection: classic BPF programs for SO_ATTACH_REUSEPORT_CBPF.

Without a program the kernel hashes a connection's addresses and ports. A program looks at the packet and returns the
index of a listener, in the order in which the group's listeners were bound; for an index that there is none of, the
kernel hashes. No privilege is needed. One program serves the whole group, whichever of its sockets it is attached to.

The instructions are those of linux/filter.h; their operands may name what is no packet data: the CPU that handles the
packet, a random number, the network header (SKF_AD_CPU, SKF_AD_RANDOM, SKF_NET_OFF there).

Lives here: writing programs, and attaching them. Must not live here: which to use, and when.
"""

from __future__ import annotations

import ctypes
import socket
import struct
from collections.abc import Sequence
from typing import Final

__all__ = ["Program", "attach", "by_cpu", "by_source", "by_weight", "detach", "uniformly"]

SO_ATTACH_REUSEPORT_CBPF: Final = 51  # asm-generic/socket.h
SO_DETACH_REUSEPORT_BPF: Final = 68

LD_WORD: Final = 0x20  # A = the 4 bytes at k, in network order.
LD_BYTE: Final = 0x30
RSH: Final = 0x74  # A >>= k
MUL: Final = 0x24
MOD: Final = 0x94
XOR_X: Final = 0xAC
TAX: Final = 0x07  # X = A
JUMP: Final = 0x05  # By k.
JEQ: Final = 0x15
JGE: Final = 0x35
RET_A: Final = 0x16
RET_K: Final = 0x06

AD_OFF: Final = 0xFFFFF000
AD_CPU: Final = AD_OFF + 36
AD_RANDOM: Final = AD_OFF + 56
NET_OFF: Final = 0xFFF00000

INSTRUCTION: Final = struct.Struct("=HBBI")
FPROG: Final = struct.Struct("@HP")
GOLDEN: Final = 0x9E3779B1  # Multiplicative hashing: Knuth, The Art of Computer Programming 3, 6.4.
RANDOM_RANGE: Final = 1 << 16

Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, operand
Program = tuple[Instruction, ...]


def uniformly(count: int) -> Program:
    """To one of the first `count` listeners, at random."""
    return ((LD_WORD, 0, 0, AD_RANDOM), (MOD, 0, 0, count), (RET_A, 0, 0, 0))


def by_cpu(count: int) -> Program:
    """To the listener of the CPU on which the kernel handles the packet, modulo `count`."""
    return ((LD_WORD, 0, 0, AD_CPU), (MOD, 0, 0, count), (RET_A, 0, 0, 0))


def by_source(count: int) -> Program:
    """Always to the same one of the first `count` listeners for a client's address, of IPv4 or IPv6."""
    return (
        (LD_BYTE, 0, 0, NET_OFF),
        (RSH, 0, 0, 4),
        (JEQ, 2, 0, 6),
        (LD_WORD, 0, 0, NET_OFF + 12),
        (JUMP, 0, 0, 10),
        (LD_WORD, 0, 0, NET_OFF + 8),
        (TAX, 0, 0, 0),
        (LD_WORD, 0, 0, NET_OFF + 12),
        (XOR_X, 0, 0, 0),
        (TAX, 0, 0, 0),
        (LD_WORD, 0, 0, NET_OFF + 16),
        (XOR_X, 0, 0, 0),
        (TAX, 0, 0, 0),
        (LD_WORD, 0, 0, NET_OFF + 20),
        (XOR_X, 0, 0, 0),
        (MUL, 0, 0, GOLDEN),
        (RSH, 0, 0, 16),
        (MOD, 0, 0, count),
        (RET_A, 0, 0, 0),
    )


def by_weight(weights: Sequence[float]) -> Program:
    """To one of the listeners at random, each as likely as its weight says; not all may be 0."""
    total = sum(weights)
    program: list[Instruction] = [(LD_WORD, 0, 0, AD_RANDOM), (MOD, 0, 0, RANDOM_RANGE)]
    passed = 0.0
    last = max(index for index, weight in enumerate(weights) if weight > 0)
    for index, weight in enumerate(weights[:last]):
        passed += weight
        if weight > 0:
            program += [(JGE, 1, 0, round(passed / total * RANDOM_RANGE)), (RET_K, 0, 0, index)]
    return (*program, (RET_K, 0, 0, last))


def attach(sock: socket.socket, program: Program) -> None:
    """Let the program decide for the socket's group from now on. Raises `OSError` where the kernel will not."""
    code = ctypes.create_string_buffer(b"".join(INSTRUCTION.pack(*one) for one in program))
    # The kernel copies the program before the call returns.
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF, FPROG.pack(len(program), ctypes.addressof(code)))


def detach(sock: socket.socket) -> None:
    """Let the kernel hash again. Raises `OSError` if no program was attached."""
    sock.setsockopt(socket.SOL_SOCKET, SO_DETACH_REUSEPORT_BPF, 0)
