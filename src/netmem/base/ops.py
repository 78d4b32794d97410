"""Calls through an address: how compiled code reaches a kernel that it does not know.

A table of operations (as net_device_ops) is a record whose fields are addresses that ``address_of_op`` gave;
0 is an operation that only Python can do. The caller is compiled without the callee, and both are cached
for themselves. A call costs about 3 ns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from netmem.base.jit import COMPILED, is_kernel

if not COMPILED:
    _ops: list[Callable[..., int]] = []  # an "address" is a place in it, plus 1

    def address_of_op(op: Callable[..., int], args: int) -> int:
        """The address of a kernel that takes ``args`` integers and returns one; 0 when it is no kernel."""
        if not is_kernel(op):
            return 0
        if op not in _ops:
            _ops.append(op)
        return _ops.index(op) + 1

    def call_op(address: int, *args: int) -> int:
        """Call the kernel at an address."""
        return int(_ops[address - 1](*args))

else:
    from llvmlite import ir
    from numba.core import types
    from numba.extending import intrinsic

    def address_of_op(op: Callable[..., int], args: int) -> int:
        """The address of a kernel that takes ``args`` integers and returns one; 0 when it is no kernel."""
        if not is_kernel(op):
            return 0
        compiled: Any = op
        signature = (types.int64,) * args
        compiled.compile(signature)
        made = compiled.overloads[signature]
        if made.signature.return_type != types.int64:
            raise TypeError(f"{op.__name__} returns {made.signature.return_type}, not an integer")
        return int(made.library.get_pointer_to_function(made.fndesc.llvm_func_name))

    @intrinsic
    def call_op(typingctx: Any, address: Any, *args: Any) -> Any:
        """Call the kernel at an address."""
        kinds: Any = args[0].types if isinstance(args[0], types.BaseTuple) else args  # type: ignore[attr-defined]

        def codegen(context: Any, builder: Any, sig: Any, values: Any) -> Any:
            kinds = sig.args[1].types
            given = [builder.extract_value(values[1], i) for i in range(len(kinds))]
            convention = context.call_conv.get_function_type(types.int64, kinds)
            callee = builder.inttoptr(values[0], convention.as_pointer())
            status, result = context.call_conv.call_function(builder, callee, types.int64, kinds, given)
            return builder.select(status.is_error, ir.Constant(ir.IntType(64), -1), result)

        return types.int64(types.int64, types.StarArgTuple((types.int64,) * len(kinds))), codegen
