"""What options mean that more than one section has; a section's own table goes before."""

COMMON: dict[str, str] = {
    "port": "UDP port of phase 1, GROUPKEY-PULL, rekeys by unicast and acknowledgements.",
    "nat_traversal": "Whether a NAT between member and key server is looked for in phase 1 (RFC"
    " 3947); behind one everything moves to nat_port.",
    "nat_port": "UDP port where messages go that a NAT has translated. Another one where an IKE"
    " daemon on the same host has 4500.",
    "certificate": "Our certificate, PEM (intermediate CAs behind it are sent along) or DER; for"
    ' peers with auth = "pubkey". Relative names are beside the configuration.',
    "private_key": "The certificate's private key, PEM or DER, not encrypted: RSA of 2048 bits and"
    " more, or ECDSA on P-256, P-384 or P-521.",
    "cacerts": "Files of the CAs that peers' certificates may come from, or folders of such files,"
    " as /etc/swanctl/x509ca.",
    "crls": "Files, or folders of files, PEM or DER. They are looked at again for every peer.",
    "charon": "The control socket of strongSwan's charon on this host, where something asks it.",
    "charon_trust": "crls: the CRLs that charon was given or has fetched count besides those of the"
    " option crls. It is asked every five seconds. Its CAs are those of cacerts.",
    "revocation": "strict refuses whoever has no current CRL, ifuri whoever has none though the"
    " certificate names where to get it, relaxed nobody for that. Who is on a list is refused"
    " always.",
    "send_cert": "When our certificate is sent: ifasked waits for a certificate request.",
    "send_certreq": "Whether peers are asked for their certificates.",
    "netns": "Work in this network namespace: its name as in ip-netns(8), or a path that begins"
    " with /.",
    "identity": "What we call ourselves in phase 1: an address, FQDN, user@FQDN, DN or keyid:HEX."
    " Default: the address, or the subject of the certificate.",
    "proposals": "Phase 1's proposals in order of preference, in swanctl's keywords: cipher, hash"
    " and Diffie-Hellman group.",
    "phase1_lifetime": "How long a phase-1 SA lives. Registrations meanwhile need no new main"
    " mode.",
    "phase1_doi": "The DOI of phase 1: gdoi as RFC 6407 section 2.1 has it; ipsec for peers that"
    " know IPsec's only, as IKE daemons do; any, at a key server, takes both.",
    "dpd_delay": "A peer that has been silent so long is asked whether it is there (RFC 3706)."
    " 0s: never.",
    "dpd_timeout": "A peer that does not answer for so long is called dead.",
    "encap": "UDP nat_port whether there is a NAT or not.",
    "auth": "psk: by pre-shared key; pubkey: by certificate, which takes certificate, private_key"
    " and cacerts.",
    "psk": "The pre-shared key itself. psk_file keeps it out of this file.",
    "psk_file": "A file with the pre-shared key, white space around it is cut off. Relative names"
    " are beside the configuration.",
    "control": "The control socket: a Unix socket that speaks strongSwan's vici protocol, see"
    " gdoictl(1).",
    "control_group": "The group that may open the control socket besides the owner (mode 0660)."
    " Where there is no such group a warning says so and only the owner may.",
    "log": "A file to which log lines are appended, one JSON object each, and which SIGHUP opens"
    " anew; or journal for systemd's. Default: the journal where systemd has connected standard"
    " error to it, else standard error.",
    "metrics": "Where Prometheus finds metrics: a loopback address and port, as 127.0.0.1:9848, or"
    " a Unix socket of the control socket's mode. Default: nowhere.",
    "metrics_group": "The group that may open that Unix socket. Default: the one of control_group,"
    " whose members may command as well.",
}
