"""gdoi-gcks that stops itself, as by SIGSTOP, at one of two places of a step that sends a rekey.

The file GDOI_TEST_PAUSE, which it deletes, names the place: ``committed``, when the step is in the
database; ``leaving``, when it has also looked at its lease for the last time, before the first
system call that sends.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from gdoi_plugin.daemon import gcks
from gdoi_plugin.daemon.gcks_shared import SharedKeyServerDaemon
from gdoi_plugin.protocol.actions import Send
from gdoi_plugin.wire.header import pull_header
from gdoi_plugin.wire.registry import ExchangeType

_look_and_send = SharedKeyServerDaemon._send
_send = gcks.KeyServerDaemon._send


def _stop(where: str, sends: list[Send]) -> None:
    asked = Path(os.environ["GDOI_TEST_PAUSE"])
    kinds = {pull_header(send.datagram).exchange_type for send in sends}
    if ExchangeType.GROUPKEY_PUSH in kinds and asked.exists() and asked.read_text() == where:
        asked.unlink()
        os.kill(os.getpid(), signal.SIGSTOP)


def _committed(self: SharedKeyServerDaemon, sends: list[Send]) -> None:
    _stop("committed", sends)
    _look_and_send(self, sends)


def _leaving(self: gcks.KeyServerDaemon, sends: list[Send]) -> None:
    _stop("leaving", sends)
    _send(self, sends)


if __name__ == "__main__":
    SharedKeyServerDaemon._send = _committed  # type: ignore[method-assign]
    gcks.KeyServerDaemon._send = _leaving  # type: ignore[method-assign, assignment]
    sys.exit(gcks.main())
