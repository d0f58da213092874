"""All or nothing: after a failure, wherever it was, the kernel's tables are as before."""

from __future__ import annotations

import errno
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from gdoi_xfrm import (
    AddPolicy,
    AddSa,
    AesGcm,
    AlgorithmAttribute,
    DeletePolicy,
    DeleteSa,
    Direction,
    InstallSa,
    KernelError,
    Lifetime,
    Operation,
    OtherAlgorithm,
    Outcome,
    UpdatePolicy,
    UpdateSa,
    Xfrm,
)
from gdoi_xfrm._socket import Answer, Exchange

from tests.kernel.namespaces import ip
from tests.kernel.values import CBC, GCM, GROUP, policy, sa

pytestmark = pytest.mark.uml

OLD, OTHER, LIVE, QUIET = 0x100, 0x101, 0x102, 0x103
NO_SUCH = OtherAlgorithm((AlgorithmAttribute("XFRMA_ALG_AEAD", "rot13(aes)", bytes(20), 128),))


@pytest.fixture
def busy(xfrm: Xfrm) -> Xfrm:
    """A namespace with SAs and policies in use, one with more than our dataclasses hold."""
    for spi in (OLD, OTHER, LIVE, QUIET):
        xfrm.add_sa(sa(spi))
    xfrm.add_policy(policy(OLD))
    ip(
        "xfrm policy add dir in src ::/0 dst ff05::1:1/128 index 1024 priority 77 flag icmp "
        "tmpl proto esp mode transport reqid 1 level use"
    )
    return xfrm


# A rekey: new SAs, one that is installed already, policies new and switched, an old SA removed.
REKEY: Sequence[Operation] = (
    InstallSa(sa(0x200)),
    InstallSa(sa(LIVE)),
    AddSa(sa(0x201, CBC, 6)),
    UpdateSa(sa(OTHER, lifetime=Lifetime(hard_seconds=500))),
    UpdatePolicy(policy(0x200)),
    UpdatePolicy(policy(0, Direction.IN, 6)),
    AddPolicy(policy(0, Direction.IN)),
    DeleteSa(sa(OLD).key),
    DeleteSa(sa(0x999).key),
)


def entries(text: str) -> list[str]:
    """What `ip` shows, entry by entry, without order and without current lifetimes."""
    lines = [line for line in text.splitlines() if not re.match(r"\s+(add \d|\d+\(bytes\))", line)]
    return sorted(re.split(r"\n(?=\S)", "\n".join(lines)))


def tables(xfrm: Xfrm) -> tuple[Any, ...]:
    # A deleted SA that comes back was added now.
    states = [replace(state, added_time=0) for state in xfrm.dump_sas()]
    states.sort(key=lambda state: state.sa.spi)
    return states, entries(ip("xfrm state")), entries(ip("-s xfrm policy"))


def test_everything_is_done(busy: Xfrm) -> None:
    results = busy.transaction(REKEY)
    assert [result.operation for result in results] == list(REKEY)
    assert [result.outcome.name for result in results] == [
        "ADDED", "ADOPTED", "ADDED", "UPDATED", "UPDATED", "UPDATED", "ADDED", "DELETED", "ABSENT",
    ]  # fmt: skip
    assert {state.sa.spi for state in busy.dump_sas()} == {OTHER, LIVE, QUIET, 0x200, 0x201}
    assert busy.get_policy(policy().selector, Direction.OUT) == policy(0x200)
    # Again, after a restart of the daemon say: the same, and nothing is added twice.
    repeated: list[Operation] = [op for op in REKEY if not isinstance(op, AddSa | AddPolicy)]
    outcomes = [result.outcome for result in busy.transaction(repeated)]
    assert outcomes[:2] == [Outcome.ADOPTED, Outcome.ADOPTED]


