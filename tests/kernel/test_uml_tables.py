"""SAs and policies in a real kernel: what goes in comes out, and `ip xfrm` sees the same."""

from __future__ import annotations

import asyncio
import socket
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from gdoi_xfrm import (
    AddSa,
    AesGcm,
    Algorithm,
    CbcHmac,
    DeleteSa,
    Direction,
    InstallSa,
    Integrity,
    KernelError,
    Lifetime,
    Mode,
    Outcome,
    Policy,
    PolicyAction,
    Selector,
    UpdatePolicy,
    Xfrm,
    probe,
)

from tests.kernel.namespaces import Namespace, eventually, ip
from tests.kernel.values import CBC, CHACHA, GCM, GMAC, GROUP, policy, sa, template

pytestmark = pytest.mark.uml

ALGORITHMS = [
    GCM,
    CBC,
    AesGcm(bytes(36), 96),
    CbcHmac(bytes(32), bytes(48), Integrity.HMAC_SHA2_384),
    CbcHmac(bytes(24), bytes(64), Integrity.HMAC_SHA2_512),
    GMAC,
    CHACHA,
]


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=repr)
def test_an_sa_goes_in_and_comes_out(xfrm: Xfrm, version: int, algorithm: Algorithm) -> None:
    wanted = sa(0xDEADBEEF, algorithm, version)
    assert xfrm.get_sa(GROUP[version], 0xDEADBEEF) is None
    xfrm.add_sa(wanted)
    state = xfrm.get_sa(GROUP[version], 0xDEADBEEF)
    assert state is not None
    assert state.sa == wanted
    assert (state.larval, state.output_sequence, state.packets) == (False, 0, 0)
    assert state.added_time > 0
    assert xfrm.dump_sas() == [state]
    xfrm.delete_sa(GROUP[version], 0xDEADBEEF)
    assert xfrm.dump_sas() == []


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(
    "changed",
    [
        {"replay_window": 32},
        {"replay_window": 1024},
        {"lifetime": Lifetime(100, 200, 300, 400, 500, 600)},
        {"lifetime": Lifetime(hard_seconds=100)},
        {"mode": Mode.TUNNEL},
        {"selector": "host"},
    ],
)
def test_what_else_an_sa_has(xfrm: Xfrm, version: int, changed: dict[str, Any]) -> None:
    host = {4: "10.1.2.3", 6: "2001:db8::7"}[version]
    if changed.get("selector"):
        sender = Selector(ip_network(host), ip_network(GROUP[version]), 17, 5000, 6000)
        changed = {"selector": sender}
    wanted = sa(7, CBC, version, source=ip_address(host), **changed)
    xfrm.add_sa(wanted)
    state = xfrm.get_sa(GROUP[version], 7)
    assert state is not None
    assert state.sa == wanted


def test_ip_xfrm_sees_the_same_sas(xfrm: Xfrm) -> None:
    xfrm.add_sa(sa(0x1001, GCM, lifetime=Lifetime(hard_seconds=3600)))
    gcm = ip("-s xfrm state")
    assert "src 0.0.0.0 dst 239.1.1.1" in gcm
    assert "proto esp spi 0x00001001" in gcm
    assert "reqid 1073741825(0x40000001) mode transport" in gcm
    assert f"aead rfc4106(gcm(aes)) 0x{GCM.key.hex()} (160 bits) 128" in gcm
    for line in ("limit: soft (INF)(bytes), hard (INF)(bytes)", "hard 3600(sec)"):
        assert line in gcm
    xfrm.delete_sa(GROUP[4], 0x1001)
    xfrm.add_sa(sa(0x1002, CBC))
    cbc = ip("-s xfrm state")
    assert f"auth-trunc hmac(sha256) 0x{CBC.integrity_key.hex()} (256 bits) 128" in cbc
    assert f"enc cbc(aes) 0x{CBC.encryption_key.hex()} (128 bits)" in cbc
    assert "replay-window 0" in cbc


def test_sas_of_others_are_read_whatever_they_are(xfrm: Xfrm) -> None:
    ip(
        "xfrm state add src 10.0.0.1 dst 10.0.0.2 proto esp spi 0x77 mode tunnel reqid 5 "
        'auth "hmac(sha1)" 0x0102030405060708091011121314151617181920 enc "ecb(cipher_null)" \'\' '
        "replay-window 32 sel src 10.7.0.0/16 dst 10.8.0.0/16"
    )
    ip("xfrm state add src 10.0.0.1 dst 10.0.0.2 proto comp spi 0x78 comp deflate mode tunnel")
    found = {state.sa.protocol: state for state in xfrm.dump_sas()}
    esp = found[50]
    assert (esp.larval, esp.sa.mode, esp.sa.replay_window) == (False, Mode.TUNNEL, 32)
    names = [(part.name, part.icv_bits) for part in esp.sa.algorithm.attributes]
    assert names == [("hmac(sha1)", 96), ("ecb(cipher_null)", 0)]
    assert not found[108].larval


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("direction", Direction)
def test_a_policy_goes_in_and_comes_out(xfrm: Xfrm, version: int, direction: Direction) -> None:
    wanted = policy(0 if direction != Direction.OUT else 9, direction, version)
    assert xfrm.get_policy(wanted.selector, direction) is None
    xfrm.add_policy(wanted)
    assert xfrm.get_policy(wanted.selector, direction) == wanted
    assert xfrm.dump_policies() == [wanted]
    block = policy(direction=direction, version=version, action=PolicyAction.BLOCK, templates=())
    xfrm.update_policy(block)
    assert xfrm.dump_policies() == [block]
    xfrm.delete_policy(wanted.selector, direction)
    assert xfrm.dump_policies() == []


