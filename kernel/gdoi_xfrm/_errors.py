"""KernelError: one sentence that says what was asked, what the kernel said, and what to look at.

An errno from xfrm_user is shared by dozens of checks. Newer kernels name the check in an extended
acknowledgement; for the others `suspect_sa` and `suspect_policy` look at what was asked with the
kernel's own checks in mind. They never name key material, only lengths.
"""

from __future__ import annotations

import errno as errno_module
import os
from collections.abc import Callable, Iterator
from typing import Final

from gdoi_xfrm._algorithms import CHACHA20_POLY1305, Algorithm, AlgorithmAttribute
from gdoi_xfrm._types import Mode, Policy, Sa, protocol_name

# The usual reasons that do not depend on what was asked.
_GENERAL: Final = {
    errno_module.EPERM: "CAP_NET_ADMIN is missing (in the user namespace that owns this network "
    "namespace)",
    errno_module.ENOBUFS: "the kernel has no memory or socket buffer left for it",
    errno_module.ENOMEM: "the kernel has no memory left for it",
    errno_module.ETIMEDOUT: "the kernel did not answer in time",
}

# ESP, AH, IPComp, and Mobile IPv6's routing header and destination options
_IPSEC_PROTOCOLS: Final = (50, 51, 108, 43, 60)
_ANY_IPSEC: Final = 255  # IPSEC_PROTO_ANY, for templates

_AES_KEYS: Final = (16, 24, 32)
# Key lengths in octets by the kernel's algorithm name, and ICV lengths in bits for AEADs.
_KEY_OCTETS: Final = {
    "cbc(aes)": _AES_KEYS,
    "rfc4106(gcm(aes))": (20, 28, 36),
    "rfc4543(gcm(aes))": (20, 28, 36),
    CHACHA20_POLY1305: (36,),
}
_ICV_BITS: Final = {
    "rfc4106(gcm(aes))": (64, 96, 128),
    "rfc4543(gcm(aes))": (128,),
    CHACHA20_POLY1305: (128,),
}


class KernelError(Exception):
    """The kernel refused, or cannot be reached.

    errno: its reason; operation: the message and what it was about; attribute: what is most
    likely at fault and why, or None; index: which operation of the batch, or None;
    not_undone: what a failed transaction could not put back.
    """

    def __init__(
        self,
        errno: int,
        operation: str,
        attribute: str | None = None,
        index: int | None = None,
        kernel_text: str | None = None,
    ) -> None:
        super().__init__(errno, operation, attribute, index, kernel_text)
        self.errno = errno
        self.operation = operation
        self.attribute = attribute
        self.index = index
        self.kernel_text = kernel_text  # NLMSGERR_ATTR_MSG
        self.not_undone: tuple[str, ...] = ()

    def __str__(self) -> str:
        name = errno_module.errorcode.get(self.errno, str(self.errno))
        text = f"{self.operation}: {os.strerror(self.errno)} ({name})"
        if self.kernel_text:
            text += f', the kernel says "{self.kernel_text}"'
        if self.attribute:
            text += f"; {self.attribute}"
        if self.not_undone:
            text += f"; could not be undone: {', '.join(self.not_undone)}"
        return text


def general_suspect(errno: int) -> str | None:
    """A reason that does not depend on what was asked."""
    return _GENERAL.get(errno)


def _algorithm_missing(algorithm: Algorithm) -> str | None:
    named = [_algorithm_label(part) for part in algorithm.attributes]
    if not named:
        return "XFRMA_ALG_*: no algorithm given"
    return f"{' or '.join(named)}: this kernel has no such algorithm"


def _algorithm_label(part: AlgorithmAttribute) -> str:
    icv = f" icv {part.icv_bits}" if part.icv_bits else ""
    return f"{part.attribute} '{part.name}'{icv}"


def _bad_keys(algorithm: Algorithm) -> Iterator[str]:
    for part in algorithm.attributes:
        octets = _KEY_OCTETS.get(part.name)
        if octets and len(part.key) not in octets:
            wanted = ", ".join(map(str, octets))
            yield f"{part.attribute} '{part.name}': a key of {len(part.key)} octets, not {wanted}"
        elif not part.key:
            yield f"{part.attribute} '{part.name}': an empty key"


