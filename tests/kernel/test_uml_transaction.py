"""All or nothing: after a failure, wherever it was, the kernel's tables are as before."""

from __future__ import annotations

import errno
import time
from collections.abc import Sequence
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from gdoi_xfrm import (
    AH,
    ESP,
    MAX_PACKETS_PER_SECOND,
    AddPolicy,
    AddSa,
    AesGcm,
    Algorithm,
    AlgorithmAttribute,
    DeleteSa,
    Direction,
    Hmac,
    InstallSa,
    KernelError,
    Lifetime,
    Mark,
    Mode,
    Operation,
    OtherAlgorithm,
    Outcome,
    Result,
    Selector,
    UpdatePolicy,
    UpdateSa,
    Xfrm,
)
from gdoi_xfrm._codec import MessageType
from gdoi_xfrm._layout import Request
from gdoi_xfrm._operations import encode
from gdoi_xfrm._sameness import same_policy, same_sa
from gdoi_xfrm._socket import Exchange

from tests.kernel.namespaces import ip
from tests.kernel.rekey import LIVE, OLD, OTHER, QUIET, REKEY, held, tables
from tests.kernel.values import CBC, GCM, GMAC, GROUP, HMAC, policy, sa, template

pytestmark = pytest.mark.uml

OWN = {4: "10.1.1.1", 6: "fd00::1"}
SENT = 20
NO_SUCH = OtherAlgorithm((AlgorithmAttribute("XFRMA_ALG_AEAD", "rot13(aes)", bytes(20), 128),))


def test_everything_is_done(busy: Xfrm) -> None:
    results = busy.transaction(REKEY)
    assert [result.operation for result in results] == list(REKEY)
    assert [result.outcome.name for result in results] == [
        "ADDED", "ADOPTED", "ADDED", "ADDED", "UPDATED", "UPDATED", "UPDATED", "ADDED", "DELETED",
        "DELETED", "ABSENT",
    ]  # fmt: skip
    spis = {state.sa.spi for state in busy.dump_sas()}
    assert spis == {OTHER, LIVE, QUIET, 0x200, 0x201, 0x202}
    assert busy.get_policy(policy().selector, Direction.OUT) == policy(0x200)


def test_a_rekey_twice_changes_nothing(busy: Xfrm) -> None:
    """After a restart of the daemon say; only what must be new is refused."""
    busy.transaction(REKEY)
    repeated: list[Operation] = [op for op in REKEY if not isinstance(op, AddSa | AddPolicy)]
    before = tables(busy)
    outcomes = [result.outcome.name for result in busy.transaction(repeated)]
    assert outcomes == ["ADOPTED"] * 3 + ["UPDATED"] * 3 + ["ABSENT"] * 3
    assert tables(busy) == before
    with pytest.raises(KernelError, match="EEXIST"):
        busy.transaction(REKEY)
    assert tables(busy) == before


