"""A key shows its length and nothing else."""

from __future__ import annotations

import dataclasses
import traceback

import pytest

from gdoi_plugin.crypto.keymat import derive, skeyid_pre_shared
from gdoi_plugin.crypto.secret import Secret
from gdoi_plugin.wire.registry import Hash

OCTETS = b"correct horse battery staple"


def shows(text: str, octets: bytes) -> bool:
    """Does ``text`` hold these octets as characters, hex or Python escapes?"""
    forms = (octets.decode("latin-1"), octets.hex(), repr(octets)[2:-1], str(list(octets))[1:-1])
    return any(form.lower() in text.lower() for form in forms)


def test_repr_str_and_format_show_the_length_only() -> None:
    secret = Secret(OCTETS)
    for text in (repr(secret), str(secret), f"{secret}", f"{secret!r:>40}", f"{[secret]}"):
        assert "28 octets" in text
        assert not shows(text, OCTETS)


def test_a_key_is_not_in_a_traceback() -> None:
    with pytest.raises(ValueError, match="28 octets") as caught:
        raise ValueError(Secret(OCTETS))
    assert not shows("".join(traceback.format_exception(caught.value)), OCTETS)


def test_reveal_gives_the_octets() -> None:
    assert Secret(OCTETS).reveal() == OCTETS
    assert len(Secret(OCTETS)) == 28


def test_equality_is_of_octets_and_only_between_secrets() -> None:
    assert Secret(OCTETS) == Secret(OCTETS)
    assert Secret(OCTETS) != Secret(OCTETS[:-1] + b"E")
    assert Secret(OCTETS) != Secret(OCTETS[:-1])
    assert Secret(OCTETS) != OCTETS


def test_the_hash_depends_on_the_length_alone() -> None:
    assert hash(Secret(OCTETS)) == hash(Secret(OCTETS))
    assert hash(Secret(bytes(28))) == hash(Secret(OCTETS))


def test_it_has_no_attribute_dictionary() -> None:
    assert not hasattr(Secret(OCTETS), "__dict__")


def test_repr_of_key_material_shows_no_key() -> None:
    skeyid = skeyid_pre_shared(Hash.SHA2_256, Secret(OCTETS), b"i" * 16, b"r" * 16)
    material = derive(Hash.SHA2_256, skeyid, b"g" * 256, b"I" * 8, b"R" * 8, 32)
    for field in dataclasses.fields(material):
        assert not shows(repr(material), getattr(material, field.name).reveal())
