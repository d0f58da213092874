"""What manual pages say that no model or parser knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..daemon import gcks, gm


@dataclass(frozen=True, slots=True)
class FileWords:
    program: str
    path: str
    description: str
    example: str


FILE_WORDS = {
    "gm.toml": FileWords(
        "gdoi-gm",
        str(gm.DEFAULT_CONFIG),
        "What a group member is to know: where it is, which groups it belongs to, and the key"
        " servers that it trusts. It should have mode 0600 where it names keys.",
        """[member]
interface = "eth0"

[[group]]
name = "video"
id = 1234

[[group.key_server]]
address = "192.0.2.1"
psk_file = "lan.psk"
""",
    ),
    "gcks.toml": FileWords(
        "gdoi-gcks",
        str(gcks.DEFAULT_CONFIG),
        "What a key server is to know: who may ask it, and the groups that it keeps. It should have"
        " mode 0600 where it names keys.",
        """[key_server]
address = "192.0.2.1"

[[peer]]
address = "192.0.2.0/24"
psk_file = "lan.psk"

[[group]]
name = "video"
id = 1234
members = ["192.0.2.0/24"]

[group.rekey]
address = "239.192.0.1"

[[group.tek]]
destination = "239.192.1.1"
""",
    ),
}


@dataclass(frozen=True, slots=True)
class Daemon:
    what: str
    config_page: str
    description: Sequence[str]
    rows: Mapping[str, Mapping[str, str]]


_EXITS = {
    "0": "Stopped as it was told, or --check found nothing wrong.",
    "1": "It could not start, or not go on: a port, a permission, the kernel, the store.",
    "2": "The configuration is wrong, or the command line.",
    "70": "A bug; the log has where.",
}
_STOP = "Stop. Peers are told that phase 1 ends."

DAEMONS = {
    "gdoi-gm": Daemon(
        "group member agent of a Group VPN (GDOI, RFC 6407)",
        "gm.toml(5)",
        (
            "gdoi-gm registers with a key server, installs a group's multicast IPsec SAs into the"
            " kernel, takes rekeys and acknowledges each one (RFC 8263) only after the kernel has"
            " really accepted the new SAs. Where a group was known before, or lies in protect, its"
            " packets do not pass in clear meanwhile.",
            "It runs beside an IKE daemon on the same host and touches nothing of it. It needs"
            " CAP_NET_ADMIN, and CAP_NET_BIND_SERVICE for UDP port 848.",
        ),
        {
            "SIGNALS": {
                "SIGTERM, SIGINT": f"{_STOP} What becomes of SAs and policies says on_stop.",
                "SIGHUP": "Read the configuration again, as gdoictl reload does. What cannot be"
                " taken up while it runs changes nothing, and the log says so.",
            },
            "EXIT STATUS": _EXITS,
            "FILES": {
                "/etc/gdoi/gm.toml": "The configuration, see gm.toml(5).",
                "/run/gdoi/gm.vici": "The control socket, see gdoictl(1).",
                "/var/lib/gdoi/gm": "Keys and sequence numbers, mode 0600.",
            },
        },
    ),
    "gdoi-gcks": Daemon(
        "key server of a Group VPN (GDOI, RFC 6407)",
        "gcks.toml(5)",
        (
            "gdoi-gcks authenticates group members, hands out a group's policy and keys, replaces"
            " them in time, by multicast or unicast, and counts who has acknowledged (RFC 8263).",
            "It runs beside an IKE daemon on the same host. It needs CAP_NET_BIND_SERVICE for UDP"
            " port 848; CAP_NET_ADMIN lets it have receive buffers as large as its groups want, and"
            ' is needed where a peer has channel = "ike".',
        ),
        {
            "SIGNALS": {
                "SIGTERM, SIGINT": f"{_STOP} Members keep their keys.",
                "SIGHUP": "Read the configuration again, as gdoictl reload does.",
            },
            "EXIT STATUS": _EXITS,
            "ENVIRONMENT": {
                "CREDENTIALS_DIRECTORY": "Where systemd puts the credential gdoi-master-key.",
            },
            "FILES": {
                "/etc/gdoi/gcks.toml": "The configuration, see gcks.toml(5).",
                "/run/gdoi/gcks.vici": "The control socket, see gdoictl(1).",
                "/var/lib/gdoi/gcks.sqlite": "Groups, members, keys and who acknowledged what.",
            },
        },
    ),
}

COMMAND_WORDS = (
    "gdoictl asks the daemons that run on this host and shows their answers as tables, or as JSON"
    " with --json. Where both run it asks the one that a command is meant for and says so; status"
    " and events concern both.",
    "It speaks strongSwan's vici protocol on their control sockets, which are open to their owner"
    " and to the group gdoi. Any vici client can do the same.",
)

EXAMPLES = {
    "gdoictl status --watch": "See groups and counters change.",
    "gdoictl rekey --group video --kek": "New KEK and TEKs now; shows who acknowledges, and ends"
    " with 3 if somebody does not.",
    "gdoictl --json members --group video": "Who is registered, for a script.",
    "gdoictl reload --dry-run": "What the edited file would change.",
    'eval "$(gdoictl completion bash)"': "Completion in the running shell.",
}
