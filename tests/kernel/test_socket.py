"""Requests and answers over a socket that follows a script instead of a kernel."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable
from typing import Any

import pytest
from gdoi_xfrm import (
    AddSa,
    DeletePolicy,
    DeleteSa,
    InstallSa,
    KernelError,
    Monitor,
    Operation,
    Outcome,
    Overrun,
    UpdatePolicy,
    Xfrm,
    _monitor,
    _socket,
)
from gdoi_xfrm import _codec as codec
from gdoi_xfrm._codec import MessageType

from tests.kernel.values import policy, sa

ERROR, DONE = 2, 3
NLM_F_ACK = 4
MULTI, DUMP_INTERRUPTED = 2, 0x10
Header = tuple[int, int, int]  # type, flags, sequence number


def headers(data: bytes) -> list[Header]:
    found = []
    while data:
        length, kind, flags, sequence, _ = struct.unpack_from("IHHII", data)
        found.append((kind, flags, sequence))
        data = data[length:]
    return found


def message(kind: int, flags: int, sequence: int, body: bytes = b"") -> bytes:
    return struct.pack("IHHII", 16 + len(body), kind, flags, sequence, 77) + body


def ack(request: Header, number: int = 0, text: str = "") -> bytes:
    body = struct.pack("iIHHII", -number, 16, *request, 77)
    if text:
        value = text.encode() + b"\0"
        body += struct.pack("HH", 4 + len(value), 1) + value + bytes(-len(value) % 4)
    return message(ERROR, 0x300 if text else 0x100, request[2], body)


class ScriptedSocket:
    """Calls `kernel` with the headers of each datagram sent; what it returns is received."""

    def __init__(self, kernel: Callable[[list[Header]], list[bytes | Exception]]) -> None:
        self.kernel = kernel
        self.sent: list[list[Header]] = []
        self.coming: list[bytes | Exception] = []
        self.sender = 0
        self.flags = 0

    def setsockopt(self, _level: int, _option: int, _value: bytes) -> None:
        pass

    def setblocking(self, _blocking: bool) -> None:
        pass

    def getsockname(self) -> tuple[int, int]:
        return (77, 0)

    def close(self) -> None:
        pass

    def sendmsg(self, parts: list[bytes]) -> None:
        self.sent.append(headers(b"".join(parts)))
        self.coming = [*self.coming, *self.kernel(self.sent[-1])]

    def recvmsg_into(self, buffers: list[bytearray]) -> tuple[int, list[Any], int, tuple[int, int]]:
        if not self.coming:
            raise BlockingIOError(errno.EAGAIN, "")
        datagram = self.coming.pop(0)
        if isinstance(datagram, Exception):
            raise datagram
        buffers[0][: len(datagram)] = datagram
        sender, self.sender = self.sender, 0
        return len(datagram), [], self.flags, (sender, 0)


Scripted = Callable[
    [Callable[[list[Header]], list[bytes | Exception]]], tuple[Xfrm, ScriptedSocket]
]


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Scripted:
    def make(kernel: Callable[[list[Header]], list[bytes | Exception]]) -> Any:
        fake = ScriptedSocket(kernel)
        monkeypatch.setattr(_socket, "open_socket", lambda: fake)
        return Xfrm(), fake

    return make


def agree(requests: list[Header]) -> list[bytes | Exception]:
    return [ack(request) for request in requests]


def test_a_batch_goes_in_datagrams_of_a_hundred(scripted: Scripted) -> None:
    xfrm, fake = scripted(agree)
    results = xfrm.apply([InstallSa(sa(spi)) for spi in range(1, 251)])
    assert [len(datagram) for datagram in fake.sent] == [100, 100, 50]
    assert {result.outcome for result in results} == {Outcome.ADDED}
    sequences = [request[2] for datagram in fake.sent for request in datagram]
    assert len(set(sequences)) == 250


def test_policies_wait_for_the_sas_before_them(scripted: Scripted) -> None:
    def refuse_second(requests: list[Header]) -> list[bytes | Exception]:
        return [
            ack(r, errno.EINVAL if n == 1 else 0, "Key too long") for n, r in enumerate(requests)
        ]

    xfrm, fake = scripted(refuse_second)
    results = xfrm.apply(
        [*(InstallSa(sa(spi)) for spi in (1, 2, 3)), UpdatePolicy(policy()), InstallSa(sa(4))]
    )
    outcomes = [result.outcome for result in results]
    added, failed, skipped = Outcome.ADDED, Outcome.FAILED, Outcome.SKIPPED
    assert outcomes == [added, failed, added, skipped, skipped]
    assert len(fake.sent) == 1
    error = results[1].error
    assert error is not None
    assert (error.index, error.kernel_text) == (1, "Key too long")


def test_answers_in_any_order_and_in_one_datagram(scripted: Scripted) -> None:
    def backwards(requests: list[Header]) -> list[bytes | Exception]:
        return [
            b"".join(ack(r, errno.ENOENT * (n == 0)) for n, r in reversed([*enumerate(requests)]))
        ]

    xfrm, _ = scripted(backwards)
    results = xfrm.apply([DeletePolicy(policy().key), DeletePolicy(policy(version=6).key)])
    assert [result.outcome for result in results] == [Outcome.FAILED, Outcome.DELETED]


def test_late_answers_to_earlier_requests_are_ignored(scripted: Scripted) -> None:
    def late(requests: list[Header]) -> list[bytes | Exception]:
        kind, flags, sequence = requests[0]
        return [ack((kind, flags, sequence - 1), errno.EPERM), ack(requests[0])]

    xfrm, _ = scripted(late)
    assert [result.outcome for result in xfrm.apply([AddSa(sa(1))])] == [Outcome.ADDED]


def test_other_processes_are_not_listened_to(scripted: Scripted) -> None:
    xfrm, fake = scripted(lambda requests: [ack(requests[0], errno.EPERM), ack(requests[0])])
    fake.sender = 4711
    assert [result.outcome for result in xfrm.apply([AddSa(sa(1))])] == [Outcome.ADDED]


@pytest.mark.parametrize(
    ("reason", "number"),
    [
        (BlockingIOError(errno.EAGAIN, ""), errno.ETIMEDOUT),
        (OSError(errno.ENOBUFS, ""), errno.ENOBUFS),
    ],
)
def test_lost_answers_leave_the_outcome_unknown(
    scripted: Scripted, reason: Exception, number: int
) -> None:
    xfrm, _ = scripted(lambda requests: [ack(requests[0]), reason])
    results = xfrm.apply([InstallSa(sa(1)), InstallSa(sa(2)), UpdatePolicy(policy())])
    outcomes = [result.outcome for result in results]
    assert outcomes == [Outcome.ADDED, Outcome.UNKNOWN, Outcome.SKIPPED]
    assert results[1].error is not None
    assert results[1].error.errno == number


NEWSA = "XFRM_MSG_NEWSA 239.1.1.1 spi 0x00000001 esp"
NEWPOLICY = "XFRM_MSG_UPDPOLICY out 0.0.0.0/0 -> 239.1.1.1/32"
DELSA = "XFRM_MSG_DELSA 239.1.1.1 spi 0x00000001 esp"


@pytest.mark.parametrize(
    ("number", "operation", "attribute", "text"),
    [
        (errno.EPERM, InstallSa(sa(1)), "CAP_NET_ADMIN is missing", NEWSA),
        (errno.EEXIST, AddSa(sa(1)), "id.spi: taken by another SA", NEWSA),
        (errno.ESRCH, DeleteSa(sa(1).key), "id: there is none", DELSA),
        (errno.ENOMEM, InstallSa(sa(1)), "the kernel has no memory left for it", NEWSA),
        (errno.ENOMEM, UpdatePolicy(policy()), "the kernel has no memory left for it", NEWPOLICY),
        (errno.ENOBUFS, InstallSa(sa(1)), "no memory or socket buffer left", NEWSA),
        (errno.ENOBUFS, UpdatePolicy(policy()), "no memory or socket buffer left", NEWPOLICY),
    ],
)
def test_what_the_caller_sees(
    scripted: Scripted, number: int, operation: Operation, attribute: str, text: str
) -> None:
    """In a batch and on its own: errno, what was asked, what is at fault, and one sentence.

    Scripted, since no test can take the kernel's memory away; the others are real elsewhere too.
    """
    xfrm, _ = scripted(lambda requests: [ack(requests[-1], number)])
    (result,) = xfrm.apply([operation])
    error = result.error
    assert error is not None
    assert (result.outcome, error.errno, error.operation) == (Outcome.FAILED, number, text)
    assert attribute in (error.attribute or "")
    assert str(error).startswith(f"{text}: {os.strerror(number)} ({errno.errorcode[number]}); ")
    assert attribute in str(error)


def test_only_the_last_of_a_batch_is_acknowledged(scripted: Scripted) -> None:
    """Success is not reported for the others, errors always are, and in their order."""

    def as_the_kernel_does(requests: list[Header]) -> list[bytes | Exception]:
        asked = [n for n, (_, flags, _) in enumerate(requests) if flags & NLM_F_ACK]
        assert asked == [len(requests) - 1]
        return [ack(requests[1], errno.ENOMEM), ack(requests[-1])]

    xfrm, _ = scripted(as_the_kernel_does)
    results = xfrm.apply([InstallSa(sa(spi)) for spi in (1, 2, 3)])
    outcomes = [result.outcome for result in results]
    assert outcomes == [Outcome.ADDED, Outcome.FAILED, Outcome.ADDED]


def test_after_a_loss_the_queue_is_emptied(scripted: Scripted) -> None:
    """Else the kernel goes on dropping answers, and says so no more."""
    full = OSError(errno.ENOBUFS, "")
    queued: list[bytes | Exception] = [full, b"left over", full, BlockingIOError()]

    def congested(requests: list[Header]) -> list[bytes | Exception]:
        return queued if len(fake.sent) == 1 else agree(requests)

    xfrm, fake = scripted(congested)
    assert xfrm.apply([InstallSa(sa(1))])[0].outcome is Outcome.UNKNOWN
    assert fake.coming == []
    assert xfrm.apply([InstallSa(sa(1))])[0].outcome is Outcome.ADDED


def test_a_read_that_does_not_fit_is_made_smaller(scripted: Scripted) -> None:
    def small(requests: list[Header]) -> list[bytes | Exception]:
        if len(requests) > 2:
            return [OSError(errno.ENOBUFS, "")]
        return [ack(request, errno.ESRCH) for request in requests]

    xfrm, fake = scripted(small)
    assert xfrm.get_sas([sa(spi).key for spi in range(1, 33)]) == [None] * 32
    assert [len(datagram) for datagram in fake.sent][:6] == [32, 16, 8, 4, 2, 2]


def test_many_sas_are_read_in_a_dump(scripted: Scripted) -> None:
    def dumping(requests: list[Header]) -> list[bytes | Exception]:
        ((kind, flags, sequence),) = requests
        assert (kind, flags & 0x300) == (MessageType.GETSA, 0x300)
        found = b"".join(read_back(spi, sequence, MULTI) for spi in (7, 8, 4711))
        return [found + message(DONE, MULTI, sequence, bytes(4))]

    xfrm, _ = scripted(dumping)
    states = xfrm.get_sas([sa(spi).key for spi in range(1, 151)])
    assert [n + 1 for n, state in enumerate(states) if state is not None] == [7, 8]


def test_what_was_never_sent_has_failed(scripted: Scripted) -> None:
    def full(_: list[Header]) -> list[bytes | Exception]:
        raise OSError(errno.ENOBUFS, "")

    xfrm, _ = scripted(full)
    assert xfrm.apply([InstallSa(sa(1))])[0].outcome is Outcome.FAILED
    with pytest.raises(KernelError, match="ENOBUFS"):
        xfrm.dump_sas()


def test_a_cut_datagram_is_an_error(scripted: Scripted) -> None:
    xfrm, fake = scripted(agree)
    fake.flags = 0x20  # MSG_TRUNC
    with pytest.raises(KernelError, match="EMSGSIZE"):
        xfrm.add_sa(sa(1))
    xfrm, _ = scripted(lambda requests: [ack(requests[0])[:-1]])
    with pytest.raises(KernelError, match="EBADMSG"):
        xfrm.add_sa(sa(1))


def read_back(spi: int, sequence: int, flags: int) -> bytes:
    return message(
        MessageType.NEWSA, flags, sequence, codec.encode_sa(sa(spi), MessageType.NEWSA).body
    )


def test_a_dump_comes_in_parts_and_is_repeated_when_interrupted(scripted: Scripted) -> None:
    rounds = []

    def dumping(requests: list[Header]) -> list[bytes | Exception]:
        sequence = requests[0][2]
        rounds.append(requests[0])
        flags = MULTI | (DUMP_INTERRUPTED if len(rounds) < 3 else 0)
        first = read_back(1, sequence - 1, MULTI) + read_back(1, sequence, flags)
        last = read_back(2, sequence, MULTI) + message(DONE, MULTI, sequence, bytes(4))
        return [first, last]

    xfrm, _ = scripted(dumping)
    assert [state.sa.spi for state in xfrm.dump_sas()] == [1, 2]
    assert len(rounds) == 3
    assert rounds[0][:2] == (0x12, 0x301)


def test_a_dump_that_never_settles_or_is_refused(scripted: Scripted) -> None:
    xfrm, _ = scripted(lambda r: [message(DONE, MULTI | DUMP_INTERRUPTED, r[0][2], bytes(4))])
    with pytest.raises(KernelError, match="kept changing"):
        xfrm.dump_policies()
    xfrm, _ = scripted(lambda r: [ack(r[0], errno.EPERM)])
    with pytest.raises(KernelError, match="CAP_NET_ADMIN"):
        xfrm.dump_policies()
    xfrm, _ = scripted(lambda _: [])
    with pytest.raises(KernelError, match="ETIMEDOUT"):
        xfrm.dump_policies()


def test_get_without_an_answer(scripted: Scripted) -> None:
    xfrm, _ = scripted(lambda _: [])
    with pytest.raises(
        KernelError, match=r"XFRM_MSG_GETSA 239\.1\.1\.1 spi 0x00000001 esp: .*TIMED"
    ):
        xfrm.get_sa(sa(1).destination, 1)


def test_a_monitor_that_lost_events_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = ScriptedSocket(agree)
    monkeypatch.setattr(_monitor, "open_socket", lambda *_: fake)
    monitor = Monitor()
    flushed = message(MessageType.FLUSHPOLICY, 0, 0)
    unknown = message(0x26, 0, 0, bytes(8))
    fake.coming = [flushed, OSError(errno.ENOBUFS, ""), unknown, BlockingIOError()]
    events = monitor.read()
    assert [type(event).__name__ for event in events] == ["PolicyFlushed", "Overrun"]
    assert events[1] == Overrun()
    cut = message(MessageType.NEWSA, 0, 0, bytes(100))
    rubbish = message(MessageType.GETDEFAULT, 0, 0, bytes(3))
    fake.coming = [flushed, cut, flushed + rubbish, cut[:-1], flushed, BlockingIOError()]
    names = [type(event).__name__ for event in monitor.read()]
    flush, lost = "PolicyFlushed", "Overrun"
    assert names == [flush, lost, flush, lost, lost, flush]
    fake.coming = [OSError(errno.EBADF, "")]
    with pytest.raises(KernelError, match="EBADF"):
        monitor.read()
