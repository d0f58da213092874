"""A key server's engine at a UDP socket, in the same process as the member that is measured."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from ipaddress import ip_address

from gdoi_plugin.protocol.actions import Action, Peer, Send
from gdoi_plugin.protocol.group import GroupConfig
from gdoi_plugin.protocol.key_server import KeyServer
from gdoi_plugin.protocol.phase1 import Phase1Config
from gdoi_plugin.wire.header import pull_header
from gdoi_plugin.wire.registry import ExchangeType

MAX_DATAGRAM = 65_535


class Serving:
    """Answers members; its rekeys are handed to the caller instead of the network."""

    def __init__(self, config: GroupConfig, phase1: Phase1Config) -> None:
        self._group = config.group_id.key
        self._local = config.source
        self._engine = KeyServer([config], lambda _: phase1, os.urandom)
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self._socket.bind((str(self._local.host), self._local.port))
        self._send(self._engine.start(time.time(), {}))

    def attend(self) -> None:
        asyncio.get_running_loop().add_reader(self._socket, self._answer)

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()

    def rekey(self) -> list[bytes]:
        """The PUSHes of new TEKs for every flow."""
        actions = self._engine.rekey(self._group, time.time(), "bench")
        self._engine.sent(time.time())
        sends = [action.datagram for action in actions if isinstance(action, Send)]
        pushed = ExchangeType.GROUPKEY_PUSH
        return [sent for sent in sends if pull_header(sent).exchange_type == pushed]

    def _answer(self) -> None:
        datagram, (host, port) = self._socket.recvfrom(MAX_DATAGRAM)
        source = Peer(ip_address(host), port)
        self._send(self._engine.receive(datagram, source, self._local, time.time()))

    def _send(self, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, Send):
                to = action.destination
                self._socket.sendto(action.datagram, (str(to.host), to.port))
        self._engine.sent(time.time())
