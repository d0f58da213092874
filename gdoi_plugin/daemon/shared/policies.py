"""Which policy each group has: that of the server that leads, or led last, by a fingerprint.

Each server does what its own file says. Where that is not the policy in force it hands out nothing
of the group: it would admit whom the leader has put out, and tell of keys and addresses that nobody
else has. And whoever read its file before the policy in force was declared does not lead, or a
change would be undone by a server that has not heard of it. To be started, or told to read the file
again, is an operator's word: then it may.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from sqlalchemy import Connection, select
from sqlalchemy.dialects.postgresql import insert

from .schema import policies

# What takes the place of a fingerprint where a group is gone, or has never been.
NONE = ""


@dataclass(frozen=True, slots=True)
class InForce:
    """``serial`` counts the policies that the group has had."""

    fingerprint: str
    serial: int


_NEVER = InForce(NONE, 0)


def read_policies(connection: Connection) -> dict[str, InForce]:
    """By the group's name; within the connection's transaction."""
    columns = (policies.c.group, policies.c.fingerprint, policies.c.serial)
    rows = connection.execute(select(*columns)).all()
    return {group: InForce(fingerprint, serial) for group, fingerprint, serial in rows}


def write_policies(connection: Connection, declared: Mapping[str, InForce]) -> None:
    for group, policy in declared.items():
        values = {"fingerprint": policy.fingerprint, "serial": policy.serial}
        statement = insert(policies).values(group=group, **values)
        connection.execute(statement.on_conflict_do_update(index_elements=["group"], set_=values))


@dataclass(slots=True)
class Policies:
    """What one server knows of them; ``own``: what its file says."""

    in_force: dict[str, InForce] = field(default_factory=dict)
    _read_at: dict[str, int] = field(default_factory=dict)

    def learn(self, found: Mapping[str, InForce]) -> None:
        """What was read may be older than what this server has declared since."""
        for group, policy in found.items():
            if policy.serial > self.in_force.get(group, _NEVER).serial:
                self.in_force[group] = policy

    def file_was_read(self) -> None:
        """Because somebody wanted that."""
        self._read_at = {group: policy.serial for group, policy in self.in_force.items()}

    def differing(self, own: Mapping[str, str]) -> set[str]:
        """Groups that are not as this server's file has them; none where nobody has led yet."""
        return set(self._differing(own)) if self.in_force else set()

    def _differing(self, own: Mapping[str, str]) -> Iterator[str]:
        for group in own.keys() | self.in_force.keys():
            if own.get(group, NONE) != self.in_force.get(group, _NEVER).fingerprint:
                yield group

    def outdated(self, own: Mapping[str, str]) -> bool:
        """Whether that is because the file was read before a policy was declared."""
        return any(
            self.in_force.get(group, _NEVER).serial > self._read_at.get(group, 0)
            for group in self.differing(own)
        )

    def to_declare(self, own: Mapping[str, str]) -> dict[str, InForce]:
        """By who leads."""
        return {
            group: InForce(own.get(group, NONE), self.in_force.get(group, _NEVER).serial + 1)
            for group in self._differing(own)
        }
