"""Signing keys are made ahead, in a thread, and no two takers get the same."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from gdoi_plugin.crypto.signature import SCHEMES, Scheme, SigningKey, generate
from gdoi_plugin.daemon.signers import SignerPool
from tests.interop.running import wait_for

ECDSA, RSA_4096 = SCHEMES["ecdsa256"], SCHEMES["rsa4096-sha256"]


class Maker:
    """Makes keys, and remembers in which thread."""

    def __init__(self) -> None:
        self.threads: list[int] = []
        self.allowed = threading.Event()
        self.allowed.set()

    def __call__(self, scheme: Scheme) -> SigningKey:
        self.threads.append(threading.get_ident())
        assert self.allowed.wait(10)
        return generate(scheme)


@contextmanager
def pool(schemes: list[Scheme], make: Callable[[Scheme], SigningKey]) -> Iterator[SignerPool]:
    signers = SignerPool(schemes, make)
    try:
        yield signers
    finally:
        signers.close()


def test_a_key_lies_ready_and_the_next_one_is_made_elsewhere() -> None:
    maker = Maker()
    with pool([ECDSA], maker) as signers:
        wait_for(lambda: maker.threads, "the first key is begun")
        keys = [signers.take(ECDSA)]
        wait_for(lambda: len(maker.threads) == 2, "the second key is begun")
        keys.append(signers.take(ECDSA))
    assert threading.get_ident() not in maker.threads[:2]
    assert len({key.public_der for key in keys}) == 2


def test_a_scheme_whose_turn_has_not_come_is_made_at_once() -> None:
    maker = Maker()
    maker.allowed.clear()
    with pool([RSA_4096, ECDSA], maker) as signers:
        wait_for(lambda: maker.threads, "the thread is busy with the first scheme")
        maker.allowed.set()
        maker.threads.clear()
        assert signers.take(ECDSA).scheme == ECDSA
        assert maker.threads[0] == threading.get_ident()


def test_a_scheme_nobody_named_is_made_at_once() -> None:
    maker = Maker()
    with pool([], maker) as signers:
        assert signers.take(ECDSA).scheme == ECDSA
        assert maker.threads[0] == threading.get_ident()


def test_the_caller_goes_on_while_an_rsa_4096_key_is_made() -> None:
    """Were the interpreter held, this thread would not run a thousand steps meanwhile."""
    done = threading.Event()

    def make(scheme: Scheme) -> SigningKey:
        key = generate(scheme)
        done.set()
        return key

    with pool([RSA_4096], make):
        steps = 0
        while not done.is_set():
            time.sleep(0)
            steps += 1
    assert steps > 1000
