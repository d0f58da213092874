"""A JSON file per group, replaced in one step, its owner's only: what a member must not forget, and
the keys it hands to applications."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .errors import StoreError


class StateDirectory:
    """``<directory>/<group>.json``."""

    def __init__(self, directory: Path) -> None:
        """Raises StoreError naming the directory."""
        self._directory = directory
        self._lock: int | None = None
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise StoreError(f"{directory}: {error.strerror}") from error

    def claim(self) -> None:
        """For this process alone, until it is closed: two would overwrite each other's records.

        Raises StoreError.
        """
        try:
            lock = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise StoreError(f"{self._directory}: {error.strerror}") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(lock)
            taken = isinstance(error, BlockingIOError)
            reason = "another agent is using it" if taken else error.strerror
            raise StoreError(f"{self._directory}: {reason}") from error
        self._lock = lock

    def close(self) -> None:
        """Also twice."""
        lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)

    def load(self, name: str) -> Mapping[str, Any] | None:
        """None where nothing was saved. Raises StoreError for a file that cannot be read."""
        octets = self._read(name)
        return None if octets is None else _document(self._path(name), octets)

    def load_lines(self, name: str) -> list[Mapping[str, Any]]:
        """What was saved, and what was appended since. Raises StoreError.

        The end of the last line may be lost, by a crash or a full disk: it was never durable.
        """
        octets, path = self._read(name), self._path(name)
        if octets is None:
            return []
        first, *more = octets.split(b"\n")
        documents = [_document(path, first)]
        for place, line in enumerate(more, 1):
            try:
                documents.append(_document(path, line))
            except StoreError:
                if place < len(more):
                    raise
        return documents

    def _read(self, name: str) -> bytes | None:
        path = self._path(name)
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreError(f"{path}: {error.strerror}") from error

    def save(self, name: str, record: Mapping[str, object]) -> None:
        """Durable when it returns: written beside, flushed, renamed, folder flushed."""
        self.stage(name, record)
        self.publish(name)

    def append(self, name: str, record: Mapping[str, object]) -> None:
        """A line after what was saved, durable when it returns. Raises StoreError: then the file is
        to be saved as a whole before anything else is appended."""
        path = self._path(name)
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
            _fill(descriptor, b"\n" + json.dumps(record).encode())
        except OSError as error:
            raise StoreError(f"{path}: {error.strerror}") from error

    def stage(self, name: str, record: Mapping[str, object]) -> None:
        """Written beside and flushed. Raises StoreError, and the former file is as it was."""
        # json.dump's encoder is ten times as slow
        self._write(self._path(name), json.dumps(record).encode())

    @contextmanager
    def replaced(self, name: str, record: Mapping[str, object]) -> Iterator[None]:
        """The new file within, and ever after unless something is raised: then the former one.

        Raises StoreError.
        """
        path = self._path(name)
        try:
            former = path.read_bytes()
        except FileNotFoundError:
            former = None
        except OSError as error:
            raise StoreError(f"{path}: {error.strerror}") from error
        try:
            self.save(name, record)
            yield
        except BaseException:
            self._put_back(name, former)
            raise

    def _put_back(self, name: str, former: bytes | None) -> None:
        """Raises StoreError."""
        path = self._path(name)
        with suppress(OSError):
            path.with_suffix(".new").unlink()
        try:
            there = path.read_bytes()
        except OSError:
            there = None
        if former is None:
            self.remove(name)
        elif there != former:
            self._write(path, former)
            self.publish(name)

    def _write(self, path: Path, octets: bytes) -> None:
        temporary = path.with_suffix(".new")
        try:
            descriptor = os.open(
                temporary, os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC, 0o600
            )
            _fill(descriptor, octets, 0o600)  # a file left by a crash may have had another mode
        except OSError as error:
            raise StoreError(f"{path}: {error.strerror}") from error

    def publish(self, name: str) -> None:
        """What was staged takes the place of the former file. Raises StoreError."""
        path = self._path(name)
        try:
            path.with_suffix(".new").replace(path)
            if self._lock is not None:
                os.fsync(self._lock)
                return
            folder = os.open(self._directory, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise StoreError(f"{path}: {error.strerror}") from error

    def names(self) -> set[str]:
        """Of all that was saved. Raises StoreError."""
        try:
            return {path.stem for path in self._directory.glob("*.json")}
        except OSError as error:
            raise StoreError(f"{self._directory}: {error.strerror}") from error

    def remove(self, name: str) -> None:
        """Raises StoreError."""
        path = self._path(name)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise StoreError(f"{path}: {error.strerror}") from error

    def _path(self, name: str) -> Path:
        return self._directory / f"{name}.json"


def _fill(descriptor: int, octets: bytes, mode: int | None = None) -> None:
    """Durable when it returns; closed in any case. Raises OSError."""
    try:
        if mode is not None:
            os.fchmod(descriptor, mode)
        left = memoryview(octets)
        while left:
            left = left[os.write(descriptor, left) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _document(path: Path, octets: bytes) -> Mapping[str, Any]:
    try:
        document = json.loads(octets.decode())
    except (ValueError, RecursionError):
        raise StoreError(f"{path}: not JSON; remove it to register afresh") from None
    if not isinstance(document, dict):
        raise StoreError(f"{path}: not a JSON object; remove it to register afresh")
    return document
