"""Files of compiled kernels, each behind a digest, as Numba's cache of one function."""

from __future__ import annotations

import contextlib
import hashlib
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llvmlite import binding
from numba.core import caching
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompileResult

DIGEST = 16
_result: Any = CompileResult


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


class _LoadedLibrary(JITCodeLibrary):
    """A kernel's code, and its bitcode: only another kernel that is compiled with it inside reads that.

    Numba reads every kernel's bitcode where it is loaded, and the names of all functions in it, which is more
    than half of the time that loading takes.
    """

    def __init__(self, codegen: Any, saved: tuple[str, str, tuple[bytes, bytes]], names: set[str]) -> None:
        name, kind, (code, self._bitcode) = saved
        assert kind == "object"
        super().__init__(codegen, name)
        self.enable_object_caching()
        self._set_compiled_object(code)
        self._finalize_final_module()
        codegen._engine._defined_symbols |= names

    def _get_module_for_linking(self) -> Any:
        if self._shared_module is None:
            self._shared_module = binding.parse_bitcode(self._bitcode)
        return self._shared_module


class _Kernels(caching.CompileResultCacheImpl):
    """How a compiled kernel is kept, and made again of what is kept."""

    def rebuild(self, target_context: Any, payload: Any) -> Any:
        """What ``CompileResult._rebuild`` does, with a library of ours."""
        saved, fndesc, env, signature, objectmode, lifted, typeann, reload_init, referenced_envs = payload
        for again in reload_init:
            again()
        names = {fndesc.llvm_func_name, fndesc.llvm_cpython_wrapper_name, fndesc.llvm_cfunc_wrapper_name}
        library = _LoadedLibrary(target_context.codegen(), saved, names)
        entry = target_context.get_executable(library, fndesc, env)
        for one in referenced_envs:
            library.codegen.set_env(one.env_name, one)
        return _result(
            target_context=target_context, typing_context=target_context.typing_context, library=library,
            environment=env, entry_point=entry, fndesc=fndesc, type_annotation=typeann, signature=signature,
            objectmode=objectmode, lifted=lifted, typing_error=None, call_helper=None, metadata=None,
            reload_init=reload_init, referenced_envs=referenced_envs,
        )  # fmt: skip


class KernelCache(caching.FunctionCache):
    """Numba's cache of one function, over checked files. ``stamp``: what it was made of."""

    _impl_class = _Kernels

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
