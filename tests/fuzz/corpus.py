"""Kept inputs: ``corpus/<target>.hex``, an input a line, so that a review shows what is new."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path

from tests.fuzz.target import Target

FOLDER = Path(__file__).parent / "corpus"
# What one target may keep: enough for the shape of every input, and small in the repository.
MAX_KEPT = 12_000


def kept(target: Target) -> list[bytes]:
    path = FOLDER / f"{target.name}.hex"
    return [bytes.fromhex(line) for line in path.read_text().split()] if path.exists() else []


def pool(target: Target) -> list[bytes]:
    """What fuzzing begins with: seeds and kept inputs, each once."""
    return list(dict.fromkeys([*target.seeds(), *kept(target)]))


def keep(target: Target, inputs: Iterable[bytes]) -> int:
    """Writes the shortest inputs, as many as have room, in place of what was kept; how many."""
    seeds = set(target.seeds())
    chosen: list[bytes] = []
    octets = 0
    for data in sorted(set(inputs) - seeds - {b""}, key=lambda d: (len(d), d)):
        octets += len(data)
        if octets > MAX_KEPT:
            break
        chosen.append(data)
    if chosen:
        text = "".join(f"{data.hex()}\n" for data in chosen)
        (FOLDER / f"{target.name}.hex").write_text(text)
    return len(chosen)


def unpack(target: Target, folder: Path) -> None:
    """The pool as files, as libFuzzer wants it."""
    folder.mkdir(parents=True, exist_ok=True)
    for data in pool(target):
        (folder / sha256(data).hexdigest()[:16]).write_bytes(data)
