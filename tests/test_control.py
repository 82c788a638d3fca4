from __future__ import annotations

import json
import os
import resource
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from shardnet.control import PACKET_MAX_BYTES, RECEIVE_MAX, ControlEndpoint, pair

Ends = tuple[ControlEndpoint, ControlEndpoint]
EndAndRawPeer = tuple[ControlEndpoint, socket.socket]


@pytest.fixture
def ends() -> Iterator[Ends]:
    left, right = pair()
    yield left, right
    left.close()
    right.close()


@pytest.fixture
def end_and_raw_peer() -> Iterator[EndAndRawPeer]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    endpoint = ControlEndpoint(ours)
    yield endpoint, theirs
    endpoint.close()
    theirs.close()


def test_message_arrives_whole_with_its_id_and_fields(ends: Ends) -> None:
    left, right = ends
    assert left.send("drain", timeout_s=1.5) == 1
    assert left.send("ready") == 2
    first, second = right.receive()
    assert (first.id, first.type, first.fields, first.re) == (1, "drain", {"timeout_s": 1.5}, None)
    assert (second.id, second.type, second.fields) == (2, "ready", {})


def test_answer_names_the_message_it_answers(ends: Ends) -> None:
    left, right = ends
    left.send("lend", shard=3)
    [message] = right.receive()
    assert right.answer(message, ok=True) == 1
    [answer] = left.receive()
    assert (answer.type, answer.re, answer.fields) == ("ack", message.id, {"ok": True})


def test_receive_returns_nothing_when_nothing_waits(ends: Ends) -> None:
    left, _right = ends
    assert left.receive() == []
    assert not left.eof


def test_receive_takes_a_bounded_number_when_the_peer_babbles(ends: Ends) -> None:
    left, right = ends
    for _ in range(RECEIVE_MAX + 1):
        assert right.send("ready") is not None
    assert len(left.receive()) == RECEIVE_MAX
    assert len(left.receive()) == 1


@pytest.mark.parametrize(
    "packet",
    [
        b"\xff\xfe",
        b"{",
        b"[]",
        b'"ready"',
        b"null",
        b"{}",
        b'{"id": 1}',
        b'{"type": "ready"}',
        b'{"id": "1", "type": "ready"}',
        b'{"id": true, "type": "ready"}',
        b'{"id": 1, "type": 2}',
        b'{"id": 1, "type": "ack", "re": "x"}',
        b"[" * 60_000,
        b'{"id": 1, "type": "x", "pad": "' + b"x" * PACKET_MAX_BYTES + b'"}',
    ],
)
@pytest.mark.fault("F34")
def test_packet_that_is_no_message_is_skipped_and_counted(end_and_raw_peer: EndAndRawPeer, packet: bytes) -> None:
    ours, peer = end_and_raw_peer
    peer.send(packet)
    peer.send(b'{"id": 7, "type": "ready"}')
    assert [message.id for message in ours.receive()] == [7]
    assert ours.corrupt == 1
    assert not ours.eof


def test_send_gives_up_when_the_peer_does_not_read(ends: Ends) -> None:
    """The supervisor must never wait for a hung worker."""
    left, right = ends
    sent = 0
    while left.send("note", text="x" * 10_000) is not None:
        sent += 1
    assert sent > 0
    assert not left.eof
    received = right.receive()
    assert [message.id for message in received] == list(range(1, sent + 1))
    assert left.send("note") == sent + 1  # What was not sent has used up no id.


def test_send_gives_up_when_the_peer_is_gone(ends: Ends) -> None:
    left, right = ends
    right.close()
    assert left.send("drain") is None
    assert left.eof


def test_receive_delivers_what_was_sent_before_the_peer_went(ends: Ends) -> None:
    left, right = ends
    right.send("failed", kind="app")
    right.close()
    assert [message.type for message in left.receive()] == ["failed"]
    assert left.eof


def test_receive_sees_the_end_when_the_peer_died_with_unread_packets(
    ends: Ends,
) -> None:
    left, right = ends
    left.send("drain")
    right.close()
    assert left.receive() == []
    assert left.eof


def test_long_texts_are_cut_in_the_middle_when_the_packet_would_not_fit(
    ends: Ends,
) -> None:
    left, right = ends
    traceback = "first" + "\udc80" * PACKET_MAX_BYTES + "last"
    assert left.send("failed", message="\U0001f600" * PACKET_MAX_BYTES, detail=traceback) == 1
    [message] = right.receive()
    detail = message.fields["detail"]
    assert detail.startswith("first")
    assert detail.endswith("last")
    assert "[...]" in detail


def test_text_that_fits_is_sent_as_it_is(ends: Ends) -> None:
    left, right = ends
    text = "x" * (PACKET_MAX_BYTES - 100)
    left.send("failed", detail=text)
    [message] = right.receive()
    assert message.fields["detail"] == text


def test_send_refuses_what_is_no_packet(ends: Ends) -> None:
    left, _right = ends
    with pytest.raises(ValueError, match="at most"):
        left.send("numbers", numbers=list(range(PACKET_MAX_BYTES)))
    with pytest.raises(ValueError, match="may not be named"):
        left.send("ready", id=5)


def test_packet_is_plain_json(end_and_raw_peer: EndAndRawPeer) -> None:
    ours, peer = end_and_raw_peer
    ours.send("ready", shard=2)
    assert json.loads(peer.recv(PACKET_MAX_BYTES)) == {"id": 1, "type": "ready", "shard": 2}


def open_fds() -> set[str]:
    return {entry.name for entry in Path("/proc/self/fd").iterdir()}


def test_descriptors_come_with_a_message_as_copies_of_our_own(ends: Ends) -> None:
    left, right = ends
    read_fd, write_fd = os.pipe()
    assert left.send("lend", [write_fd], loan=1) is not None
    os.close(write_fd)
    [message] = right.receive(fds_max=2)
    [copy] = message.fds
    assert not os.get_inheritable(copy)
    os.write(copy, b"x")
    assert os.read(read_fd, 1) == b"x"
    message.close_fds()
    assert os.read(read_fd, 1) == b""  # Nobody has the other end any more.
    os.close(read_fd)


def test_descriptors_that_nobody_wants_are_not_kept(ends: Ends) -> None:
    left, right = ends
    before = open_fds()
    left.send("lend", [0, 1])
    left.send("lend", [0, 1])
    assert right.receive()[0].fds == ()
    assert open_fds() == before


def test_descriptors_of_a_packet_that_is_no_message_are_closed(end_and_raw_peer: EndAndRawPeer) -> None:
    endpoint, raw = end_and_raw_peer
    before = open_fds()
    socket.send_fds(raw, [b"rubbish"], [0, 1])
    assert endpoint.receive(fds_max=2) == []
    assert endpoint.corrupt == 1
    assert open_fds() == before


def test_descriptors_for_which_there_is_no_room_do_not_come(ends: Ends) -> None:
    left, right = ends
    left.send("lend", [0, 1, 2])
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + 1, hard))
    try:
        [message] = right.receive(fds_max=3)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(message.fds) < 3
    message.close_fds()


def test_message_with_more_descriptors_than_a_packet_brings_is_refused(ends: Ends) -> None:
    with pytest.raises(ValueError, match="at most 253"):
        ends[0].send("lend", [0] * 254)
    assert ends[0].send("lend", [0] * 253) is not None
