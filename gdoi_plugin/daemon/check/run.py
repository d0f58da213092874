"""All tests of a host, in the order in which a daemon would meet what they look at."""

from __future__ import annotations

import os
import time
import tomllib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
from typing import Any, TypeVar

from ...wire.registry import EncapsulationMode
from ..charon.client import SOCKET
from ..config_gcks import KeyServerDaemonConfig
from ..config_member import MemberDaemonConfig
from ..errors import AbsentError, ConfigError, DaemonError
from ..gcks import DEFAULT_CONFIG as GCKS_CONFIG
from ..gm import DEFAULT_CONFIG as GM_CONFIG
from ..netns import enter
from . import network, ports, rights
from .account import daemon_user
from .certificates import check_certificates, mend_of
from .charon import check_charon
from .clock import check_clock
from .finding import Area, Finding
from .kernel import check_kernel, teks_of
from .state import check_database

# Where systemd has the credentials of units that run.
CREDENTIALS = Path("/run/credentials")
CONFIGURATION = Area("configuration")
Config = MemberDaemonConfig | KeyServerDaemonConfig
C = TypeVar("C", MemberDaemonConfig, KeyServerDaemonConfig)
# Options that name files with keys in them.
_SECRETS = ("psk_file", "private_key", "master_key", "database_password")


def check(gm: Path | None = None, gcks: Path | None = None) -> list[Finding]:
    """``gm`` and ``gcks``: configurations; without either those of /etc/gdoi that are there.

    Member and key server of one host have files and folders in common, which are said once.
    """
    return list(dict.fromkeys(_all(gm, gcks)))


def _all(gm: Path | None, gcks: Path | None) -> Iterator[Finding]:
    if gm is None and gcks is None:
        gm = GM_CONFIG if GM_CONFIG.exists() else None
        gcks = GCKS_CONFIG if GCKS_CONFIG.exists() else None
    yield from check_clock()
    if gm is None and gcks is None:
        found = f"neither {GM_CONFIG} nor {GCKS_CONFIG} is there"
        mend = "gdoictl check --gm FILE   # or put one there: deploy/config has examples"
        yield CONFIGURATION.fail("configuration", found, mend)
    member, key_server = None, None
    if gm is not None:
        with _credentials("gdoi-gm"):
            member, findings = _read(MemberDaemonConfig, gm, "gm")
        yield from findings
    if gcks is not None:
        with _credentials("gdoi-gcks"):
            key_server, findings = _read(KeyServerDaemonConfig, gcks, "gcks")
        yield from findings
    if member is not None:
        yield from _inside(member, "member", lambda: _member(member, key_server))
    elif gm is not None or gcks is None:
        # What every member needs can be told without.
        yield from check_kernel(None, None)
    if key_server is not None:
        with _credentials("gdoi-gcks"):
            yield from _inside(key_server, "key_server", lambda: _key_server(key_server))
    if member is not None and key_server is not None:
        yield from _both(member, key_server)
    yield from _charon([path for path in (gm, gcks) if path is not None])


@contextmanager
def _credentials(program: str) -> Iterator[None]:
    """Those that systemd has given the unit, while it runs: root may look at them."""
    name, place = "CREDENTIALS_DIRECTORY", CREDENTIALS / f"{program}.service"
    if name in os.environ or not place.is_dir():
        yield
        return
    os.environ[name] = str(place)
    try:
        yield
    finally:
        del os.environ[name]


def _charon(configs: Iterable[Path]) -> Iterator[Finding]:
    """Whether some option has to do with it, also in a file that has other faults."""
    needed = False
    sockets = set()
    for path in configs:
        try:
            document = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # told before
            continue
        needed |= "ike" in {*_values(document, "channel"), *_values(document, "authorise")}
        needed |= any(section.get("charon_trust") for section in _tables(document))
        sockets |= {Path(name) for name in _values(document, "charon")}
    for socket in sorted(sockets) or [SOCKET]:
        yield from check_charon(socket, daemon_user(), needed=needed)


def _read(make: Callable[[Path], C], path: Path, role: str) -> tuple[C | None, list[Finding]]:
    try:
        return make(path), [CONFIGURATION.ok(str(path), "valid")]
    except ConfigError as error:
        said = str(error).removeprefix(f"{path}: ")
        finding = CONFIGURATION.fail(str(path), said, mend_of(error))
        if "$CREDENTIALS_DIRECTORY" in said:
            mend = "gdoictl check   # while the unit runs: its credentials are there then alone"
            finding = CONFIGURATION.warn(str(path), said, mend)
    except DaemonError as error:
        finding = CONFIGURATION.fail(str(path), str(error), f"# edit {path}")
    again = f"gdoictl check --{role} {quote(str(path))}   # when that is mended"
    rest = CONFIGURATION.warn(f"all else of {path}", "not tested: this comes first", again)
    return None, [finding, rest]


