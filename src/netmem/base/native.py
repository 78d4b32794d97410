"""Loads, stores, fences and copies by address, as Numba intrinsics with plain twins.

Addresses are host virtual addresses as int64. The plain twins serve uncompiled runs
(``NUMBA_DISABLE_JIT=1``), where intrinsics do not exist. Words shared with another process or
device go through ``load_acquire``, ``store_release`` and ``fence`` alone: LLVM may reorder and
vectorise plain stores, and x86 lets a store pass a later load.
"""

from __future__ import annotations

import ctypes
import os
import time
from typing import Any

from netmem.base.jit import COMPILED, kernel

if not COMPILED:

    def load_u8(addr: int) -> int:
        """The byte at ``addr``."""
        return ctypes.c_uint8.from_address(int(addr)).value

    def load_be16(addr: int) -> int:
        """The big-endian 16-bit number at ``addr``."""
        return int.from_bytes(ctypes.string_at(int(addr), 2), "big")

    def load_be32(addr: int) -> int:
        """The big-endian 32-bit number at ``addr``."""
        return int.from_bytes(ctypes.string_at(int(addr), 4), "big")

    def load_be64(addr: int) -> int:
        """The big-endian signed 64-bit number at ``addr``."""
        return int.from_bytes(ctypes.string_at(int(addr), 8), "big", signed=True)

    def store_be64(addr: int, value: int) -> None:
        """Write a big-endian signed 64-bit number."""
        ctypes.memmove(int(addr), int(value).to_bytes(8, "big", signed=True), 8)

    def store_u8(addr: int, value: int) -> None:
        """Write one byte."""
        ctypes.c_uint8.from_address(int(addr)).value = int(value) & 0xFF

    def store_be16(addr: int, value: int) -> None:
        """Write a big-endian 16-bit number (the low 16 bits of ``value``)."""
        ctypes.memmove(int(addr), (int(value) & 0xFFFF).to_bytes(2, "big"), 2)

    def store_be32(addr: int, value: int) -> None:
        """Write a big-endian 32-bit number (the low 32 bits of ``value``)."""
        ctypes.memmove(int(addr), (int(value) & 0xFFFFFFFF).to_bytes(4, "big"), 4)

    def load_u32(addr: int) -> int:
        """The native unsigned 32-bit number at ``addr``."""
        return ctypes.c_uint32.from_address(int(addr)).value

    def load64(addr: int) -> int:
        """The native signed 64-bit word at ``addr``."""
        return ctypes.c_int64.from_address(int(addr)).value

    def store64(addr: int, value: int) -> None:
        """Write a native signed 64-bit word."""
        ctypes.c_int64.from_address(int(addr)).value = int(value)

    load_acquire = load64
    store_release = store64

    def fence() -> None:
        """Sequentially consistent fence (the interpreter itself orders plain twins)."""

    def memcpy(dst: int, src: int, n: int) -> None:
        """Copy ``n`` bytes between regions that do not overlap."""
        ctypes.memmove(int(dst), int(src), int(n))

    _libc = ctypes.CDLL(None)
    _libc.readv.restype = _libc.writev.restype = ctypes.c_ssize_t

    def readv(fd: int, iov: int, count: int) -> int:
        """readv(2) into ``count`` struct iovec at ``iov``; -1 when it fails."""
        return int(_libc.readv(ctypes.c_int(int(fd)), ctypes.c_void_p(int(iov)), ctypes.c_int(int(count))))

    def writev(fd: int, iov: int, count: int) -> int:
        """writev(2) from ``count`` struct iovec at ``iov``; -1 when it fails."""
        return int(_libc.writev(ctypes.c_int(int(fd)), ctypes.c_void_p(int(iov)), ctypes.c_int(int(count))))

    def monotonic_ns() -> int:
        """CLOCK_MONOTONIC."""
        return time.monotonic_ns()

    def sched_yield() -> None:
        """sched_yield(2)."""
        os.sched_yield()

