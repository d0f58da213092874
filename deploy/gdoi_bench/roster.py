"""Members on a key server's roster without a registration of each: its state, made beforehand."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address
from pathlib import Path

from gdoi_plugin.daemon.config_gcks import KeyServerDaemonConfig
from gdoi_plugin.daemon.store import Store
from gdoi_plugin.protocol.actions import Peer, Persist
from gdoi_plugin.protocol.group import Group
from gdoi_plugin.protocol.group_record import group_record, member_record, tree_persists
from gdoi_plugin.protocol.identity import Identity
from gdoi_plugin.protocol.key_server import KeyServer
from gdoi_plugin.protocol.nat import Path as Route
from gdoi_plugin.protocol.policy import Kek

Registered = tuple[IPv4Address, Kek]


def fill(path: Path, hosts: Iterable[IPv4Address], port: int) -> list[Registered]:
    """The state that ``path``, a gdoi-gcks configuration with one group, names: as if these had
    registered, and what GROUPKEY-PULL would have told each of the Rekey SA."""
    config = KeyServerDaemonConfig(path)
    engine = KeyServer(config.groups, config.phase1_for, os.urandom)
    now = time.time()
    records = [action for action in engine.start(now, {}) if isinstance(action, Persist)]
    (group,) = engine.groups.values()
    told = list(_registered(group, (Peer(host, port) for host in hosts), now))
    records += [Persist("member", member_record(group, m)) for m in group.members.values()]
    store = Store(config.settings.place(path), config.settings.key(path, os.environ))
    try:
        store.save([*records, *tree_persists(group), *_group(group)])
    finally:
        store.close()
    return told


def _registered(group: Group, peers: Iterable[Peer], now: float) -> Iterator[Registered]:
    for peer in peers:
        identity, route = Identity.of_address(peer.host), Route(group.config.source, peer)
        member = group.registrant(identity, route, now)
        policy, _ = group.admit(member, group.offer(identity, route, now), os.urandom)
        group.roster.add(member)
        if all(sa.full for sa in group.sas):
            group.plant(group.current_kek().signer, os.urandom, now)
        if policy.kek is not None and isinstance(peer.host, IPv4Address):
            yield peer.host, policy.kek


def _group(group: Group) -> list[Persist]:
    """Trees may have been planted since its record was made."""
    return [Persist("group", group_record(group))]
