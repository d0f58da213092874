"""What the kernel refuses, and that KernelError says which part of the request it was."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

import pytest
from gdoi_xfrm import (
    AesGcm,
    AesGmac,
    AlgorithmAttribute,
    CbcHmac,
    ChaCha20Poly1305,
    Direction,
    KernelError,
    Mode,
    OtherAlgorithm,
    Sa,
    Xfrm,
    probe,
)

from tests.kernel.namespaces import Namespace
from tests.kernel.values import GROUP, policy, sa, template

pytestmark = pytest.mark.uml

ROT13 = OtherAlgorithm((AlgorithmAttribute("XFRMA_ALG_AEAD", "rot13(aes)", bytes(20), 128),))


@pytest.mark.parametrize(
    ("wrong", "number", "attribute"),
    [
        (sa(5, ROT13), errno.ENOSYS, "XFRMA_ALG_AEAD 'rot13(aes)' icv 128: this kernel has no"),
        (sa(5, AesGcm(bytes(20), 80)), errno.ENOSYS, "icv 80: not one of 64, 96, 128 bits"),
        (sa(5, AesGcm(bytes(21))), errno.EINVAL, "a key of 21 octets, not 20, 28, 36"),
        (sa(5, AesGmac(bytes(16))), errno.EINVAL, "'rfc4543(gcm(aes))': a key of 16 octets"),
        (sa(5, ChaCha20Poly1305(bytes(32))), errno.EINVAL, "a key of 32 octets, not 36"),
        (sa(5, esn=True), errno.EINVAL, "XFRMA_REPLAY_ESN_VAL: this kernel wants a replay window"),
        (sa(5, CbcHmac(bytes(17), bytes(32))), errno.EINVAL, "XFRMA_ALG_CRYPT 'cbc(aes)': a key"),
        (sa(5, OtherAlgorithm()), errno.EINVAL, "no algorithm given"),
        (sa(5, mode=9), errno.EINVAL, "mode: 9"),
        (sa(5, selector=policy(version=6).selector), errno.EPROTONOSUPPORT, "IPv6 selector in an"),
        (sa(5, protocol=99), errno.EINVAL, "id.proto: 99"),
    ],
)  # fmt: skip
def test_an_sa_is_refused(xfrm: Xfrm, wrong: Sa, number: int, attribute: str) -> None:
    with pytest.raises(KernelError) as caught:
        xfrm.add_sa(wrong)
    assert caught.value.errno == number
    assert str(caught.value).startswith(f"XFRM_MSG_NEWSA {wrong.key}: ")
    assert attribute in str(caught.value)
    assert xfrm.dump_sas() == []


def test_taken_and_missing(xfrm: Xfrm) -> None:
    xfrm.add_sa(sa(5))
    xfrm.add_policy(policy())
    refusals: list[tuple[Callable[[], object], int, str]] = [
        (lambda: xfrm.add_sa(sa(5)), errno.EEXIST, "XFRM_MSG_NEWSA .*id.spi: taken by another"),
        (lambda: xfrm.update_sa(sa(6)), errno.ESRCH, "XFRM_MSG_UPDSA .*no such SA"),
        (lambda: xfrm.delete_sa(GROUP[4], 6), errno.ESRCH, "XFRM_MSG_DELSA .*id: there is none"),
        (lambda: xfrm.add_policy(policy()), errno.EEXIST, "XFRM_MSG_NEWPOLICY out .*sel: there is"),
        (
            lambda: xfrm.delete_policy(policy().selector, Direction.IN),
            errno.ENOENT,
            r"XFRM_MSG_DELPOLICY in 0\.0\.0\.0/0 -> 239\.1\.1\.1/32: .*sel: there is none",
        ),
        (
            lambda: xfrm.update_policy(policy(templates=(template(version=6),))),
            errno.EINVAL,
            "XFRMA_TMPL: IPv6 transport mode",
        ),
        (
            lambda: xfrm.update_policy(policy(templates=(template(protocol=17),))),
            errno.EINVAL,
            "XFRMA_TMPL: protocol 17",
        ),
    ]
    for refused, number, text in refusals:
        with pytest.raises(KernelError, match=text) as caught:
            refused()
        assert caught.value.errno == number


def test_without_cap_net_admin(namespace: Namespace) -> None:  # noqa: ARG001
    """In a forked child that has become nobody."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setuid(65534)
            os.write(writer, f"{probe()}\n".encode())
            with Xfrm() as xfrm:
                xfrm.dump_sas()
        except KernelError as error:
            os.write(writer, str(error).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, encoding="utf-8") as answers:  # noqa: PTH123  (a file descriptor)
        adding, dumping = answers.read().splitlines()
    os.waitpid(child, 0)
    assert "XFRM_MSG_NEWSA 192.0.2.1 spi" in adding
    assert "XFRM_MSG_GETSA dump: " in dumping
    for text in (adding, dumping):
        assert "(EPERM)" in text
        assert "CAP_NET_ADMIN is missing" in text


def test_no_key_in_any_text(xfrm: Xfrm) -> None:
    key = bytes(range(65, 86))  # 21 octets: refused
    with pytest.raises(KernelError) as caught:
        xfrm.add_sa(sa(5, AesGcm(key), mode=Mode.TUNNEL))
    for text in (str(caught.value), repr(caught.value)):
        assert key.hex() not in text
        assert "ABCDEF" not in text
