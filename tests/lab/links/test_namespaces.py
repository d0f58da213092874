"""Agents in network namespaces that they were not started in, and several of them on one host.

::

    the bridge's namespace:  gdoi-gcks netns=gcks    gdoi-gm netns=gm1 (video, 10.66.0.2)
                             gdoi-gm netns=gm1 (audio, 10.66.0.50)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from gdoi_lab.errors import LabError
from gdoi_lab.group import Daemon, GroupOptions, LabGroup
from gdoi_lab.net import INTERFACE, Network

from tests.lab.links.network import LIMIT, count, joined
from tests.lab.running import stopped
from tests.lab.watch import reconfigure, rekey, sas

pytestmark = pytest.mark.uml

SECOND = "10.66.0.50"
VIDEO = GroupOptions(activation_delay="1s", deactivation_delay="30s", ack_jitter="0s")
AUDIO = replace(VIDEO, name="audio", number=2)


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabGroup]:
    """Key server and gm1 run outside, and gm1 is in one group only."""
    folder = tmp_path_factory.mktemp("namespaces")
    with Network(["gcks", "gm1"], folder / "work") as network:
        lab = LabGroup(network, folder / "work", folder, VIDEO, more=[AUDIO])
        gm1 = network["gm1"].address4
        reconfigure(lab.gcks, f'members = ["{gm1}"]', f'members = ["{gm1}", "{SECOND}"]')
        for daemon, section in ((lab.gcks, "[key_server]"), (lab.members["gm1"], "[member]")):
            line = f'{section}\nnetns = "{daemon.host.namespace}"'
            reconfigure(daemon, section, line)
            bridge = network.bridge
            daemon.host = replace(
                daemon.host, namespace=bridge.namespace, processes=bridge.processes
            )
        only(lab.members["gm1"], VIDEO)
        with stopped(lab):
            yield lab


def only(daemon: Daemon, options: GroupOptions) -> None:
    """Takes the other groups out of a member's configuration."""
    config = daemon.work / "config.toml"
    head, *groups = config.read_text().split("\n[[group]]\n")
    chosen = [text for text in groups if f'name = "{options.name}"' in text]
    config.write_text("\n[[group]]\n".join([head, *chosen]))


def another(lab: LabGroup, options: GroupOptions, address: str, folder: Path) -> Daemon:
    """A second agent for gm1, in files of its own."""
    gm1 = lab.members["gm1"]
    folder.mkdir()
    text = (gm1.work / "config.toml").read_text().replace(str(gm1.work), str(folder))
    text = text.replace(f'address = "{lab.network["gm1"].address4}"', f'address = "{address}"')
    text = text.replace(f'name = "{VIDEO.name}"', f'name = "{options.name}"')
    text = text.replace(f"id = {VIDEO.group_id}\n", f"id = {options.group_id}\n")
    (folder / "config.toml").write_text(text)
    argv = [gm1.argv[0], "--config", str(folder / "config.toml")]
    return Daemon(gm1.host, folder, folder / "log", argv)


def test_everything_is_in_the_other_namespace(group: LabGroup) -> None:
    group.gcks.start()
    gm1 = group.members["gm1"]
    gm1.start()
    gm1.wait_event("registered", LIMIT)
    rekey(group, ["gm1"])
    inside, outside = group.network["gm1"], group.network.bridge
    assert sas(inside, VIDEO.data_group)
    assert VIDEO.rekey_group in joined(inside)
    assert outside.run(["ip", "xfrm", "state"]).stdout == ""
    assert outside.run(["ip", "xfrm", "policy"]).stdout == ""
    assert ":848" not in outside.run(["ss", "--udp", "--all", "-n"]).stdout


@pytest.mark.parametrize("why", ["state", "group", "address"])
def test_what_two_agents_cannot_share(why: str, group: LabGroup, tmp_path: Path) -> None:
    gm1 = group.members["gm1"]
    options = VIDEO if why == "group" else AUDIO
    daemon = another(group, options, group.network["gm1"].address4, tmp_path / "second")
    if why == "state":
        reconfigure(daemon, f'state = "{daemon.work}', f'state = "{gm1.work}')
    with pytest.raises(LabError) as caught:
        daemon.start()
    process = gm1.process
    assert process is not None
    said = {
        "state": f"gdoi-gm: {gm1.work}/state: another agent is using it",
        "group": f"gdoi-gm: group video: process {process.pid} is this group's agent in this",
        "address": "848: another program has the port (daemons need an address each)",
    }
    assert said[why] in str(caught.value)
    assert process.running
    rekey(group, ["gm1"])


def test_two_agents_on_one_host(group: LabGroup, tmp_path: Path) -> None:
    """Another group, another address: and each leaves alone what is the other's."""
    inside = group.network["gm1"]
    inside.run(["ip", "address", "add", f"{SECOND}/24", "dev", INTERFACE])
    second = another(group, AUDIO, SECOND, tmp_path / "second")
    second.start()
    second.wait_event("registered", LIMIT)
    video, audio = (set(sas(inside, options.data_group)) for options in (VIDEO, AUDIO))
    epoch = int(group.command(group.gcks, "rekey", group=AUDIO.name)["epoch"])
    second.wait_event("rekey-acknowledged", LIMIT)
    assert epoch > 1
    assert set(sas(inside, VIDEO.data_group)) == video
    assert audio < set(sas(inside, AUDIO.data_group))
    assert [item["group"] for item in group.listed(second, "group")] == [AUDIO.name]
    assert second.stop() == 0
    assert audio < set(sas(inside, AUDIO.data_group))
    rekey(group, ["gm1"])
    assert count(group.members["gm1"], "kernel-restored") == 0
