"""XFRM's netlink messages as pyroute2 classes: where their layouts are written down. Private.

Layouts are those of <linux/xfrm.h> on every 64-bit Linux. `_layout` compiles them, `_codec` turns
messages into dataclasses and back. Two things to know about pyroute2, with which the tests encode:

* it packs field after field, so padding is written out, and a nested C struct is one field whose
  value is a plain tuple;
* a field of format "s" is as long as its value.
"""

from __future__ import annotations

import struct
from typing import Final

from pyroute2.netlink import nla, nlmsg

# struct xfrm_selector: daddr, saddr, dport, dport_mask, sport, sport_mask, family, prefixlen_d,
# prefixlen_s, proto, ifindex, user. Ports are in network order, hence strings of octets.
SELECTOR: Final = "16s16s2s2s2s2sHBBB3xiI"
# struct xfrm_id: daddr, spi (network order), proto. "0I" pads to a multiple of 4: pyroute2 takes a
# field whose format ends in "x" for padding only.
ID: Final = "16s4sB0I"
# struct xfrm_lifetime_cfg: soft and hard bytes, soft and hard packets, soft and hard seconds
# since the SA was added, soft and hard seconds since its first use
LIFETIME_CFG: Final = "8Q"
# struct xfrm_lifetime_cur: bytes, packets, add_time, use_time
LIFETIME_CUR: Final = "4Q"
# struct xfrm_user_tmpl: id, family, saddr, reqid, mode, share, optional, aalgos, ealgos, calgos.
# XFRMA_TMPL carries an array of them.
USER_TMPL: Final = struct.Struct("16s4sB3xH2x16sIBBBxIII")
# struct xfrm_replay_state_esn without its bitmap: bmp_len (in 32-bit words), oseq, seq, oseq_hi,
# seq_hi, replay_window
REPLAY_ESN: Final = struct.Struct("6I")
# struct xfrm_mark: value, mask
MARK: Final = struct.Struct("II")


class Algo(nla):  # type: ignore[misc]
    """XFRMA_ALG_CRYPT, XFRMA_ALG_AUTH, XFRMA_ALG_COMP.

    struct xfrm_algo {
        char alg_name[64];
        unsigned int alg_key_len;      /* in bits */
        char alg_key[];
    };
    """

    fields = (("alg_name", "64s"), ("alg_key_len", "I"), ("alg_key", "s"))


class AlgoAuth(nla):  # type: ignore[misc]
    """XFRMA_ALG_AUTH_TRUNC.

    struct xfrm_algo_auth {
        char alg_name[64];
        unsigned int alg_key_len;      /* in bits */
        unsigned int alg_trunc_len;    /* in bits */
        char alg_key[];
    };
    """

    fields = (("alg_name", "64s"), ("alg_key_len", "I"), ("alg_trunc_len", "I"), ("alg_key", "s"))


class AlgoAead(nla):  # type: ignore[misc]
    """XFRMA_ALG_AEAD.

    struct xfrm_algo_aead {
        char alg_name[64];
        unsigned int alg_key_len;      /* in bits, with the salt */
        unsigned int alg_icv_len;      /* in bits */
        char alg_key[];
    };
    """

    fields = (("alg_name", "64s"), ("alg_key_len", "I"), ("alg_icv_len", "I"), ("alg_key", "s"))


class ReplayState(nla):  # type: ignore[misc]
    """XFRMA_REPLAY_VAL.

    struct xfrm_replay_state {
        __u32 oseq;
        __u32 seq;
        __u32 bitmap;
    };
    """

    fields = (("oseq", "I"), ("seq", "I"), ("bitmap", "I"))


class LifetimeCur(nla):  # type: ignore[misc]
    """XFRMA_LTIME_VAL.

    struct xfrm_lifetime_cur { __u64 bytes, packets, add_time, use_time; };
    """

    fields = (("curlft", LIFETIME_CUR),)


class XfrmMessage(nlmsg):  # type: ignore[misc]
    """What every XFRM message has: a header and these attributes; the fields differ."""

    algo = Algo
    algo_auth = AlgoAuth
    algo_aead = AlgoAead
    replay_state = ReplayState
    lifetime_cur = LifetimeCur

    nla_map = (
        (1, "XFRMA_ALG_AUTH", "algo"),
        (2, "XFRMA_ALG_CRYPT", "algo"),
        (3, "XFRMA_ALG_COMP", "algo"),
        (5, "XFRMA_TMPL", "cdata"),
        (6, "XFRMA_SA", "cdata"),
        (7, "XFRMA_POLICY", "cdata"),
        (9, "XFRMA_LTIME_VAL", "lifetime_cur"),
        (10, "XFRMA_REPLAY_VAL", "replay_state"),
        (18, "XFRMA_ALG_AEAD", "algo_aead"),
        (20, "XFRMA_ALG_AUTH_TRUNC", "algo_auth"),
        (21, "XFRMA_MARK", "cdata"),
        (23, "XFRMA_REPLAY_ESN_VAL", "cdata"),
        (29, "XFRMA_SET_MARK", "uint32"),
        (30, "XFRMA_SET_MARK_MASK", "uint32"),
        (31, "XFRMA_IF_ID", "uint32"),
    )


