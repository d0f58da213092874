"""Why a daemon does not start, or stops: one sentence each."""

from __future__ import annotations

from pathlib import Path


class DaemonError(Exception):
    """The text is the sentence for the operator."""

    exit_code = 1


class StartError(DaemonError):
    """A port, a permission, a kernel without ESP."""


class NoAddressError(StartError):
    """A socket's address is not there, or not usable yet."""


class StoreError(DaemonError):
    """State that cannot be read or written."""


class UnsettledError(StoreError):
    """What was changed is in memory, and it is not known whether it is in the database."""


class StaleError(StoreError):
    """Another key server has changed the group since this one has read it."""

    def __init__(self, group: int, revision: int | None, where: str = "") -> None:
        seen = "none" if revision is None else f"revision {revision}"
        super().__init__(
            f"{where}: another key server has changed group {group} since {seen} was read"
        )
        self.group, self.revision = group, revision

    def named(self, where: str) -> StaleError:
        """With the database's name."""
        return StaleError(self.group, self.revision, where)


class FirewallError(DaemonError):
    """A router's rules for netfilter cannot be set."""


class BugError(DaemonError):
    """An exception nobody expected; the log has where. EX_SOFTWARE of sysexits(3)."""

    exit_code = 70


class ConfigError(DaemonError):
    """Names file and key, and what is allowed there. ``about``: a file that the key names."""

    exit_code = 2

    def __init__(self, file: Path, key: str, what: str, about: Path | None = None) -> None:
        super().__init__(f"{file}: {key}: {what}" if key else f"{file}: {what}")
        self.file = file
        self.key = key
        self.about = about


class AbsentError(ConfigError):
    """The file is right, but this host has no such interface or address, or not yet."""
