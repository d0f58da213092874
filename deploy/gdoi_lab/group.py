"""Groups on a lab network: a key server and members as the real daemons, watched by their logs.

::

    gcks ----+---- gm1, gm2, ... gmN        (net.py's bridge)
             |
         tcpdump

Every daemon has a folder of its own below ``work`` for configuration, state, control socket; logs
go to ``out``. Events are read from the daemons' JSON-lines logs.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gdoi_lab.checkout import PYTHON, VENV
from gdoi_lab.errors import LabError
from gdoi_lab.net import Host, Network, Process
from gdoi_lab.pki import Authority
from gdoi_lab.waiting import wait_until
from gdoi_plugin.cli.client import Client

GROUP = "video"
GROUP_ID = 1234
GOOSE = "1.2.840.10070.61850.8.1.2"
DATA_GROUP = {4: "239.192.1.{}", 6: "ff18::1:{}", "ssm": "232.192.1.{}"}
REKEY_GROUP = {4: "239.192.0.{}", 6: "ff18::{}", "ssm": "232.192.0.{}"}
PSK = "a pre-shared key for the laboratory"
START_LIMIT = 150.0
REGISTER_LIMIT = 150.0
CONTROL_LIMIT = 120.0

Event = dict[str, Any]


@dataclass(frozen=True, slots=True)
class GroupOptions:
    """What a lab wants of a group's policy; times as the configuration writes them.

    ``number`` tells the groups of one lab apart: their IDs and addresses follow from it.
    """

    name: str = GROUP
    number: int = 1
    version: int = 4
    unicast: bool = False
    proposal: str = "aes256-sha256"
    # Instead of it: AH.
    ah_proposal: str = ""
    # Addresses of source-specific multicast, and a TEK for each sender.
    source_specific: bool = False
    mode: str = "transport"
    signature: str = "ecdsa256"
    kek: str = "aes256"
    ack: str = "kek-sha256"
    push_limit: int = 1232
    activation_delay: str = "3s"
    deactivation_delay: str = "8s"
    ack_jitter: str = "1s"
    recovery_delay: str = "1s"
    retransmissions: int = 2
    tek_lifetime: str = "1h"
    key_tree: bool = False
    # With keys for IEC 61850 applications besides its data SAs.
    applications: bool = False

    @property
    def group_id(self) -> int:
        return GROUP_ID + self.number - 1

    @property
    def data_group(self) -> str:
        kind = "ssm" if self.source_specific else self.version
        return DATA_GROUP[kind].format(self.number)

    @property
    def rekey_group(self) -> str | None:
        kind = "ssm" if self.source_specific else self.version
        return None if self.unicast else REKEY_GROUP[kind].format(self.number)

    @property
    def sender_each(self) -> bool:
        """A TEK for each sender: with counter modes it must be (RFC 6407 section 3.5)."""
        return self.source_specific or "gcm" in self.proposal


@dataclass(slots=True)
class Daemon:
    """One running daemon and the events it has logged."""

    host: Host
    work: Path
    log: Path
    argv: list[str]
    process: Process | None = None
    # The events of the log's first `_read` octets.
    _events: list[Event] = field(default_factory=list, init=False, repr=False)
    _read: int = field(default=0, init=False, repr=False)

    @property
    def control(self) -> Path:
        return self.work / "control"

    def start(self) -> None:
        """Starts the process; returns when it has said so."""
        before = len(list(self.events("started")))
        self.process = self.host.popen(self.argv, self.log)
        process = self.process
        wait_until(
            lambda: len(list(self.events("started"))) > before or not process.running,
            START_LIMIT,
            f"{self.host.name} to start",
        )
        if not process.running:
            raise LabError(f"{self.host.name} did not start: {process.log_text()[-500:].strip()}")

    def kill(self) -> None:
        """SIGKILL, as a crash would have it."""
        if self.process is not None:
            self.process.kill()

    def stop(self) -> int:
        return 0 if self.process is None else self.process.stop()

    def events(self, *names: str) -> Iterator[Event]:
        """What has been logged so far, in order; lines that are no JSON object are left out.

        Each line is decoded once, however often somebody waits for the next.
        """
        self._read_on()
        return (event for event in self._events if not names or event.get("event") in names)

    def _read_on(self) -> None:
        if not self.log.exists():
            return
        with self.log.open("rb") as file:
            file.seek(self._read)
            whole, newline, _ = file.read().rpartition(b"\n")
        self._read += len(whole) + len(newline)
        for line in whole.decode(errors="replace").splitlines():
            with suppress(ValueError):
                event = json.loads(line)
                if isinstance(event, dict):
                    self._events.append(event)

    def wait_event(self, name: str, timeout: float, count: int = 1) -> None:
        """Until the event has been logged ``count`` times."""
        wait_until(
            lambda: len(list(self.events(name))) >= count,
            timeout,
            f"{self.host.name} to log {name}",
        )


@dataclass(slots=True)
class LabGroup:
    """The key server and its members, ready to be started.

    Usually of one group, ``options``; ``more`` are further groups of the same hosts, and
    ``outsiders`` hosts without a daemon, of which the key server has not heard.
    """

    network: Network
    work: Path
    out: Path
    options: GroupOptions = field(default_factory=GroupOptions)
    refusing: str | None = None
    more: Sequence[GroupOptions] = ()
    outsiders: Sequence[str] = ()
    # Phase 1 by certificates of the lab's own CA; else by one pre-shared key.
    authority: Authority | None = None
    # Lines for every member's [member], and tables that belong to it.
    settings: str = ""
    gcks: Daemon = field(init=False)
    members: dict[str, Daemon] = field(init=False)

    def __post_init__(self) -> None:
        names = [name for name in self.network.hosts if name not in ("gcks", *self.outsiders)]
        self.gcks = self._daemon(self.network["gcks"], "gdoi-gcks", self._gcks_config(names))
        keylog = str(self.out / "ikev1_decryption_table")
        self.gcks.argv += ["--keylog", keylog]
        self.members = {
            name: self._daemon(self.network[name], "gdoi-gm", self._gm_config(name))
            for name in names
        }
        if self.refusing is not None:
            member = self.members[self.refusing]
            flag = str(self.refusal_flag)
            member.argv[0:1] = [PYTHON, "-m", "gdoi_lab.refusing_gm", flag]

    @property
    def data_group(self) -> str:
        return self.options.data_group

    @property
    def groups(self) -> list[GroupOptions]:
        return [self.options, *self.more]

    @property
    def refusal_flag(self) -> Path:
        return self.work / "refuse-once"

    def address(self, host: Host) -> str:
        return host.address4 if self.options.version == 4 else host.address6

    def name_of(self, address: str) -> str:
        """The host with that address."""
        return next(h.name for h in self.network.hosts.values() if self.address(h) == address)

    def start(self, *names: str) -> None:
        """Key server first, then the named members or all; returns when they have registered."""
        self.gcks.start()
        members = [self.members[name] for name in names or self.members]
        for member in members:
            member.start()
        for member in members:
            member.wait_event("registered", REGISTER_LIMIT, len(self.groups))

    def gdoictl(
        self, daemon: Daemon, *argv: str, timeout: float = 150.0, check: bool = True
    ) -> Any:
        """What ``gdoictl --json`` prints, decoded. With ``check``, LabError if it fails."""
        command = [str(VENV / "bin" / "gdoictl"), "--socket", str(daemon.control), "--json", *argv]
        done = daemon.host.run(command, check=check, timeout=timeout)
        try:
            return json.loads(done.stdout)
        except ValueError:
            raise LabError(f"gdoictl {' '.join(argv)} said: {done.stdout}{done.stderr}") from None

    def command(self, daemon: Daemon, name: str, **fields: str | list[str]) -> Any:
        """A control command's answer, without the seconds that a gdoictl process takes to start.

        Raises gdoi_plugin.cli.client.ClientError.
        """
        with Client(daemon.control, CONTROL_LIMIT) as client:
            return client.request(name, fields)

    def listed(self, daemon: Daemon, what: str, **fields: str) -> list[Event]:
        """The items of a list command: "group", "member", "rekey", "sa"."""
        with Client(daemon.control, CONTROL_LIMIT) as client:
            return client.stream(f"list-{what}s", f"list-{what}", fields)

    def rekey(self, *options: str, timeout: float = 150.0) -> Any:
        """One rekey, waited for until every ACK is in or missing."""
        argv = ("rekey", "--group", GROUP, *options)
        return self.gdoictl(self.gcks, *argv, timeout=timeout, check=False)

    def _daemon(self, host: Host, program: str, config: str) -> Daemon:
        work = self.work / host.name
        work.mkdir(parents=True, exist_ok=True)
        (work / "config.toml").write_text(config)
        argv = [str(VENV / "bin" / program), "--config", str(work / "config.toml")]
        return Daemon(host, work, self.out / f"{host.name}.log", argv)

    def _gcks_config(self, members: Sequence[str]) -> str:
        addresses = [self.address(self.network[name]) for name in members]
        network = "10.66.0.0/24" if self.options.version == 4 else "fd66::/64"
        work = self.work / "gcks"
        return (
            f'[key_server]\naddress = "{self.address(self.network["gcks"])}"\n'
            f'state = "{work}/state.sqlite"\ncontrol = "{work}/control"\n'
            f"{self._certificate('gcks')}\n"
            f'[[peer]]\naddress = "{network}"\n{self._authentication}'
        ) + "".join(_server_group(options, addresses) for options in self.groups)

    def _gm_config(self, name: str) -> str:
        work = self.work / name
        server = self.address(self.network["gcks"])
        return (
            f'[member]\naddress = "{self.address(self.network[name])}"\nstate = "{work}/state"\n'
            f'control = "{work}/control"\nexport = "{work}/keys"\n'
            f"{self._certificate(name)}{self.settings}"
        ) + "".join(
            _member_group(options, server, self._identity(name), self._authentication)
            for options in self.groups
        )

    @property
    def _authentication(self) -> str:
        return f'psk = "{PSK}"\n' if self.authority is None else 'auth = "pubkey"\n'

    def _certificate(self, name: str) -> str:
        """Its settings and, where certificates are used, the files they name."""
        if self.authority is None:
            return ""
        self.authority.issue(name, self.address(self.network[name]))
        return self.authority.settings(name) + (self._identity(name) if name == "gcks" else "")

    def _identity(self, name: str) -> str:
        """The address: an alternative name of the certificate."""
        if self.authority is None:
            return ""
        return f'identity = "{self.address(self.network[name])}"\n'


def _server_group(o: GroupOptions, members: Sequence[str]) -> str:
    rekey = "" if o.rekey_group is None else f'address = "{o.rekey_group}"\n'
    suite = f'ah_proposal = "{o.ah_proposal}"' if o.ah_proposal else f'proposal = "{o.proposal}"'
    senders = 'senders = "members"\n' if o.sender_each else ""
    teks = (
        f'\n[[group.tek]]\ndestination = "{o.data_group}"\n{senders}'
        f'{suite}\nmode = "{o.mode}"\nlifetime = "{o.tek_lifetime}"\n'
    )
    if o.applications:
        teks += f'\n[[group.iec61850]]\noid = "{GOOSE}"\nconf = "aes-cbc-128"\nlifetime = "1h"\n'
    return (
        f'\n[[group]]\nname = "{o.name}"\nid = {o.group_id}\nmembers = {json.dumps(members)}\n\n'
        f'[group.rekey]\n{rekey}signature = "{o.signature}"\nkek = "{o.kek}"\n'
        f'ack = "{o.ack}"\npush_limit = {o.push_limit}\n'
        f"{_key_tree(o)}retransmissions = {o.retransmissions}\n"
        f'activation_delay = "{o.activation_delay}"\n'
        f'deactivation_delay = "{o.deactivation_delay}"\n{teks}'
    )


def _key_tree(o: GroupOptions) -> str:
    return 'kek_management = "lkh"\nlkh_members = 8\n' if o.key_tree else ""


def _member_group(o: GroupOptions, server: str, identity: str, authentication: str) -> str:
    return (
        f'\n[[group]]\nname = "{o.name}"\nid = {o.group_id}\n'
        f'ack_jitter = "{o.ack_jitter}"\nrecovery_delay = "{o.recovery_delay}"\n{identity}\n'
        f'[[group.key_server]]\naddress = "{server}"\n{authentication}'
    )