FAILURES: dict[str, tuple[Operation, int]] = {
    "SPI taken by other keys": (InstallSa(sa(LIVE, AesGcm(bytes(20)))), errno.EEXIST),
    "SPI taken": (AddSa(sa(LIVE)), errno.EEXIST),
    "unknown algorithm": (InstallSa(sa(0x300, NO_SUCH)), errno.ENOSYS),
    "bad key length": (InstallSa(sa(0x300, AesGcm(bytes(21)))), errno.EINVAL),
    "no SA to update": (UpdateSa(sa(0x300)), errno.ESRCH),
    "keys that UPDSA does not change": (UpdateSa(sa(QUIET, AesGcm(bytes(20)))), errno.EIO),
    "policy there already": (AddPolicy(policy(1)), errno.EEXIST),
}


@pytest.mark.parametrize("place", range(len(REKEY) + 1))
@pytest.mark.parametrize("failure", FAILURES)
def test_nothing_is_done(busy: Xfrm, place: int, failure: str) -> None:
    wrong, number = FAILURES[failure]
    before = tables(busy)
    operations: list[Operation] = [*REKEY[:place], wrong, *REKEY[place:]]
    with pytest.raises(KernelError) as caught:
        busy.transaction(operations)
    assert (caught.value.errno, caught.value.index) == (number, place)
    assert caught.value.operation == str(wrong)
    assert caught.value.not_undone == ()
    assert tables(busy) == before


@pytest.mark.parametrize(
    ("kind", "answered"), [*(("SA", n) for n in range(4)), *(("POLICY", n) for n in range(3))]
)
def test_lost_answers_undo_what_may_have_happened(
    busy: Xfrm, monkeypatch: pytest.MonkeyPatch, kind: str, answered: int
) -> None:
    """The kernel did its part, but only the first answers of a datagram arrived."""
    before = tables(busy)
    exchange = busy._socket.exchange
    lost: list[int] = []

    def losing(requests: Sequence[Any], *, acknowledge: bool = True) -> Exchange:
        is_policy = requests[0].kind in (0x13, 0x19)
        done = exchange(requests, acknowledge=acknowledge)
        if acknowledge and not lost and is_policy == (kind == "POLICY"):
            lost.append(len(requests))
            answers: list[Answer | None] = [*done.answers[:answered]]
            answers += [None] * (len(requests) - answered)
            return Exchange(answers, KernelError(errno.ETIMEDOUT, "waiting"))
        return done

    monkeypatch.setattr(busy._socket, "exchange", losing)
    with pytest.raises(KernelError, match="ETIMEDOUT"):
        busy.transaction(REKEY)
    assert tables(busy) == before


def test_deleted_sas_come_back_with_their_sequence_numbers(
    busy: Xfrm, monkeypatch: pytest.MonkeyPatch
) -> None:
    ip(
        "xfrm state add src 10.0.0.1 dst 239.1.1.1 proto esp spi 0x999 mode transport "
        f"aead 'rfc4106(gcm(aes))' 0x{GCM.key.hex()} 128 replay-oseq 42"
    )
    before = tables(busy)
    exchange = busy._socket.exchange

    def refusing(requests: Sequence[Any], *, acknowledge: bool = True) -> Exchange:
        if requests[0].kind == 0x14:  # XFRM_MSG_DELPOLICY
            return Exchange([Answer(errno.EPERM)])
        return exchange(requests, acknowledge=acknowledge)

    monkeypatch.setattr(busy._socket, "exchange", refusing)
    with pytest.raises(KernelError, match="CAP_NET_ADMIN"):
        busy.transaction([DeleteSa(sa(0x999).key), DeletePolicy(policy().key)])
    assert tables(busy) == before
    state = busy.get_sa(GROUP[4], 0x999)
    assert state is not None
    assert state.output_sequence == 42


def test_what_cannot_be_undone_is_said(busy: Xfrm, monkeypatch: pytest.MonkeyPatch) -> None:
    send_all = busy.send_all
    monkeypatch.setattr(
        busy, "send_all", lambda requests: [Answer(errno.EPERM) for _ in send_all(requests)]
    )
    with pytest.raises(KernelError) as caught:
        busy.transaction([InstallSa(sa(0x200)), UpdateSa(sa(0x300))])
    assert caught.value.not_undone == ("XFRM_MSG_NEWSA 239.1.1.1 spi 0x00000200 esp",)
    assert "could not be undone: XFRM_MSG_NEWSA" in str(caught.value)
