"""``gdoi-gcks``: the key server."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from .. import __version__
from ..protocol.actions import Action, Peer, Persist
from ..protocol.group import Group
from ..protocol.identity import Identity
from ..protocol.key_server import KeyServer
from ..protocol.roster import Registrant
from .clock import SteadyClock
from .config_gcks import KeyServerDaemonConfig
from .control import CommandFailed, ControlServer, Message, to_message
from .errors import StoreError
from .keylog import KeyLogFile
from .links import LinkWatch, watch_links
from .log import Log
from .netns import enter
from .shell import Shell, open_log, run_daemon
from .signers import SignerPool
from .state_file import StateDirectory
from .store import Store

DEFAULT_CONFIG = Path("/etc/gdoi/gcks.toml")
EVENTS = (
    "phase1-established",
    "phase1-deleted",
    "group-created",
    "group-restored",
    "member-registered",
    "member-refused",
    "member-moved",
    "member-removed",
    "member-evicted",
    "member-readmitted",
    "rekey-sent",
    "rekey-acked",
    "rekey-part-acked",
    "ack-missing",
    "rekey-closed",
    "data-sa-transformed",
    "message-too-large",
    "sender-ids-limited",
    "sender-ids-exhausted",
)


class KeyServerDaemon(Shell):
    """The key server's sockets and store around its engine."""

    def __init__(self, config: KeyServerDaemonConfig, log: Log, keylog: KeyLogFile | None) -> None:
        super().__init__(log, keylog)
        self._config = config
        if config.credentials is not None:
            config.credentials.trust.report = self.crl_unreadable
        state = config.settings.state
        self._store = Store(state)
        self.clock = SteadyClock.kept(StateDirectory(state.parent), f"{state.stem}-clock")
        self._signers = SignerPool(group.scheme for group in config.groups)
        self.engine = KeyServer(
            config.groups,
            config.phase1_for,
            os.urandom,
            self._signers.take,
            dpd=config.dpd,
            limits=config.settings.limits,
        )
        self._links: LinkWatch | None = None
        self._control = ControlServer(
            config.settings.control,
            {
                "stats": self._stats,
                "rekey": self._rekey,
                "delete-group": self._delete_group,
                "delete-tek": self._delete_tek,
                "evict": self._evict,
                "admit": self._admit,
            },
            {
                "list-groups": ("list-group", self._list_groups),
                "list-members": ("list-member", self._list_members),
                "list-rekeys": ("list-rekey", self._list_rekeys),
            },
            EVENTS,
            group=config.settings.control_group,
            about={"daemon": "gdoi-gcks", "version": __version__},
            trace=self.trace_control,
        )

    @property
    def control(self) -> ControlServer:
        return self._control

    def begin(self) -> None:
        self._links = watch_links(self._link_changed)
        self.sockets.bind(self._config.local, self._config.interface)
        if not self.bind_nat(self._config.nat_local):
            self._config.give_up_nat_traversal()
        for endpoint in self.sockets.open:
            warning = self.sockets.separate(endpoint, self.first)
            if warning is not None:
                self.log.event("warning", "lanes", {"error": warning})
        saved = self._store.load()
        try:
            actions = self.engine.start(self.clock.now(), saved)
        except (KeyError, ValueError, TypeError) as error:
            where = self._config.settings.state
            raise StoreError(f"{where}: a saved group cannot be read: {error!r}") from error
        self._carry_out(actions)

    def end(self) -> None:
        """Phase 1 ends: no SA survives in the store. Members keep what they have."""
        self.perform(self.engine.stop())

    def close(self) -> None:
        if self._links is not None:
            self._links.close()
        self._signers.close()
        self._store.close()

    def _link_changed(self, _: frozenset[int]) -> None:
        """Rekeys go on over an interface that was made again."""
        local = self._config.local
        # Without its address the next change is waited for, and what cannot be sent is told.
        with suppress(OSError):
            self.sockets.aim(local, self._config.interface)

    def deadline(self) -> float | None:
        return self.engine.deadline

    def tick(self, now: float) -> None:
        self._carry_out(self.engine.tick(now))

    def receive(self, datagram: bytes, source: Peer, arrived: Peer) -> None:
        self._carry_out(self.engine.receive(datagram, source, arrived, self.clock.now()))

    def first(self, datagram: bytes, source: Peer, arrived: Peer) -> bytes | None:
        """Message 2, or None. It has left no trace and promises nothing: no store is asked."""
        try:
            answer = self.engine.first(datagram, source, arrived, self.clock.now())
        except Exception as error:  # noqa: BLE001  (as with every datagram)
            self.met_bug(source, error)
            return None
        if isinstance(answer, bytes):
            return answer
        self._carry_out(answer)
        return None

    def _carry_out(self, actions: Sequence[Action]) -> None:
        self.perform(actions)
        self.engine.sent(self.clock.now())

    def persist(self, records: Sequence[Persist]) -> None:
        self._store.save(records)

    # -- control ---------------------------------------------------------------------------------

    def _stats(self, _: Message) -> Message:
        isakmp = self.engine.isakmp
        return to_message(
            {
                "isakmp": {
                    "half-open": len(isakmp.half_open),
                    "evicted-source": isakmp.evicted["source"],
                    "evicted-total": isakmp.evicted["total"],
                    "offers": len(isakmp.offers),
                    "offers-proved": isakmp.offers.proved,
                    "established": len(isakmp.sessions),
                },
                "drops": dict(self.log.drops),
            }
        )

    def _rekey(self, request: Message) -> Message:
        group = self._find(request)
        before = group.epoch
        actions = self.engine.rekey(
            group.config.group_id.key,
            self.clock.now(),
            "operator",
            kek=_yes(request, "kek"),
            replace_old=_yes(request, "replace"),
        )
        self._carry_out(actions)
        return self._started(group, before)

    def _delete_group(self, request: Message) -> Message:
        group = self._find(request)
        before = group.epoch
        self._carry_out(self.engine.delete_group(group.config.group_id.key, self.clock.now()))
        return self._started(group, before)

    def _delete_tek(self, request: Message) -> Message:
        group = self._find(request)
        wanted = str(request.get("spi", ""))
        known = {tek.tek.name: tek.tek.spi for tek in group.teks}
        if wanted not in known:
            raise CommandFailed(f"no TEK {wanted}; {group.config.name} has {', '.join(known)}")
        now, before = self.clock.now(), group.epoch
        self._carry_out(self.engine.delete_tek(group.config.group_id.key, known[wanted], now) or [])
        return self._started(group, before)

    def _evict(self, request: Message) -> Message:
        group, named = self._find(request), _identities(request)
        registered = sum(identity in group.members for identity in named)
        actions = self.engine.evict(group.config.group_id.key, named, self.clock.now())
        self._carry_out(actions)
        return self._changed(group, {"evicted": len(named), "registered": registered})

    def _admit(self, request: Message) -> Message:
        group, named = self._find(request), _identities(request)
        admitted = sum(identity in group.denied for identity in named)
        self._carry_out(self.engine.admit(group.config.group_id.key, named))
        return self._changed(group, {"admitted": admitted})

    def _changed(self, group: Group, counts: Mapping[str, int]) -> Message:
        if self.store_failure is not None:
            raise CommandFailed(f"not sent yet, the state cannot be saved: {self.store_failure}")
        denied = sorted(str(identity) for identity in group.denied)
        return to_message({"group": group.config.name, **counts, "denied": denied})

    def _started(self, group: Group, before: int) -> Message:
        """What came of a command: rekeys after the epoch ``before``.

        Who acknowledges TEKs under a new KEK has it: the pages that brought it are not counted.
        """
        if self.store_failure is not None:
            raise CommandFailed(f"not sent yet, the state cannot be saved: {self.store_failure}")
        pages = [r for r in group.ledger.values() if r.epoch > before and r.update is None]
        last = pages[-1]
        return to_message(
            {
                "group": group.config.name,
                "epoch": last.epoch,
                "epochs": [page.epoch for page in pages],
                "seq": last.seqs[-1],
                "expected": sum(len(page.expected) for page in pages),
                "window": max(self.engine.window(group, page) for page in pages),
            }
        )

    def _find(self, request: Message) -> Group:
        wanted = request.get("group")
        for group in self.engine.groups.values():
            if wanted in (group.config.name, str(group.config.group_id)):
                return group
        known = ", ".join(group.config.name for group in self.engine.groups.values())
        raise CommandFailed(f"no group {wanted}; this key server has {known}")

    def _groups(self, request: Message) -> list[Group]:
        return (
            list(self.engine.groups.values()) if "group" not in request else [self._find(request)]
        )

    def _list_groups(self, _: Message) -> Iterator[Message]:
        for group in list(self.engine.groups.values()):
            rekey = group.ledger.get(group.epoch)
            due, _kek = group.next_rekey()
            yield to_message(
                {
                    "group": group.config.name,
                    "id": str(group.config.group_id),
                    "epoch": group.epoch,
                    "kek-spi": group.current_kek().kek.name,
                    "seq": group.current_kek().seq,
                    "members": len(group.members),
                    "transport": str(group.config.transport),
                    **_lkh_facts(group),
                    **_sid_facts(group),
                    "acknowledged": len(rekey.acknowledged) if rekey else 0,
                    "pending": len(rekey.silent) if rekey and not rekey.closed else 0,
                    "missing": len(rekey.missing) if rekey else 0,
                    "next-rekey": self._time_of_day(due),
                }
            )

    def _list_members(self, request: Message) -> Iterator[Message]:
        for group in self._groups(request):
            for member in list(group.members.values()):
                yield to_message(
                    {
                        "group": group.config.name,
                        "identity": str(member.identity),
                        "address": _where(member),
                        "behind-nat": member.behind_nat,
                        "registered": self._time_of_day(member.registered_at),
                        "last-ack": self._time_of_day(member.last_ack),
                        "rtt": None if member.rtt is None else round(member.rtt, 4),
                        "acknowledged": member.acknowledged,
                        "missed": member.missed,
                        "state": _member_state(member, group),
                        **({"tree": member.sa, "leaf": member.leaf} if member.leaf else {}),
                    }
                )

    def _list_rekeys(self, request: Message) -> Iterator[Message]:
        for group in self._groups(request):
            for rekey in list(group.ledger.values()):
                yield to_message(
                    {
                        "group": group.config.name,
                        "epoch": rekey.epoch,
                        "seq": rekey.seqs[-1] if rekey.seqs else None,
                        "reason": rekey.reason,
                        "kek": rekey.with_kek,
                        "sent": self._time_of_day(rekey.first_sent),
                        "attempts": rekey.attempts,
                        "parts": rekey.parts,
                        "expected": len(rekey.expected),
                        "acknowledged": len(rekey.acknowledged),
                        "acknowledged-by": {
                            str(identity): round(at - rekey.first_sent, 4)
                            for identity, at in rekey.acknowledged.items()
                        },
                        "missing": sorted(str(i) for i in rekey.missing),
                        "closed": rekey.closed,
                    }
                )


