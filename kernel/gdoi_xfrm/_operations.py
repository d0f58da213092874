"""What can be asked of the kernel in a batch, as values, and what became of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

from gdoi_xfrm import _codec as codec
from gdoi_xfrm._codec import MessageType
from gdoi_xfrm._errors import KernelError
from gdoi_xfrm._layout import Request
from gdoi_xfrm._types import Policy, PolicyKey, Sa, SaKey, SaState


def _check_spi(sa: Sa) -> None:
    # The kernel takes an SA with SPI zero, but can neither find nor delete it afterwards.
    if sa.spi == 0:
        raise ValueError(f"SA {sa.key}: SPI zero is reserved (RFC 4303 section 2.1)")


@dataclass(frozen=True, slots=True)
class AddSa:
    """XFRM_MSG_NEWSA: EEXIST where the SPI is taken."""

    sa: Sa

    def __post_init__(self) -> None:
        _check_spi(self.sa)

    @property
    def key(self) -> SaKey:
        return self.sa.key

    def __str__(self) -> str:
        return f"XFRM_MSG_NEWSA {self.key}"


@dataclass(frozen=True, slots=True)
class UpdateSa:
    """XFRM_MSG_UPDSA: fills a larval SA. Of a live one it changes lifetimes and selector, and
    silently not the keys."""

    sa: Sa

    def __post_init__(self) -> None:
        _check_spi(self.sa)

    @property
    def key(self) -> SaKey:
        return self.sa.key

    def __str__(self) -> str:
        return f"XFRM_MSG_UPDSA {self.key}"


@dataclass(frozen=True, slots=True)
class InstallSa:
    """Adds the SA; fills a larval one; leaves an equal one alone, with its sequence number and
    its lifetime."""

    sa: Sa

    def __post_init__(self) -> None:
        _check_spi(self.sa)

    @property
    def key(self) -> SaKey:
        return self.sa.key

    def __str__(self) -> str:
        return f"XFRM_MSG_NEWSA {self.key}"


@dataclass(frozen=True, slots=True)
class DeleteSa:
    """XFRM_MSG_DELSA."""

    key: SaKey

    def __str__(self) -> str:
        return f"XFRM_MSG_DELSA {self.key}"


@dataclass(frozen=True, slots=True)
class AddPolicy:
    """XFRM_MSG_NEWPOLICY: EEXIST where there is one for this selector and direction."""

    policy: Policy

    @property
    def key(self) -> PolicyKey:
        return self.policy.key

    def __str__(self) -> str:
        return f"XFRM_MSG_NEWPOLICY {self.key}"


@dataclass(frozen=True, slots=True)
class UpdatePolicy:
    """XFRM_MSG_UPDPOLICY: replaces the policy in one step, adds it where there is none."""

    policy: Policy

    @property
    def key(self) -> PolicyKey:
        return self.policy.key

    def __str__(self) -> str:
        return f"XFRM_MSG_UPDPOLICY {self.key}"


@dataclass(frozen=True, slots=True)
class DeletePolicy:
    """XFRM_MSG_DELPOLICY."""

    key: PolicyKey

    def __str__(self) -> str:
        return f"XFRM_MSG_DELPOLICY {self.key}"


SaOperation = AddSa | UpdateSa | InstallSa | DeleteSa
PolicyOperation = AddPolicy | UpdatePolicy | DeletePolicy
Operation = SaOperation | PolicyOperation

_ENCODERS: Final[dict[type[Operation], Callable[[Any], Request]]] = {
    AddSa: lambda op: codec.encode_sa(op.sa, MessageType.NEWSA),
    InstallSa: lambda op: codec.encode_sa(op.sa, MessageType.NEWSA),
    UpdateSa: lambda op: codec.encode_sa(op.sa, MessageType.UPDSA),
    DeleteSa: lambda op: codec.encode_sa_id(op.key, MessageType.DELSA),
    AddPolicy: lambda op: codec.encode_policy(op.policy, MessageType.NEWPOLICY),
    UpdatePolicy: lambda op: codec.encode_policy(op.policy, MessageType.UPDPOLICY),
    DeletePolicy: lambda op: codec.encode_policy_id(op.key, MessageType.DELPOLICY),
}


def encode(operation: Operation) -> Request:
    """The request that asks for it."""
    return _ENCODERS[type(operation)](operation)


def get_request(key: SaKey | PolicyKey) -> Request:
    """What asks for it."""
    if isinstance(key, SaKey):
        return codec.encode_sa_id(key, MessageType.GETSA)
    return codec.encode_policy_id(key, MessageType.GETPOLICY)


class Outcome(Enum):
    ADDED = "added"
    FILLED = "filled"  # a larval SA was there
    ADOPTED = "adopted"  # the same SA was there already, and was left alone
    UPDATED = "updated"
    DELETED = "deleted"
    ABSENT = "absent"  # nothing to delete (transactions only; elsewhere an error)
    FAILED = "failed"
    SKIPPED = "skipped"  # not sent, since something before it failed
    UNKNOWN = "unknown"  # sent, but the kernel's answer was lost


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one operation; error where the outcome is FAILED or UNKNOWN."""

    operation: Operation
    outcome: Outcome
    error: KernelError | None = None
    # The kernel's message, with keys.
    message: bytes | None = field(default=None, repr=False)

    @property
    def found(self) -> SaState | None:
        """Of an SA that a transaction has ADOPTED, as it was read back."""
        return None if self.message is None else codec.read_sa(self.message)