def test_updating_a_policy_pins_another_spi(xfrm: Xfrm) -> None:
    xfrm.update_policy(policy(0x1111))
    assert "spi 0x00001111 reqid 1073741825" in ip("xfrm policy")
    xfrm.update_policy(policy(0x2222))
    text = ip("xfrm policy")
    assert "spi 0x00002222" in text
    assert "0x00001111" not in text
    assert "dir out priority 1000" in text


def test_per_socket_policies_are_left_out_of_dumps(xfrm: Xfrm) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as own:
        info = bytearray(168)
        info[40:42] = socket.AF_INET.to_bytes(2, "little")
        info[160] = Direction.OUT
        own.setsockopt(socket.IPPROTO_IP, 17, bytes(info))
        assert "socket out" in ip("xfrm policy")
        assert xfrm.dump_policies() == []


@pytest.mark.parametrize(
    "selector",
    [
        Selector(ip_network("10.0.0.0/8"), ip_network("239.0.0.0/8"), 17, 0, 5000),
        Selector(ip_network("::/0"), ip_network("::/0"), 58, 135),
        Selector(ip_network("0.0.0.0/0"), ip_network("239.0.0.0/8"), interface=1),
    ],
)
def test_selectors(xfrm: Xfrm, selector: Selector) -> None:
    xfrm.add_policy(Policy(selector, Direction.OUT, 1))
    assert xfrm.get_policy(selector, Direction.OUT) == Policy(selector, Direction.OUT, 1)


def test_installing_adopts_an_equal_sa_and_refuses_another(xfrm: Xfrm) -> None:
    assert xfrm.install_sa(sa(5)) is Outcome.ADDED
    assert xfrm.install_sa(sa(5)) is Outcome.ADOPTED
    assert xfrm.install_sa(sa(5, lifetime=Lifetime(hard_seconds=9))) is Outcome.ADOPTED
    with pytest.raises(KernelError, match=r"EEXIST.*taken by an SA with different algorithm"):
        xfrm.install_sa(sa(5, AesGcm(bytes(20))))
    state = xfrm.get_sa(GROUP[4], 5)
    assert state is not None
    assert state.sa == sa(5)


def test_a_larval_sa_is_filled(xfrm: Xfrm) -> None:
    ip("link add v0 type veth peer name v1")
    ip("addr add 10.9.0.1/24 dev v0")
    ip("link set v0 up")
    ip("link set v1 up")
    ip("route add 239.0.0.0/8 dev v0")
    xfrm.add_policy(policy(0xABCD))
    xfrmnlgrp_acquire = 1
    with (
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 6) as acquires,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
    ):
        acquires.bind((0, 0))
        acquires.setsockopt(270, 1, xfrmnlgrp_acquire)
        sender.sendto(b"no SA yet", (str(GROUP[4]), 5000))
        state = xfrm.get_sa(GROUP[4], 0xABCD)
        assert state is not None
        assert state.larval
        with pytest.raises(KernelError, match="EEXIST"):
            xfrm.add_sa(sa(0xABCD))
        assert xfrm.install_sa(sa(0xABCD)) is Outcome.FILLED

    def sent() -> bool:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as again:
            again.sendto(b"now", (str(GROUP[4]), 5000))
        state = xfrm.get_sa(GROUP[4], 0xABCD)
        assert state is not None
        assert (state.larval, state.sa) == (False, sa(0xABCD))
        return state.output_sequence > 0

    eventually(sent)
    assert xfrm.install_sa(sa(0xABCD)) is Outcome.ADOPTED
    state = xfrm.get_sa(GROUP[4], 0xABCD)
    assert state is not None
    assert state.output_sequence > 0


def test_a_thousand_sas_and_back(xfrm: Xfrm) -> None:
    wanted = [sa(spi) for spi in range(1000, 2000)]
    results = xfrm.apply([AddSa(one) for one in wanted])
    assert {result.outcome for result in results} == {Outcome.ADDED}
    found = sorted((state.sa for state in xfrm.dump_sas()), key=lambda one: one.spi)
    assert found == wanted
    xfrm.apply([DeleteSa(one.key) for one in wanted])
    assert xfrm.dump_sas() == []


def test_it_works_inside_a_running_event_loop(namespace: Namespace) -> None:  # noqa: ARG001
    async def daemon() -> list[Outcome]:
        with Xfrm() as xfrm:
            results = xfrm.transaction([InstallSa(sa(1)), UpdatePolicy(policy(1))])
            assert len(xfrm.dump_sas()) == len(xfrm.dump_policies()) == 1
            return [result.outcome for result in results]

    assert asyncio.run(daemon()) == [Outcome.ADDED, Outcome.UPDATED]


def test_probe(xfrm: Xfrm) -> None:
    assert probe(families=(4, 6)) is None
    assert xfrm.dump_sas() == []
    missing = probe(algorithms=[AesGcm(bytes(20), 80)])
    assert missing is not None
    assert "rfc4106(gcm(aes))" in str(missing)


def test_templates_of_every_kind(xfrm: Xfrm) -> None:
    wanted = policy(templates=(template(optional=True), template(protocol=51)))
    xfrm.add_policy(wanted)
    assert xfrm.dump_policies() == [wanted]
