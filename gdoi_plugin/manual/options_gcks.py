"""What the options of gcks.toml mean, by section."""

GCKS: dict[str, dict[str, str]] = {
    "": {
        "key_server": "The key server itself.",
        "peer": "Who may start phase 1 at all, and how it authenticates. The most specific network"
        " wins.",
        "group": "One group: its members, their keys, and how they are replaced.",
    },
    "key_server": {
        "address": "Where members register and rekeys come from.",
        "state": "The SQLite file that holds everything that must survive a restart. The clock is"
        " kept beside it in any case.",
        "database": "A PostgreSQL database in place of the file state, as"
        " postgresql://USER@HOST/NAME. Several key servers may share one and serve the same"
        " groups.",
        "database_password": "A file of mode 0600 with the database's password. Default: where"
        " libpq looks for it, see PGPASSFILE.",
        "master_key": "A file of mode 0600 with 32 octets in hexadecimal, under which the keys in"
        " the database are sealed. Default: systemd's credential gdoi-master-key; without either"
        " they are not sealed, and a warning says so.",
        "ike_connections": "Names of connections in swanctl.conf: their IKE_SAs make members where"
        ' authorise = "ike" says so, and no others do.',
        "init_limit_half_open": "How many phase-1 exchanges may wait for message 5 at one time.",
        "block_threshold": "How many phase-1 exchanges of one source, an IPv4 address or an IPv6"
        " /64, may wait for message 5 at one time.",
        "half_open_timeout": "How long a phase-1 exchange may wait for message 5.",
        "work_per_source": "Key exchanges and proofs that are computed in a second for one source,"
        " saved up for two.",
        "new_offers": "Proposals not seen before that are parsed in a second, saved up for two.",
        "ack_processes": "So many processes read acknowledgements and compute their HASHes beside"
        " the key server, which counts them.",
        "name": "This key server's name among those that share a database. Default: the host's.",
        "status_page": "A loopback address and port, as 127.0.0.1:8480, where browsers on this host"
        " see groups, epochs, members and who has acknowledged. Default: none.",
        "lease": "How long the key server that leads may be silent before another one takes over.",
    },
    "peer": {
        "address": "An address or network. Main mode finds a pre-shared key by it.",
        "identity": "What the peer calls itself; with certificates also %any, *.example.org,"
        " *@example.org, a network or a DN with * for values. Default: its address, or with"
        " certificates whoever the CAs know.",
        "channel": "ike: registrations, rekeys by unicast and acknowledgements of these peers are"
        " taken and sent inside ESP only; charon makes the CHILD_SA, and what is in clear is"
        " blocked.",
        "more_identities": "Who else comes from this address with this pre-shared key, as members"
        " behind one NAT do. Each could pass for another one of the list.",
    },
    "group": {
        "name": "What logs, events and gdoictl(1) call the group: lower-case letters, digits, - and"
        " _, at most 32.",
        "id": 'What members ask for: a number (ID_KEY_ID), an address as "239.1.1.1", or'
        ' "oid:1.2.3", with ":HEX" for an OID-specific payload (RFC 8052).',
        "members": "Who may register: identities, %any, *.example.org, *@example.org, networks, or"
        " DNs with * for values.",
        "authorise": "ike: to be a member takes an IKE_SA that charon has established with the"
        " address that registers; members lists its identities, and a member is called so.",
        "on_ike_down": "What becomes of a member that has had no IKE_SA for ike_grace: mark shows"
        " it, evict puts it out as silence does; it may register again. Default: mark.",
        "ike_grace": "How long an IKE_SA may be gone. Reauthentication and a restart of charon take"
        " a while. Default: 5m.",
        "sid_bits": "Length of Sender-IDs in bits (RFC 6407 section 3.5).",
        "sender_ids_limit": "Sender-IDs that one member gets that asks for several.",
        "forwarding": "Members are routers that forward the group's packets in and out of LANs:"
        " data"
        " SAs that are of no use to such are refused.",
        "rekey": "How the group is rekeyed.",
        "silence": "What follows from rekeys that a member has missed one after another, from which"
        " count on; 0 for never. Registering again clears the count.",
        "tek": "A data SA, or with senders one for each of them.",
        "iec61850": "A key for an IEC 61850 application (RFC 8052), which members write to files.",
    },
    "group.rekey": {
        "address": "The multicast group that rekeys are sent to. Default: unicast, to each member.",
        "port": "UDP port that multicast rekeys are sent to.",
        "kek": "The KEK's cipher.",
        "kek_lifetime": "Lifetime of a KEK. It is replaced 200 s before its end, or 5 % of its"
        " life.",
        "signature": "How rekeys are signed; the key is made with the KEK.",
        "ack": "The acknowledgement that members are asked for (RFC 8263 section 2), keyed by the"
        " KEK or by each member's own key of the tree.",
        "ack_l": "Other readings of L in RFC 8263 section 3.2, in bits, under which"
        " acknowledgements"
        " are taken as well.",
        "ack_exempt": "Members that are never asked for acknowledgements; patterns as in members.",
        "ack_wait": "How long acknowledgements are waited for (RFC 8263 section 5: at least 10 s).",
        "retransmissions": "How often a rekey is repeated to those that have not acknowledged, each"
        " time with the next sequence number.",
        "pace": "Members that are told in a second where rekeys go by unicast.",
        "push_limit": "Octets of a rekey above which its data SAs go in several.",
        "activation_delay": "ATD: new SAs receive at once and send after this (RFC 6407 section"
        " 5.4.1).",
        "deactivation_delay": "DTD: old SAs receive so long after they were replaced.",
        "kek_management": "lkh: a key tree, so that a member can be evicted by a few keys for all"
        " others.",
        "lkh_arity": "Branches of a node of the key tree. Default: 4.",
        "lkh_members": "Members of one key tree; more get more trees. Default: 4096.",
        "rekey_on_join": "New keys whenever somebody joins, who then reads nothing of before (RFC"
        " 6407 section 7.4.2). Needs lkh.",
        "batch": "Who joins or leaves within this does so by one rekey. 0s: each by its own.",
    },
    "group.silence": {
        "log": "A warning names the member.",
        "alert": "The event member-silent, once.",
        "reminder": "The last rekey is said once more, by unicast, to it alone.",
        "evict": "With a key tree the member is put out; without one it is told nothing more. It"
        " may register again.",
    },
    "group.tek": {
        "destination": "The multicast address whose packets are protected.",
        "source": "An address or network that sends. Default: anybody.",
        "senders": 'Addresses of senders, or "members" where those are addresses: each gets an SA'
        " with its own SPI and key. Ciphers in counter modes need it, or one source.",
        "protocol": "Number of the IP protocol, 17 for UDP. 0: all.",
        "source_port": "0: all.",
        "destination_port": "0: all.",
        "proposal": "The ESP transform, in swanctl's keywords. Default: aes256-sha256.",
        "ah_proposal": "AH in place of ESP, with this hash.",
        "lifetime": "Lifetime of a TEK.",
        "lifetime_kilobytes": "Octets, in units of 1,024, that end a TEK too; each member's kernel"
        " counts its own.",
        "mode": "transport keeps header and addresses, tunnel adds a header.",
        "esn": "Sequence numbers of 64 bits (RFC 4304), for SAs with one sender.",
        "direction": "symmetric; per-member: Sender-Only for the sender and Receiver-Only for the"
        " others, in a PULL (RFC 6407 section 5.5.1.1.2); receiver-only for all.",
        "address_preservation": "Of a tunnel's outer header (RFC 6407 section 5.5.1.1.1):"
        " destination-only for members that forward the packets of others. Default:"
        " source-and-destination.",
    },
    "group.iec61850": {
        "oid": "What the key protects.",
        "payload": "The OID-specific payload, hexadecimal DER, where the OID wants one.",
        "auth": "The authentication; none only with conf aes-gcm.",
        "conf": "The confidentiality. CBC must not go without auth, GCM goes without one.",
        "lifetime": "Lifetime of the key.",
        "sa_atd": "A new key is handed out so long before it is used.",
        "sa_kda": "Percentage of SA_KDA, for the applications.",
    },
}
