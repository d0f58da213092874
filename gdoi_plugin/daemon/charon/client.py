"""Commands for charon, in asyncio: each has a connection of its own and a time limit.

Source of the commands: README.md of strongSwan's vici plugin. A connection for each command costs
little on a Unix socket, and buys that a command that takes long (initiate) holds up no other, and
that there is nothing to recover after one that failed.

A message's values are text, also where charon sends or takes octets (certificates, secrets): see
`text_of` and `octets_of` of ``vici_message``.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

from gdoi_plugin.daemon.charon.connection import TIME_LIMIT, Connection, accepted, unknown
from gdoi_plugin.daemon.charon.errors import CharonError, CharonLost, CharonRefused
from gdoi_plugin.daemon.vici_message import Message, Packet, PacketType, to_message

__all__ = ["CharonClient", "CharonError", "CharonLost", "CharonRefused"]

SOCKET = Path("/run/charon.vici")  # where Debian's charon has it

LIST_TIME = 60.0
"""Seconds that charon may take over a whole list, not counting those of who reads it."""

BUSY = 15.0
"""Seconds that charon may pause in list-sas: it waits there for an IKE_SA that is at work."""

MAX_LOG = 200
"""Lines of charon's log about one command that are kept."""

_SLACK = 2.0  # seconds beyond charon's own time limit for a command that has one


class CharonClient:
    """Asks charon at a Unix socket. Nothing is held between two commands."""

    def __init__(self, path: Path = SOCKET, *, time_limit: float = TIME_LIMIT) -> None:
        self.path, self.time_limit = path, time_limit

    async def request(self, command: str, message: Message | None = None) -> Message:
        """The response. Raises CharonLost, or CharonRefused where it says ``success = no``."""
        async with await Connection.open(self.path, command, self.time_limit) as connection:
            answer = await connection.ask(_request(command, message))
        return _response(command, answer)

    async def stream(
        self,
        command: str,
        event: str,
        message: Message | None = None,
        *,
        silence: float | None = None,
        whole: float = LIST_TIME,
    ) -> AsyncGenerator[Message, None]:
        """The messages that charon streams as ``event`` until its response.

        ``silence``: seconds between two of them, as long as for an answer unless told otherwise;
        ``whole``: seconds that are spent waiting for charon in all. Raises CharonLost and
        CharonRefused.
        """
        silence = self.time_limit if silence is None else silence
        async with await Connection.open(self.path, command, self.time_limit) as connection:
            registering = Packet(PacketType.EVENT_REGISTER, event)
            confirmed = await connection.ask(registering)
            if confirmed.type is not PacketType.EVENT_CONFIRM:
                raise unknown(command, confirmed)
            await connection.send(_request(command, message))
            left = whole
            while left > 0:
                began = time.monotonic()
                try:
                    packet = await connection.receive(min(silence, left))
                except TimeoutError as error:
                    raise CharonLost(command, f"nothing for {min(silence, left):g} s") from error
                left -= time.monotonic() - began
                if packet.type is not PacketType.EVENT:
                    _response(command, packet)
                    return
                yield packet.message or {}
        raise CharonLost(command, f"no end within {whole:g} s")

    def list_sas(
        self, *, silence: float | None = None, **which: object
    ) -> AsyncGenerator[Message, None]:
        """A message for each IKE_SA: its connection's name, and under that all about it.

        ``silence``: as of ``stream``; ``which``: ``ike``, ``ike_id``, ``child``, ``child_id``,
        ``noblock``."""
        return self.stream("list-sas", "list-sa", _keywords(which), silence=silence)

    def list_conns(self, **which: object) -> AsyncGenerator[Message, None]:
        """A message for each loaded connection; ``which``: ``ike``."""
        return self.stream("list-conns", "list-conn", _keywords(which))

    def list_certs(self, **which: object) -> AsyncGenerator[Message, None]:
        """A message for each loaded certificate, its octets under ``data``; ``which``: ``type``
        (X509, X509_CRL, ...), ``flag`` (NONE, CA, ...), ``subject``."""
        return self.stream("list-certs", "list-cert", _keywords(which))

    async def initiate(self, ike: str, child: str, *, limit: float) -> list[str]:
        """Brings a CHILD_SA up, and its IKE_SA where there is none: what charon logged.

        charon fails it as a duplicate where the CHILD_SA is already up. One that did not come up
        within ``limit`` seconds leaves an IKE_SA that goes on trying."""
        return await self._logged("initiate", {"ike": ike, "child": child}, limit)

    async def terminate(self, *, limit: float, **which: object) -> list[str]:
        """Ends SAs: what charon logged. ``which``: ``ike``, ``ike_id``, ``child``, ``child_id``;
        ``force`` for one that does not get an answer."""
        return await self._logged("terminate", which, limit)

    async def _logged(self, command: str, which: dict[str, object], limit: float) -> list[str]:
        """charon's own limit is ``limit``; ours comes after it, for a charon that stands still."""
        message = _keywords({**which, "timeout": round(limit * 1000)})
        told = self.stream(
            command, "control-log", message, silence=limit + _SLACK, whole=limit + _SLACK
        )
        log: list[str] = []
        try:
            async with aclosing(told):
                async for line in told:
                    text = line.get("msg", "")
                    if isinstance(text, str) and len(log) < MAX_LOG:
                        log.append(text)
        except CharonRefused as refused:
            raise CharonRefused(refused.asked, refused.why, tuple(log)) from None
        return log


def _request(command: str, message: Message | None) -> Packet:
    return Packet(PacketType.CMD_REQUEST, command, message or {})


def _response(command: str, packet: Packet) -> Message:
    if packet.type is not PacketType.CMD_RESPONSE:
        raise unknown(command, packet)
    why = accepted(packet.message)
    if why is not None:
        raise CharonRefused(command, why)
    return packet.message or {}


def _keywords(which: dict[str, object]) -> Message:
    """vici's keys have hyphens."""
    return to_message({key.replace("_", "-"): value for key, value in which.items()})
