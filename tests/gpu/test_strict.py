"""The strict interpreter sees the faults for which it is there."""

from __future__ import annotations

import pytest
import torch

from clustermim_fast.ops import _triton

pytestmark = pytest.mark.skipif(
    not _triton.interpreted(), reason="Triton: has a run of its own (make check-triton)"
)

if _triton.interpreted():
    import triton
    import triton.language as tl

    from tests.gpu import strict

    @triton.jit
    def _copy(source, out, n, step, BLOCK: tl.constexpr, MASKED: tl.constexpr):
        at = tl.program_id(0) * step + tl.arange(0, BLOCK)
        if MASKED:
            value = tl.load(source + at, mask=at < n, other=0)
        else:
            value = tl.load(source + at, mask=at < n)
        tl.store(out + at, value, mask=at < n)

    @triton.jit
    def _product(a, b, out, BLOCK: tl.constexpr, PRECISION: tl.constexpr):
        i = tl.arange(0, BLOCK)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
        c = tl.dot(tl.load(a + i), tl.load(b + i), input_precision=PRECISION)
        tl.store(out + i, c)

    @triton.jit
    def _times(x, out, factor, BLOCK: tl.constexpr):
        at = tl.arange(0, BLOCK)
        tl.store(out + at, tl.load(x + at) * factor)

    @triton.jit
    def _sum(x, out, BLOCK: tl.constexpr):
        values = tl.load(x + tl.program_id(0) * BLOCK + tl.arange(0, BLOCK))
        tl.atomic_add(out, tl.sum(values, 0))


def test_bytes_are_counted():
    x, out = torch.arange(100.0), torch.empty(100)
    with strict.checked() as seen:
        _copy[(4,)](x, out, 100, 32, BLOCK=32, MASKED=True)
    assert torch.equal(out, x)
    assert (seen.programs, seen.load_bytes, seen.store_bytes) == (4, 400, 400)
    assert seen.bytes_of(x) == 400


def test_an_address_outside_is_an_error():
    with pytest.raises(Exception, match="outside every argument"), strict.checked():
        _copy[(1,)](torch.zeros(31), torch.zeros(32), 32, 32, BLOCK=32, MASKED=True)


def test_a_view_s_storage_beyond_it_is_outside():
    with pytest.raises(Exception, match="outside every argument"), strict.checked():
        _copy[(1,)](torch.zeros(64)[:16], torch.zeros(32), 32, 32, BLOCK=32, MASKED=True)


def test_two_programs_that_store_one_address_race():
    with pytest.raises(Exception, match="a race"), strict.checked():
        _copy[(2,)](torch.zeros(64), torch.zeros(64), 64, 16, BLOCK=32, MASKED=True)


def test_atomic_sums_are_of_integers():
    total = torch.zeros(1, dtype=torch.int32)
    with strict.checked():
        _sum[(2,)](torch.ones(32, dtype=torch.int32), total, BLOCK=16)
    assert total.item() == 32
    with pytest.raises(Exception, match="order of programs shows"), strict.checked():
        _sum[(2,)](torch.ones(32), torch.zeros(1), BLOCK=16)


def test_masked_lanes_read_poison():
    out = torch.zeros(32)
    with strict.checked():
        _copy[(1,)](torch.zeros(32), out, 20, 32, BLOCK=32, MASKED=False)
    assert not out[:20].any()
    assert not out[20:].any()  # not stored either


def test_int32_overflow_is_an_error():
    x = torch.full((32,), 2**20, dtype=torch.int32)
    with pytest.raises(Exception, match="overflow"), strict.checked():
        _times[(1,)](x, torch.empty_like(x), 2**12, BLOCK=32)


def test_long_cases_are_given_up():
    with pytest.raises(Exception) as caught, strict.checked(most_operations=5):
        _copy[(4,)](torch.zeros(128), torch.zeros(128), 128, 32, BLOCK=32, MASKED=True)
    error = caught.value
    causes = (error, error.__cause__, error.__context__)
    assert any(isinstance(e, strict.TooLongToInterpret) for e in causes)


@pytest.mark.parametrize(
    "dtype, precision, bound",
    [(torch.bfloat16, "ieee", 1e-6), (torch.float16, "ieee", 1e-6), (torch.float32, "ieee", 1e-6),
     (torch.float32, "tf32", 2e-3)],
)  # fmt: skip
def test_products_have_the_hardware_s_precision(dtype, precision, bound):
    a, b = torch.randn(32, 32).to(dtype), torch.randn(32, 32).to(dtype)
    out = torch.empty(32, 32)
    with strict.checked() as seen:
        _product[(1,)](a, b, out, BLOCK=32, PRECISION=precision)
    scale = a.double().abs() @ b.double().abs()
    error = ((out.double() - a.double() @ b.double()).abs() / scale).max()
    assert error < bound
    assert precision == "ieee" or error > 1e-5  # it is TF32, not float32
    assert seen.dot_flops == 2 * 32**3


def test_bfloat16_rounds_to_nearest_even():
    x = torch.randn(32).to(torch.bfloat16)
    out = torch.empty_like(x)
    with strict.checked():
        _times[(1,)](x, out, 3.3, BLOCK=32)
    factor = torch.tensor(3.3).to(torch.bfloat16)  # Triton gives a number the tensor's type
    assert torch.equal(out, (x.float() * factor.float()).to(torch.bfloat16))
