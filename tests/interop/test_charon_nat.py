"""charon and our key server with one of them asking for UDP encapsulation: main mode on port 4500.

::

    charon, 10.78.0.1 and .3 --- veth --- 10.78.0.2, gdoi-gcks
         UDP 500   main mode 1 to 4   848
         UDP 4500  main mode 5 and 6, DPD  4500

charon binds its ports on all addresses, so each of the two has a network namespace.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.kernel.namespaces import Namespace, ip

from .charon import NAT_PORT, Charon, Record, charon
from .running import Daemon, daemon, wait_for

FORCING, FORCED, GCKS = "10.78.0.1", "10.78.0.3", "10.78.0.2"
PSK = b"a pre-shared key of two programs"
CONFIG = f"""
[key_server]
address = "{GCKS}"
state = "@/state.sqlite"
control = "@/control"
dpd_delay = "1s"
dpd_timeout = "5s"
[[peer]]
address = "{FORCING}"
psk = "{PSK.decode()}"
phase1_doi = "any"
[[peer]]
address = "{FORCED}"
psk = "{PSK.decode()}"
phase1_doi = "any"
encap = true
[[group]]
name = "video"
id = 1234
members = ["{FORCING}"]
rekey.signature = "ecdsa256"
[[group.tek]]
destination = "239.192.1.1"
"""


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Charon, Daemon]]:
    folder = tmp_path_factory.mktemp("nat")
    with Namespace() as here, Namespace() as there, here.entered():
        ip("link add net0 type veth peer name net1")
        there.take("net1")
        for address in (FORCING, FORCED):
            ip(f"address add {address}/24 dev net0")
        ip("link set net0 up")
        with there.entered():
            ip(f"address add {GCKS}/24 dev net1")
            ip("link set net1 up")
        with charon(folder / "charon") as ike:
            ike.load_psk(PSK, FORCING, FORCED, GCKS)
            with there.entered(), daemon("gdoi-gcks", CONFIG, folder / "gcks") as gcks:
                yield ike, gcks
                assert gcks.events("bug", "nat-traversal-off") == []


def connection(local: str, encap: str) -> Record:
    return {
        "local_addrs": [local],
        "remote_addrs": [GCKS],
        "remote_port": "848",
        "proposals": ["aes256-sha256-ecp256"],
        "encap": encap,
        "local": {"auth": "psk", "id": local},
        "remote": {"auth": "psk", "id": GCKS},
    }


@pytest.mark.parametrize(
    ("address", "encap", "before"),
    [(FORCING, "yes", "there"), (FORCED, "no", "here")],
    ids=["charon forces", "our key server forces"],
)
def test_main_mode_moves_to_port_4500(
    both: tuple[Charon, Daemon], address: str, encap: str, before: str
) -> None:
    ike, gcks = both
    start = len(ike.log())
    ike.load(address, **connection(address, encap))
    ike.initiate(address)
    (sa,) = ike.established(address)
    assert (sa["local-port"], sa["remote-port"]) == (str(NAT_PORT), str(NAT_PORT))
    cookies = sa["initiator-spi"] + sa["responder-spi"]
    wait_for(lambda: said(gcks, cookies), "the key server to call phase 1 established")
    (event,) = said(gcks, cookies)
    assert (event["peer"], event["nat"]) == (f"{address}:{NAT_PORT}", before)
    lines = [line for line in ike.log()[start:].splitlines() if "sending packet" in line]
    ports = [line.partition("to ")[2].partition(" (")[0] for line in lines]
    assert ports[:3] == [f"{GCKS}[848]", f"{GCKS}[848]", f"{GCKS}[{NAT_PORT}]"]
    # Our key server asks through the same port, and hears the answer.
    ike.wait_for_log("[ HASH N(DPD_ACK) ]", start)
    ike.terminate(address)
    wait_for(lambda: ended(gcks, cookies), "the key server to take charon's Delete")
    assert ended(gcks, cookies) == ["peer"]


def said(gcks: Daemon, cookies: str) -> list[Record]:
    return [e for e in gcks.events("phase1-established") if e["cookies"] == cookies]


def ended(gcks: Daemon, cookies: str) -> list[str]:
    return [e["reason"] for e in gcks.events("phase1-deleted") if e["cookies"] == cookies]
