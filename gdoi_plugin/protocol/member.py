"""The group member: one group's registration, rekeys, rollover and acknowledgements.

A PUSH is a transaction: decode, decrypt, replay check, signature, policy check, *then* the kernel,
then the store, and only then the acknowledgement. If the kernel says no, the old SAs stay in use,
no ACK leaves and the member registers again after a random delay.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from ..crypto.signature import BadSignatureKey
from ..wire.buffer import DecodeError
from ..wire.header import Header
from ..wire.registry import ExchangeType
from .acknowledger import Acknowledger
from .actions import Action, ApplyKernel, Drop, Dropped, Event, Peer, Persist, Random, Send
from .application_keys import ApplicationKeys, HeldKey, KeyPlan
from .errors import AuthError, PolicyError, ReplayError
from .forwarding import why_not_forwarded
from .member_config import MemberConfig
from .policy import GroupPolicy, Tek, read_policy
from .push import Push, open_push
from .record import Record, read_sids, sids_record
from .registrar import FIRST_BACKOFF, Registrar
from .registration import Registration
from .rekey_sas import HeldKek, RekeySas
from .renewal import renewal
from .rollover import Held, Plan, Rollover
from .sender_ids import SenderIds

RETRY_KERNEL = 1.0
# The kernel counts whole seconds, from the one in which it was told.
CLOCK_SLACK = 2.0
# Large LKH rekeys come in parts, sent one right after the other: this long after a part for other
# members ours is taken for lost. Less than the usual ATD, when the others begin to use new TEKs.
KEK_PATIENCE = 5.0

FieldValue = str | int | float
Fields = dict[str, FieldValue]


class MemberState(StrEnum):
    IDLE = "idle"
    REGISTERING = "registering"
    REGISTERED = "registered"


@dataclass(frozen=True, slots=True)
class _Pending:
    """What becomes of the tables once the kernel has agreed."""

    plan: Plan
    keys: KeyPlan | None = None
    policy: GroupPolicy | None = None
    push: Push | None = None
    under: HeldKek | None = None
    source: Peer | None = None
    arrived: Peer | None = None
    registration: Registration | None = None
    new_kek: HeldKek | None = None
    delete_keks: frozenset[bytes] = frozenset()


@dataclass(slots=True)
class Counters:
    rekeys_received: int = 0
    rekeys_installed: int = 0
    rekeys_refused: int = 0
    acknowledged: int = 0
    registrations: int = 0


@dataclass(slots=True)
class GroupMember:
    """The engine. Feed it datagrams, time and the kernel's answers; carry out what it returns."""

    config: MemberConfig
    random: Random = field(repr=False)
    state: MemberState = field(default=MemberState.IDLE, init=False)
    rollover: Rollover = field(init=False)
    applications: ApplicationKeys = field(default_factory=ApplicationKeys, init=False)
    rekey_sas: RekeySas = field(default_factory=RekeySas, init=False)
    acknowledger: Acknowledger = field(init=False)
    registrar: Registrar = field(init=False)
    counters: Counters = field(default_factory=Counters, init=False)
    last_failure: str = field(default="", init=False)
    last_rekey: float | None = field(default=None, init=False)
    key_server: Peer | None = field(default=None, init=False)
    # DTD, as the key server said it last: others may send so long with a TEK that is replaced.
    deactivation_delay: float = field(default=0.0, init=False)
    # Of the last GROUPKEY-PULL. The kernel chooses IVs of its own: they are kept to be shown.
    sids: SenderIds | None = field(default=None, init=False)
    _pending: dict[int, _Pending] = field(default_factory=dict, init=False)
    _transaction: int = field(default=0, init=False)
    _kernel_retry: float | None = field(default=None, init=False)
    _advanced: float = field(default=0.0, init=False)
    # KEKs deleted since the registration under way has begun.
    _deleted: frozenset[bytes] = field(default=frozenset(), init=False)

    def __post_init__(self) -> None:
        config = self.config
        self.rollover = Rollover(config.local.host)
        self.acknowledger = Acknowledger(
            config.name, config.local, config.acknowledges_as, config.ack_jitter, self.random
        )
        self.registrar = Registrar(
            config.name,
            config.group_id,
            config.local,
            config.key_servers,
            self.random,
            config.sender_ids,
            nat_local=config.nat_local,
            keep_alive=config.keep_alive,
        )

    @property
    def kek(self) -> HeldKek | None:
        return self.rekey_sas.current

    @property
    def previous(self) -> Mapping[bytes, HeldKek]:
        return self.rekey_sas.previous

    # -- life ------------------------------------------------------------------------------------

    def start(self, now: float, saved: Mapping[str, Any] | None = None) -> list[Action]:
        """Takes up what was saved, so that rekeys go on, and registers in any case."""
        actions: list[Action] = []
        if saved is not None:
            actions += self._resume(saved, now)
        return actions + self._register(now)

    def follow(self, former: GroupMember, now: float) -> list[Action]:
        """Takes over from the engine of the address that the member had before, and registers."""
        self.counters, self.last_rekey = former.counters, former.last_rekey
        return self.start(now, former.record)

    def stop(self) -> list[Action]:
        """Ends phase 1 politely. What becomes of SAs and policies is the daemon's to say."""
        return self.registrar.stop()

    def reconfigure(self, config: MemberConfig, now: float, *, anew: bool) -> list[Action]:
        """Takes up another configuration of the same group at the same address. ``anew``: with what
        is new about key servers and phase 1, by a registration; otherwise those stay."""
        self.acknowledger.jitter = config.ack_jitter
        self.acknowledger.who = config.acknowledges_as
        self.registrar.sender_ids = config.sender_ids
        self.registrar.keep(config.keep_alive, now)
        if not anew:
            self.config = replace(config, key_servers=self.config.key_servers)
            return []
        self.config = config
        return self.registrar.reconfigure(config.key_servers, now, config.recovery_delay)

    def register(self, now: float) -> list[Action]:
        """An operator's wish: register now."""
        return [] if self.registrar.attempt is not None else self._register(now)

    @property
    def deadline(self) -> float | None:
        times = self.acknowledger.deadlines
        if self.registrar.deadline is not None:
            times.append(self.registrar.deadline)
        if self._kernel_retry is not None:
            times.append(self._kernel_retry)
        else:
            tables = (self.rollover.deadline(self._advanced), self.applications.deadline)
            times += [table for table in tables if table is not None]
        times += [held.expires for held in self.rekey_sas.held]
        return min(times, default=None)

    def tick(self, now: float) -> list[Action]:
        actions = self.acknowledger.due(now)
        if self.rekey_sas.expire(now):
            actions += [self._event("kek-expired", level="warning"), self._persist()]
        actions += self.registrar.tick(now)
        actions += self._registration_ended(now)
        return actions + self._advance(now)

    # -- datagrams -------------------------------------------------------------------------------

    def owns(self, header: Header) -> bool:
        """Whether a datagram with this header is for this group."""
        if header.exchange_type == ExchangeType.GROUPKEY_PUSH:
            known = self.rekey_sas.of(header.spi) is not None
            return known or self.acknowledger.owns(header.spi)
        return self.registrar.owns(header)

    def receive(
        self, header: Header, datagram: bytes, source: Peer, arrived: Peer, now: float
    ) -> list[Action]:
        """``arrived`` is the destination the datagram had: a multicast one means jitter."""
        if header.exchange_type == ExchangeType.GROUPKEY_PUSH:
            return self._receive_push(header, datagram, source, arrived, now)
        actions = self.registrar.receive(header, datagram, source, now)
        return actions + self._registration_ended(now)

    def _receive_push(
        self, header: Header, datagram: bytes, source: Peer, arrived: Peer, now: float
    ) -> list[Action]:
        # RFC 6407 section 4.4 finds the SA by the cookies; any source will do, the SIG tells.
        again = self.acknowledger.again(datagram, now)
        if again is not None:
            return [Dropped(Drop.DUPLICATE, source, "the last PUSH once more"), *again]
        under = self.rekey_sas.of(header.spi)
        if under is None:
            return [Dropped(Drop.UNKNOWN_COOKIES, source, header.spi.hex())]
        try:
            push = open_push(under.kek, under.verify_key, under.seq, header, datagram)
        except DecodeError as error:
            return [Dropped(Drop.MALFORMED, source, str(error))]
        except ReplayError as error:
            return [Dropped(Drop.REPLAY, source, str(error))]
        except AuthError as error:
            return [Dropped(Drop.AUTHENTICATION, source, str(error))]
        self.counters.rekeys_received += 1
        under.seq = push.seq
        received = self._event("rekey-received", seq=push.seq, fields={"kek-spi": under.kek.name})
        try:
            return [received, *self._begin_push(push, under, source, arrived, now)]
        except (PolicyError, DecodeError, BadSignatureKey) as error:
            self.counters.rekeys_refused += 1
            self._recover(now)
            refused = self._event("rekey-refused", "error", seq=push.seq, error=str(error))
            drop = Dropped(Drop.UNACCEPTABLE_POLICY, source, str(error))
            return [received, drop, refused, self._persist()]

    def _begin_push(
        self, push: Push, under: HeldKek, source: Peer, arrived: Peer, now: float
    ) -> list[Action]:
        """The policy check, and the kernel transaction that decides the rest."""
        policy = GroupPolicy(None, ())
        if (told := push.policy) is not None:
            policy = read_policy(*told, held=under.kek)
        if policy.withheld is not None and not policy.teks and not push.deletes:
            return self._passed_over(policy.withheld, push, now)
        self._check(policy)
        pending = _Pending(
            plan=self.rollover.receive(policy, push.deletes, now),
            keys=self.applications.receive(policy, push.deletes, now),
            policy=policy,
            push=push,
            under=under,
            source=source,
            arrived=arrived,
            new_kek=self.rekey_sas.read_new(policy, 0, now),
            delete_keks=self.rekey_sas.deleted_by(push.deletes),
        )
        return self._apply(pending)

    def _check(self, policy: GroupPolicy) -> None:
        """Raises PolicyError."""
        if policy.applications and not self.config.exports:
            raise PolicyError(
                "it has keys for IEC 61850 applications, and no export directory is configured"
            )
        for tek in policy.ipsec:
            if tek.suite.private and not self.config.accept_private_algs:
                raise PolicyError(
                    f"SPI {tek.name}: transform {int(tek.suite.transform_id)} is of those for"
                    f" private use; only accept_private_algs takes it for {tek.suite.keyword}"
                )
        self.rollover.check(policy)
        self.applications.check(policy)
        for tek in policy.ipsec if self.config.forwards else ():
            why = why_not_forwarded(tek, sends=self.rollover.may_send(tek))
            if why is not None:
                raise PolicyError(f"a router has no use for SPI {tek.name}: {why}")

    def _passed_over(self, spi: bytes, push: Push, now: float) -> list[Action]:
        """LKH updates for other members: nothing was received here that could be acknowledged."""
        self._await_kek(spi, now)
        told = self._event("rekey-for-others", seq=push.seq, fields={"new-kek-spi": spi.hex()})
        return [told, self._persist()]

    def _await_kek(self, spi: bytes, now: float) -> None:
        """The part with our update array may have been lost: who waits too long misses traffic."""
        if self.rekey_sas.of(spi) is None:
            self._recover(now + KEK_PATIENCE)

    # -- the kernel's answer ---------------------------------------------------------------------

    def kernel_done(self, transaction: int, now: float) -> list[Action]:
        pending = self._pending.pop(transaction)
        before = replace(self.rollover)
        self.rollover.commit(pending.plan)
        self._kernel_retry = None
        policy = pending.policy
        if policy is not None and policy.deactivation_delay is not None:
            self.deactivation_delay = policy.deactivation_delay
        actions: list[Action] = []
        if pending.keys is not None:
            if (names := pending.keys.names) != self.applications.names:
                actions.append(Event("keys-changed", {"group": self.config.name, "spis": names}))
            self.applications.commit(pending.keys)
        if pending.push is not None:
            actions += self._commit_push(pending, pending.push, now)
        elif pending.registration is not None:
            actions += self._commit_pull(pending, pending.registration, now)
        # An event for each SA comes last: the acknowledgement does not wait for hundreds of them.
        return [self._persist(), *actions, *self._sa_events(before, pending.plan)]

    def kernel_refused(self, transaction: int, error: str, now: float) -> list[Action]:
        """Everything stays as it was; a refused PUSH is not acknowledged."""
        pending = self._pending.pop(transaction)
        fields: Fields = {"error": error}
        ended: list[Action] = []
        if pending.push is not None and pending.under is not None:
            fields |= {"seq": pending.push.seq, "kek-spi": pending.under.kek.name}
            self.counters.rekeys_refused += 1
            self._recover(now)
        elif pending.registration is not None:
            why = f"the SAs were not installed: {error}"
            ended = self._registration_failed(why, now)
        else:
            self._kernel_retry = now + RETRY_KERNEL
        return [self._event("install-failed", "error", fields), self._persist(), *ended]

    def soft_expired(self, spi: bytes, now: float) -> list[Action]:
        """The kernel says that most of an SA's seconds or octets are gone: new keys in time, by a
        registration, unless they are here already. Once for an SPI."""
        held = self.rollover.expiring(spi)
        if held is None:
            return []
        octets = held.tek.lifetime_kilobytes is not None
        self.registrar.soon(now, self.config.recovery_delay if octets else (held.expires - now) / 2)
        return [self._event("sa-expiring", fields=_of_sa(held.tek))]

    def hard_expired(self, spi: bytes, now: float) -> list[Action]:
        """The kernel has taken an SA away, since its seconds or octets are used up."""
        held = self.rollover.held.get(spi)
        if held is None:
            return []
        if held.tek.lifetime_kilobytes is None and held.expires > now + CLOCK_SLACK:
            # Its clock, not ours, has been set on: the rest of the lifetime is still good.
            return self._apply(_Pending(self.rollover.again(held, now)))
        self.rollover.spend(spi)
        if self.rollover.lacks:
            self._recover(now)
        told = self._event("sa-expired", "warning", _of_sa(held.tek))
        return [told, self._persist(), *self._advance(now)]

    def _commit_push(self, pending: _Pending, push: Push, now: float) -> list[Action]:
        self.counters.rekeys_installed += 1
        self.last_rekey = now
        kek_spi = pending.under.kek.name if pending.under else ""
        actions: list[Action] = [
            self._event("rekey-installed", seq=push.seq, fields={"kek-spi": kek_spi})
        ]
        actions += self._replace_kek(pending.new_kek, now)
        self.rekey_sas.note_ack_type(pending.policy)
        actions += self._acknowledge(pending, push, now)
        self.rekey_sas.delete(pending.delete_keks)
        if self.registrar.attempt is not None:
            self._deleted |= pending.delete_keks
        self._plan_registration(now)
        if pending.policy is not None and pending.policy.withheld is not None:
            self._await_kek(pending.policy.withheld, now)
        if self.kek is None:
            actions.append(self._event("group-deleted", "warning", seq=push.seq))
            self.sids = None  # their data SAs have gone too
            self._recover(now)
        return actions

    def _acknowledge(self, pending: _Pending, push: Push, now: float) -> list[Action]:
        under, source, arrived = pending.under, pending.source, pending.arrived
        if under is None or source is None or arrived is None:
            return []
        if pending.policy is not None and pending.policy.withheld is not None:
            return []
        latest = self.kek.kek if self.kek is not None else under.kek
        if pending.policy is not None and pending.policy.kek is not None:
            latest = pending.policy.kek
        return self.acknowledger.acknowledge(latest.ack_type, under.kek, push, source, arrived, now)

    def left(self, send: Send) -> None:
        """The shell has sent it."""
        self.counters.acknowledged += send.told is not None

    def _replace_kek(self, new: HeldKek | None, now: float) -> list[Action]:
        if new is None:
            return []
        self.rekey_sas.replace(new, now)
        fields: Fields = {"kek-spi": new.kek.name, "seq": new.seq}
        return [self._event("kek-replaced", fields=fields)]

    def _advance(self, now: float) -> list[Action]:
        """Activation and retirement; a refusal is tried again a little later."""
        if self._pending or (self._kernel_retry is not None and now < self._kernel_retry):
            return []
        self._advanced = now
        plan = self.rollover.advance(now)
        keys = self.applications.advance(now)
        if plan.empty and keys is None:
            self._kernel_retry = None
            return []
        return self._apply(_Pending(plan, keys))

    def _apply(self, pending: _Pending) -> list[Action]:
        self._transaction += 1
        self._pending[self._transaction] = pending
        plan, keys = pending.plan, None if pending.keys is None else pending.keys.exported
        return [
            ApplyKernel(
                self._transaction,
                plan.add,
                plan.outbound,
                plan.remove,
                plan.inbound,
                plan.released,
                plan.silenced,
                keys=keys,
            )
        ]

    # -- registration ----------------------------------------------------------------------------

    def _register(self, now: float) -> list[Action]:
        if self.state is MemberState.IDLE:
            self.state = MemberState.REGISTERING
        return self.registrar.begin(now)

    def _registration_ended(self, now: float) -> list[Action]:
        registration = self.registrar.attempt
        if registration is None:
            return []
        if registration.failure is not None:
            return self._registration_failed(registration.failure, now)
        result = registration.result
        if result is None:
            return []
        try:
            policy = read_policy(result.sa, result.kd, pull=True)
            self._check(policy)
            if self._overtaken(policy, result.seq or 0):
                why = f"{registration.server.remote}: a rekey overtook the keys"
                return self._registration_failed(why, now)
            pending = _Pending(
                plan=self.rollover.receive(policy, (), now, at_once=True),
                keys=self.applications.receive(policy, (), now, at_once=True),
                policy=policy,
                registration=registration,
                new_kek=self.rekey_sas.read_new(policy, result.seq or 0, now),
            )
        except (PolicyError, DecodeError, BadSignatureKey) as error:
            why = f"{registration.server.remote}: policy not acceptable: {error}"
            return [*registration.refuse(str(error)), *self._registration_failed(why, now)]
        return self._apply(pending)

    def _overtaken(self, policy: GroupPolicy, seq: int) -> bool:
        """A PUSH came while message 4 was on its way, and message 4 has TEKs older than that.

        RFC 6407 section 3.3 calls the SEQ of such a message stale. Its TEKs would be taken for
        the newest and used for sending while everybody else lets go of them. A KEK that has been
        deleted in between would even be taken up again.
        """
        if policy.kek is not None and policy.kek.spi in self._deleted:
            return True
        held = None if policy.kek is None else self.rekey_sas.of(policy.kek.spi)
        known = self.rollover.held.keys() | self.applications.held.keys()
        if held is None or all(tek.spi in known for tek in policy.teks):
            return False
        return seq < held.seq or (self.kek is not None and held is not self.kek)

    def _commit_pull(self, pending: _Pending, done: Registration, now: float) -> list[Action]:
        actions = self.registrar.succeeded(now)
        self.acknowledger.path = self.registrar.path
        self._deleted = frozenset()
        self.key_server = done.server.remote
        self.last_failure = ""
        self.counters.registrations += 1
        seq = done.result.seq if done.result is not None else None
        actions += self._replace_kek(pending.new_kek, now)
        self.rekey_sas.note_ack_type(pending.policy)
        # RFC 6407 section 3.3: a SEQ older than what PUSHes have brought is stale and ignored.
        told = pending.policy.kek if pending.policy is not None else None
        named = self.rekey_sas.of(told.spi) if told is not None else None
        if named is not None and seq is not None:
            named.seq = max(named.seq, seq)
        if named is not None and told is not None:
            named.kek = replace(named.kek, path=told.path)
        # RFC 6407 section 5.6.4.3: "The new SID replaces the existing SID".
        self.sids = None if pending.policy is None else pending.policy.sids
        self.state = MemberState.REGISTERED
        self._plan_registration(now)
        kek_spi = self.kek.kek.name if self.kek is not None else ""
        fields: Fields = {
            "key-server": str(self.key_server),
            "kek-spi": kek_spi,
            "seq": seq or 0,
        }
        if self.registrar.nat.found:
            fields["nat"] = str(self.registrar.nat)
        return [*actions, self._event("registered", fields=fields)]

    def _registration_failed(self, why: str, now: float) -> list[Action]:
        self.last_failure = why
        self._deleted = frozenset()
        return self.registrar.failed(why, now)

    def catch_up(self, now: float) -> None:
        """Something may have been missed: rekeys while there was no network, or SAs that somebody
        has taken out of the kernel and that cannot be put back to full use. New keys may help."""
        self._recover(now)

    def _recover(self, now: float) -> None:
        self.registrar.soon(now, self.config.recovery_delay)

    def _plan_registration(self, now: float) -> None:
        at = renewal(self.rollover, self.applications, self.kek, now, self.random)
        if at is not None:
            self.registrar.plan(max(at, now + FIRST_BACKOFF))

    # -- the saved state -------------------------------------------------------------------------

    @property
    def record(self) -> Record:
        """What ``start`` takes up again."""
        return {
            "group": self.config.group_id.key,
            **self.rekey_sas.record(),
            "sids": sids_record(self.sids),
            "teks": [held.record() for held in self.rollover.unspent],
            "spent": {spi.hex(): end for spi, end in self.rollover.spent.items()},
            "applications": [key.record() for key in self.applications.held.values()],
        }

    def _persist(self) -> Persist:
        return Persist(self.config.name, self.record)

    def _resume(self, saved: Mapping[str, Any], now: float) -> list[Action]:
        """What a former run had acknowledged is held again. A record that cannot be read is not."""
        if not isinstance(saved, Mapping) or saved.get("group") != self.config.group_id.key:
            error = f"not a record of group {self.config.group_id}"
            return [self._event("state-unreadable", "error", error=error)]
        try:
            rekey_sas, sids = RekeySas.read(saved, now), read_sids(saved.get("sids"))
            held = [Held.read(entry) for entry in saved["teks"]]
            spent = {bytes.fromhex(k): float(end) for k, end in saved.get("spent", {}).items()}
            plan = self.rollover.resume({h.tek.spi: h for h in held}, now)
            former = [HeldKey.read(entry) for entry in saved.get("applications", ())]
            keys = self.applications.resume({key.tek.spi: key for key in former}, now)
        except (KeyError, ValueError, TypeError, AttributeError, OverflowError) as error:
            return [self._event("state-unreadable", "error", error=repr(error))]
        self.rekey_sas, self.sids, self.rollover.spent = rekey_sas, sids, spent
        return [] if plan.empty and keys is None else self._apply(_Pending(plan, keys))

    # -- small things ----------------------------------------------------------------------------

    def _event(
        self, event: str, level: str = "info", fields: Fields | None = None, **more: FieldValue
    ) -> Event:
        return Event(event, {"group": self.config.name, **(fields or {}), **more}, level)

    def _sa_events(self, before: Rollover, plan: Plan) -> list[Action]:
        actions: list[Action] = []
        for event, tek in plan.changes(before):
            fields = _of_sa(tek)
            if event == "sa-installed":
                fields["algorithm"] = tek.suite.keyword
            actions.append(self._event(event, fields=fields))
        return actions


def _of_sa(tek: Tek) -> Fields:
    return {"spi": tek.name, "flow": str(tek.flow)}
