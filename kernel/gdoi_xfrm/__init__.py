"""The Linux side of a group VPN: SAs and policies in XFRM, as typed values.

    Xfrm      a netlink socket: add, update, delete, get and dump SAs and policies;
              `apply` sends a batch, `transaction` makes it all or nothing
    Monitor   a netlink socket: what happens to them, whoever does it
    probe     can this kernel hold an ESP SA at all?
    bypass    lets one socket hear what policies would drop

Everything in and out is a frozen dataclass. Errors of the kernel are KernelError; values that no
netlink message can hold are ValueError when the dataclass is made.

    _types, _algorithms, _operations    the values
    _messages                           pyroute2's message classes with the kernel's C structs
    _codec, _parts                      values <-> messages
    _socket                             requests and answers
    _xfrm, _transaction, _monitor, _probe, _bypass
"""

from gdoi_xfrm._algorithms import (
    AesGcm,
    AesGmac,
    Algorithm,
    AlgorithmAttribute,
    CbcHmac,
    ChaCha20Poly1305,
    Hmac,
    Integrity,
    OtherAlgorithm,
)
from gdoi_xfrm._bypass import bypass
from gdoi_xfrm._errors import KernelError
from gdoi_xfrm._monitor import (
    DefaultChanged,
    Event,
    Monitor,
    Overrun,
    PolicyAdded,
    PolicyDeleted,
    PolicyExpired,
    PolicyFlushed,
    PolicyUpdated,
    SaAdded,
    SaDeleted,
    SaExpired,
    SaFlushed,
    SaUpdated,
)
from gdoi_xfrm._operations import (
    AddPolicy,
    AddSa,
    DeletePolicy,
    DeleteSa,
    InstallSa,
    Operation,
    Outcome,
    Result,
    UpdatePolicy,
    UpdateSa,
)
from gdoi_xfrm._probe import probe
from gdoi_xfrm._types import (
    AH,
    ESP,
    MAX_PACKETS_PER_SECOND,
    MAX_REPLAY_WINDOW,
    NO_LIMIT,
    Address,
    DefaultPolicy,
    Direction,
    Lifetime,
    Mark,
    Mode,
    Network,
    Policy,
    PolicyAction,
    PolicyKey,
    Sa,
    SaKey,
    SaState,
    Selector,
    Template,
    Usage,
    policy_differences,
    sa_differences,
)
from gdoi_xfrm._xfrm import Xfrm

__all__ = [
    "AH",
    "ESP",
    "MAX_PACKETS_PER_SECOND",
    "MAX_REPLAY_WINDOW",
    "NO_LIMIT",
    "AddPolicy",
    "AddSa",
    "Address",
    "AesGcm",
    "AesGmac",
    "Algorithm",
    "AlgorithmAttribute",
    "CbcHmac",
    "ChaCha20Poly1305",
    "DefaultChanged",
    "DefaultPolicy",
    "DeletePolicy",
    "DeleteSa",
    "Direction",
    "Event",
    "Hmac",
    "InstallSa",
    "Integrity",
    "KernelError",
    "Lifetime",
    "Mark",
    "Mode",
    "Monitor",
    "Network",
    "Operation",
    "OtherAlgorithm",
    "Outcome",
    "Overrun",
    "Policy",
    "PolicyAction",
    "PolicyAdded",
    "PolicyDeleted",
    "PolicyExpired",
    "PolicyFlushed",
    "PolicyKey",
    "PolicyUpdated",
    "Result",
    "Sa",
    "SaAdded",
    "SaDeleted",
    "SaExpired",
    "SaFlushed",
    "SaKey",
    "SaState",
    "SaUpdated",
    "Selector",
    "Template",
    "UpdatePolicy",
    "UpdateSa",
    "Usage",
    "Xfrm",
    "bypass",
    "policy_differences",
    "probe",
    "sa_differences",
]