def _identities(request: Message) -> list[Identity]:
    texts = request.get("identities", [])
    if not isinstance(texts, list) or not texts:
        raise CommandFailed("identities is empty; must be a list of identities")
    try:
        return [Identity.parse(str(text)) for text in texts]
    except ValueError as error:
        raise CommandFailed(f"identities: {error}") from error


def _lkh_facts(group: Group) -> dict[str, str | int]:
    """How its keys are managed: trees, members in them and room, update arrays' depth."""
    trees = [sa.tree for sa in group.sas if sa.tree is not None]
    if not trees:
        return {"key-management": "none"}
    return {
        "key-management": "lkh",
        "trees": len(trees),
        "leaves": sum(tree.members for tree in trees),
        "capacity": sum(tree.capacity for tree in trees),
        "arity": trees[0].arity,
        "depth": trees[0].depth,
        "denied": len(group.denied),
    }


def _sid_facts(group: Group) -> dict[str, int]:
    """Sender-IDs, where the group has given any."""
    sids = group.sids
    return {"sid-bits": sids.bits, "next-sender-id": sids.next} if sids.next else {}


def _yes(request: Message, key: str) -> bool:
    """vici's booleans; anything else is no "no"."""
    value = request.get(key, "no")
    if value not in ("yes", "no"):
        raise CommandFailed(f"{key} is {value!r}, must be yes or no")
    return value == "yes"


def _where(member: Registrant) -> str:
    """Behind a NAT the port is half of the address."""
    return str(member.address if member.behind_nat else member.address.host)


def _member_state(member: Registrant, group: Group) -> str:
    if member.dead:
        return "dead"
    pages = (page for page in reversed(group.ledger.values()) if page.sa == member.sa)
    rekey = next(pages, None)
    if rekey is None or member.identity not in rekey.expected:
        return "current"
    if member.identity in rekey.acknowledged:
        return "acknowledged"
    if member.registered_at > rekey.first_sent:
        return "re-registered"
    return "missing" if rekey.closed else "pending"


def _make(arguments: argparse.Namespace) -> Shell | None:
    config = KeyServerDaemonConfig(arguments.config)
    if config.settings.netns is not None:
        enter(config.path, "key_server.netns", config.settings.netns)
    if arguments.check:
        print(f"{arguments.config}: {len(config.groups)} groups, address {config.local}")
        return None
    log = open_log(config.settings.log, arguments.log_level)
    keylog = None if arguments.keylog is None else KeyLogFile(arguments.keylog)
    return KeyServerDaemon(config, log, keylog)


def main() -> int:
    return run_daemon("gdoi-gcks", DEFAULT_CONFIG, _make)
