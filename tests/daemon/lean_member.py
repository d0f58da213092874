"""A member with nothing of its own but the protocol: main mode, GROUPKEY-PULL, PUSH, ACK.

It registers over and over, each time with a new phase 1, and acknowledges whatever it can read at
once. There is no kernel, nothing waits, and a registration that a dead key server has left behind
is given up for another.
"""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress
from ipaddress import ip_address

from gdoi_plugin.protocol.ack import base_key, build_ack
from gdoi_plugin.protocol.actions import Action, Peer, Send
from gdoi_plugin.protocol.errors import AuthError, PolicyError, ReplayError
from gdoi_plugin.protocol.group_id import GroupId
from gdoi_plugin.protocol.identity import Identity
from gdoi_plugin.protocol.policy import GroupPolicy, read_policy
from gdoi_plugin.protocol.push import open_push
from gdoi_plugin.protocol.registration import KeyServerEntry, Registration
from gdoi_plugin.protocol.rekey_sas import RekeySas
from gdoi_plugin.wire.buffer import DecodeError
from gdoi_plugin.wire.header import Header, pull_header
from gdoi_plugin.wire.registry import ExchangeType

from .evidence import Evidence

MAX_DATAGRAM = 65_535


class LeanMember:
    """One member of one group, at a socket of its own."""

    def __init__(
        self,
        local: Peer,
        server: KeyServerEntry,
        group: tuple[str, int],
        evidence: Evidence,
        *,
        sender_ids: int = 0,
    ) -> None:
        self.local, self.name = local, str(local.host)
        self.group, self._group_id = group[0], GroupId.of_number(group[1])
        self._server, self._evidence, self._sender_ids = server, evidence, sender_ids
        self._sas = RekeySas()
        self._attempt: Registration | None = None
        self.registered = False  # since the key server's last start
        self.registrations = self.acknowledged = self.unreadable = 0
        self.acked: set[tuple[bytes, int]] = set()
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.socket.bind((self.name, local.port))

    @property
    def busy(self) -> bool:
        return self._attempt is not None

    def server_started(self) -> None:
        """Who was asked before is dead: what it said of phase 1 is forgotten."""
        self._attempt, self.registered = None, False

    def register(self) -> None:
        self._attempt = Registration(
            self._server, self._group_id, self.local, os.urandom, sender_ids=self._sender_ids
        )
        self._send(self._attempt.start(time.time()))

    def tick(self) -> None:
        if self._attempt is not None:
            self._send(self._attempt.tick(time.time()))
            self._registration_ended()

    def arrived(self) -> int:
        """What waits in the socket: how many datagrams that was."""
        number = 0
        with suppress(BlockingIOError):
            while True:
                datagram, (host, port) = self.socket.recvfrom(MAX_DATAGRAM)
                number += 1
                self._receive(datagram, Peer(ip_address(host), port))
        return number

    def _receive(self, datagram: bytes, source: Peer) -> None:
        header = pull_header(datagram)
        if header.exchange_type == ExchangeType.GROUPKEY_PUSH:
            self._push(header, datagram, source)
        elif self._attempt is not None and self._attempt.owns(header):
            self._send(self._attempt.receive(header, datagram, source, time.time()))
            self._registration_ended()

    def _registration_ended(self) -> None:
        attempt = self._attempt
        if attempt is None or (attempt.result is None and attempt.failure is None):
            return
        self._attempt = None
        if attempt.result is None:
            return  # evicted, or a rekey came in between
        policy = read_policy(attempt.result.sa, attempt.result.kd, pull=True)
        self._evidence.sender_ids(self.group, policy, f"{self.name}-{self.registrations}")
        self._take(policy, attempt.result.seq or 0)
        # A leaf of its own may have come with a KEK that it has already.
        held = None if policy.kek is None else self._sas.of(policy.kek.spi)
        if held is not None and policy.kek is not None:
            held.kek = policy.kek
        self.registrations += 1
        self.registered = True

    def _take(self, policy: GroupPolicy, seq: int) -> None:
        self._evidence.policy(policy)
        new = self._sas.read_new(policy, seq, time.time())
        if new is not None:
            self._sas.replace(new, time.time())

    def _push(self, header: Header, datagram: bytes, source: Peer) -> None:
        under = self._sas.of(header.spi)
        if under is None:
            self.unreadable += 1  # its KEK was made while this member was out of the group
            return
        try:
            # The last SEQ is not looked at: that is for the evidence to judge.
            push = open_push(under.kek, under.verify_key, -1, header, datagram)
            self._evidence.push(header.spi, push.seq, datagram)
            policy = GroupPolicy(None, ())
            if push.policy is not None:
                policy = read_policy(*push.policy, held=under.kek)
        except (DecodeError, AuthError, PolicyError, ReplayError) as error:
            self._evidence.violations.append(f"{self.name}: a PUSH cannot be read: {error}")
            return
        self._take(policy, 0)
        ack_type = under.kek.ack_type
        base = None if ack_type is None else base_key(ack_type, under.kek, under.kek.leaf)
        if ack_type is None or base is None or policy.withheld is not None:
            return
        who = Identity.of_address(self.local.host).payload()
        ack = build_ack(ack_type, base, under.kek, push.seq, who)
        self.acknowledged += 1
        self._send([Send(ack, source, self.local)])

    def _send(self, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, Send):
                target = (str(action.destination.host), action.destination.port)
                # Whoever was killed a moment ago has no socket: the next one's members ask again.
                with suppress(ConnectionRefusedError, BlockingIOError):
                    self.socket.sendto(action.datagram, target)
