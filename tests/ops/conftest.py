"""What of the ops' own tests the runs of the GPU's kernels have (see harness.py)."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest

from clustermim_fast.ops import _backend
from tests.ops.harness import GPU_PATH, ON_TRITON, running

# Files and tests that are about the CPU's kernels or, of the losses, about errors that only the CPU
# can raise (elsewhere the row's loss is NaN: tests/gpu/test_masked_losses.py).
CPU_ALONE = {
    "test_certificate_subspace",
    "test_nearest_centroid_adversarial_subspace",
    "test_nearest_centroid_processes",
    "test_projection",
    "test_sums_are_the_same_on_every_path",
    "test_the_core_without_its_margins_errs_as_the_emulation_says",
}
LOSSES_CPU_ALONE = {
    "test_masked_linear_memory",
    "test_masked_linear_tiles",
    "test_masked_linear_tiles_edges",
    "test_masked_loss_bugs_large",
    "test_masked_loss_processes",
    "test_every_number_of_classes",
    "test_sixteen_bit_conversions_are_torchs",
    "test_bitwise_equal_at_one_and_two_threads",
    "test_repeatable_and_thread_count",
    "test_refusals",
    "test_target_out_of_range_names_value_and_position",
    "test_target_out_of_range_is_a_clear_error",
    "test_the_backward_op_writes_none_of_its_inputs",
    "test_one_class_has_no_gradient",
    "test_the_row_list_of_torch_is_that_of_the_core",
    "test_ids_of_a_batch_with_nan_patches_through_the_loss",
    "test_bug05_weight_gradient_summed_in_sixteen_bits",
    "test_bug18_host_syncs",
    "test_bug24_target_out_of_range_under_compile",
    "test_bug30_gradients_that_nobody_asked_for",
    "test_bug30_gradients_that_nobody_asked_for_in_tiles",
}


def _module(item: pytest.Item) -> str:
    return item.path.stem


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    left_out = pytest.mark.skip(reason="Triton: about the CPU's kernels alone")
    for item in items if ON_TRITON else []:
        loss = _module(item).startswith("test_masked_")
        alone = CPU_ALONE | LOSSES_CPU_ALONE if loss else CPU_ALONE
        if {_module(item), getattr(item, "originalname", "")} & alone:
            item.add_marker(left_out)


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, Any, Any]:
    if not (ON_TRITON and _module(pyfuncitem).startswith("test_masked_")):
        return (yield)
    with running(GPU_PATH), _backend.use_backend(GPU_PATH):
        return (yield)
