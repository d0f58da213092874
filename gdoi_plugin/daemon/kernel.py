"""From TEKs to the kernel's SAs and policies; a transaction for each of a member's plans.

An SA serves receiving and, where its policy pins it, sending. The ``in`` policy of a flow drops
clear packets to the group; the ``out`` policy names the SPI to send with, so that a missing SA
drops and a switch is one atomic update. Policies are taken away only where those of another flow
serve their packets. What lies beneath them is :mod:`.guard`'s.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import replace
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_network

from gdoi_xfrm import (
    AH,
    ESP,
    AesGcm,
    AesGmac,
    Algorithm,
    CbcHmac,
    ChaCha20Poly1305,
    DeletePolicy,
    DeleteSa,
    Direction,
    Hmac,
    InstallSa,
    Integrity,
    Lifetime,
    Mode,
    Operation,
    Policy,
    PolicyKey,
    Sa,
    SaKey,
    SaState,
    Selector,
    Template,
    UpdatePolicy,
    Xfrm,
)

from ..protocol.actions import ApplyKernel, IPAddress
from ..protocol.group_id import GroupId
from ..protocol.policy import Flow, Tek
from ..protocol.renewal import margin, margin_of_octets
from ..protocol.rollover import Rollover
from ..protocol.suites import TekSuite
from ..wire.registry import (
    AddressPreservation,
    AuthAlgorithm,
    EncapsulationMode,
    EspTransform,
    SaDirection,
    TekProtocol,
)
from .forwarding import Forwarding
from .guard import Guard
from .kernel_options import REPLAY_WINDOW, KernelOptions
from .neighbours import Neighbours
from .reqid import reqid_of
from .selectors import selector


class GroupKernel:
    """One group's part of the kernel's tables. ``local``: the outer source in tunnel mode.

    ``guard`` blocks what no policy made here is for, ``forwarding`` has what a router needs,
    ``neighbours`` are the agent's other groups.
    ``chance``, from 0 to 1, is drawn once: where this member's soft limits are in their margins, so
    that members do not all ask at once.
    """

    def __init__(
        self,
        xfrm: Xfrm,
        group_id: GroupId,
        local: IPAddress,
        guard: Guard | None = None,
        options: KernelOptions | None = None,
        chance: float = 0.5,
        forwarding: Forwarding | None = None,
        neighbours: Neighbours | None = None,
    ) -> None:
        self._xfrm = xfrm
        self._guard = guard or Guard(xfrm)
        self.forwarding = forwarding or Forwarding(xfrm, reqid_of(group_id))
        self._local = local
        self.reqid = reqid_of(group_id)
        self._neighbours = neighbours
        self._options = options or KernelOptions()
        self._chance = chance

    def apply(self, action: ApplyKernel) -> None:
        """All of it, read back, or nothing.

        Raises KernelError, FirewallError, or ValueError for odd values and what is another group's.
        """
        self._guard.check(action.add)
        inbound = action.inbound
        if inbound is None:
            inbound = tuple({tek.flow: tek for tek in action.add if _receives(tek)}.values())
        policies = [self.policy(tek, Direction.IN) for tek in inbound]
        policies += [self.policy(tek, Direction.OUT) for tek in action.outbound]
        if self._neighbours is not None:
            self._neighbours.check(self.reqid, policies)
        covered = list(dict.fromkeys(tek.flow for tek in action.add))
        destinations = {flow.destination for flow in covered}
        self.forwarding.close_to_clear(destinations)
        operations: list[Operation] = [InstallSa(self.sa(tek)) for tek in action.add]
        operations += self.forwarding.operations(destinations)
        operations += self._guard.cover(
            covered, (policy.key for policy in policies), self._options.scope
        )
        operations += [UpdatePolicy(policy) for policy in policies]
        operations += self._guard.yielded(
            self._given_up(action, {policy.key for policy in policies})
        )
        operations += [DeleteSa(self.key(tek)) for tek in action.remove]
        self._let_go(action.add)
        self._xfrm.transaction(operations)
        self._guard.know(covered, self._options.scope)
        self.forwarding.know(destinations)

    def _given_up(self, action: ApplyKernel, taken: Collection[PolicyKey]) -> list[PolicyKey]:
        """Policies of TEKs whose packets others serve now.

        Of tunnels that keep the source several flows have one outbound policy, and another group
        may send what this one has only received: what serves such packets stays. ``taken``: keys
        that the transaction gives to TEKs.
        """
        silent = (*action.released, *action.silenced)
        spis = {int.from_bytes(tek.spi, "big") for tek in silent}
        keys = [self.policy(tek, Direction.IN).key for tek in action.released]
        keys += [self.policy(tek, Direction.OUT).key for tek in silent]
        return [k for k in dict.fromkeys(keys) if k not in taken and self._is_for(k, spis)]

    def _is_for(self, key: PolicyKey, spis: Collection[int]) -> bool:
        """Whether a policy is this group's, and sends with none but those, if it is for sending.

        What the agent wants to be there counts more than what is: somebody may have changed it.
        """
        wanted = None if self._neighbours is None else self._neighbours.tables.policies.get(key)
        there = wanted or self._xfrm.find_policy(key)
        inbound = key.direction is not Direction.OUT
        return there is not None and any(
            template.reqid == self.reqid and (inbound or template.spi in spis)
            for template in there.templates
        )

    def move(self, local: IPAddress, teks: Iterable[Tek]) -> None:
        """The member is at another address: policies for what it sent from the old one go.

        Raises KernelError.
        """
        kept = [tek for tek in teks if _keeps_source(tek)]
        sent = dict.fromkeys(self.policy(tek, Direction.OUT).key for tek in kept)
        self._local = local
        if sent:
            self._xfrm.transaction([DeletePolicy(key) for key in sent])

    def _let_go(self, teks: Iterable[Tek]) -> None:
        """Of tunnels that begin at an address the member had before, also in a former run.

        The kernel finds them where those are to be that begin at the one it has now.
        """
        tunnels = [tek for tek in teks if tek.mode is EncapsulationMode.TUNNEL]
        found = [(self.key(tek), self.state(tek)) for tek in tunnels]
        old = [
            DeleteSa(key)
            for key, state in found
            if state is not None and state.sa.reqid == self.reqid and state.sa.source != self._local
        ]
        if old:
            self._xfrm.transaction(old)

    def serving(self, rollover: Rollover) -> set[PolicyKey]:
        """The policies of the TEKs that are held."""
        held = rollover.held
        teks = [one.tek for one in held.values()]
        keys = {self.policy(tek, Direction.IN).key for tek in teks if _receives(tek)}
        pinned = [held[spi].tek for spi in rollover.pinned.values() if spi in held]
        return keys | {self.policy(tek, Direction.OUT).key for tek in pinned}

    def _sends(self, tek: Tek) -> Selector:
        """What this member's packets look like that the TEK is to protect.

        RFC 6407 section 5.5.1.1.1: a tunnel that preserves the source has the inner one outside.
        The kernel writes its own address there, so such a tunnel takes packets from that alone.
        """
        if _keeps_source(tek):
            return selector(replace(tek.flow, source=ip_network(self._local)))
        return selector(tek.flow)

    def state(self, tek: Tek) -> SaState | None:
        """What the kernel says of a TEK's SA."""
        return self._xfrm.find_sa(self.key(tek))

    def key(self, tek: Tek) -> SaKey:
        spi = int.from_bytes(tek.spi, "big")
        return SaKey(tek.flow.destination, spi, _protocol(tek), self._options.mark_of_sas)

    def sa(self, tek: Tek) -> Sa:
        return Sa(
            source=self._outer_source(tek),
            destination=tek.flow.destination,
            spi=int.from_bytes(tek.spi, "big"),
            mode=_mode(tek),
            reqid=self.reqid,
            algorithm=_algorithm(tek),
            protocol=_protocol(tek),
            replay_window=self._replay_window(tek),
            lifetime=_lifetime(tek.lifetime, tek.lifetime_kilobytes, self._chance),
            # The kernel compares no packet's source with the SA's own; its selector pins senders.
            selector=None if tek.flow.source is None else selector(tek.flow),
            esn=tek.esn,
            mark=self._options.mark_of_sas,
            if_id=self._options.scope.if_id,
        )

    def _replay_window(self, tek: Tek) -> int:
        """With 64-bit sequence numbers the kernel wants one: it guesses the upper half by it."""
        if not tek.flow.one_sender:
            return 0
        return self._options.replay_window or (REPLAY_WINDOW if tek.esn else 0)

    def policy(self, tek: Tek, direction: Direction) -> Policy:
        outbound = direction is Direction.OUT
        template = Template(
            source=self._outer_source(tek) if outbound else _any(tek.flow),
            destination=tek.flow.destination,
            mode=_mode(tek),
            reqid=self.reqid,
            protocol=_protocol(tek),
            spi=int.from_bytes(tek.spi, "big") if outbound else 0,
        )
        chosen = self._sends(tek) if outbound else selector(tek.flow)
        return Policy(
            chosen,
            direction,
            self._options.priority_of(tek.flow),
            templates=(template,),
            mark=self._options.scope.mark(direction),
            if_id=self._options.scope.if_id,
        )

    def _outer_source(self, tek: Tek) -> IPAddress:
        """Any, except in tunnel mode: there the kernel takes the outer source from the SA."""
        return self._local if tek.mode is EncapsulationMode.TUNNEL else _any(tek.flow)


