"""Files of compiled kernels, each behind a digest, as Numba's cache of one function."""

from __future__ import annotations

import contextlib
import hashlib
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numba.core import caching

DIGEST = 16


def digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=DIGEST).digest()


def read_checked(path: str | Path) -> bytes | None:
    """What a file of the cache holds, None when it is missing or damaged."""
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError:
        return None
    return data[DIGEST:] if data[:DIGEST] == digest(data[DIGEST:]) else None


class _CheckedFile(caching.IndexDataCacheFile):
    """One kernel's files, each behind its digest. What cannot be written is not kept, and no error."""

    def _write(self, path: str, data: bytes) -> None:
        with contextlib.suppress(OSError), self._open_for_write(path) as file:
            file.write(digest(data) + data)

    def _load_index(self) -> dict[Any, str]:
        data = read_checked(self._index_path)
        if data is None:
            return {}
        stamp, overloads = pickle.loads(data)
        return overloads if stamp == self._source_stamp else {}

    def _save_index(self, overloads: dict[Any, str]) -> None:
        self._write(self._index_path, self._dump((self._source_stamp, overloads)))

    def _load_data(self, name: str) -> Any:
        data = read_checked(self._data_path(name))
        if data is None:
            raise FileNotFoundError(name)  # compiled anew, then
        return pickle.loads(data)

    def _save_data(self, name: str, data: Any) -> None:
        self._write(self._data_path(name), self._dump(data))


class KernelCache(caching.FunctionCache):
    """Numba's cache of one function, over checked files. ``stamp``: what it was made of."""

    def __init__(self, func: Callable[..., Any], stamp: str) -> None:
        super().__init__(func)
        self._cache_file = _CheckedFile(
            cache_path=self._cache_path,
            filename_base=self._impl.filename_base,
            source_stamp=stamp,
        )

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """What was compiled for a signature, or None.

        Without what Numba readies before it loads, which only a compilation needs, and readies for itself: a
        tenth of a second at the start of each process.
        """
        with self._guard_against_spurious_io_errors():
            return self._load_overload(sig, target_context)

    def _save_overload(self, sig: Any, data: Any) -> None:
        with contextlib.suppress(OSError):  # a disk that is full, a folder that is gone
            super()._save_overload(sig, data)
