"""State as records: one class a layout, the same memory for Python, for kernels and for whoever looks.

A layout is a subclass of ``Record`` whose annotations are its fields, in order::

    class SackBlock(Record):
        left: i64  # first sequence number of the block (RFC 2018 3)
        right: i64  # the one after its last

    class Tcb(Record):
        rcv_nxt: i64
        sack: Annotated[Items[SackBlock], SackBlock * 4]

``Tcb.at(address)`` is the record at an address, ``Tcb.nth(address, i)`` the i-th of a table that begins
there; both read the same in Python, where the result is a ctypes.Structure, and in a kernel, where it is a
pointer that costs nothing. Kernels that Python calls take addresses and make their records; kernels that
kernels call take records. Nothing keeps the memory: that is its owner's business (``Arena``).
"""

from __future__ import annotations

import ctypes
import functools
import typing
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Protocol, Self, TypeVar

import numpy as np

from netmem.base.jit import COMPILED
from netmem.base.native import publish_word

i64 = Annotated[int, ctypes.c_int64]
i32 = Annotated[int, ctypes.c_int32]
u32 = Annotated[int, ctypes.c_uint32]
u16 = Annotated[int, ctypes.c_uint16]
u8 = Annotated[int, ctypes.c_uint8]

T = TypeVar("T")


class Items(Protocol[T]):
    """An array inside a record: so many of one type, as the annotation says."""

    @typing.overload
    def __getitem__(self, i: int) -> T: ...
    @typing.overload
    def __getitem__(self, i: slice) -> list[T]: ...
    @typing.overload
    def __setitem__(self, i: int, value: T) -> None: ...
    @typing.overload
    def __setitem__(self, i: slice, value: list[T]) -> None: ...
    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[T]: ...


if TYPE_CHECKING:
    from _ctypes import _PyCStructType as _StructureType
else:
    _StructureType = type(ctypes.Structure)


class RecordType(_StructureType):
    """Makes ``_fields_`` of a class's annotations, each Annotated with its C type."""

    def __init__(cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any]) -> None:
        super().__init__(name, bases, namespace)
        own = namespace.get("__annotations__", {})
        if own:
            hints = typing.get_type_hints(cls, include_extras=True)
            cls._fields_ = [
                (field, getattr(hints[field], "__metadata__", (hints[field],))[-1]) for field in own
            ]


class Record(ctypes.Structure, metaclass=RecordType):
    """The root of all layouts."""

    @classmethod
    def at(cls, address: int) -> Self:
        """The record at a host address. The memory must outlive it."""
        return cls.from_address(int(address))

    @classmethod
    def nth(cls, address: int, i: int) -> Self:
        """The ``i``-th record of a table that begins at a host address."""
        return cls.from_address(int(address) + int(i) * ctypes.sizeof(cls))


class Word(Record):
    """One of a table of numbers."""

    value: i64


def items(record: Record) -> dict[str, Any]:
    """The fields of a record by name: numbers as they are, nested records as dictionaries."""
    found: dict[str, Any] = {}
    for field, *_ in record._fields_:
        value = getattr(record, field)
        if isinstance(value, Record):
            value = items(value)
        elif isinstance(value, ctypes.Array):
            value = [items(one) if isinstance(one, Record) else one for one in value]
        found[field] = value
    return found


def field_offset(layout: type[Record], field: str) -> int:
    """Byte offset of a field, for words that are read and written by address (``load_acquire``)."""
    return int(getattr(layout, field).offset)


def publish(record: Record, field: str, value: int) -> None:
    """Write a field that another process or device waits for: it is seen before anything written later."""
    publish_word(ctypes.addressof(record) + field_offset(type(record), field), value)


def clear(record: Record) -> None:
    """All of a record to zero."""
    ctypes.memset(ctypes.addressof(record), 0, ctypes.sizeof(record))


@functools.cache
def dtype(layout: type[Record]) -> np.dtype[Any]:
    """The NumPy dtype of a layout, for whole tables at once: ``np.frombuffer(memory, dtype(Tcb))``."""
    return np.dtype(layout)


def address_of(record: Record) -> int:
    """Host address of a record."""
    return ctypes.addressof(record)


if COMPILED:
    import numba
    from llvmlite import ir
    from numba.core import cgutils, types
    from numba.core.imputils import lower_builtin, lower_constant
    from numba.core.typing import templates
    from numba.extending import models, overload, register_model, type_callable, typeof_impl

    class _Layout(types.Type):
        """Numba's type of a Record class: what ``at`` and ``nth`` of it return."""

        def __init__(self, layout: type[Record]) -> None:
            self.layout = layout
            self.record = numba.from_dtype(np.dtype(layout))
            super().__init__(f"Layout({layout.__module__}.{layout.__qualname__})")

        @property
        def key(self) -> Any:
            return self.layout

    register_model(_Layout)(models.OpaqueModel)
    _layouts: dict[type[Record], _Layout] = {}

    @typeof_impl.register(RecordType)
    def _typeof(layout: type[Record], context: Any) -> _Layout:
        if layout not in _layouts:
            _layouts[layout] = _Layout(layout)
        return _layouts[layout]

    @lower_constant(_Layout)
    def _constant(context: Any, builder: Any, kind: Any, value: Any) -> Any:
        return context.get_dummy_value()

    class _At(templates.AbstractTemplate):
        key = "Record.at"
        this: Any

        def generic(self, args: Any, kws: Any) -> Any:
            if len(args) == 1 and not kws:
                return templates.signature(self.this.record, types.int64, recvr=self.this)
            return None

    class _Nth(templates.AbstractTemplate):
        key = "Record.nth"
        this: Any

        def generic(self, args: Any, kws: Any) -> Any:
            if len(args) == 2 and not kws:
                return templates.signature(self.this.record, types.int64, types.int64, recvr=self.this)
            return None

    @templates.infer_getattr
    class _Attributes(templates.AttributeTemplate):
        key = _Layout

        def resolve_at(self, kind: Any) -> Any:
            return types.BoundFunction(_At, kind)

        def resolve_nth(self, kind: Any) -> Any:
            return types.BoundFunction(_Nth, kind)

    @lower_builtin("Record.at", _Layout, types.int64)
    def _lower_at(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.inttoptr(args[1], context.get_value_type(sig.return_type))

    @lower_builtin("Record.nth", _Layout, types.int64, types.int64)
    def _lower_nth(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        size = ir.Constant(ir.IntType(64), sig.return_type.size)
        address = builder.add(args[1], builder.mul(args[2], size))
        return builder.inttoptr(address, context.get_value_type(sig.return_type))

    @overload(int)
    def _int_of_enum(member):  # type: ignore[no-untyped-def]  # Numba compares it with what it returns
        return (lambda member: member.value) if isinstance(member, types.IntEnumMember) else None

    # The functions above, in kernels.

    @type_callable(address_of)
    def _type_address_of(context: Any) -> Any:
        return lambda record: types.int64 if isinstance(record, types.Record) else None

    @lower_builtin(address_of, types.Record)
    def _lower_address_of(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.ptrtoint(args[0], ir.IntType(64))

    @type_callable(clear)
    def _type_clear(context: Any) -> Any:
        return lambda record: types.void if isinstance(record, types.Record) else None

    @lower_builtin(clear, types.Record)
    def _lower_clear(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        size = ir.Constant(ir.IntType(64), sig.args[0].size)
        cgutils.memset(builder, builder.bitcast(args[0], ir.IntType(8).as_pointer()), size, 0)
        return context.get_dummy_value()
