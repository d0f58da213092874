"""A host of the tests' own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.kernel.namespaces import Namespace, ip


@pytest.fixture
def own_host() -> Iterator[None]:
    """With net0 and lan0, the address 192.0.2.11 and a route for everything by net0."""
    with Namespace() as fresh, fresh.entered():
        for name in ("net0", "lan0"):
            ip(f"link add {name} type veth peer name {name}peer")
            ip(f"link set {name}peer up")
            ip(f"link set {name} up")
        ip("address add 192.0.2.11/24 dev net0")
        ip("address add 2001:db8::11/64 dev net0 nodad")
        ip("address add 198.51.100.1/24 dev lan0")
        ip("route add default via 192.0.2.254 dev net0")
        yield
