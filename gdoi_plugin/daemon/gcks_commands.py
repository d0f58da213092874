"""What ``gdoictl`` and other clients can ask a key server, and have it do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Protocol

from ..protocol.actions import Action
from ..protocol.group import Group
from ..protocol.identity import Identity
from ..protocol.key_server import KeyServer
from ..protocol.page import Rekey
from ..protocol.roster import Registrant
from .control import CommandFailed, Handler, Message, StreamHandler, to_message
from .errors import DaemonError, UnsettledError
from .policy_facts import group_facts, tek_facts
from .reload import Proposal, answer
from .requests import GROUP, THE_GROUP, Key, Keys, Kind, spi_of, yes
from .shell import Shell
from .standing import Standing


class Reload(Protocol):
    """Raises UnsettledError, and any other DaemonError where nothing was changed."""

    def __call__(self, *, dry_run: bool, replace_old: bool) -> Proposal: ...


# Members that one page of the ledger names.
MAX_NAMED = 1024
_MEMBERS = {**THE_GROUP, "identities": Key(Kind.LIST, required=True)}
_REPLACE = {"replace": Key(Kind.YES_NO)}
ACCEPTS: Mapping[str, Keys] = {
    "stats": {},
    "rekey": {**THE_GROUP, "kek": Key(Kind.YES_NO), **_REPLACE},
    "delete-group": THE_GROUP,
    "delete-tek": {**THE_GROUP, "spi": Key(required=True)},
    "evict": _MEMBERS,
    "admit": _MEMBERS,
    "revoke": _MEMBERS,
    "reload": {"dry-run": Key(Kind.YES_NO), **_REPLACE},
    "get-policy": GROUP,
    "list-groups": GROUP,
    "list-members": GROUP,
    "list-rekeys": GROUP,
    "list-sas": GROUP,
}


class KeyServerCommands:
    """The commands by name; those that change something are carried out like any other step."""

    def __init__(
        self,
        shell: Shell,
        engine: KeyServer,
        carry_out: Callable[[Sequence[Action]], None],
        reload: Reload,
        ack_facts: Callable[[], Mapping[str, int]],
    ) -> None:
        self._shell = shell
        self.engine = engine
        self._carry_out = carry_out
        self._reload = reload
        self._ack_facts = ack_facts
        self.plain: dict[str, Handler] = {
            "stats": self.stats,
            "rekey": self.rekey,
            "delete-group": self.delete_group,
            "delete-tek": self.delete_tek,
            "evict": self.evict,
            "admit": self.admit,
            "revoke": self.revoke,
            "reload": self.reload,
        }
        # These change nothing: of several key servers each answers them.
        self.reading: dict[str, Handler] = {"get-policy": self.get_policy}
        self.lists: dict[str, StreamHandler] = {
            "list-groups": ("list-group", self.list_groups),
            "list-members": ("list-member", self.list_members),
            "list-rekeys": ("list-rekey", self.list_rekeys),
            "list-sas": ("list-sa", self.list_sas),
        }

    def stats(self, _: Message) -> Message:
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
                "drops": dict(self._shell.log.drops),
                "acks": self._ack_facts(),
            }
        )

    def rekey(self, request: Message) -> Message:
        group = self._find(request)
        before = group.epoch
        actions = self.engine.rekey(
            group.config.group_id.key,
            self._shell.clock.now(),
            "operator",
            kek=yes(request, "kek"),
            replace_old=yes(request, "replace"),
        )
        self._carry_out(actions)
        return self._started(group, before)

    def delete_group(self, request: Message) -> Message:
        group = self._find(request)
        before = group.epoch
        self._carry_out(
            self.engine.delete_group(group.config.group_id.key, self._shell.clock.now())
        )
        return self._started(group, before)

    def delete_tek(self, request: Message) -> Message:
        group = self._find(request)
        wanted = spi_of(request)
        known = {tek.tek.name: tek.tek.spi for tek in group.teks}
        if wanted not in known:
            raise CommandFailed(f"no TEK {wanted}; {group.config.name} has {', '.join(known)}")
        now, before = self._shell.clock.now(), group.epoch
        self._carry_out(self.engine.delete_tek(group.config.group_id.key, known[wanted], now) or [])
        return self._started(group, before)

    def evict(self, request: Message) -> Message:
        group, named = self._find(request), _identities(request)
        registered = sum(identity in group.members for identity in named)
        actions = self.engine.evict(group.config.group_id.key, named, self._shell.clock.now())
        self._carry_out(actions)
        return self._changed(group, {"evicted": len(named), "registered": registered})

    def revoke(self, request: Message) -> Message:
        group, named = self._find(request), _identities(request)
        before = group.epoch
        registered = sum(identity in group.members for identity in named)
        actions = self.engine.revoke(group.config.group_id.key, named, self._shell.clock.now())
        self._carry_out(actions)
        started = self._started(group, before)
        return started | self._changed(group, {"revoked": len(named), "registered": registered})

    def reload(self, request: Message) -> Message:
        dry_run = yes(request, "dry-run")
        try:
            found = self._reload(dry_run=dry_run, replace_old=yes(request, "replace"))
        except UnsettledError as error:
            raise CommandFailed(str(error)) from error
        except DaemonError as error:
            raise CommandFailed(f"nothing was changed: {error}") from error
        self._check_saved()
        return answer(found.changes, found.steps, done=not dry_run)

    def admit(self, request: Message) -> Message:
        group, named = self._find(request), _identities(request)
        admitted = sum(identity in group.denied for identity in named)
        self._carry_out(self.engine.admit(group.config.group_id.key, named))
        return self._changed(group, {"admitted": admitted})

    def _changed(self, group: Group, counts: Mapping[str, int]) -> Message:
        self._check_saved()
        denied = sorted(str(identity) for identity in group.denied)
        return to_message({"group": group.config.name, **counts, "denied": denied})

    def _check_saved(self) -> None:
        if (failure := self._shell.store_failure) is not None:
            raise CommandFailed(f"not sent yet, the state cannot be saved: {failure}")

    def _started(self, group: Group, before: int) -> Message:
        """What came of a command: rekeys after the epoch ``before``.

        Who acknowledges TEKs under a new KEK has it: the pages that brought it are not counted.
        """
        self._check_saved()
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

    def get_policy(self, request: Message) -> Message:
        chosen = self._groups(request)
        if len(chosen) != 1:
            names = ", ".join(group.config.name for group in chosen)
            raise CommandFailed(f"group is missing; this key server has {names}")
        return to_message(group_facts(chosen[0], self._shell.clock.now()))

    def list_sas(self, request: Message) -> Iterator[Message]:
        """The data SAs that members hold or are told of."""
        now = self._shell.clock.now()
        for group in self._groups(request):
            for held in list(group.teks):
                yield to_message(
                    {
                        "group": group.config.name,
                        "spi": held.tek.name,
                        **tek_facts(held.tek, held.expires - now),
                        "state": "current" if held.retire_at is None else "retiring",
                    }
                )

    def list_groups(self, request: Message) -> Iterator[Message]:
        for group in self._groups(request):
            rekey = group.last_rekey()
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
                    "next-rekey": self._shell.time_of_day(due),
                }
            )

    def list_members(self, request: Message) -> Iterator[Message]:
        for group in self._groups(request):
            standing = Standing(group)
            for member in list(group.members.values()):
                yield to_message(
                    {
                        "group": group.config.name,
                        "identity": str(member.identity),
                        "address": _where(member),
                        "behind-nat": member.behind_nat,
                        "registered": self._shell.time_of_day(member.registered_at),
                        "last-ack": self._shell.time_of_day(member.last_ack),
                        "rtt": None if member.rtt is None else round(member.rtt, 4),
                        "acknowledged": member.acknowledged,
                        "missed": member.missed,
                        "state": str(standing.of(member)),
                        **self._ike_state(group, member),
                        **({"tree": member.sa, "leaf": member.leaf} if member.leaf else {}),
                    }
                )

    def _ike_state(self, group: Group, member: Registrant) -> dict[str, str]:
        state = self.engine.ike.state_of(group, member.identity)
        return {} if state is None else {"ike": state}

    def list_rekeys(self, request: Message) -> Iterator[Message]:
        for group in self._groups(request):
            for rekey in list(group.ledger.values()):
                yield to_message(
                    {
                        "group": group.config.name,
                        "epoch": rekey.epoch,
                        "seq": rekey.seqs[-1] if rekey.seqs else None,
                        "reason": rekey.reason,
                        "kek": rekey.with_kek,
                        "sent": self._shell.time_of_day(rekey.first_sent),
                        "attempts": rekey.attempts,
                        "parts": rekey.parts,
                        "expected": len(rekey.expected),
                        "acknowledged": len(rekey.acknowledged),
                        **_named(rekey),
                        "missing-members": len(rekey.missing),
                        "closed": rekey.closed,
                    }
                )


def _named(rekey: Rekey) -> dict[str, Any]:
    """Who acknowledged when, in seconds, and the first of those who have not. A message has no room
    for the names of tens of thousands."""
    named: dict[str, Any] = {
        "missing": sorted(str(identity) for identity in islice(rekey.missing, MAX_NAMED))
    }
    if len(rekey.expected) <= MAX_NAMED:
        named["acknowledged-by"] = {
            str(identity): round(at - rekey.first_sent, 4)
            for identity, at in rekey.acknowledged.items()
        }
    return named


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


def _where(member: Registrant) -> str:
    """Behind a NAT the port is half of the address."""
    return str(member.address if member.behind_nat else member.address.host)
