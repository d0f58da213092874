"""The values: what they refuse, what they hide, how they compare. And KernelError's sentence."""

from __future__ import annotations

import errno
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from gdoi_xfrm import (
    AddSa,
    AesGcm,
    AesGmac,
    AlgorithmAttribute,
    CbcHmac,
    ChaCha20Poly1305,
    InstallSa,
    KernelError,
    Lifetime,
    Mark,
    OtherAlgorithm,
    SaState,
    Selector,
    Template,
    UpdateSa,
    Usage,
)
from gdoi_xfrm._errors import general_suspect, suspect_absent, suspect_policy, suspect_sa
from gdoi_xfrm._types import policy_differences, sa_differences

from tests.kernel.values import CBC, GCM, policy, sa, template

CHACHA_SHORT = OtherAlgorithm(
    (AlgorithmAttribute("XFRMA_ALG_AEAD", "rfc7539esp(chacha20,poly1305)", bytes(36), 64),)
)
IPV6 = policy(version=6).selector
UNKNOWN = OtherAlgorithm((AlgorithmAttribute("XFRMA_ALG_AEAD", "rot13(aes)", bytes(20), 128),))


@pytest.mark.parametrize(
    "changed",
    [
        {"spi": 2**32},
        {"spi": -1},
        {"reqid": 2**32},
        {"mode": 256},
        {"protocol": 256},
        {"replay_window": 4097},
        {"source": ip_address("::")},
        {"if_id": 2**32},
        {"output_sequence": 2**32},
        {"esn": True, "input_sequence": 2**64},
    ],
)
def test_an_sa_refuses_what_no_message_can_hold(changed: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"is not between|different families"):
        sa(**{"spi": 1, **changed})


@pytest.mark.parametrize("operation", [AddSa, UpdateSa, InstallSa])
def test_spi_zero_is_never_installed(operation: Any) -> None:
    with pytest.raises(ValueError, match="SPI zero"):
        operation(sa(0))


def test_the_other_values_refuse_it_too() -> None:
    v4, v6 = ip_network("10.0.0.0/8"), ip_network("::/0")
    with pytest.raises(ValueError, match="different families"):
        Selector(v4, v6)
    with pytest.raises(ValueError, match="source port"):
        Selector(v4, v4, source_port=65536)
    with pytest.raises(ValueError, match="interface"):
        Selector(v4, v4, interface=-1)
    with pytest.raises(ValueError, match="hard_bytes"):
        Lifetime(hard_bytes=0)
    with pytest.raises(ValueError, match="mark 4294967296"):
        Mark(2**32)
    with pytest.raises(ValueError, match="mask of a mark -1"):
        Mark(0, -1)
    with pytest.raises(ValueError, match="packets -1"):
        Usage(0, -1, 0, 0)
    with pytest.raises(ValueError, match="if_id"):
        policy(if_id=-1)
    with pytest.raises(ValueError, match="number of templates"):
        policy(templates=(template(),) * 7)
    with pytest.raises(ValueError, match="different families"):
        Template(ip_address("10.0.0.1"), ip_address("::1"), 0, 1)


@pytest.mark.parametrize(
    "algorithm", [AesGcm(b"secretsecretsecretse"), CbcHmac(b"secret", b"secret")]
)
def test_keys_are_not_shown(algorithm: Any) -> None:
    shown = [
        repr(sa(1, algorithm)),
        str(algorithm),
        repr(algorithm.attributes),
        repr(AddSa(sa(1, algorithm))),
    ]
    for text in shown:
        assert "octets>" in text
        assert "secret" not in text


def test_algorithms_compare_by_what_the_kernel_is_told() -> None:
    assert AesGcm(bytes(20)) == OtherAlgorithm(AesGcm(bytes(20)).attributes)
    assert AesGcm(bytes(20)) != AesGcm(bytes(20), 96)
    assert AesGcm(bytes(20)) != AesGcm(bytes(19) + b"\1")
    assert len({AesGcm(bytes(20)), AesGcm(bytes(20)), GCM, CBC}) == 3
    assert AesGcm(bytes(20)) != "AesGcm"


def test_differences_name_fields_and_no_values() -> None:
    assert sa_differences(sa(1), sa(1)) == ()
    other = sa(1, CBC, reqid=7, lifetime=Lifetime(hard_seconds=9))
    assert sa_differences(sa(1), other) == ("reqid", "algorithm", "lifetime")
    assert sa_differences(sa(1), other, lifetimes=False) == ("reqid", "algorithm")
    everything = Selector(ip_network("0.0.0.0/0"), ip_network("0.0.0.0/0"))
    assert sa_differences(sa(1, selector=everything), sa(1)) == ()
    assert str(replace(everything, interface=3)).endswith("interface 3")
    assert sa_differences(sa(1, selector=replace(everything, interface=3)), sa(1)) == ("selector",)
    assert sa_differences(sa(1), sa(2, selector=policy().selector)) == ("key", "selector")
    changed = sa(1, esn=True, if_id=3, output_mark=Mark(1), mark=Mark(2))
    assert sa_differences(sa(1), changed) == ("key", "esn", "if_id", "output_mark")
    resumed = sa(1, output_sequence=5, input_sequence=6, usage=Usage(1, 2, 3, 4))
    assert sa_differences(sa(1), resumed) == ()
    assert policy_differences(policy(1), policy(1, mark=Mark(1), if_id=2)) == ("mark", "if_id")
    assert policy_differences(policy(1), policy(2, priority=1)) == ("priority", "templates")


