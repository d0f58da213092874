"""Every step of a rekey fails in turn. What the kernel cannot be made to do a wrapper does.

Real: privileges that are missing for one datagram, answers that do not fit into the socket's
buffer, larval SAs by a listener for ACQUIRE. By a wrapper around the socket: out of memory at the
n-th request, answers that got lost, datagrams that were not sent, a process that is interrupted.
"""

from __future__ import annotations

import ctypes
import errno
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import pytest
from gdoi_xfrm import AddSa, AesGcm, DeleteSa, InstallSa, KernelError, Operation, Outcome, Xfrm
from gdoi_xfrm._codec import MessageType
from gdoi_xfrm._layout import Request
from gdoi_xfrm._socket import Answer, Exchange

from tests.kernel.faults import fault_at
from tests.kernel.namespaces import eventually, ip
from tests.kernel.rekey import ADOPTED, LARVAL, LARVAL_PORT, OLD, REKEY, held, tables
from tests.kernel.values import GROUP, policy, sa

pytestmark = pytest.mark.uml

FAULTS = ["refused", "refused to the end", "answer lost", "not sent", "interrupted"]
Acquire = Callable[[], None]


@pytest.fixture
def acquire(busy: Xfrm) -> Iterator[Acquire]:
    """Makes the kernel create a larval SA, as it does where an IKE daemon listens for ACQUIRE."""
    ip("link add v0 type veth peer name v1")
    ip("addr add 10.9.0.1/24 dev v0")
    ip("link set v0 up")
    ip("link set v1 up")
    ip("route add 239.0.0.0/8 dev v0")
    xfrmnlgrp_acquire = 1
    with (
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 6) as acquires,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
    ):
        acquires.bind((0, 0))
        acquires.setsockopt(270, 1, xfrmnlgrp_acquire)

        def make() -> None:
            def larval() -> bool:
                sender.sendto(b"no SA yet", (str(GROUP[4]), LARVAL_PORT))
                state = busy.get_sa(GROUP[4], LARVAL)
                return state is not None and state.larval

            eventually(larval)

        yield make


@pytest.mark.parametrize("kind", FAULTS)
@pytest.mark.parametrize("larval", [False, True], ids=["", "larval"])
def test_a_fault_at_each_step_in_turn(
    busy: Xfrm, acquire: Acquire, kind: str, *, larval: bool
) -> None:
    before = tables(busy)
    # What is adopted is not asked for; what is larval is asked for twice, to be added and filled.
    for step in range(len(REKEY) - 1 + larval):
        if larval:  # the next packet makes it again, whatever became of the last one
            acquire()
        with (
            fault_at(busy, step, kind) as fault,
            pytest.raises((KernelError, KeyboardInterrupt)) as caught,
        ):
            busy.transaction(REKEY)
        assert fault.count == 1
        assert getattr(caught.value, "not_undone", ()) == ()
        assert held(busy) == before[0], f"after a fault at step {step}"
    assert tables(busy)[0] == before[0]
    if larval:
        acquire()
    outcomes = [result.outcome for result in busy.transaction(REKEY)]
    assert outcomes[0] is (Outcome.FILLED if larval else Outcome.ADDED)
    assert outcomes[ADOPTED] is Outcome.ADOPTED


class _Capabilities:
    """The calling thread's: CAP_NET_ADMIN in its effective set, or not."""

    _VERSION_3 = 0x20080522
    _CAP_NET_ADMIN = 12

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._header = (ctypes.c_uint32 * 2)(self._VERSION_3, 0)
        self._all = (ctypes.c_uint32 * 6)()
        self._check(self._libc.capget(self._header, self._all))

    def _check(self, result: int) -> None:
        if result:
            raise OSError(ctypes.get_errno(), "capabilities")

    @contextmanager
    def dropped(self) -> Iterator[None]:
        fewer = (ctypes.c_uint32 * 6)(*self._all)
        fewer[0] &= ~(1 << self._CAP_NET_ADMIN)
        self._check(self._libc.capset(self._header, fewer))
        try:
            yield
        finally:
            self._check(self._libc.capset(self._header, self._all))


