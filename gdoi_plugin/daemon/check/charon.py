"""strongSwan's charon on the same host, where it is needed or could be in the way."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

from ..charon.client import SOCKET, CharonClient
from ..charon.errors import CharonError
from .account import may
from .finding import Area, Finding

CHARON = Area("charon")
# Seconds for an answer; a charon that works takes milliseconds.
LIMIT = 3.0


def check_charon(
    path: Path = SOCKET, user: str | None = None, *, needed: bool
) -> Iterator[Finding]:
    """Where no option needs it, one that is not there is no finding."""
    test, make = f"charon at {path}", CHARON.fail if needed else CHARON.warn
    if not path.exists():
        if needed:
            mend = "apt-get install charon-systemd && systemctl enable --now strongswan"
            yield make(test, "there is no such socket: charon does not run here", mend)
        return
    try:
        answer = asyncio.run(CharonClient(path, time_limit=LIMIT).request("version"))
    except CharonError as error:
        denied = "Permission denied" in error.why
        mend = "sudo gdoictl check" if denied else "systemctl restart strongswan"
        yield make(test, f"{error.why}", mend)
        return
    if needed and not may(user, "-w", path):
        mend = f"chown {user} {path}   # at each start: ExecStartPost= in strongSwan's unit"
        yield make(test, f"{user}, whose the daemon is, may not use the socket", mend)
        return
    said = " ".join(str(answer.get(key, "")) for key in ("daemon", "version")).strip()
    yield CHARON.ok(test, f"{said or 'a daemon'} answers")
