"""Xfrm: the kernel's tables of SAs and policies in the network namespace where it was made."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby, islice
from typing import Final, Self, TypeVar

from gdoi_xfrm import _codec as codec
from gdoi_xfrm._codec import MessageType
from gdoi_xfrm._errors import (
    KernelError,
    suspect_absent,
    suspect_default,
    suspect_policy,
    suspect_sa,
)
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
from gdoi_xfrm._sameness import asked_for, found_by
from gdoi_xfrm._socket import DEFAULT_TIMEOUT, Answer, Exchange, RequestSocket
from gdoi_xfrm._transaction import Transaction
from gdoi_xfrm._types import (
    ESP,
    Address,
    DefaultPolicy,
    Direction,
    Mark,
    Policy,
    PolicyKey,
    Sa,
    SaKey,
    SaState,
    Selector,
    sa_differences,
)

Item = TypeVar("Item")

# How many requests go into one datagram. The limits are the socket's buffers, the answers' more
# than the requests': a refusal takes about 1 KiB of it, an SA up to 4 KiB.
BATCH: Final = 100
READ_BATCH: Final = 32
# So many SAs are cheaper read in a dump of the whole table, 70 to a datagram, than one by one.
DUMP_FROM: Final = 100
# An SA can come and go between a refusal and the look at its reason.
SETTLE_ATTEMPTS: Final = 3

_OUTCOMES: Final[dict[type[Operation], Outcome]] = {
    AddSa: Outcome.ADDED,
    InstallSa: Outcome.ADDED,
    UpdateSa: Outcome.UPDATED,
    DeleteSa: Outcome.DELETED,
    AddPolicy: Outcome.ADDED,
    UpdatePolicy: Outcome.UPDATED,
    DeletePolicy: Outcome.DELETED,
}


class Xfrm:
    """One netlink socket. Every method is synchronous and raises KernelError.

    Usable with and without a running event loop; not from several threads at once. The kernel
    answers in microseconds, except that the first use of a cipher may load modules for seconds.
    """

    def __init__(self, timeout: float = DEFAULT_TIMEOUT) -> None:
        self._socket = RequestSocket(timeout)

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """The netlink port id that notifications of this object's changes carry."""
        return self._socket.pid

    # --- one at a time ---

    def add_sa(self, sa: Sa) -> None:
        self._do(AddSa(sa))

    def update_sa(self, sa: Sa) -> None:
        self._do(UpdateSa(sa))

    def install_sa(self, sa: Sa) -> Outcome:
        """ADDED, FILLED or ADOPTED; EEXIST where a different SA has the SPI."""
        return self._do(InstallSa(sa))

    def delete_sa(
        self, destination: Address, spi: int, protocol: int = ESP, mark: Mark | None = None
    ) -> None:
        self._do(DeleteSa(SaKey(destination, spi, protocol, mark)))

    def get_sa(
        self, destination: Address, spi: int, protocol: int = ESP, mark: Mark | None = None
    ) -> SaState | None:
        return self.find_sa(SaKey(destination, spi, protocol, mark))

    def find_sa(self, key: SaKey) -> SaState | None:
        octets = self.read_all([key])[0]
        return None if octets is None else codec.read_sa(octets)

    def get_sas(self, keys: Sequence[SaKey]) -> list[SaState | None]:
        """Of each key, in few datagrams."""
        return [None if octets is None else codec.read_sa(octets) for octets in self.read_all(keys)]

    def dump_sas(self) -> list[SaState]:
        """Every SA of the namespace, other programs' and larval ones included."""
        found = self._dump(MessageType.GETSA, "XFRM_MSG_GETSA dump")
        return [codec.read_sa(octets) for octets in found]

    def add_policy(self, policy: Policy) -> None:
        self._do(AddPolicy(policy))

    def update_policy(self, policy: Policy) -> None:
        """Replaces it in one step (no packet passes in between), or adds it."""
        self._do(UpdatePolicy(policy))

    def delete_policy(
        self, selector: Selector, direction: Direction, mark: Mark | None = None, if_id: int = 0
    ) -> None:
        self._do(DeletePolicy(PolicyKey(selector, direction, mark, if_id)))

    def get_policy(
        self, selector: Selector, direction: Direction, mark: Mark | None = None, if_id: int = 0
    ) -> Policy | None:
        return self.find_policy(PolicyKey(selector, direction, mark, if_id))

    def find_policy(self, key: PolicyKey) -> Policy | None:
        octets = self.read_all([key])[0]
        return None if octets is None else codec.read_policy(octets)

    def get_policies(self, keys: Sequence[PolicyKey]) -> list[Policy | None]:
        """Of each key, in few datagrams."""
        found = self.read_all(keys)
        return [None if octets is None else codec.read_policy(octets) for octets in found]

    def dump_policies(self) -> list[Policy]:
        """Every policy of the namespace, except those that belong to single sockets."""
        found = self._dump(MessageType.GETPOLICY, "XFRM_MSG_GETPOLICY dump")
        policies = (codec.read_policy(octets) for octets in found)
        return [policy for policy in policies if policy is not None]

    def get_default(self) -> DefaultPolicy:
        """What happens to packets that no policy matches."""
        return codec.read_default(self._ask_default(None, "XFRM_MSG_GETDEFAULT").message)

    def set_default(self, default: DefaultPolicy) -> None:
        """Also when every policy is gone: a flush does not change it."""
        self._ask_default(default, "XFRM_MSG_SETDEFAULT")

    def _ask_default(self, default: DefaultPolicy | None, operation: str) -> Answer:
        request = codec.encode_default(default)
        exchange = self._socket.exchange([request], acknowledge=default is not None)
        answer = exchange.answers[0]
        if answer is None:
            cause = exchange.failure or KernelError(errno.EIO, operation)
            raise KernelError(cause.errno, operation, cause.attribute)
        if answer.errno:
            suspect = suspect_default(answer.errno)
            raise KernelError(answer.errno, operation, suspect, None, answer.text)
        return answer

    # --- batches ---

    def apply(self, operations: Sequence[Operation]) -> list[Result]:
        """Many operations in few datagrams, in order; a Result for each, and no exception.

        After the datagram in which something failed nothing more is sent. A datagram holds SAs or
        policies, not both: a policy is not touched unless the SAs before it are in.
        """
        return self.apply_encoded(operations, list(map(encode, operations)))

    def apply_encoded(
        self, operations: Sequence[Operation], requests: Sequence[Request]
    ) -> list[Result]:
        """The same for a caller who has the operations' requests already."""
        results: list[Result] = []
        stopped = False
        for batch in _batches(operations):
            start = len(results)
            if stopped:
                results += [Result(operation, Outcome.SKIPPED) for operation in batch]
                continue
            results += self._apply_batch(batch, requests[start : start + len(batch)], start)
            stopped = any(result.error for result in results[start:])
        return results

    def transaction(self, operations: Sequence[Operation]) -> list[Result]:
        """All of the operations, read back from the kernel and compared, or none of them.

        Deletions come last, in their order, and may find nothing to delete (ABSENT). On failure
        everything is as it was: what was added is gone (adopted SAs stay), what was updated or
        deleted is back, and the KernelError of the first cause is raised.
        """
        return Transaction(self, operations).run()

    def missing(self, sas: Sequence[Sa]) -> Sequence[Sa]:
        """These, to be installed in a transaction, are not in the kernel: what is to be added in
        their places. For subclasses; the same keys in the same order. Nothing has changed so far,
        nor does it if this raises."""
        return sas

    def undone(self, sas: Sequence[Sa]) -> None:
        """The transaction has failed, and these that were missing are so again, with the highest
        sequence numbers that they can have used meanwhile. For subclasses."""

    def _do(self, operation: Operation) -> Outcome:
        result = self.apply([operation])[0]
        if result.error:
            result.error.index = None
            raise result.error
        return result.outcome

    def _apply_one(self, operation: Operation, index: int) -> Result:
        return self._apply_batch([operation], [encode(operation)], index)[0]

    def _apply_batch(
        self, batch: Sequence[Operation], requests: Sequence[Request], start: int
    ) -> list[Result]:
        exchange = self._socket.exchange(requests)
        results = []
        taken: dict[int, Answer] = {}
        for place, (operation, answer) in enumerate(zip(batch, exchange.answers, strict=True)):
            index = start + place
            if answer is None:
                outcome = Outcome.UNKNOWN if exchange.sent else Outcome.FAILED
                cause = exchange.failure or KernelError(errno.EIO, str(operation))
                error = KernelError(cause.errno, str(operation), cause.attribute, index)
                results.append(Result(operation, outcome, error))
                continue
            results.append(_result(operation, index, answer))
            if answer.errno == errno.EEXIST and isinstance(operation, InstallSa):
                taken[place] = answer
        for place, result in self._settle_all(batch, taken, start):
            results[place] = result
        return results

    def _settle_all(
        self, batch: Sequence[Operation], taken: Mapping[int, Answer], start: int
    ) -> Iterator[tuple[int, Result]]:
        """The SPIs of these SAs to be installed are taken: by whom? One look at all of them."""
        installs = {place: op for place in taken if isinstance(op := batch[place], InstallSa)}
        try:
            keys = [operation.key for operation in installs.values()]
            found = self._get_all(keys, list(map(get_request, keys)))
            states = [octets and codec.read_sa(octets) for octets in found]
        except KernelError as error:
            for place, operation in installs.items():
                cause = (error.errno, error.operation, error.attribute, start + place)
                yield place, Result(operation, Outcome.FAILED, KernelError(*cause))
            return
        for (place, operation), state in zip(installs.items(), states, strict=True):
            yield place, self._settle(operation, start + place, taken[place], state or None)

    def _settle(
        self, operation: InstallSa, index: int, answer: Answer, state: SaState | None
    ) -> Result:
        sa = operation.sa
        present = Outcome.ADOPTED
        for _ in range(SETTLE_ATTEMPTS):
            if state is None:  # gone meanwhile
                result = self._apply_one(AddSa(sa), index)
                present = Outcome.ADDED
            elif state.larval:
                # Made by the kernel for a packet that found no SA, while somebody listens to
                # ACQUIRE (charon does). UPDSA fills it; a live SA would silently keep its keys, so
                # look again.
                result = self._apply_one(UpdateSa(sa), index)
                present = Outcome.FILLED
            else:
                differing = sa_differences(sa, state.sa, lifetimes=False)
                if not differing:
                    return Result(operation, present)
                reason = f"id.spi: taken by an SA with different {', '.join(differing)}"
                taken = KernelError(errno.EEXIST, str(operation), reason, index, answer.text)
                return Result(operation, Outcome.FAILED, taken)
            if result.error and result.error.errno not in (errno.EEXIST, errno.ESRCH):
                return Result(operation, result.outcome, result.error)
            try:
                state = self.find_sa(sa.key)
            except KernelError as error:
                error.index = index
                return Result(operation, Outcome.FAILED, error)
        return _result(operation, index, answer)

    # --- for transactions, and reading ---

    def read_all(
        self, keys: Sequence[SaKey | PolicyKey], gets: Sequence[Request] | None = None
    ) -> list[bytes | None]:
        """The kernel's message for each key (it may hold key material), None where it has none.

        ``gets``: the requests for the keys, where the caller has them already.
        """
        requests = list(map(get_request, keys)) if gets is None else gets
        sas = [key for key in keys if isinstance(key, SaKey)]
        # A dump does not look for keys as the kernel does: marks are its business.
        if len(sas) < DUMP_FROM or any(key.mark for key in sas):
            return self._get_all(keys, requests)
        dumped = self._dump(MessageType.GETSA, "XFRM_MSG_GETSA dump")
        by_name = {found_by(octets): octets for octets in dumped}
        others = [place for place, key in enumerate(keys) if isinstance(key, PolicyKey)]
        found = self._get_all([keys[n] for n in others], [requests[n] for n in others])
        by_place = dict(zip(others, found, strict=True))
        return [
            by_name.get(asked_for(requests[place])) if isinstance(key, SaKey) else by_place[place]
            for place, key in enumerate(keys)
        ]

    def _get_all(
        self, keys: Sequence[SaKey | PolicyKey], requests: Sequence[Request]
    ) -> list[bytes | None]:
        found: list[bytes | None] = []
        size = READ_BATCH
        while len(found) < len(keys):
            batch = slice(len(found), len(found) + size)
            exchange = self._socket.exchange(requests[batch], acknowledge=False)
            if exchange.failure and exchange.failure.errno == errno.ENOBUFS and size > 1:
                size //= 2  # the answers did not fit into the socket's buffer
                continue
            found += map(partial(_read, exchange), keys[batch], exchange.answers)
        return found

    def send_all(self, requests: Sequence[Request]) -> list[Answer]:
        """Requests as they are, all of them whatever the answers; a lost one counts as EIO."""
        answers: list[Answer] = []
        for batch in _slices(requests, BATCH):
            exchange = self._socket.exchange(batch)
            lost = Answer(exchange.failure.errno if exchange.failure else errno.EIO)
            answers += [answer or lost for answer in exchange.answers]
        return answers

    def _dump(self, message_type: MessageType, operation: str) -> list[bytes]:
        return self._socket.dump(codec.encode_dump(message_type), operation)


