"""A bad file of a key server gives a sentence that helps."""

from __future__ import annotations

from pathlib import Path

import pytest

from gdoi_plugin.crypto.signature import SCHEMES
from gdoi_plugin.daemon.config_gcks import KeyServerDaemonConfig
from gdoi_plugin.protocol.isakmp import SUITES
from gdoi_plugin.protocol.suites import ESP_SUITES
from tests.daemon.configs import (
    GCKS,
    HOST,
    NO_ID,
    ONE_PSK,
    PSK_LINE,
    TEK,
    gcks,
    refused,
    rekey,
    write,
)

SUITE_NAMES = ", ".join(sorted(SUITES))
PEER = 'address = "127.0.0.0/8"'
NO_TIME = "is no time; write it as 30s, 10m, 1h or 2d"
NAME = "must be lower-case letters, digits, - and _, at most 32, e.g. 'video'"
MULTICAST = "is not multicast; must be in 224.0.0.0/4 or ff00::/8"
DTD = (
    "deactivation_delay must be longer than activation_delay, or packets are lost"
    " (RFC 6407 section 5.4.1)"
)
SENDERS = (
    'aes256gcm16 needs senders = [their addresses], or "members", for a key of each, or source ='
    " one sender's address: senders must not share a counter-mode key (RFC 6407 section 3.5)"
)


def gcm_senders(number: int) -> str:
    """More data SAs, each with one sender in counter mode."""
    return "".join(
        f"""
[[group.tek]]
destination = "239.192.9.{n}"
source = "10.0.0.{n}"
proposal = "aes128gcm16"
"""
        for n in range(number)
    )


def forwarding(tek: str) -> str:
    return gcks(TEK, f"{TEK}\n{tek}").replace("id = 1\n", "id = 1\nforwarding = true\n")


