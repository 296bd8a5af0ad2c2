"""The planted bugs of check_gpu_mutations.py."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutation:
    """``text`` stands once in ``file``; with ``bug`` in its place ``witness`` has to fail."""

    name: str
    file: str
    text: str
    bug: str
    witness: str

    @property
    def op(self) -> str:
        """The folder of the kernel."""
        return self.file.split("/")[2]


REPLACE = "clustermim_fast/ops/replace_patches/triton_kernel.py"
OF_REPLACE = "tests/ops/test_replace_patches.py::"
OFFSETS = "tests/gpu/test_offsets.py::"

MUTATIONS = [
    Mutation(*entry)
    for entry in (
        ("columns beyond the image not masked", REPLACE, "& (x < width)", "& (x >= 0)",
         f"{OF_REPLACE}test_pixels[None-None-dtype0-hwc-triton]"),
        ("rows beyond the last not masked", REPLACE, "(row < num_rows)[:, None]",
         "(row >= 0)[:, None]", f"{OF_REPLACE}test_shapes[shape2-5-hwc-triton]"),
        ("the last block of rows dropped", REPLACE, "triton.cdiv(num_rows, _BLOCK_ROWS)",
         "max(1, num_rows // _BLOCK_ROWS)", f"{OF_REPLACE}test_shapes[shape2-5-hwc-triton]"),
        ("strides of rows and columns swapped", REPLACE, "y * stride_h)[:, None]",
         "y * stride_w)[:, None]", f"{OF_REPLACE}test_int32_ids_and_strided_inputs[triton]"),
        ("offsets in 32 bits", REPLACE, "tl.program_id(0).to(tl.int64)", "tl.program_id(0)",
         f"{OFFSETS}test_replace_patches"),
        ("ids beyond the last centroid looked up", REPLACE, "(token >= 0) & (token < num_centroids)",
         "token >= 0", f"{OFFSETS}test_ids_beyond_the_last_centroid"),
        ("pixels of a patch by column, then row", REPLACE,
         "(c * PATCH + y % PATCH)[:, None] * PATCH + x % PATCH",
         "(c * PATCH)[:, None] * PATCH + x % PATCH * PATCH + (y % PATCH)[:, None]",
         f"{OF_REPLACE}test_pixels[None-None-dtype0-hwc-triton]"),
    )
]  # fmt: skip