FAILURES: dict[str, tuple[Operation, int]] = {
    "SPI taken by other keys": (InstallSa(sa(LIVE, AesGcm(bytes(20)))), errno.EEXIST),
    "SPI taken": (AddSa(sa(LIVE)), errno.EEXIST),
    "unknown algorithm": (InstallSa(sa(0x300, NO_SUCH)), errno.ENOSYS),
    "bad key length": (InstallSa(sa(0x300, AesGcm(bytes(21)))), errno.EINVAL),
    "another address family": (
        InstallSa(sa(0x300, selector=policy(version=6).selector)),
        errno.EPROTONOSUPPORT,
    ),
    "no SA to update": (UpdateSa(sa(0x300)), errno.ESRCH),
    "keys that UPDSA does not change": (UpdateSa(sa(QUIET, AesGcm(bytes(20)))), errno.EIO),
    "policy there already": (AddPolicy(policy(1)), errno.EEXIST),
    "policy for another address family": (
        UpdatePolicy(policy(1, templates=(template(version=6),))),
        errno.EINVAL,
    ),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_nothing_is_done(busy: Xfrm, failure: str) -> None:
    """The kernel refuses one operation, wherever it stands in the rekey."""
    wrong, number = FAILURES[failure]
    before = tables(busy)
    for place in range(len(REKEY) + 1):
        operations: list[Operation] = [*REKEY[:place], wrong, *REKEY[place:]]
        with pytest.raises(KernelError) as caught:
            busy.transaction(operations)
        assert (caught.value.errno, caught.value.index) == (number, place)
        assert caught.value.operation == str(wrong)
        assert caught.value.not_undone == ()
        assert held(busy) == before[0]
    assert tables(busy) == before


def test_deleted_sas_come_back_as_they_were(busy: Xfrm, monkeypatch: pytest.MonkeyPatch) -> None:
    """Older than the transaction: their lifetime goes on. No number is used twice, though the last
    ones were used after the SAs had been read; 64-bit numbers count on in their upper half.
    """
    ip(
        "xfrm state add src 10.0.0.1 dst 239.1.1.1 proto esp spi 0x999 mode transport "
        f"aead 'rfc4106(gcm(aes))' 0x{GCM.key.hex()} 128 replay-oseq 42"
    )
    state = busy.get_sa(GROUP[4], 0x999)
    assert state is not None
    busy.delete_sa(GROUP[4], 0x999)
    first = replace(state, added_time=state.added_time - 1000).resumed()
    long = replace(
        sa(0x998, esn=True, replay_window=64), output_sequence=2**32 - 10, input_sequence=2**32 + 7
    )
    busy.add_sa(first)
    busy.add_sa(long)
    before = tables(busy)[1:]
    send = busy.apply_encoded

    def interrupted(operations: Sequence[Operation], requests: Sequence[Request]) -> list[Result]:
        if not isinstance(operations[0], DeleteSa):
            return send(operations, requests)
        for one in (first, long):  # as many packets as can be sent in microseconds
            send([DeleteSa(one.key)], [encode(DeleteSa(one.key))])
            used = AddSa(replace(one, output_sequence=one.output_sequence + SENT))
            (result,) = send([used], [encode(used)])
            assert result.outcome is Outcome.ADDED
        send(operations, requests)
        raise KeyboardInterrupt

    monkeypatch.setattr(busy, "apply_encoded", interrupted)
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        busy.transaction([InstallSa(sa(0x300)), DeleteSa(first.key), DeleteSa(long.key)])
    most = SENT + (time.monotonic() - began) * MAX_PACKETS_PER_SECOND
    assert tables(busy)[1:] == before
    for one in (first, long):
        again = busy.find_sa(one.key)
        assert again is not None
        assert SENT <= again.output_sequence - one.output_sequence <= most
        assert again.input_sequence == one.input_sequence
    again = busy.find_sa(first.key)
    assert again is not None
    assert again.added_time == state.added_time - 1000


def test_a_thousand_sas_or_none(busy: Xfrm) -> None:
    before = tables(busy)
    many: list[Operation] = [InstallSa(sa(spi)) for spi in range(0x1000, 0x1000 + 1000)]
    with pytest.raises(KernelError, match="EEXIST") as caught:
        busy.transaction([*many, AddSa(sa(OLD))])
    assert caught.value.index == 1000
    assert tables(busy) == before
    outcomes = {result.outcome for result in busy.transaction(many)}
    assert outcomes == {Outcome.ADDED}
    outcomes = {result.outcome for result in busy.transaction(many)}
    assert outcomes == {Outcome.ADOPTED}
    busy.transaction([DeleteSa(sa(spi).key) for spi in range(0x1000, 0x1000 + 1000)])
    assert tables(busy) == before


def test_what_is_there_is_adopted_without_being_asked_for(busy: Xfrm) -> None:
    """Read before and afterwards, and handed to the caller as it was read."""
    exchange, kinds = busy._socket.exchange, list[int]()

    def listening(requests: Sequence[Request], *, acknowledge: bool = True) -> Exchange:
        kinds.extend(request.kind for request in requests)
        return exchange(requests, acknowledge=acknowledge)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(busy._socket, "exchange", listening)
        (result,) = busy.transaction([InstallSa(sa(LIVE))])
    assert kinds == [MessageType.GETSA] * 2
    assert (result.outcome, result.found) == (Outcome.ADOPTED, busy.find_sa(sa(LIVE).key))


@pytest.mark.parametrize("algorithm", [CBC, GCM, GMAC, HMAC], ids=lambda one: type(one).__name__)
@pytest.mark.parametrize("version", [4, 6])
def test_octets_tell_that_the_kernel_holds_what_was_asked(
    busy: Xfrm, version: int, algorithm: Algorithm
) -> None:
    """For all that a member installs: only else is the answer taken apart."""
    protocol = AH if isinstance(algorithm, Hmac) else ESP
    lifetime = Lifetime(soft_seconds=3000, hard_seconds=3600, hard_bytes=1 << 30)
    plain = sa(0x300, algorithm, version, protocol=protocol, lifetime=lifetime)
    window = replace(plain, spi=0x301, replay_window=32, mark=Mark(7), if_id=8, output_mark=Mark(9))
    long = replace(plain, spi=0x302, replay_window=64, esn=True)
    selector = Selector(ip_network(f"{OWN[version]}"), policy(version=version).selector.destination)
    tunnel = replace(
        plain, spi=0x303, mode=Mode.TUNNEL, source=ip_address(OWN[version]), selector=selector
    )
    for wanted in (plain, window, long, tunnel):
        busy.transaction([InstallSa(wanted)])
        (found,) = busy.read_all([wanted.key])
        assert found is not None
        assert same_sa(encode(InstallSa(wanted)), found)
    for pinned in (policy(0x300, version=version), policy(0, Direction.IN, version, mark=Mark(7))):
        busy.transaction([UpdatePolicy(pinned)])
        (found,) = busy.read_all([pinned.key])
        assert found is not None
        assert same_policy(encode(UpdatePolicy(pinned)), found)


def test_a_mode_that_the_kernel_has_not_got(busy: Xfrm) -> None:
    before = tables(busy)
    with pytest.raises(KernelError, match="mode: 9"):
        busy.transaction([InstallSa(sa(0x300)), InstallSa(sa(0x301, mode=9)), *REKEY])
    with pytest.raises(KernelError, match="EEXIST"):
        busy.transaction([InstallSa(sa(0x300)), InstallSa(sa(OLD, mode=Mode.TUNNEL)), *REKEY])
    assert tables(busy) == before