BAD_KEY_SERVERS = {
    "empty file": ("", "key_server: missing"),
    "no peer": (gcks(f"[[peer]]\n{PEER}\n{PSK_LINE}\n", ""), "peer: missing"),
    "no group": (GCKS[: GCKS.index("[[group]]")], "group: missing"),
    "no tek": (
        GCKS[: GCKS.index("[[group.tek]]")],
        "group.0: 0 of [[group.tek]] and [[group.iec61850]], must be 1 to 64",
    ),
    "empty tek": (
        GCKS[: GCKS.index("[[group.tek]]")] + "tek = []",
        "group.0: 0 of [[group.tek]] and [[group.iec61850]], must be 1 to 64",
    ),
    "no address": (gcks('address = "127.0.0.1"', ""), "key_server.address: missing"),
    "unknown section": (
        GCKS + "[keyserver]\n",
        "keyserver: unknown key; known here: group, key_server, peer",
    ),
    "unknown key": (
        gcks("id = 1", "id = 1\nindex = 2"),
        "group.0.index: unknown key; known here: authorise, forwarding, id, iec61850, ike_grace,"
        " members, name, on_ike_down, rekey, sender_ids_limit, sid_bits, silence, tek",
    ),
    "unknown key with a dash": (
        rekey('ack-wait = "10s"'),
        "group.0.rekey.ack-wait: unknown key; known here: ack, ack_exempt, ack_l, ack_wait,"
        " activation_delay,"
        " address, batch, deactivation_delay, kek, kek_lifetime, kek_management, lkh_arity,"
        " lkh_members, pace, port, push_limit, rekey_on_join, retransmissions,"
        " signature",
    ),
    "unknown key in capitals": (
        gcks(PEER, f"{PEER}\nPSK = 'x'"),
        "peer.0.PSK: unknown key;"
        " known here: address, auth, channel, encap, identity, more_identities, phase1_doi, psk,"
        " psk_file",
    ),
    "unknown key of two lines": (
        gcks(PEER, f'{PEER}\n"a\\nb" = 1'),
        'peer.0."a\\nb": unknown key;'
        " known here: address, auth, channel, encap, identity, more_identities, phase1_doi, psk,"
        " psk_file",
    ),
    "section is a value": ("key_server = 3\npeer = []\ngroup = []", "key_server: must be a table"),
    "array is a table": (gcks("[[peer]]", "[peer]"), "peer: must be an array"),
    "address is a number": (
        gcks('address = "127.0.0.1"', "address = 2130706433"),
        "key_server.address: 2130706433 is no IPv4 or IPv6 address",
    ),
    "address is a name": (
        gcks('address = "127.0.0.1"', 'address = "localhost"'),
        "key_server.address: 'localhost' is no IPv4 or IPv6 address",
    ),
    "address with a zone": (
        gcks('address = "127.0.0.1"', 'address = "fe80::1%eth0"'),
        "key_server.address: 'fe80::1%eth0' is no IPv4 or IPv6 address",
    ),
    "address multicast": (
        gcks('address = "127.0.0.1"', 'address = "239.0.0.1"'),
        f"key_server.address: 239.0.0.1 {HOST}",
    ),
    "address unspecified": (
        gcks('address = "127.0.0.1"', 'address = "0.0.0.0"'),
        f"key_server.address: 0.0.0.0 {HOST}",
    ),
    "port text": (
        gcks("[[peer]]", 'port = "848"\n[[peer]]'),
        "key_server.port: must be a whole number",
    ),
    "port bool": (
        gcks("[[peer]]", "port = true\n[[peer]]"),
        "key_server.port: must be a whole number",
    ),
    "port real": (
        gcks("[[peer]]", "port = 848.0\n[[peer]]"),
        "key_server.port: must be a whole number",
    ),
    "port 0": (gcks("[[peer]]", "port = 0\n[[peer]]"), "key_server.port: must be 1 to 65535"),
    "port high": (
        gcks("[[peer]]", "port = 65536\n[[peer]]"),
        "key_server.port: must be 1 to 65535",
    ),
    "unknown proposal": (
        gcks("[[peer]]", 'proposals = ["aes256-sha256-ecp256", "3des-md5-modp768"]\n[[peer]]'),
        f"key_server.proposals: '3des-md5-modp768' is none of {SUITE_NAMES}",
    ),
    "no proposal": (
        gcks("[[peer]]", "proposals = []\n[[peer]]"),
        "key_server.proposals: must not be empty",
    ),
    "proposals text": (
        gcks("[[peer]]", 'proposals = "aes256-sha256-ecp256"\n[[peer]]'),
        "key_server.proposals: must be an array",
    ),
    "proposal no text": (
        gcks("[[peer]]", "proposals = [1]\n[[peer]]"),
        "key_server.proposals.0: must be a string",
    ),
    "short phase 1": (
        gcks("[[peer]]", 'phase1_lifetime = "59s"\n[[peer]]'),
        "key_server.phase1_lifetime: must be 1m to 365d",
    ),
    "no work": (
        gcks("[[peer]]", "work_per_source = 1\n[[peer]]"),
        "key_server.work_per_source: must be 2 to 100000",
    ),
    "no half-open exchange": (
        gcks("[[peer]]", "block_threshold = 0\n[[peer]]"),
        "key_server.block_threshold: must be 1 to 10000",
    ),
    "short dpd timeout": (
        gcks("[[peer]]", 'dpd_timeout = "4s"\n[[peer]]'),
        "key_server.dpd_timeout: must be 5s to 1h",
    ),
    "unknown DOI": (
        gcks("[[peer]]", '[[peer]]\nphase1_doi = "2"'),
        "peer.0.phase1_doi: must be 'gdoi', 'ipsec' or 'any'",
    ),
    "half seconds": (
        gcks("[[peer]]", 'phase1_lifetime = "60.5s"\n[[peer]]'),
        "key_server.phase1_lifetime: '60.5s' is not a whole number of seconds",
    ),
    "endless": (
        gcks("[[peer]]", f'phase1_lifetime = "{"9" * 400}s"\n[[peer]]'),
        f"key_server.phase1_lifetime: '{'9' * 400}s' is not a whole number of seconds",
    ),
    "state empty": (
        gcks("[[peer]]", 'state = ""\n[[peer]]'),
        "key_server.state: must be the name of a file",
    ),
    "state with NUL": (
        gcks("[[peer]]", 'state = "a\\u0000b"\n[[peer]]'),
        "key_server.state: must be the name of a file",
    ),
    "log no text": (
        gcks("[[peer]]", "log = 1\n[[peer]]"),
        "key_server.log: must be the name of a file",
    ),
    "identity malformed": (
        gcks("[[peer]]", 'identity = "two words"\n[[peer]]'),
        f"key_server.identity: 'two words' {NO_ID}",
    ),
    "peer with host bits": (
        gcks(PEER, 'address = "127.0.0.1/8"'),
        "peer.0.address: 127.0.0.1/8 has host bits set",
    ),
    "peer no network": (
        gcks(PEER, "address = 127"),
        "peer.0.address: 127 is no network, write it as 192.0.2.0/24 or 2001:db8::/64",
    ),
    "peer network rubbish": (
        gcks(PEER, 'address = "lan"'),
        "peer.0.address: 'lan' does not appear to be an IPv4 or IPv6 network",
    ),
    "peer twice": (
        gcks("[[group]]", f"[[peer]]\n{PEER}\npsk = 'y'\n\n[[group]]"),
        "peer.address: 127.0.0.0/8 twice",
    ),
    "network with identity": (
        gcks(PEER, f'{PEER}\nidentity = "gm1.example.org"'),
        "peer.0: identity needs one address: main mode finds a pre-shared key by address alone",
    ),
    "network of several": (
        gcks(PEER, f'{PEER}\nmore_identities = ["gm1.example.org"]'),
        "peer.0: more_identities is for a pre-shared key and one address, a NAT's",
    ),
    "no psk": (gcks(PSK_LINE, ""), f"peer.0: {ONE_PSK}"),
    "two psks": (gcks(PSK_LINE, f'{PSK_LINE}\npsk_file = "f"'), f"peer.0: {ONE_PSK}"),
    "psk empty": (gcks(PSK_LINE, 'psk = ""'), "peer.0.psk: must not be empty"),
    "psk number": (gcks(PSK_LINE, "psk = 1234"), "peer.0.psk: must be a string"),
    "psk file missing": (
        gcks(PSK_LINE, 'psk_file = "none.psk"'),
        "peer.0.psk_file: {folder}/none.psk: No such file or directory",
    ),
    "psk file a directory": (
        gcks(PSK_LINE, 'psk_file = "folder"'),
        "peer.0.psk_file: {folder}/folder: Is a directory",
    ),
    "psk file empty": (
        gcks(PSK_LINE, 'psk_file = "empty.psk"'),
        "peer.0.psk_file: {folder}/empty.psk is empty",
    ),
    "psk file with NUL": (
        gcks(PSK_LINE, 'psk_file = "\\u0000"'),
        "peer.0.psk_file: must be the name of a file",
    ),
    "name in capitals": (gcks('name = "video"', 'name = "Video"'), f"group.0.name: {NAME}"),
    "name a path": (gcks('name = "video"', 'name = "../x"'), f"group.0.name: {NAME}"),
    "name long": (gcks('name = "video"', f'name = "{"v" * 33}"'), f"group.0.name: {NAME}"),
    "id negative": (gcks("id = 1", "id = -1"), "group.0.id: must be 0 to 4294967295"),
    "id of 5 octets": (gcks("id = 1", "id = 4294967296"), "group.0.id: must be 0 to 4294967295"),
    "id a truth": (gcks("id = 1", "id = true"), "group.0.id: must be a number or a string"),
    "id a name": (
        gcks("id = 1", 'id = "video.example.org"'),
        "group.0.id: 'video.example.org' names no group; must be a number, an IPv4 or IPv6 address,"
        " or oid:1.2.3 with :HEX for its payload",
    ),
    "id no OID": (
        gcks("id = 1", 'id = "oid:1.2.x"'),
        "group.0.id: '1.2.x' is no OID; write it as 1.2.840.10070",
    ),
    "no members": (
        gcks('members = ["127.0.0.2"]', "members = []"),
        "group.0.members: must not be empty",
    ),
    "member malformed": (
        gcks('members = ["127.0.0.2"]', 'members = ["127.0.0.2", "127.0.0.300"]'),
        f"group.0.members.1: '127.0.0.300' {NO_ID}",
    ),
    "member a network with a host in it": (
        gcks('members = ["127.0.0.2"]', 'members = ["127.0.0.1/8"]'),
        "group.0.members.0: 127.0.0.1/8 has host bits set",
    ),
    "member with a wildcard in the middle": (
        gcks('members = ["127.0.0.2"]', 'members = ["gm*.example.org"]'),
        "group.0.members.0: 'gm*.example.org' must be an identity, %any, *.example.org,"
        " *@example.org, a network, or a DN with * for values: C=CH, O=Example, CN=*",
    ),
    "keyid malformed": (
        gcks('members = ["127.0.0.2"]', 'members = ["keyid:0x12"]'),
        f"group.0.members.0: 'keyid:0x12' {NO_ID}",
    ),
    "keyid empty": (
        gcks('members = ["127.0.0.2"]', 'members = ["keyid:"]'),
        f"group.0.members.0: 'keyid:' {NO_ID}",
    ),
    "user without name": (
        gcks('members = ["127.0.0.2"]', 'members = ["@example.org"]'),
        f"group.0.members.0: '@example.org' {NO_ID}",
    ),
    "group name twice": (
        GCKS + GCKS[GCKS.index("[[group]]") :].replace("id = 1", "id = 2"),
        "group.name: video twice",
    ),
    "group id twice": (
        GCKS + GCKS[GCKS.index("[[group]]") :].replace("video", "audio"),
        "group.id: 1 twice",
    ),
    "tek not multicast": (
        gcks(TEK, 'destination = "10.0.0.1"'),
        f"group.0.tek.0.destination: 10.0.0.1 {MULTICAST}",
    ),
    "tek for the link": (
        gcks(TEK, 'destination = "224.0.0.5"'),
        "group.0.tek.0.destination: 224.0.0.5 is for the link's control (IGMP, neighbours): never"
        " encrypted",
    ),
    "tek twice": (
        GCKS + f"[[group.tek]]\n{TEK}\n",
        "group.0.tek: any -> 239.192.1.1 twice",
    ),
    "tek families": (
        gcks(TEK, f'{TEK}\nsource = "2001:db8::1"'),
        "group.0.tek.0: source 2001:db8::1/128 and destination 239.192.1.1 must be both IPv4 or"
        " IPv6",
    ),
    "ports without protocol": (
        gcks(TEK, f"{TEK}\ndestination_port = 5000"),
        "group.0.tek.0: ports need a protocol, e.g. protocol = 17 for UDP",
    ),
    "protocol": (
        gcks(TEK, f"{TEK}\nprotocol = 256"),
        "group.0.tek.0.protocol: must be 0 to 255",
    ),
    "tek port": (
        gcks(TEK, f"{TEK}\nprotocol = 17\nsource_port = 65536"),
        "group.0.tek.0.source_port: must be 0 to 65535",
    ),
    "unknown tek proposal": (
        gcks(TEK, f'{TEK}\nproposal = "aes192-sha1"'),
        f"group.0.tek.0.proposal: must be one of {', '.join(ESP_SUITES)}",
    ),
    "tek proposal of AH": (
        gcks(TEK, f'{TEK}\nproposal = "sha256"'),
        f"group.0.tek.0.proposal: must be one of {', '.join(ESP_SUITES)}",
    ),
    "tek AH proposal of ESP": (
        gcks(TEK, f'{TEK}\nah_proposal = "aes256gcm16"'),
        "group.0.tek.0.ah_proposal: must be one of sha256, sha384, sha512",
    ),
    "tek of ESP and AH": (
        gcks(TEK, f'{TEK}\nproposal = "aes256-sha256"\nah_proposal = "sha256"'),
        "group.0.tek.0: give proposal for ESP or ah_proposal for AH, one of the two",
    ),
    "tek of no kilobytes": (
        gcks(TEK, f"{TEK}\nlifetime_kilobytes = 0"),
        "group.0.tek.0.lifetime_kilobytes: must be 1 to 4294967295",
    ),
    "tek direction": (
        gcks(TEK, f'{TEK}\ndirection = "both"'),
        "group.0.tek.0.direction: must be 'symmetric', 'per-member' or 'receiver-only'",
    ),
    "tek direction of many": (
        gcks(TEK, f'{TEK}\ndirection = "per-member"'),
        'group.0.tek.0: direction = "per-member" needs source = one sender\'s address, or senders:'
        " an SA of several is symmetric (RFC 6407 section 5.5.1.1.2)",
    ),
    "tek esn of many": (
        gcks(TEK, f"{TEK}\nesn = true"),
        "group.0.tek.0: esn needs senders, or source = one sender's address: several senders count"
        " each for itself, and an SA has one count (RFC 4303 section 2.2)",
    ),
    "senders that are none": (
        gcks(TEK, f'{TEK}\nsenders = "all"'),
        'group.0.tek.0.senders: must be an array of addresses, or "members"',
    ),
    "sender that is no address": (
        gcks(TEK, f'{TEK}\nsenders = ["10.0.0.0/24"]'),
        "group.0.tek.0.senders: '10.0.0.0/24' is no IPv4 or IPv6 address",
    ),
    "sender that is a group": (
        gcks(TEK, f'{TEK}\nsenders = ["239.0.0.1"]'),
        "group.0.tek.0.senders: 239.0.0.1 is no address of a host",
    ),
    "senders and source": (
        gcks(TEK, f'{TEK}\nsource = "10.0.0.2"\nsenders = ["10.0.0.2"]'),
        "group.0.tek.0: give source, or senders for an SA of each of them, not both",
    ),
    "sender of another family": (
        gcks(TEK, f'{TEK}\nsenders = ["2001:db8::1"]'),
        "group.0.tek.0: source 2001:db8::1/128 and destination 239.192.1.1 must be both IPv4 or"
        " IPv6",
    ),
    "senders are members without addresses": (
        gcks(TEK, f'{TEK}\nsenders = "members"').replace("127.0.0.2", "gm.example.org"),
        "group.0: senders = \"members\" needs members that are addresses, and 'gm.example.org' is"
        " none",
    ),
    "senders are members of another family": (
        gcks(TEK, f'{TEK}\nsenders = "members"').replace("127.0.0.2", "2001:db8::1"),
        "group.0: source 2001:db8::1/128 and destination 239.192.1.1 must be both IPv4 or IPv6",
    ),
    "more senders than TEKs": (
        gcks(TEK, f"{TEK}\nsenders = {[f'10.0.0.{n}' for n in range(1, 66)]}"),
        "group.0: 65 of [[group.tek]] and [[group.iec61850]], counting each of the senders, must be"
        " 1 to 64",
    ),
    "tek preservation in transport mode": (
        gcks(TEK, f'{TEK}\naddress_preservation = "destination-only"'),
        'group.0.tek.0: address_preservation is for mode = "tunnel"',
    ),
    "sid_bits": (
        gcks("id = 1", "id = 1\nsid_bits = 10"),
        "group.0.sid_bits: must be 8, 12 or 16",
    ),
    "sender_ids_limit": (
        gcks("id = 1", "id = 1\nsender_ids_limit = 64"),
        "group.0.sender_ids_limit: must be 1 to 63",
    ),
    "more Sender-IDs than there are": (
        gcks("id = 1", "id = 1\nsid_bits = 8\nsender_ids_limit = 52") + gcm_senders(5),
        "group.0: 5 senders with up to sender_ids_limit = 52 Sender-IDs each are more than"
        " sid_bits = 8 can tell apart",
    ),
    "gcm without source": (
        gcks(TEK, f'{TEK}\nproposal = "aes256gcm16"'),
        f"group.0.tek.0: {SENDERS}",
    ),
    "gcm with many sources": (
        gcks(TEK, f'{TEK}\nproposal = "aes256gcm16"\nsource = "10.0.0.0/31"'),
        f"group.0.tek.0: {SENDERS}",
    ),
    "tek lifetime": (
        gcks(TEK, f'{TEK}\nlifetime = "29s"'),
        "group.0.tek.0.lifetime: must be 30s to 30d",
    ),
    "duration a number": (
        gcks(TEK, f"{TEK}\nlifetime = 3600"),
        f"group.0.tek.0.lifetime: 3600 {NO_TIME}",
    ),
    "duration without unit": (
        gcks(TEK, f'{TEK}\nlifetime = "3600"'),
        f"group.0.tek.0.lifetime: '3600' {NO_TIME}",
    ),
    "mode": (
        gcks(TEK, f'{TEK}\nmode = "beet"'),
        "group.0.tek.0.mode: must be 'transport' or 'tunnel'",
    ),
    "rekey not multicast": (
        rekey('address = "10.0.0.1"'),
        f"group.0.rekey.address: 10.0.0.1 {MULTICAST}",
    ),
    "rekey family": (
        rekey('address = "ff05::1"'),
        "group.0.rekey.address: ff05::1 cannot be sent from 127.0.0.1:848",
    ),
    "kek": (rekey('kek = "aes512"'), "group.0.rekey.kek: must be 'aes128', 'aes192' or 'aes256'"),
    "signature": (
        rekey('signature = "rsa"'),
        f"group.0.rekey.signature: must be one of {', '.join(SCHEMES)}",
    ),
    "ack": (
        rekey("ack = false"),
        "group.0.rekey.ack: must be 'kek-sha256', 'kek-sha512', 'lkh-sha256', 'lkh-sha512' or"
        " 'none'",
    ),
    "lkh ack without lkh": (
        rekey('ack = "lkh-sha256"'),
        "group.0.rekey: ack lkh-sha256 is keyed by each member's own key of an LKH, which this"
        ' group has not; must be kek-sha256, kek-sha512 or none, or kek_management "lkh"',
    ),
    "lkh option without lkh": (
        rekey("lkh_members = 8"),
        'group.0.rekey: lkh_arity, lkh_members and rekey_on_join need kek_management = "lkh"',
    ),
    "key management": (
        rekey('kek_management = "oft"'),
        "group.0.rekey.kek_management: must be 'none' or 'lkh'",
    ),
    "lkh with half a block": (
        rekey('kek = "aes192"\nkek_management = "lkh"'),
        "group.0.rekey: kek aes192 cannot be in a tree, IV and key are not whole blocks of AES;"
        " must be aes128 or aes256",
    ),
    "lkh arity": (
        rekey('kek_management = "lkh"\nlkh_arity = 1'),
        "group.0.rekey.lkh_arity: must be 2 to 16",
    ),
    "a tree too large for its ids": (
        rekey('kek_management = "lkh"\nlkh_arity = 2\nlkh_members = 40000'),
        "group.0.rekey: lkh_members 40000 is more than a tree of arity 2 can hold, LKH IDs have 16"
        " bits: must be 1 to 32768; more members get more trees",
    ),
    "push limit": (rekey("push_limit = 511"), "group.0.rekey.push_limit: must be 512 to 65503"),
    "L": (rekey("ack_l = [65536]"), "group.0.rekey.ack_l.0: must be 1 to 65535"),
    "exempt": (
        rekey('ack_exempt = ["10.0.0.300"]'),
        "group.0.rekey.ack_exempt.0: '10.0.0.300' is no address, FQDN, user@FQDN, DN or keyid:HEX",
    ),
    "ack_wait": (rekey('ack_wait = "9.9s"'), "group.0.rekey.ack_wait: must be 10s to 1h"),
    "retransmissions": (
        rekey("retransmissions = 61"),
        "group.0.rekey.retransmissions: must be 0 to 60",
    ),
    "batch": (rekey('batch = "11s"'), "group.0.rekey.batch: must be 0s to 10s"),
    "silence": (
        gcks("[[group.tek]]", "[group.silence]\nevict = -1\n\n[[group.tek]]"),
        "group.0.silence.evict: must be 0 to 256",
    ),
    "pace": (rekey("pace = 9"), "group.0.rekey.pace: must be 10 to 1000000"),
    "kek lifetime": (
        rekey('kek_lifetime = "366d"'),
        "group.0.rekey.kek_lifetime: must be 1m to 365d",
    ),
    "DTD before ATD": (
        rekey('activation_delay = "30s"\ndeactivation_delay = "29s"'),
        f"group.0.rekey: {DTD}",
    ),
    "DTD is ATD": (
        rekey('activation_delay = "30s"\ndeactivation_delay = "30s"'),
        f"group.0.rekey: {DTD}",
    ),
    "router and ports": (
        forwarding("protocol = 17\ndestination_port = 5000"),
        "group.0: forwarding = true, but a router has no use for any -> 239.192.1.1 proto 17 ports"
        " 0:5000: it is for IP protocol 17 alone, and Linux does not look at the protocol and the"
        " ports of what it forwards",
    ),
    "router and IPv6": (
        forwarding("").replace("239.192.1.1", "ff15::1"),
        "group.0: forwarding = true, but a router has no use for any -> ff15::1: only IPv4"
        " multicast is forwarded",
    ),
    "router and preserved source": (
        forwarding('mode = "tunnel"'),
        "group.0: forwarding = true, but a router has no use for any -> 239.192.1.1: a tunnel that"
        " preserves the source (RFC 6407 section 5.5.1.1.1) would have this router's own address"
        " outside; it must be destination-only",
    ),
    "DTD and lifetime": (
        gcks(TEK, f'{TEK}\nlifetime = "59s"'),
        "group.0: deactivation_delay 30 s is more than half of the TEK lifetime 59 s",
    ),
}


@pytest.mark.parametrize("case", BAD_KEY_SERVERS)
def test_bad_key_server_file(folder: Path, case: str) -> None:
    text, expected = BAD_KEY_SERVERS[case]
    path = write(folder, text)
    sentence = f"{path}: {expected.replace('{folder}', str(folder))}"
    assert str(refused(KeyServerDaemonConfig, path)) == sentence