@lru_cache(256)
def _lifetime(seconds: int, kilobytes: int | None, chance: float) -> Lifetime:
    octets = kilobytes and kilobytes * 1024
    # The kernel holds with a clock that is set on where there is a soft limit of seconds.
    soft = math.ceil(seconds - margin(seconds, chance))
    return Lifetime(
        soft_seconds=soft if soft < seconds else None,
        hard_seconds=seconds,
        soft_bytes=octets and octets - margin_of_octets(octets, chance),
        hard_bytes=octets,
    )


_ANY: dict[int, IPAddress] = {4: IPv4Address(0), 6: IPv6Address(0)}


def _any(flow: Flow) -> IPAddress:
    return _ANY[flow.destination.version]


def _mode(tek: Tek) -> Mode:
    return Mode.TUNNEL if tek.mode is EncapsulationMode.TUNNEL else Mode.TRANSPORT


def _receives(tek: Tek) -> bool:
    """RFC 6407 section 5.5.1.1.2."""
    return tek.direction is not SaDirection.SENDER_ONLY


def _keeps_source(tek: Tek) -> bool:
    preserved = tek.preservation is AddressPreservation.SOURCE_AND_DESTINATION
    return tek.mode is EncapsulationMode.TUNNEL and preserved


def _protocol(tek: Tek) -> int:
    return AH if tek.protocol is TekProtocol.GDOI_PROTO_IPSEC_AH else ESP


_INTEGRITY = {
    AuthAlgorithm.HMAC_SHA2_256: Integrity.HMAC_SHA2_256,
    AuthAlgorithm.HMAC_SHA2_384: Integrity.HMAC_SHA2_384,
    AuthAlgorithm.HMAC_SHA2_512: Integrity.HMAC_SHA2_512,
}


def _algorithm(tek: Tek) -> Algorithm:
    integrity = b"" if tek.integrity_key is None else tek.integrity_key.reveal()
    return algorithm_of(tek.suite, tek.encryption_key.reveal(), integrity)


def algorithm_of(suite: TekSuite, key: bytes, integrity_key: bytes) -> Algorithm:
    """What the kernel is told of a suite."""
    if suite.transform_id is EspTransform.PRIVATE_CHACHA20_POLY1305:
        return ChaCha20Poly1305(key)
    if suite.authentication is None:
        return AesGcm(key, 8 * suite.icv_octets) if suite.encrypts else AesGmac(key)
    integrity = _INTEGRITY[suite.authentication]
    if not suite.encrypts:
        return Hmac(integrity_key, integrity)
    return CbcHmac(key, integrity_key, integrity)
