"""The log: one JSON object a line, written at once."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}
# Somebody who floods a daemon must not fill its disk: so many lines of a kind in a second, and
# then one line that says how many were left out.
DROPS_PER_SECOND = 10


class Log:
    """``{"time": ..., "level": ..., "event": ..., fields}``; time is UTC, ISO 8601."""

    def __init__(self, stream: TextIO, level: str = "info") -> None:
        self._stream = stream
        self._threshold = LEVELS[level]
        self._second = 0
        self._seen: Counter[str] = Counter()
        self.drops: Counter[str] = Counter()

    @classmethod
    def open(cls, path: Path | None, level: str = "info") -> Log:
        """To a file (appended, line by line) or to standard error. Raises OSError."""
        stream = sys.stderr if path is None else path.open("a", buffering=1, encoding="utf-8")
        return cls(stream, level)

    def event(self, level: str, name: str, fields: Mapping[str, object]) -> None:
        if LEVELS[level] < self._threshold:
            return
        moment = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        line = {"time": moment, "level": level, "event": name, **fields}
        self._stream.write(json.dumps(line, ensure_ascii=True, default=str) + "\n")
        self._stream.flush()

    def dropped(self, reason: str, peer: str, detail: str, now: float) -> None:
        """A datagram that changed nothing: counted always, written at a bounded rate."""
        self.drops[reason] += 1
        if int(now) != self._second:
            self._report_suppressed()
            self._second = int(now)
            self._seen.clear()
        self._seen[reason] += 1
        if self._seen[reason] <= DROPS_PER_SECOND:
            fields = {"reason": reason, "peer": peer, "detail": detail}
            self.event("warning", "dropped", fields)

    def _report_suppressed(self) -> None:
        for reason, count in self._seen.items():
            if count > DROPS_PER_SECOND:
                fields = {"reason": reason, "count": count - DROPS_PER_SECOND}
                self.event("warning", "dropped-more", fields)
