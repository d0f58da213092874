"""Signing keys made ahead of time: an RSA key takes up to seconds, and rekeys must not wait."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor

from ..crypto.signature import Scheme, SigningKey, generate


class SignerPool:
    """One key of each scheme in use lies ready; a thread makes the next one when it is taken.

    The library lets go of the interpreter while it looks for primes, so the event loop goes on.
    """

    def __init__(
        self, schemes: Iterable[Scheme], make: Callable[[Scheme], SigningKey] = generate
    ) -> None:
        self._make = make
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="signers")
        self._ready: dict[Scheme, Future[SigningKey]] = {}
        for scheme in schemes:
            self._prepare(scheme)

    def _prepare(self, scheme: Scheme) -> None:
        self._ready[scheme] = self._executor.submit(self._make, scheme)

    def take(self, scheme: Scheme) -> SigningKey:
        """A key that nobody else gets. Waits where it is being made this moment; makes it here
        where the thread has not come to it yet, or the scheme is a new one."""
        prepared = self._ready.get(scheme)
        if prepared is not None and not prepared.cancel():
            key = prepared.result()
        else:
            key = self._make(scheme)
        self._prepare(scheme)
        return key

    def close(self) -> None:
        self._executor.shutdown(cancel_futures=True)
