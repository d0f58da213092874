"""The log: one JSON object a line, written at once, or journald's fields."""

from __future__ import annotations

import contextlib
import json
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from .journal import Journal

LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}
# Somebody who floods a daemon must not fill its disk: so many lines of a kind in a second, and
# then one line that says how many were left out.
DROPS_PER_SECOND = 10
# json.dumps would make an encoder for each line.
_encode = json.JSONEncoder(ensure_ascii=True, default=str).encode
# Characters of a drop's detail: some of them quote the peer, and a datagram has 64 KB.
MAX_DETAIL = 500


class Log:
    """``{"time": ..., "level": ..., "event": ..., fields}``; time is UTC, ISO 8601.

    With a ``journal`` events go there, and to the stream where there is none.
    """

    def __init__(
        self,
        stream: TextIO,
        level: str = "info",
        journal: Journal | None = None,
        path: Path | None = None,
    ) -> None:
        self._stream, self._path = stream, path
        self._journal = journal
        self._threshold = LEVELS[level]
        self._second = 0
        self._seen: Counter[str] = Counter()
        self.drops: Counter[str] = Counter()
        self.events: Counter[str] = Counter()

    @classmethod
    def open(cls, path: Path | None, level: str = "info") -> Log:
        """To a file (appended, line by line) or to standard error. Raises OSError."""
        return cls(sys.stderr if path is None else _appended(path), level, path=path)

    def reopen(self) -> None:
        """A file, by its name: whoever rotates logs has given the one before another. Raises
        OSError, and then goes on with that."""
        # Nothing else is renamed, and to open a pipe again might wait for its reader.
        if self._path is None or (self._path.exists() and not self._path.is_file()):
            return
        before, self._stream = self._stream, _appended(self._path)
        with contextlib.suppress(OSError):
            before.close()

    def event(self, level: str, name: str, fields: Mapping[str, object]) -> None:
        """Counted always. Never raises OSError: a full disk must not end a daemon that could go
        on."""
        self.events[name] += 1
        if LEVELS[level] < self._threshold:
            return
        if self._journal is not None and self._journal.send(level, name, fields):
            return
        moment = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        line = {"time": moment, "level": level, "event": name, **fields}
        with contextlib.suppress(OSError):
            self._stream.write(_encode(line) + "\n")
            self._stream.flush()

    def dropped(self, reason: str, peer: object, detail: str, now: float) -> None:
        """A datagram that changed nothing: counted always, written at a bounded rate."""
        self.drops[reason] += 1
        if self._seen[reason] > DROPS_PER_SECOND and int(now) == self._second:
            self._seen[reason] += 1  # as in a flood: not worth writing an address for
            return
        fields = {"reason": reason, "peer": str(peer), "detail": detail[:MAX_DETAIL]}
        # Repetition is how the protocol works; everything else somebody may want to look into.
        level = "info" if reason == "duplicate" else "warning"
        self.limited(level, "dropped", reason, fields, now)

    def dropped_many(
        self, reason: str, each: Iterable[tuple[object, str]], count: int, now: float
    ) -> None:
        """The same of ``count`` at once: peers and details are asked for while there is room."""
        for peer, detail in each:
            if self._seen[reason] >= DROPS_PER_SECOND and int(now) == self._second:
                break
            self.dropped(reason, peer, detail, now)
            count -= 1
        self.drops[reason] += count
        self._seen[reason] += count

    def limited(
        self, level: str, name: str, kind: str, fields: Mapping[str, object], now: float
    ) -> None:
        """What others can make happen at will: so many lines of a ``kind`` in a second."""
        self.report(now)
        self._seen[kind] += 1
        if self._seen[kind] <= DROPS_PER_SECOND:
            self.event(level, name, fields)

    def report(self, now: float) -> None:
        """Says how many lines of a second that is over were left out."""
        if int(now) == self._second:
            return
        for kind, count in self._seen.items():
            if count > DROPS_PER_SECOND:
                fields = {"reason": kind, "count": count - DROPS_PER_SECOND}
                self.event("warning", "dropped-more", fields)
        self._second = int(now)
        self._seen.clear()

    def close(self) -> None:
        self.report(-1.0)
        if self._journal is not None:
            self._journal.close()
            self._journal = None
        if self._stream is not sys.stderr:
            with contextlib.suppress(OSError):
                self._stream.close()


def _appended(path: Path) -> TextIO:
    return path.open("a", buffering=1, encoding="utf-8")