def test_keys_say_what_the_kernel_finds_by() -> None:
    marked = sa(1, mark=Mark(0x10, 0xF0))
    assert str(marked.key) == "239.1.1.1 spi 0x00000001 esp mark 0x10/0xf0"
    text = str(policy(mark=Mark(1), if_id=7).key)
    assert text == "out 0.0.0.0/0 -> 239.1.1.1/32 mark 0x1/0xffffffff if_id 0x7"
    assert marked.key != sa(1).key


def test_an_sa_that_is_put_back_goes_on() -> None:
    state = SaState(sa(1), False, 7, 8, 900, 10, 11, 12)
    resumed = state.resumed()
    assert (resumed.output_sequence, resumed.input_sequence) == (7, 8)
    assert resumed.usage == Usage(bytes=900, packets=10, added_time=11, used_time=12)
    assert resumed == sa(1)


@pytest.mark.parametrize(
    ("number", "wrong", "wanted"),
    [
        (errno.ENOSYS, sa(1, UNKNOWN), "XFRMA_ALG_AEAD 'rot13(aes)' icv 128"),
        (errno.ENOSYS, sa(1, AesGcm(bytes(20), 80)), "not one of 64, 96, 128 bits"),
        (errno.ENOENT, sa(1, CBC), "XFRMA_ALG_CRYPT 'cbc(aes)'"),
        (errno.EINVAL, sa(1, AesGcm(bytes(16))), "a key of 16 octets, not 20, 28, 36"),
        (errno.ENOSYS, sa(1, CHACHA_SHORT), "icv 64: not one of 128 bits"),
        (errno.EINVAL, sa(1, ChaCha20Poly1305(bytes(32))), "a key of 32 octets, not 36"),
        (errno.EINVAL, sa(1, AesGmac(bytes(32))), "a key of 32 octets, not 20, 28, 36"),
        (errno.EINVAL, sa(1, esn=True), "wants a replay window with ESN"),
        (errno.EINVAL, sa(1, CbcHmac(bytes(17), bytes(32))), "'cbc(aes)': a key of 17 octets"),
        (errno.EINVAL, sa(1, CbcHmac(bytes(16), b"")), "'hmac(sha256)': an empty key"),
        (errno.EINVAL, sa(1, OtherAlgorithm()), "no algorithm given"),
        (errno.EINVAL, sa(1, mode=9), "mode: 9"),
        (errno.EPROTONOSUPPORT, sa(1, selector=IPV6), "IPv6 selector in an IPv4 transport"),
        (errno.EINVAL, sa(1, protocol=99), "id.proto: 99 is no IPsec protocol"),
        (errno.EEXIST, sa(1), "taken by another SA"),
        (errno.ESRCH, sa(1), "no such SA"),
        (errno.EPROTONOSUPPORT, sa(1, version=6), "no esp for IPv6 (module esp6)"),
        (errno.EPERM, sa(1), "CAP_NET_ADMIN"),
        (errno.ENOMEM, sa(1), "memory"),
        (errno.ENOBUFS, sa(1), "memory"),
    ],
)  # fmt: skip
def test_the_part_of_an_sa_at_fault(number: int, wrong: Any, wanted: str) -> None:
    assert wanted in (suspect_sa(number, wrong) or "")


def test_what_cannot_be_guessed_is_not() -> None:
    assert suspect_sa(errno.EINVAL, sa(1)) is None
    assert suspect_sa(errno.EDOM, sa(1)) is None
    assert suspect_policy(errno.EINVAL, policy()) is None


def test_the_part_of_a_policy_at_fault() -> None:
    assert "there is a policy" in (suspect_policy(errno.EEXIST, policy()) or "")
    bad = policy(templates=(template(version=6),))
    assert "IPv6 transport mode" in (suspect_policy(errno.EINVAL, bad) or "")
    bad = policy(templates=(template(protocol=17),))
    assert "protocol 17" in (suspect_policy(errno.EINVAL, bad) or "")
    assert suspect_absent(errno.ESRCH, "id") == "id: there is none"
    assert "CAP_NET_ADMIN" in (general_suspect(errno.EPERM) or "")


def test_a_kernel_error_is_one_sentence() -> None:
    operation = str(AddSa(sa(0xDEADBEEF)))
    error = KernelError(errno.EINVAL, operation, "spi: zero", 3, "Invalid SPI")
    assert str(error) == (
        "XFRM_MSG_NEWSA 239.1.1.1 spi 0xdeadbeef esp: Invalid argument (EINVAL), "
        'the kernel says "Invalid SPI"; spi: zero'
    )
    assert (error.errno, error.index, error.attribute) == (errno.EINVAL, 3, "spi: zero")
    error.not_undone = ("XFRM_MSG_NEWSA x",)
    assert str(error).endswith("; could not be undone: XFRM_MSG_NEWSA x")