def _inside(config: Config, section: str, work: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """In the daemon's network namespace: a thread has one of its own, which ends with it."""

    def run() -> list[Finding]:
        netns = config.settings.netns
        if netns is not None:
            try:
                enter(config.path, f"{section}.netns", netns)
            except ConfigError as error:
                said = str(error).removeprefix(f"{config.path}: ")
                return [CONFIGURATION.fail(f"namespace {netns}", said, mend_of(error))]
        return list(work())

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(run).result()


def _member(
    config: MemberDaemonConfig, key_server: KeyServerDaemonConfig | None
) -> Iterator[Finding]:
    try:
        config = config.here()
    except AbsentError as error:
        config.absent = error
    settings = config.settings
    yield from check_kernel(config, key_server)
    yield from network.check_member(config, _tunnels(config, key_server))
    if config.absent is None:
        yield from _ports("gdoi-gm", "member", config)
    yield from rights.check_capabilities(_capabilities("CAP_NET_ADMIN", config))
    user = daemon_user()
    yield from _files(config.path, user)
    yield rights.check_folder(settings.state, "state", user, private=True)
    if settings.export is not None:
        yield rights.check_folder(settings.export, "export", user, private=True)
    yield from _common(config, "gdoi-gm", user)
    yield from check_certificates(config.path, settings, time.time())


def _tunnels(config: MemberDaemonConfig, key_server: KeyServerDaemonConfig | None) -> bool:
    teks = () if key_server is None else teks_of(config, key_server)
    return any(tek.mode is EncapsulationMode.TUNNEL for tek in teks)


def _key_server(config: KeyServerDaemonConfig) -> Iterator[Finding]:
    settings, database = config.settings, check_database(config)
    named = max(len(group.members) for group in config.document.group)
    user = daemon_user()
    yield from network.check_key_server(config, max(named, database.largest), user)
    if config.interface is not None:
        yield from _ports("gdoi-gcks", "key_server", config)
    yield from rights.check_capabilities(_capabilities("", config))
    yield from _files(config.path, user)
    yield rights.check_folder(settings.state.parent, "state", user)
    yield from database.findings
    yield from _common(config, "gdoi-gcks", user)
    yield from check_certificates(config.path, settings, time.time())


def _ports(own: str, section: str, config: Config) -> Iterator[Finding]:
    yield ports.check_port(own, config.local, config.interface)
    if config.nat_local is not None:
        yield ports.check_port(own, config.nat_local, config.interface, section)


def _capabilities(first: str, config: Config) -> list[str]:
    wanted = [first] if first else []
    if config.settings.port < 1024:
        wanted.append("CAP_NET_BIND_SERVICE")
    return wanted


def _files(config: Path, user: str | None) -> Iterator[Finding]:
    with config.open("rb") as file:
        document = tomllib.load(file)
    yield rights.check_config(config, user, secret=any(_values(document, "psk")))
    for option in _SECRETS:
        for name in sorted(set(_values(document, option))):
            # systemd sees to who may read a credential.
            if not name.startswith("$"):
                yield rights.check_secret(config.parent / name, option, user)


def _tables(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Those at the top, which are the daemons' own sections."""
    return (table for table in document.values() if isinstance(table, dict))


def _values(document: Any, key: str) -> Iterator[str]:
    """Wherever it stands."""
    parts = document if isinstance(document, list) else document.values()
    if isinstance(document, dict) and isinstance(document.get(key), str):
        yield document[key]
    for part in parts:
        if isinstance(part, (dict, list)):
            yield from _values(part, key)


def _common(config: Config, program: str, user: str | None) -> Iterator[Finding]:
    settings = config.settings
    yield rights.check_control(settings.control, settings.control_group, user)
    if isinstance(settings.log, Path):
        yield rights.check_folder(settings.log.parent, "log's folder", user)
    if settings.netns is not None and user is not None:
        found = f"{program}'s unit may not enter it"
        mend = f"systemctl edit {program}   # NetworkNamespacePath= in place of netns"
        yield rights.RIGHTS.warn(f"namespace {settings.netns}", found, mend)


def _both(member: MemberDaemonConfig, key_server: KeyServerDaemonConfig) -> Iterator[Finding]:
    if member.settings.netns == key_server.settings.netns:
        yield ports.same_endpoint(member.local, key_server.local)
