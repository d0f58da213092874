"""All of a list of operations, or none: the ACK gate stands on this.

    look at everything that will be touched; an SA that is there as asked is adopted unasked
    apply additions and updates                 on any failure: undo, in reverse order,
    read them back and compare                  what has happened so far
    apply deletions

Deletions come last because only they are felt meanwhile: a deleted SA comes back with its keys,
counters and age, but what arrives in between is lost. No sequence number is used twice for all
that: an SA that is put back, or added once more, leaves out those that it can have used.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from gdoi_xfrm import _codec as codec
from gdoi_xfrm._codec import MessageType
from gdoi_xfrm._errors import KernelError
from gdoi_xfrm._layout import Request
from gdoi_xfrm._operations import (
    AddPolicy,
    AddSa,
    DeletePolicy,
    DeleteSa,
    InstallSa,
    Operation,
    Outcome,
    Result,
    UpdatePolicy,
    UpdateSa,
    encode,
    get_request,
)
from gdoi_xfrm._sameness import same_policy, same_sa
from gdoi_xfrm._types import (
    PolicyKey,
    Sa,
    policy_differences,
    sa_differences,
)

if TYPE_CHECKING:
    from gdoi_xfrm._xfrm import Xfrm

# Of these the kernel's tables are as they were.
_WITHOUT_EFFECT: Final = (Outcome.FAILED, Outcome.SKIPPED, Outcome.ADOPTED, Outcome.ABSENT)
# What is still not as it was is put back once more: memory or buffers may be there again.
UNDO_ATTEMPTS: Final = 2
# An undo that finds its work done (by an expiry, say).
_ALREADY: Final = (errno.ESRCH, errno.ENOENT, errno.EEXIST)


class Transaction:
    """One run. The results, in the order of the operations, are None until they are known."""

    def __init__(self, xfrm: Xfrm, operations: Sequence[Operation]) -> None:
        self._xfrm = xfrm
        # What is installed where nothing was.
        self._installs: dict[int, Sa] = {}
        self._began = 0.0
        self._operations = list(operations)
        self._keys = [operation.key for operation in operations]
        self._requests = list(map(encode, operations))
        self._gets = list(map(get_request, self._keys))
        self._results: list[Result | None] = [None] * len(operations)
        self._asked: set[int] = set()
        self._before: list[bytes | None] = []

    def run(self) -> list[Result]:
        self._began = time.monotonic()
        self._before = self._xfrm.read_all(self._keys, self._gets)
        places = range(len(self._operations))
        deletions = [place for place in places if self._deletes(place)]
        installed = [place for place in places if not self._deletes(place)]
        changes = [place for place in installed if not self._adopts(place)]
        self._prepare(changes)
        try:
            self._apply(changes)
            self._compare(installed)
            self._apply([place for place in deletions if not self._spares(place)])
        except BaseException as cause:
            left = self._undo([*changes, *deletions])
            if isinstance(cause, KernelError):
                cause.not_undone = tuple(str(self._operations[place]) for place in left)
            gone = [self._taken_out(place) for place in self._installs if place not in left]
            self._xfrm.undone(gone)
            raise
        return [result for result in self._results if result is not None]

    def _prepare(self, changes: Sequence[int]) -> None:
        """Asks how those SAs are to be installed that are not there."""
        wanted = {}
        for place in changes:
            operation = self._operations[place]
            if isinstance(operation, InstallSa):
                wanted[place] = operation.sa
        if not wanted:
            return
        chosen = self._xfrm.missing(list(wanted.values()))
        self._installs = dict(zip(wanted, chosen, strict=True))
        for place, sa in self._installs.items():
            if sa is not wanted[place]:
                self._operations[place] = operation = InstallSa(sa)
                self._requests[place] = encode(operation)

    def _deletes(self, place: int) -> bool:
        return isinstance(self._operations[place], DeleteSa | DeletePolicy)

    def _adopts(self, place: int) -> bool:
        """An SA that is there already costs the kernel as much as a new one, only to be refused."""
        operation, before = self._operations[place], self._before[place]
        if not isinstance(operation, InstallSa) or before is None:
            return False
        if not same_sa(self._requests[place], before, lifetimes=False):
            state = codec.read_sa(before)
            if state.larval or sa_differences(operation.sa, state.sa, lifetimes=False):
                return False
        self._results[place] = Result(operation, Outcome.ADOPTED, message=before)
        return True

    def _spares(self, place: int) -> bool:
        """A deletion with a mark would take an SA that has none, where there is no other."""
        operation, before = self._operations[place], self._before[place]
        if not isinstance(operation, DeleteSa) or before is None:
            return False
        spared = codec.read_sa(before).sa.key != operation.key
        if spared:
            self._results[place] = Result(operation, Outcome.ABSENT)
        return spared

    def _apply(self, places: Sequence[int]) -> None:
        remaining = list(places)
        while remaining:
            self._asked.update(remaining)
            results = self._xfrm.apply_encoded(
                [self._operations[place] for place in remaining],
                [self._requests[place] for place in remaining],
            )
            for place, result in zip(remaining, results, strict=True):
                self._results[place] = self._accept_absence(result)
            for place in remaining:
                self._raise_error(place)
            # Deletions that followed one with nothing to delete were skipped: go on with them.
            remaining = [place for place in remaining if self._was_skipped(place)]

    def _accept_absence(self, result: Result) -> Result:
        deletes = isinstance(result.operation, DeleteSa | DeletePolicy)
        if deletes and result.error and result.error.errno in (errno.ESRCH, errno.ENOENT):
            return Result(result.operation, Outcome.ABSENT)
        return result

    def _was_skipped(self, place: int) -> bool:
        result = self._results[place]
        return result is not None and result.outcome is Outcome.SKIPPED

    def _raise_error(self, place: int) -> None:
        result = self._results[place]
        if result is not None and result.error:
            result.error.index = place
            raise result.error

    def _compare(self, places: Sequence[int]) -> None:
        """What the kernel holds now against what was asked; of several for one key, the last."""
        last = {self._keys[place]: place for place in places}
        gets = [self._gets[place] for place in last.values()]
        found = self._xfrm.read_all(list(last), gets)
        for place, octets in zip(last.values(), found, strict=True):
            if octets is None:
                reason = "read back from the kernel: gone"
                raise KernelError(errno.ESRCH, str(self._operations[place]), reason, place)
            if differing := self._differences(place, octets):
                reason = f"read back from the kernel: different {', '.join(differing)}"
                raise KernelError(errno.EIO, str(self._operations[place]), reason, place)

    def _differences(self, place: int, octets: bytes) -> tuple[str, ...]:
        operation, result = self._operations[place], self._results[place]
        if isinstance(operation, AddSa | UpdateSa | InstallSa):
            adopted = result is not None and result.outcome is Outcome.ADOPTED
            if adopted:
                self._results[place] = Result(operation, Outcome.ADOPTED, message=octets)
            if same_sa(self._requests[place], octets, lifetimes=not adopted):
                return ()
            state = codec.read_sa(octets)
            return sa_differences(operation.sa, state.sa, lifetimes=not adopted)
        if isinstance(operation, AddPolicy | UpdatePolicy):
            if same_policy(self._requests[place], octets):
                return ()
            policy = codec.read_policy(octets)
            return (
                ("direction",) if policy is None else policy_differences(operation.policy, policy)
            )
        return ()

    def _undo(self, places: Sequence[int]) -> list[int]:
        """Puts everything back in reverse order; returns the places of what could not be.

        The tables tell, not the answers: those can be lost as easily as the ones that led here.
        """
        touched = [place for place in reversed(places) if self._may_have_happened(place)]
        for _ in range(UNDO_ATTEMPTS):
            if not touched:
                break
            answers = self._xfrm.send_all([self._undo_request(place) for place in touched])
            try:
                after = self._xfrm.read_all([self._keys[place] for place in touched])
            except KernelError:
                undone = [answer.errno in (0, *_ALREADY) for answer in answers]
            else:
                befores = [self._before[place] for place in touched]
                undone = list(map(_same, befores, after))
            touched = [place for place, done in zip(touched, undone, strict=True) if not done]
        return touched

    def _taken_out(self, place: int) -> Sa:
        """An SA that was missing and is again; it may have sent, if it was ever there."""
        return self._installs[place].unseen(self._unseen if self._may_have_happened(place) else 0.0)

    @property
    def _unseen(self) -> float:
        """Seconds since the tables were read."""
        return time.monotonic() - self._began

    def _may_have_happened(self, place: int) -> bool:
        result = self._results[place]
        if result is None:  # not asked for yet, or interrupted while waiting for the answer
            return place in self._asked
        return result.outcome not in _WITHOUT_EFFECT

    def _undo_request(self, place: int) -> Request:
        operation, key, before = self._operations[place], self._keys[place], self._before[place]
        if isinstance(key, PolicyKey):
            if before is None:
                return codec.encode_policy_id(key, MessageType.DELPOLICY)
            return codec.encode_restore(before, MessageType.UPDPOLICY)
        if before is None or codec.read_sa(before).larval:
            return codec.encode_sa_id(key, MessageType.DELSA)
        if isinstance(operation, DeleteSa):
            return codec.encode_restore(before, MessageType.NEWSA, self._unseen)
        return codec.encode_restore(before, MessageType.UPDSA)


def _same(before: bytes | None, after: bytes | None) -> bool:
    """Whether the kernel's messages for a key mean the same, but for what time has changed."""
    if before is None or after is None:
        # A larval SA stands for no keys: the next packet that finds none makes another.
        return before is after or (before is not None and _is_larval_sa(before))
    if _is_policy(before):
        return codec.read_policy(before) == codec.read_policy(after)
    old, new = codec.read_sa(before), codec.read_sa(after)
    return (old.larval, old.sa) == (new.larval, new.sa)


def _is_policy(message: bytes) -> bool:
    return codec.message_type(message) == MessageType.NEWPOLICY


def _is_larval_sa(message: bytes) -> bool:
    return not _is_policy(message) and codec.read_sa(message).larval
