"""IPsec in the kernel, and what a router needs of netfilter."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from ...protocol.suites import AH_SUITES
from ...protocol.tek_policy import TekConfig
from ..config_gcks import KeyServerDaemonConfig
from ..config_member import MemberDaemonConfig
from .account import as_root
from .finding import Area, Finding
from .probing import Answer, Refusal, Wish, ask, key_of

KERNEL = Area("kernel")
# What key servers commonly say, where this host's configuration does not know it.
USUAL_SUITES = ("aes128-sha256", "aes256-sha256", "aes128gcm16", "aes256gcm16", "sha256")
_PRIVATE = "chacha20poly1305"
# The modules of a protocol in each family, and those of suites whose names begin so.
_PROTOCOLS = {("ESP", 4): "esp4", ("ESP", 6): "esp6", ("AH", 4): "ah4", ("AH", 6): "ah6"}
_MODULES = {
    "chacha20poly1305": "chacha20poly1305",
    "gcm": "gcm seqiv",
    "gmac": "gcm seqiv",
    "-": "authenc cbc echainiv",
}


def check_kernel(
    config: MemberDaemonConfig | None, key_server: KeyServerDaemonConfig | None
) -> Iterator[Finding]:
    """``key_server``: that of the same host, which knows what its groups' policies say."""
    family = 4 if config is None else config.local.host.version
    suites = _suites(config, key_server)
    firewall = _firewall(config)
    answer = ask(Wish(suites, (family,), firewall))
    if answer.problem:
        yield from _not_tried(answer.problem, family)
        return
    for protocol in ("ESP", "AH"):
        chosen = [suite for suite in suites if (suite in AH_SUITES) == (protocol == "AH")]
        if chosen:
            yield from _of_protocol(protocol, family, chosen, answer)
    if firewall:
        yield _rules(firewall, answer.firewall)


def _suites(
    config: MemberDaemonConfig | None, key_server: KeyServerDaemonConfig | None
) -> list[str]:
    wanted: list[str] = []
    if config is not None and key_server is not None:
        wanted = [tek.suite.keyword for tek in teks_of(config, key_server)]
    if not wanted:
        wanted = list(USUAL_SUITES)
        if config is not None and any(group.accept_private_algs for group in config.groups):
            wanted.append(_PRIVATE)
    return list(dict.fromkeys(wanted))


def teks_of(config: MemberDaemonConfig, key_server: KeyServerDaemonConfig) -> list[TekConfig]:
    """The data SAs of the member's groups, where the key server of the same host has those."""
    ours = {group.group_id for group in config.groups}
    groups = [group for group in key_server.groups if group.group_id in ours]
    return [tek for group in groups for tek in group.teks if isinstance(tek, TekConfig)]


def _firewall(config: MemberDaemonConfig | None) -> str:
    if config is None or not any(config.lans.values()):
        return ""
    program = config.settings.firewall
    return "" if program == "none" else program


def _of_protocol(
    protocol: str, family: int, suites: Sequence[str], answer: Answer
) -> Iterator[Finding]:
    refused = {suite: answer.suites[key_of(suite, family)] for suite in suites}
    missing = {suite: refusal for suite, refusal in refused.items() if refusal is not None}
    test = f"{protocol} over IPv{family}"
    there = ", ".join(suite for suite in suites if suite not in missing)
    whole = {refusal.errno for refusal in missing.values()} - {errno.ENOSYS, errno.EINVAL}
    if not there and whole:
        yield _no_protocol(protocol, family, test, next(iter(missing.values())))
        return
    if there:
        yield KERNEL.ok(test, f"takes SAs with {there}")
    for suite, refusal in missing.items():
        modules = next((found for part, found in _MODULES.items() if part in suite), "sha256")
        # Without it a policy that has it is refused, and all others work.
        yield KERNEL.warn(f"{test}, {suite}", refusal.said, _load(modules))


def _no_protocol(protocol: str, family: int, test: str, refusal: Refusal) -> Finding:
    module = _PROTOCOLS[protocol, family]
    if refusal.errno in (errno.EPERM, errno.EACCES):
        return KERNEL.warn(test, refusal.said, as_root())
    if refusal.errno == errno.EPROTONOSUPPORT and "socket" in refusal.said:
        return KERNEL.fail(test, f"no IPsec at all: {refusal.said}", _load("xfrm_user"))
    found = f"Linux {os.uname().release} has no {protocol} for IPv{family}"
    # Groups with AH are rare, and their policies are refused: nothing else depends on it.
    return (KERNEL.fail if protocol == "ESP" else KERNEL.warn)(test, found, _load(module))


def _load(modules: str) -> str:
    """Of the modules, those that this kernel has; else a kernel that has them."""
    missing = [name for name in modules.split() if not _loadable(name)]
    if missing:
        return (
            "apt-get install linux-image-$(dpkg --print-architecture)"
            f"   # then boot it: this kernel comes without {' '.join(missing)}"
        )
    return f"modprobe --all {modules}; printf '%s\\n' {modules} > /etc/modules-load.d/gdoi.conf"


def _loadable(module: str) -> bool:
    """Asks the program that the kernel itself would ask for it."""
    loader = Path("/proc/sys/kernel/modprobe")
    try:
        command = [loader.read_text().strip(), "--dry-run", "--quiet", module]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:  # a kernel without modules, a host without modprobe
        return False


def _not_tried(problem: str, family: int) -> Iterator[Finding]:
    """What can be told without: whether the modules are there."""
    modules = Path("/proc/modules")  # not there in a kernel that loads none
    lines = modules.read_text().splitlines() if modules.exists() else []
    loaded = {line.split()[0] for line in lines}
    for name in ("xfrm_user", _PROTOCOLS["ESP", family]):
        known = name in loaded or _loadable(name)
        said = "is there" if known else "is not there, unless the kernel has it built in"
        yield KERNEL.warn(f"module {name}", f"{said}; not tried, {problem}", as_root())


def _rules(program: str, problem: str) -> Finding:
    test = f"a router's rules by {program}"
    if not problem:
        return KERNEL.ok(test, "netfilter takes them, xt_policy included")
    if "No such file" in problem:
        return KERNEL.fail(test, problem, "apt-get install iptables")
    return KERNEL.fail(test, problem, _load("xt_policy"))
