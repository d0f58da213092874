"""Fixtures for the tests that need a kernel with ESP (marker uml)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from gdoi_xfrm import Xfrm

from tests.kernel.namespaces import Namespace
from tests.kernel.rekey import make_busy


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    """A fresh network namespace, which the test runs in."""
    with Namespace() as fresh, fresh.entered():
        yield fresh


@pytest.fixture
def xfrm(namespace: Namespace) -> Iterator[Xfrm]:  # noqa: ARG001  (it is entered)
    """A socket in the fresh namespace."""
    with Xfrm() as opened:
        yield opened


@pytest.fixture
def busy(xfrm: Xfrm) -> Xfrm:
    """A namespace with SAs and policies in use."""
    make_busy(xfrm)
    return xfrm