def _bad_icv(algorithm: Algorithm) -> str | None:
    for part in algorithm.attributes:
        bits = _ICV_BITS.get(part.name)
        if bits and part.icv_bits not in bits:
            return f"{_algorithm_label(part)}: not one of {', '.join(map(str, bits))} bits"
    return None


def _invalid_sa(sa: Sa) -> str | None:
    if sa.protocol not in _IPSEC_PROTOCOLS:
        return f"id.proto: {sa.protocol} is no IPsec protocol"
    for reason in _bad_keys(sa.algorithm):
        return reason
    if icv := _bad_icv(sa.algorithm):
        return icv
    if not sa.algorithm.attributes:
        return "XFRMA_ALG_*: no algorithm given"
    if sa.esn and not sa.replay_window:
        return "XFRMA_REPLAY_ESN_VAL: this kernel wants a replay window with ESN"
    if sa.mode not in (Mode.TRANSPORT, Mode.TUNNEL):
        return f"mode: {sa.mode}"
    return None


def _unsupported(sa: Sa) -> str:
    version = sa.destination.version
    inner = sa.selector.source.version if sa.selector else version
    if sa.mode == Mode.TRANSPORT and inner != version:
        return f"sel.family: an IPv{inner} selector in an IPv{version} transport mode SA"
    name = protocol_name(sa.protocol)
    return f"id.proto: this kernel has no {name} for IPv{version} (module {name}{version})"


def suspect_sa(errno: int, sa: Sa) -> str | None:
    """The part of an XFRM_MSG_NEWSA or UPDSA that most likely caused that errno."""
    suspects: dict[int, Callable[[], str | None]] = {
        # xfrm_user knows the name but crypto has no such cipher: ENOENT; or not even the name, or
        # for AEADs the name with this ICV length: ENOSYS.
        errno_module.ENOSYS: lambda: _bad_icv(sa.algorithm) or _algorithm_missing(sa.algorithm),
        errno_module.ENOENT: lambda: _algorithm_missing(sa.algorithm),
        errno_module.EINVAL: lambda: _invalid_sa(sa),
        errno_module.EEXIST: lambda: (
            "id.spi: taken by another SA for this destination and protocol, or by a larval one"
        ),
        errno_module.ESRCH: lambda: "id: no such SA",
        errno_module.EPROTONOSUPPORT: lambda: _unsupported(sa),
    }
    suspect = suspects.get(errno)
    return suspect() if suspect else general_suspect(errno)


def _invalid_policy(policy: Policy) -> str | None:
    selector = policy.selector
    for template in policy.templates:
        family = template.destination.version
        if template.protocol not in (*_IPSEC_PROTOCOLS, _ANY_IPSEC):
            return f"XFRMA_TMPL: protocol {template.protocol} is no IPsec protocol"
        if template.mode == Mode.TRANSPORT and family != selector.source.version:
            return f"XFRMA_TMPL: IPv{family} transport mode for an IPv{selector.source.version} sel"
    return None


def suspect_policy(errno: int, policy: Policy) -> str | None:
    """The part of an XFRM_MSG_NEWPOLICY or UPDPOLICY that most likely caused that errno."""
    if errno == errno_module.EEXIST:
        return "sel: there is a policy for this selector and direction"
    if errno == errno_module.EINVAL:
        return _invalid_policy(policy)
    return general_suspect(errno)


def suspect_default(errno: int) -> str | None:
    """For XFRM_MSG_SETDEFAULT and GETDEFAULT."""
    if errno == errno_module.EINVAL:
        return "this kernel has no default policies (Linux 5.15 and later have)"
    return general_suspect(errno)


def suspect_absent(errno: int, what: str) -> str | None:
    """For deletions and reads of an SA ("id") or a policy ("sel")."""
    if errno in (errno_module.ESRCH, errno_module.ENOENT):
        return f"{what}: there is none"
    return general_suspect(errno)
