"""What the kernel cannot be made to do at a chosen request, by a wrapper around its socket."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import pytest
from gdoi_xfrm import KernelError, Xfrm
from gdoi_xfrm._layout import Request
from gdoi_xfrm._socket import Answer, Exchange


@dataclass
class Fault:
    count: int = 0


@contextmanager
def fault_at(xfrm: Xfrm, step: int, kind: str, *, reading: bool = False) -> Iterator[Fault]:
    """The step-th request that changes something goes wrong, and no other; or that reads."""
    exchange = xfrm._socket.exchange
    seen, fault = 0, Fault()

    def faulty(requests: Sequence[Request], *, acknowledge: bool = True) -> Exchange:
        nonlocal seen
        counts = acknowledge is not reading
        first = seen
        seen += len(requests) if counts else 0
        said = partial(exchange, acknowledge=acknowledge)
        if not counts or not first <= step < seen:
            return said(requests)
        fault.count += 1
        return _go_wrong(said, requests, step - first, kind)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(xfrm._socket, "exchange", faulty)
        yield fault


def _go_wrong(
    exchange: Callable[[Sequence[Request]], Exchange],
    requests: Sequence[Request],
    place: int,
    kind: str,
) -> Exchange:
    if kind == "not sent":
        return Exchange([None] * len(requests), KernelError(errno.ENOBUFS, "sending"), sent=False)
    if kind == "interrupted":  # in the middle of waiting, all of it done
        exchange(requests)
        raise KeyboardInterrupt
    if kind == "answer lost":  # everything was done, but only the first answers arrived
        known = exchange(requests).answers[:place]
        unknown: list[Answer | None] = [None] * (len(requests) - place)
        return Exchange([*known, *unknown], KernelError(errno.ENOBUFS, "waiting"))
    end = len(requests) if kind == "refused to the end" else place + 1
    done = exchange([*requests[:place], *requests[end:]]).answers
    return Exchange([*done[:place], *[Answer(errno.ENOMEM)] * (end - place), *done[place:]])
