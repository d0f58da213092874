"""The prf against RFC 4868 section 2.7, and the hash of "abc" (FIPS 180-4 examples)."""

from __future__ import annotations

import pytest

from gdoi_plugin.crypto.prf import digest, equal, prf
from gdoi_plugin.wire.registry import Hash
from tests.vectors import Record, load

NAMES = {Hash.SHA2_256: "sha-256", Hash.SHA2_384: "sha-384", Hash.SHA2_512: "sha-512"}
TRUNCATED = {Hash.SHA2_256: "-128", Hash.SHA2_384: "-192", Hash.SHA2_512: "-256"}
RECORDS = load("rfc4868")


def test_the_file_has_six_prf_cases_and_four_authenticators_for_each_hash() -> None:
    for name in NAMES.values():
        assert sum(f"prf-hmac-{name}" in record for record in RECORDS) == 6 + 4


@pytest.mark.parametrize("algorithm", NAMES, ids=lambda a: a.name)
@pytest.mark.parametrize(
    "record", RECORDS, ids=lambda r: f"key{len(r['key'])}-{r['data'][:4].hex()}"
)
def test_prf(record: Record, algorithm: Hash) -> None:
    name = f"hmac-{NAMES[algorithm]}"
    got = prf(algorithm, record["key"], record["data"])
    if (whole := record.get(f"prf-{name}")) is not None:
        assert got == whole
    if (authenticator := record.get(name + TRUNCATED[algorithm])) is not None:
        assert got[: len(got) // 2] == authenticator


@pytest.mark.parametrize(
    ("algorithm", "head", "length"),
    [
        (Hash.SHA2_256, "ba7816bf8f01cfea", 32),
        (Hash.SHA2_384, "cb00753f45a35e8b", 48),
        (Hash.SHA2_512, "ddaf35a193617aba", 64),
    ],
)
def test_digest_of_abc(algorithm: Hash, head: str, length: int) -> None:
    got = digest(algorithm, b"abc")
    assert got[:8].hex() == head
    assert len(got) == length


def test_equal_compares_whole_authenticators() -> None:
    assert equal(b"authenticator", b"authenticator")
    assert not equal(b"authenticator", b"authenticatoR")
    assert not equal(b"authenticator", b"authenticato")
