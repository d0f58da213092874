"""Multicast ESP and AH between two namespaces, with everything installed by this package.

    sender 10.9.0.1 ---- veth ---- 10.9.0.2 receiver, a member of 239.1.1.1

First that clear text and unknown SAs do not get through, then that the group's SA does.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from gdoi_xfrm import AH, ESP, NO_LIMIT, AesGcm, Direction, Lifetime, Mode, Selector, Xfrm

from tests.kernel.namespaces import Namespace, counter, eventually, ip
from tests.kernel.values import CBC, CHACHA, GCM, GMAC, GROUP, HMAC, policy, sa

pytestmark = pytest.mark.uml

PORT = 5000


@dataclass(frozen=True)
class End:
    """A namespace with a socket for UDP and one for XFRM."""

    namespace: Namespace
    udp: socket.socket
    xfrm: Xfrm

    def counter(self, name: str) -> int:
        with self.namespace.entered():
            return counter(name)

    def send(self, text: bytes) -> None:
        with suppress(OSError):  # without an SA the kernel may refuse to send at all
            self.udp.sendto(text, (str(GROUP[4]), PORT))

    def received(self) -> list[bytes]:
        found = []
        with suppress(BlockingIOError):
            while True:
                found.append(self.udp.recv(2000))
        return found


@pytest.fixture
def ends() -> Iterator[tuple[End, End]]:
    with ExitStack() as stack:
        namespaces = [stack.enter_context(Namespace()) for _ in range(2)]
        with namespaces[0].entered():
            ip("link add v0 type veth peer name v1")
            namespaces[1].take("v1")
        made = []
        for number, namespace in enumerate(namespaces):
            with namespace.entered():
                ip(f"addr add 10.9.0.{number + 1}/24 dev v{number}")
                ip(f"link set v{number} up")
                ip(f"route add 239.0.0.0/8 dev v{number}")
                udp = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
                made.append(End(namespace, udp, stack.enter_context(Xfrm())))
                udp.setblocking(False)
        sender, receiver = made
        membership = GROUP[4].packed + ip_address("10.9.0.2").packed
        receiver.udp.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
        receiver.udp.bind((str(GROUP[4]), PORT))
        yield sender, receiver


def arrives(sender: End, receiver: End, text: bytes) -> None:
    """Fails unless the text gets through (the link needs a moment to come up)."""

    def look() -> bool:
        sender.send(text)
        return text in receiver.received()

    eventually(look)
    receiver.received()


def counts(sender: End, receiver: End, at: End, name: str) -> None:
    """Fails unless a packet is counted as dropped for that reason, and none arrives."""
    before = at.counter(name)

    def look() -> bool:
        sender.send(b"never")
        return at.counter(name) > before

    eventually(look)
    assert receiver.received() == []


@pytest.mark.parametrize(
    ("protocol", "algorithm"),
    [(ESP, CBC), (ESP, GCM), (ESP, GMAC), (ESP, CHACHA), (AH, HMAC)],
    ids=["CBC", "GCM", "GMAC", "ChaCha20-Poly1305", "AH"],
)
@pytest.mark.parametrize("mode", [Mode.TRANSPORT, Mode.TUNNEL])
def test_multicast_ipsec(ends: tuple[End, End], protocol: int, algorithm: Any, mode: Mode) -> None:
    sender, receiver = ends
    source = ip_address("10.9.0.1")
    group_sa = sa(0xBEEF, algorithm, mode=mode, source=source, protocol=protocol)
    arrives(sender, receiver, b"in clear, before any policy")

    # The receiver wants ESP or AH: clear text is dropped.
    inbound = policy(direction=Direction.IN)
    template: dict[str, Any] = {"protocol": protocol}
    if mode is Mode.TUNNEL:
        template |= {"mode": mode, "source": source, "destination": GROUP[4]}
    wanted = changed_templates(inbound, template)
    receiver.xfrm.update_policy(wanted)
    counts(sender, receiver, receiver, "XfrmInTmplMismatch")

    # The sender is pinned to an SA that it has not got: nothing leaves.
    outbound = changed_templates(policy(0xBEEF), template)
    sender.xfrm.update_policy(outbound)
    counts(sender, receiver, sender, "XfrmOutNoStates")

    # It has got it, the receiver has not: what arrives is dropped.
    sender.xfrm.install_sa(group_sa)
    counts(sender, receiver, receiver, "XfrmInNoStates")

    receiver.xfrm.install_sa(group_sa)
    arrives(sender, receiver, b"protected")
    for end in ends:
        state = end.xfrm.get_sa(GROUP[4], 0xBEEF, protocol)
        assert state is not None
        assert state.packets >= 1
        assert state.used_time > 0


def changed_templates(original: Any, changed: dict[str, Any]) -> Any:
    templates = tuple(replace(one, **changed) for one in original.templates)
    return replace(original, templates=templates)


def test_octets_used_up(ends: tuple[End, End]) -> None:
    """The kernel counts them, takes the SA away, and its policy lets nothing out in clear."""
    sender, receiver = ends
    arrives(sender, receiver, b"in clear")
    for end in ends:
        life = Lifetime(hard_bytes=2048) if end is sender else NO_LIMIT
        end.xfrm.install_sa(sa(0xBEEF, lifetime=life))
    receiver.xfrm.update_policy(policy(direction=Direction.IN))
    sender.xfrm.update_policy(policy(0xBEEF))
    arrives(sender, receiver, b"protected")

    def gone() -> bool:
        sender.send(bytes(1000))
        return sender.xfrm.get_sa(GROUP[4], 0xBEEF) is None

    eventually(gone)
    receiver.received()
    counts(sender, receiver, sender, "XfrmOutNoStates")


def test_another_key_does_not_get_through(ends: tuple[End, End]) -> None:
    sender, receiver = ends
    arrives(sender, receiver, b"in clear")
    receiver.xfrm.update_policy(policy(direction=Direction.IN))
    receiver.xfrm.install_sa(sa(0xBEEF, AesGcm(bytes(20))))
    sender.xfrm.install_sa(sa(0xBEEF))
    sender.xfrm.update_policy(policy(0xBEEF))
    counts(sender, receiver, receiver, "XfrmInStateProtoError")


def test_the_selector_of_an_sa_pins_the_sender(ends: tuple[End, End]) -> None:
    sender, receiver = ends
    arrives(sender, receiver, b"in clear")
    receiver.xfrm.update_policy(policy(direction=Direction.IN))
    sender.xfrm.install_sa(sa(0xBEEF))
    sender.xfrm.update_policy(policy(0xBEEF))
    somebody_else = Selector(ip_network("10.9.0.7/32"), ip_network(GROUP[4]))
    receiver.xfrm.install_sa(sa(0xBEEF, selector=somebody_else))
    counts(sender, receiver, receiver, "XfrmInStateMismatch")
    receiver.xfrm.delete_sa(GROUP[4], 0xBEEF)
    the_sender = Selector(ip_network("10.9.0.1/32"), ip_network(GROUP[4]))
    receiver.xfrm.install_sa(sa(0xBEEF, selector=the_sender))
    arrives(sender, receiver, b"from the right one")


def test_switching_the_pinned_spi(ends: tuple[End, End]) -> None:
    sender, receiver = ends
    receiver.xfrm.update_policy(policy(direction=Direction.IN))
    for end in ends:
        end.xfrm.install_sa(sa(1))
        end.xfrm.install_sa(sa(2))
    for spi in (1, 2, 1):
        sender.xfrm.update_policy(policy(spi))
        arrives(sender, receiver, b"through SPI %d" % spi)
        before = sender.xfrm.get_sa(GROUP[4], spi)
        sender.send(b"one more")
        after = sender.xfrm.get_sa(GROUP[4], spi)
        assert before is not None
        assert after is not None
        assert after.output_sequence == before.output_sequence + 1
