"""What a test has found, and how to mend it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    OK = "ok"
    WARN = "warn"  # works, but not all of it, or not for long
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """``mend``: for a shell, empty where nothing is to be done. Words in capitals are to be put in;
    what is for a configuration, or to be thought about, comes after a #."""

    area: str
    test: str
    verdict: Verdict
    found: str
    mend: str = ""


@dataclass(frozen=True, slots=True)
class Area:
    """Makes the findings of one area."""

    name: str

    def ok(self, test: str, found: str) -> Finding:
        return Finding(self.name, test, Verdict.OK, found)

    def warn(self, test: str, found: str, mend: str) -> Finding:
        return Finding(self.name, test, Verdict.WARN, found, mend)

    def fail(self, test: str, found: str, mend: str) -> Finding:
        return Finding(self.name, test, Verdict.FAIL, found, mend)