else:
    from llvmlite import ir
    from numba.core import cgutils, types
    from numba.extending import intrinsic

    _I8, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))

    def _ptr(builder: Any, addr: Any, kind: Any) -> Any:
        return builder.inttoptr(addr, kind.as_pointer())

    def _loader(kind: Any, swap: bool, ordering: str = "") -> Any:
        def typing(typingctx: Any, addr: Any) -> Any:
            def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
                addr = _to_i64(context, builder, sig.args[0], args[0])
                ptr = _ptr(builder, addr, kind)
                atomic = ordering != ""
                value = builder.load_atomic(ptr, ordering, 8) if atomic else builder.load(ptr, align=1)
                if swap:
                    value = builder.bswap(value)
                return value if kind is _I64 else builder.zext(value, _I64)

            return types.int64(addr), codegen

        return typing

    def _to_i64(context: Any, builder: Any, kind: Any, value: Any) -> Any:
        return context.cast(builder, value, kind, types.int64)

    def _storer(kind: Any, swap: bool, ordering: str = "") -> Any:
        def typing(typingctx: Any, addr: Any, value: Any) -> Any:
            def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
                ptr = _ptr(builder, _to_i64(context, builder, sig.args[0], args[0]), kind)
                word = _to_i64(context, builder, sig.args[1], args[1])
                if kind is not _I64:
                    word = builder.trunc(word, kind)
                if swap:
                    word = builder.bswap(word)
                if ordering:
                    builder.store_atomic(word, ptr, ordering, 8)
                else:
                    builder.store(word, ptr, align=1)
                return context.get_dummy_value()

            return types.void(addr, value), codegen

        return typing

    load_u8 = intrinsic(_loader(_I8, False))
    load_be16 = intrinsic(_loader(_I16, True))
    load_be32 = intrinsic(_loader(_I32, True))
    load_be64 = intrinsic(_loader(_I64, True))
    load_u32 = intrinsic(_loader(_I32, False))
    load64 = intrinsic(_loader(_I64, False))
    load_acquire = intrinsic(_loader(_I64, False, "acquire"))
    store_u8 = intrinsic(_storer(_I8, False))
    store_be16 = intrinsic(_storer(_I16, True))
    store_be32 = intrinsic(_storer(_I32, True))
    store_be64 = intrinsic(_storer(_I64, True))
    store64 = intrinsic(_storer(_I64, False))
    store_release = intrinsic(_storer(_I64, False, "release"))

    @intrinsic
    def fence(typingctx):
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            builder.fence("seq_cst")
            return context.get_dummy_value()

        return types.void(), codegen

    def _vectored(name: str) -> Any:
        def typing(typingctx: Any, fd: Any, iov: Any, count: Any) -> Any:
            def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
                words = [
                    _to_i64(context, builder, kind, arg) for kind, arg in zip(sig.args, args, strict=True)
                ]
                kind = ir.FunctionType(_I64, [_I32, _I8.as_pointer(), _I32])
                function = cgutils.get_or_insert_function(builder.module, kind, name)
                fd, count = builder.trunc(words[0], _I32), builder.trunc(words[2], _I32)
                return builder.call(function, [fd, _ptr(builder, words[1], _I8), count])

            return types.int64(fd, iov, count), codegen

        return typing

    readv = intrinsic(_vectored("readv"))
    writev = intrinsic(_vectored("writev"))

    @intrinsic
    def monotonic_ns(typingctx):
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            kind = ir.FunctionType(_I32, [_I32, _I64.as_pointer()])
            function = cgutils.get_or_insert_function(builder.module, kind, "clock_gettime")
            found = cgutils.alloca_once(builder, ir.ArrayType(_I64, 2))  # struct timespec
            at = builder.bitcast(found, _I64.as_pointer())
            builder.call(function, [ir.Constant(_I32, time.CLOCK_MONOTONIC), at])
            seconds, rest = (builder.load(builder.gep(at, [ir.Constant(_I32, i)])) for i in (0, 1))
            return builder.add(builder.mul(seconds, ir.Constant(_I64, 10**9)), rest)

        return types.int64(), codegen

    @intrinsic
    def sched_yield(typingctx):
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            kind = ir.FunctionType(_I32, [])
            builder.call(cgutils.get_or_insert_function(builder.module, kind, "sched_yield"), [])
            return context.get_dummy_value()

        return types.void(), codegen

    @intrinsic
    def memcpy(typingctx, dst, src, n):
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            to, frm, size = (
                _to_i64(context, builder, kind, arg) for kind, arg in zip(sig.args, args, strict=True)
            )
            cgutils.raw_memcpy(builder, _ptr(builder, to, _I8), _ptr(builder, frm, _I8), size, 1)
            return context.get_dummy_value()

        return types.void(dst, src, n), codegen


@kernel
def read_word(addr: int) -> int:
    """``load_acquire`` for callers in Python, where intrinsics cannot be called."""
    return load_acquire(addr)


@kernel
def publish_word(addr: int, value: int) -> None:
    """``store_release`` and a fence, for callers in Python."""
    store_release(addr, value)
    fence()


@kernel
def full_fence() -> None:
    """``fence`` for callers in Python."""
    fence()