_USERSA_INFO: Final = (
    ("sel", SELECTOR),
    ("id", ID),
    ("saddr", "16s"),
    ("lft", LIFETIME_CFG),
    ("curlft", LIFETIME_CUR),
    ("stats", "3I"),
    ("seq", "I"),
    ("reqid", "I"),
    ("family", "H"),
    ("mode", "B"),
    ("replay_window", "B"),
    ("flags", "B"),
    ("_padding", "7x"),
)

_USERPOLICY_INFO: Final = (
    ("sel", SELECTOR),
    ("lft", LIFETIME_CFG),
    ("curlft", LIFETIME_CUR),
    ("priority", "I"),
    ("index", "I"),
    ("dir", "B"),
    ("action", "B"),
    ("flags", "B"),
    ("share", "B"),
    ("_padding", "4x"),
)


class UserSaInfo(XfrmMessage):
    """XFRM_MSG_NEWSA, XFRM_MSG_UPDSA.

    struct xfrm_usersa_info {
        struct xfrm_selector sel;
        struct xfrm_id id;
        xfrm_address_t saddr;
        struct xfrm_lifetime_cfg lft;
        struct xfrm_lifetime_cur curlft;
        struct xfrm_stats stats;       /* replay_window, replay, integrity_failed */
        __u32 seq;
        __u32 reqid;
        __u16 family;
        __u8 mode;
        __u8 replay_window;
        __u8 flags;
    };
    """

    fields = _USERSA_INFO
    defaults = {"curlft": (0,) * 4, "stats": (0,) * 3}


class UserSaId(XfrmMessage):
    """XFRM_MSG_GETSA, XFRM_MSG_DELSA.

    struct xfrm_usersa_id {
        xfrm_address_t daddr;
        __be32 spi;
        __u16 family;
        __u8 proto;
    };
    """

    fields = (("daddr", "16s"), ("spi", "4s"), ("family", "H"), ("proto", "B"), ("_padding", "x"))


class UserExpire(XfrmMessage):
    """XFRM_MSG_EXPIRE.

    struct xfrm_user_expire {
        struct xfrm_usersa_info state;
        __u8 hard;
    };
    """

    fields = (*_USERSA_INFO, ("hard", "B"), ("_padding2", "7x"))


class UserSaFlush(XfrmMessage):
    """XFRM_MSG_FLUSHSA.

    struct xfrm_usersa_flush { __u8 proto; };
    """

    fields = (("proto", "B"),)


class UserPolicyInfo(XfrmMessage):
    """XFRM_MSG_NEWPOLICY, XFRM_MSG_UPDPOLICY.

    struct xfrm_userpolicy_info {
        struct xfrm_selector sel;
        struct xfrm_lifetime_cfg lft;
        struct xfrm_lifetime_cur curlft;
        __u32 priority;
        __u32 index;
        __u8 dir;
        __u8 action;
        __u8 flags;
        __u8 share;
    };
    """

    fields = _USERPOLICY_INFO
    defaults = {"curlft": (0,) * 4}


class UserPolicyId(XfrmMessage):
    """XFRM_MSG_GETPOLICY, XFRM_MSG_DELPOLICY.

    struct xfrm_userpolicy_id {
        struct xfrm_selector sel;
        __u32 index;
        __u8 dir;
    };
    """

    fields = (("sel", SELECTOR), ("index", "I"), ("dir", "B"), ("_padding", "3x"))


class UserPolExpire(XfrmMessage):
    """XFRM_MSG_POLEXPIRE.

    struct xfrm_user_polexpire {
        struct xfrm_userpolicy_info pol;
        __u8 hard;
    };
    """

    fields = (*_USERPOLICY_INFO, ("hard", "B"), ("_padding2", "7x"))


class UserPolicyDefault(XfrmMessage):
    """XFRM_MSG_SETDEFAULT, XFRM_MSG_GETDEFAULT.

    struct xfrm_userpolicy_default { __u8 in; __u8 fwd; __u8 out; };
    """

    fields = (("in", "B"), ("fwd", "B"), ("out", "B"))


class ErrorReply(nlmsg):  # type: ignore[misc]
    """NLMSG_ERROR as the kernel sends it to a socket with NETLINK_CAP_ACK and NETLINK_EXT_ACK.

    struct nlmsgerr {
        int error;
        struct nlmsghdr msg;           /* the header only: NETLINK_CAP_ACK */
    };

    pyroute2's own nlmsgerr has no room for the second member.
    """

    fields = (("error", "i"), ("msg", "IHHII"))
    nla_map = ((1, "NLMSGERR_ATTR_MSG", "asciiz"), (2, "NLMSGERR_ATTR_OFFS", "uint32"))
