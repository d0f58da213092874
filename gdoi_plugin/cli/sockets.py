"""Which daemon a command goes to."""

from __future__ import annotations

from pathlib import Path

from gdoi_plugin.cli.arguments import RUN_DIR, SOCKETS, Options
from gdoi_plugin.cli.client import ClientError
from gdoi_plugin.cli.show import note

BETTER = {"members": "gcks", "rekeys": "gcks", "sas": "gm", "keys": "gm", "register": "gm"}
BETTER |= dict.fromkeys(
    ("policy", "rekey", "delete-tek", "delete-group", "evict", "admit", "revoke", "reload"), "gcks"
)
"""Which daemon a command is meant for where both run; status and events concern both."""


def sockets(options: Options, *, quiet: bool = False) -> list[Path]:
    """The control sockets to use: as told, or those that exist."""
    if options.socket is not None:
        return [options.socket]
    paths = {role: RUN_DIR / name for role, name in SOCKETS.items()}
    if options.role is not None:
        return [paths[options.role]]
    try:
        present = [role for role, path in paths.items() if _exists(path)]
    except PermissionError as exc:
        reason = "be root or in the group that owns it"
        raise ClientError(f"permission denied at {RUN_DIR}: {reason}") from exc
    if not present:
        raise ClientError("no daemon: there is neither " + " nor ".join(map(str, paths.values())))
    better = BETTER.get(options.command)
    if better in present and len(present) > 1:
        other = next(role for role in present if role != better)
        if not quiet:
            asked = f"asking gdoi-{better} (--{other} asks the other)"
            note(f"both daemons have a socket here: {asked}")
        present = [better]
    return [paths[role] for role in present]


def _exists(path: Path) -> bool:
    """As Path.exists, but no permission is an error in every Python."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def only_socket(options: Options) -> Path:
    (path,) = sockets(options)
    return path
