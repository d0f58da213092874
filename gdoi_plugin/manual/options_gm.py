"""What the options of gm.toml mean, by section."""

GM: dict[str, dict[str, str]] = {
    "": {
        "member": "The member itself, and what holds for all its groups.",
        "group": "One group. There may be several, each with key servers of its own.",
    },
    "member": {
        "address": "Our address. Default: the first IPv4 address of interface. One of the two must"
        " be there; a member waits for them and follows them when they change.",
        "interface": "Where rekeys and, with join, data are joined by multicast.",
        "keep_alive": "Behind a NAT a keepalive is sent so often (RFC 3948 section 4). 0s: never.",
        "firewall": "The program that sets a router's rules for netfilter, so that no clear packet"
        " of a group gets into a lan from elsewhere. none: your own rules see to that.",
        "state": "Folder with what must survive a restart: keys, sequence numbers, what is"
        " blocked.",
        "export": "Folder for the keys of IEC 61850 applications (RFC 8052), a file GROUP.json of"
        " mode 0600 for each group. Without it policies with such keys are refused.",
        "protect": "Multicast prefixes that never pass in clear, from the agent's start on, whether"
        " a group has keys for them or not.",
        "bypass": "What may pass in clear all the same.",
        "default_policy": "block: the kernel drops what no policy matches, so that a flush of all"
        " policies lets nothing out in clear. What the host needs then needs policies that allow"
        " it. keep leaves that alone.",
        "on_stop": "What becomes of a group at a stop: keep leaves SAs and policies, traffic goes"
        " on until they expire; remove takes all out, traffic goes in clear; block takes the SAs"
        " out and leaves what blocks.",
    },
    "member.bypass": {
        "destination": "A multicast prefix.",
        "source": "A prefix of senders. Default: all.",
        "protocol": "Number of the IP protocol, 17 for UDP. 0: all.",
        "source_port": "0: all.",
        "destination_port": "0: all.",
        "direction": "Whether packets that are received pass, those that are sent, or both.",
    },
    "group": {
        "name": "What logs, events and gdoictl(1) call the group: lower-case letters, digits, - and"
        " _, at most 32.",
        "id": "What GROUPKEY-PULL asks for, as the key server has it: a number (ID_KEY_ID), an"
        ' address as "239.1.1.1", or "oid:1.2.3", with ":HEX" for an OID-specific payload (RFC'
        " 8052).",
        "ack_jitter": "An acknowledgement of a multicast rekey waits a random time within this, so"
        " that not all come at once (RFC 8263 section 5).",
        "ack_id": "What acknowledgements call us: our address, or the OID that id is (RFC 8052).",
        "recovery_delay": "Where keys are missing or were refused, the group registers again at a"
        " random moment within this.",
        "sender_ids": "How many Sender-IDs to ask for (RFC 6407 section 3.5); a sender in counter"
        " mode gets one in any case. They are shown, Linux chooses IVs of its own.",
        "accept_private_algs": "Take transforms whose numbers are for private use: chacha20poly1305"
        " from a key server of this project.",
        "join": "Join the multicast groups of the data too: true on interface, or a list of"
        " interfaces. Without it applications join.",
        "lan": "Interfaces of LANs for whose hosts this member, a router, decrypts and encrypts."
        " IPv4 only.",
        "priority": "Of the group's policies in the kernel. Of all policies for a packet the lowest"
        " number wins; within these bounds that is behind an IKE daemon's CHILD_SAs between hosts"
        " and before its traps for everything.",
        "replay_window": "Packets, of SAs with one sender. 0: none. SAs that several senders share"
        " have none.",
        "mark_in": 'For received packets with this mark alone ("0x10", or "0x10/0xff" with a mask).'
        " Others pass in clear.",
        "mark_out": "For packets that are sent with this mark alone, as mark_in has it. Others pass"
        " in clear.",
        "mark_in_sa": "SAs are found by the mark too; mark_in and mark_out must then be the same.",
        "if_id": "Number of the XFRM interface that SAs, policies and blocks belong to. 0: none.",
        "channel": "ike: registrations, rekeys by unicast and acknowledgements go inside a CHILD_SA"
        " that charon makes with each key server, and UDP 848 in clear with them is blocked. Each"
        " key server needs ike then.",
        "key_server": "One of the key servers that this group trusts. They are tried in this order,"
        " from a random one on.",
    },
    "group.key_server": {
        "address": "Where the key server is.",
        "identity": "What the key server calls itself; with certificates also a pattern as"
        " *.example.org. Default: its address.",
        "port": "The key server's UDP port.",
        "nat_port": "The key server's UDP port for messages that a NAT has translated.",
        "initial_contact": "Whether the first phase 1 after a start tells the key server to forget"
        " SAs of before (RFC 2407 section 4.6.3.3). false for one that takes any notify for an"
        " error.",
        "ike": "The connection of charon's that carries UDP 848 to this key server.",
    },
    "group.key_server.ike": {
        "connection": "The name of one in swanctl.conf. Without it the agent has charon load what"
        " the other options say.",
        "child": "The name of its CHILD_SA.",
        "auth": "psk: by pre-shared key; pubkey: by certificate, with certificate, private_key and"
        " cacerts. Of IKEv2, as everything here.",
        "psk": "The pre-shared key of the two charons. psk_file keeps it out of this file.",
        "certificate": "charon's certificate, PEM or DER; intermediate CAs follow in the file.",
        "cacerts": "Files of the CAs that the key server's certificate may come from.",
        "revocation": "What charon asks of the key server's certificate, as in swanctl.conf.",
        "local_id": "What charon calls itself. Default: our address.",
        "remote_id": "What the key server's charon calls itself. Default: its address.",
        "proposals": "Of IKEv2, in swanctl's keywords.",
        "esp_proposals": "Of the CHILD_SA, in swanctl's keywords.",
        "dpd_delay": "A key server's charon that has been silent so long is asked whether it is"
        " there. 0s: never.",
        "reauth_time": "How long an IKE_SA lives until both authenticate anew. 0s: for ever.",
    },
}
