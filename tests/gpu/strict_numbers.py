"""Repairs of the numbers of Triton's interpreter, which gets bfloat16 and TF32 wrong.

bfloat16: arithmetic, products, sums and casts work on the raw bits, and casts truncate. TF32: a
product asked for in it is computed in full float32. NumPy 2.4 and later: triton 3.6 cannot use a
kernel's argument as the bound of a loop. Written for triton 3.6 to 3.9, whose private names it
replaces.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import triton.language as tl
from triton._C.libtriton import ir
from triton.runtime import interpreter

Handle, Builder = interpreter.TensorHandle, interpreter.InterpreterBuilder
FLOATS = {tl.bfloat16, tl.float16, tl.float32, tl.float64}


def is_bfloat16(handle: Any) -> bool:
    return (
        isinstance(handle, Handle)
        and handle.dtype.scalar == tl.bfloat16
        and handle.data.dtype == np.uint16
    )


def widened(handle: Any) -> Any:
    """A bfloat16 handle as float32; any other as it is."""
    if not is_bfloat16(handle):
        return handle
    return Handle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)


def narrowed(handle: Any) -> Any:
    """A float32 handle rounded to bfloat16, to nearest even."""
    bits = np.ascontiguousarray(handle.data.astype(np.float32)).view(np.uint32)
    out = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return Handle(np.where(np.isnan(handle.data), np.uint16(0x7FC0), out), tl.bfloat16)


def _through_float32(method: Callable[..., Any]) -> Callable[..., Any]:
    """Runs an arithmetic method in float32 where an operand is bfloat16."""

    def run(self: Any, *args: Any) -> Any:
        wide = tuple(widened(a) for a in args)
        out = method(self, *wide)
        untouched = all(a is b for a, b in zip(args, wide, strict=True))
        if untouched or not np.issubdtype(out.data.dtype, np.floating):
            return out
        return narrowed(out)

    return run


def _reduced_in_float32(apply: Callable[..., Any]) -> Callable[..., Any]:
    """A reduction or scan of bfloat16, rounded once at its end."""

    def cast(tensor: Any, dtype: Any) -> Any:
        return tensor.to(dtype, _semantic=_semantic())

    def run(self: Any, given: Any) -> Any:
        tensors = given if isinstance(given, tuple) else (given,)
        narrow = [t.dtype.scalar == tl.bfloat16 for t in tensors]
        if not any(narrow):
            return apply(self, given)
        wide = tuple(
            cast(t, tl.float32) if is_narrow else t
            for t, is_narrow in zip(tensors, narrow, strict=True)
        )
        out = apply(self, wide if isinstance(given, tuple) else wide[0])
        outs = out if isinstance(out, tuple) else (out,)
        outs = tuple(
            cast(o, tl.bfloat16) if is_narrow else o
            for o, is_narrow in zip(outs, narrow, strict=True)
        )
        return outs if isinstance(out, tuple) else outs[0]

    return run


def _semantic() -> Any:
    found = getattr(interpreter, "interpreter_semantic", None)
    return found or interpreter.TritonSemantic(interpreter.interpreter_builder)


def _cut_to_tf32(data: np.ndarray) -> np.ndarray:
    bits = np.ascontiguousarray(data).view(np.uint32) & np.uint32(0xFFFFE000)
    return bits.view(np.float32)


def install(on_dot: Callable[..., None]) -> None:
    """Replace the interpreter's arithmetic; ``on_dot`` is told the operations of each product, and
    its operands."""
    for name in (
        "binary_op", "ternary_op", "unary_op", "create_fma", "create_clampf", "create_idiv",
        "create_rsqrt",
    ):  # fmt: skip
        setattr(Builder, name, _through_float32(getattr(Builder, name)))
    cast_impl, fp_to_fp, dot = Builder.cast_impl, Builder.create_fp_to_fp, Builder.create_dot

    def cast(self: Any, source: Any, to: Any) -> Any:
        wide = widened(source)
        if to.scalar == tl.bfloat16:
            return source if wide is not source else narrowed(wide)
        if wide is not source and to.scalar == tl.float32:
            return wide
        return cast_impl(self, wide, to)

    def explicit_cast(self: Any, source: Any, to: Any, rounding: Any) -> Any:
        nearest = rounding is None or rounding == ir.ROUNDING_MODE.RTNE
        pair = {source.dtype.scalar, to.scalar}
        if nearest and tl.bfloat16 in pair and pair <= FLOATS:
            return cast(self, source, to)
        return fp_to_fp(self, source, to, rounding)

    def create_dot(self: Any, a: Any, b: Any, d: Any, precision: Any, imprecise: Any) -> Any:
        m, k, n = a.data.shape[-2], a.data.shape[-1], b.data.shape[-1]
        on_dot(2 * m * n * k * int(np.prod(a.data.shape[:-2], dtype=np.int64)), a, b)
        a, b = widened(a), widened(b)
        if precision == ir.INPUT_PRECISION.TF32 and a.data.dtype == np.float32:
            a, b = Handle(_cut_to_tf32(a.data), a.dtype), Handle(_cut_to_tf32(b.data), b.dtype)
        return dot(self, a, b, d, precision, imprecise)

    Builder.cast_impl = cast
    Builder.create_fp_to_fp = explicit_cast
    Builder.create_dot = create_dot
    Builder.create_fneg = lambda self, x: self.unary_op(x, np.negative)
    Builder.get_bf16 = lambda self, value: narrowed(self.get_fp32(value))
    interpreter.ReduceOps.apply = _reduced_in_float32(interpreter.ReduceOps.apply)
    interpreter.ScanOps.apply = _reduced_in_float32(interpreter.ScanOps.apply)
    patch_tensor = interpreter._patch_lang_tensor

    def patch_lang_tensor(tensor: Any, scope: Any) -> None:
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.squeeze()))

    interpreter._patch_lang_tensor = patch_lang_tensor