def _read(exchange: Exchange, key: SaKey | PolicyKey, answer: Answer | None) -> bytes | None:
    """The message in an answer to GET, None where there is nothing."""
    if answer is not None and answer.errno == 0:
        return answer.message
    if answer is not None and answer.errno in (errno.ESRCH, errno.ENOENT):
        return None
    operation = f"XFRM_MSG_GET{'SA' if isinstance(key, SaKey) else 'POLICY'} {key}"
    if answer is None:
        cause = exchange.failure or KernelError(errno.EIO, operation)
        raise KernelError(cause.errno, operation, cause.attribute)
    suspect = suspect_absent(answer.errno, "id")
    raise KernelError(answer.errno, operation, suspect, None, answer.text)


def _slices(items: Sequence[Item], size: int) -> Iterator[list[Item]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def _is_policy(operation: Operation) -> bool:
    return isinstance(operation, AddPolicy | UpdatePolicy | DeletePolicy)


def _batches(operations: Sequence[Operation]) -> Iterator[list[Operation]]:
    for _, same_kind in groupby(operations, _is_policy):
        yield from _slices(list(same_kind), BATCH)


def _result(operation: Operation, index: int, answer: Answer) -> Result:
    if answer.errno == 0:
        return Result(operation, _OUTCOMES[type(operation)])
    if isinstance(operation, AddSa | UpdateSa | InstallSa):
        suspect = suspect_sa(answer.errno, operation.sa)
    elif isinstance(operation, AddPolicy | UpdatePolicy):
        suspect = suspect_policy(answer.errno, operation.policy)
    else:
        suspect = suspect_absent(answer.errno, "id" if isinstance(operation, DeleteSa) else "sel")
    error = KernelError(answer.errno, str(operation), suspect, index, answer.text)
    return Result(operation, Outcome.FAILED, error)