@pytest.mark.parametrize("datagram", range(3), ids=["SAs", "policies", "deletions"])
def test_without_privileges_for_one_datagram(busy: Xfrm, datagram: int) -> None:
    """Real: the kernel refuses all of it with EPERM, and the undoing is allowed again."""
    before = tables(busy)
    capabilities, exchange, sent = _Capabilities(), busy._socket.exchange, 0

    def unprivileged(requests: Sequence[Request], *, acknowledge: bool = True) -> Exchange:
        nonlocal sent
        sent += acknowledge
        if acknowledge and sent == datagram + 1:
            with capabilities.dropped():
                return exchange(requests)
        return exchange(requests, acknowledge=acknowledge)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(busy._socket, "exchange", unprivileged)
        with pytest.raises(KernelError, match="CAP_NET_ADMIN is missing") as caught:
            busy.transaction(REKEY)
    assert caught.value.errno == errno.EPERM
    assert caught.value.not_undone == ()
    assert tables(busy) == before


def test_without_privileges_from_the_deletions_on(busy: Xfrm) -> None:
    """Real: nothing can be undone any more, nor looked at, and every part is named."""
    capabilities, exchange = _Capabilities(), busy._socket.exchange
    deletions = (MessageType.DELPOLICY, MessageType.DELSA)

    with pytest.MonkeyPatch.context() as patch, ExitStack() as dropped:

        def unprivileged(requests: Sequence[Request], *, acknowledge: bool = True) -> Exchange:
            if requests[0].kind in deletions:
                dropped.enter_context(capabilities.dropped())
            return exchange(requests, acknowledge=acknowledge)

        patch.setattr(busy._socket, "exchange", unprivileged)
        with pytest.raises(KernelError) as caught:
            busy.transaction(REKEY)
    changed = [str(op) for place, op in enumerate(REKEY[:8]) if place != ADOPTED]
    assert caught.value.errno == errno.EPERM
    assert caught.value.not_undone == tuple(reversed(changed))
    assert f"could not be undone: {REKEY[7]}, {REKEY[6]}, " in str(caught.value)


def test_an_undoing_that_is_refused_once_is_repeated(busy: Xfrm) -> None:
    before = tables(busy)
    kinds = (MessageType.DELSA, MessageType.UPDPOLICY)
    refused = _refusing_undo(busy, kinds, times=1)
    with refused, pytest.raises(KernelError, match="EEXIST") as caught:
        busy.transaction([*REKEY[:8], AddSa(sa(OLD))])
    assert caught.value.not_undone == ()
    assert tables(busy) == before


def test_an_undoing_that_fails_half_way_is_said(busy: Xfrm) -> None:
    """What stayed is named, what was put back is not; a deletion had failed half-way."""
    refused = _refusing_undo(busy, (MessageType.UPDPOLICY,), times=1000)
    operations: list[Operation] = [InstallSa(sa(0x300)), REKEY[5], DeleteSa(sa(OLD).key)]
    with fault_at(busy, 2, "refused"), refused, pytest.raises(KernelError) as caught:
        busy.transaction(operations)
    assert caught.value.errno == errno.ENOMEM
    assert caught.value.operation == str(operations[2])
    assert caught.value.not_undone == (str(REKEY[5]),)
    assert busy.get_sa(GROUP[4], 0x300) is None
    assert busy.find_policy(policy().key) == policy(0x200)


@contextmanager
def _refusing_undo(xfrm: Xfrm, kinds: Sequence[MessageType], times: int) -> Iterator[None]:
    """Requests of these kinds never reach the kernel while something is undone."""
    send_all, refusals = xfrm.send_all, 0

    def refusing(requests: Sequence[Request]) -> list[Answer]:
        nonlocal refusals
        if refusals == times:
            return send_all(requests)
        refusals += 1
        send_all([request for request in requests if request.kind not in kinds])
        return [Answer(0)] * len(requests)  # not to be believed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(xfrm, "send_all", refusing)
        yield


def test_answers_that_do_not_fit(busy: Xfrm) -> None:
    """Real ENOBUFS on the socket for requests: refusals are lost, and nothing is assumed."""
    before = tables(busy)
    taken: list[Operation] = [InstallSa(sa(OLD, AesGcm(bytes(20)))) for _ in range(99)]
    busy._socket._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 13)
    results = busy.apply([InstallSa(sa(0x300)), *taken])
    assert {result.outcome for result in results} == {Outcome.UNKNOWN}
    assert {result.error and result.error.errno for result in results} == {errno.ENOBUFS}
    assert busy.get_sa(GROUP[4], 0x300) is not None  # done, though nobody heard of it
    busy.delete_sa(GROUP[4], 0x300)
    for place in (0, 99):
        with pytest.raises(KernelError, match=r"ENOBUFS.*socket buffer") as caught:
            busy.transaction([*taken[:place], InstallSa(sa(0x300)), *taken[place:]])
        assert caught.value.not_undone == ()
        assert tables(busy) == before
    assert busy.install_sa(sa(0x301)) is Outcome.ADDED
