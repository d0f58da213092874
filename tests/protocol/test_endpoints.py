"""Addresses that are special to multicast."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from gdoi_plugin.protocol.endpoints import is_source_specific


@pytest.mark.parametrize(
    ("address", "specific"),
    [
        ("231.255.255.255", False),
        ("232.0.0.0", True),
        ("232.255.255.255", True),
        ("233.0.0.0", False),
        ("ff35::8000:1", True),
        ("ff3e:0:1::1", True),
        ("ff35:1::1", False),
        ("ff15::1", False),
        ("ff2e::1", False),
        ("ff45::1", False),
    ],
)
def test_source_specific_groups(address: str, specific: bool) -> None:
    """RFC 4607 section 1: 232/8 and FF3x::/32."""
    assert is_source_specific(ip_address(address)) is specific
