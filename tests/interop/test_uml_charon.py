"""Our `gdoi-gm`, a process, with charon for its key server: phase 1 is as far as the two can get.

::

    10.77.0.1:500                    10.77.0.3:848
    charon       <----- UDP ----->   gdoi-gm, on a kernel with ESP
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .charon import PORT, Charon, charon, on_loopback
from .running import daemon, wait_for

pytestmark = pytest.mark.uml

CHARON, GM = "10.77.0.1", "10.77.0.3"
PSK = b"a pre-shared key of two programs"
CONFIG = f"""
[member]
address = "{GM}"
state = "@/state"
control = "@/control"
[[group]]
name = "video"
id = 1234
proposals = ["aes256-sha384-ecp384"]
[[group.key_server]]
address = "{CHARON}"
port = {PORT}
psk = "{PSK.decode()}"
phase1_doi = "ipsec"
phase1_lifetime = "1h"
"""


@pytest.fixture
def ike(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Charon]:
    with on_loopback(CHARON, GM), charon(tmp_path_factory.mktemp("charon")) as running:
        running.load_psk(PSK, CHARON, GM)
        yield running


def test_phase_1_with_charon(ike: Charon, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Both call it established. charon knows no GROUPKEY-PULL, so that is all."""
    rounds = ({"auth": "psk", "id": CHARON}, {"auth": "psk", "id": GM})
    ike.load(
        "gm",
        local_addrs=[CHARON],
        remote_addrs=[GM],
        proposals=["aes256-sha384-ecp384"],
        local=rounds[0],
        remote=rounds[1],
    )
    with daemon("gdoi-gm", CONFIG, tmp_path_factory.mktemp("gm")) as agent:
        wait_for(lambda: agent.events("phase1-established"), "phase 1 at the member")
        event = agent.events("phase1-established")[0]
        assert (event["identity"], event["doi"]) == (CHARON, "ipsec")
        assert event["proposal"] == "aes256-sha384-ecp384"
        ike.wait_for_log(f"established between {CHARON}[{CHARON}]...{GM}[{GM}]")
        assert agent.ctl("status")[0]["groups"][0]["state"] == "registering"
        assert agent.events("bug") == []
