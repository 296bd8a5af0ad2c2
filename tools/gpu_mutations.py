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
NEAREST = "clustermim_fast/ops/nearest_centroid/triton_"
FILTER, RESCORE = f"{NEAREST}filter.py", f"{NEAREST}rescore.py"
OF_NEAREST = "tests/ops/test_nearest_centroid.py::"
SMALL = f"{OF_NEAREST}test_every_size[129-17-7]"
TIES = f"{OF_NEAREST}test_ties_of_permuted_centroids[euclidean]"

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
        # ---- nearest_centroid
        ("margin without what rounding moved in a row", FILTER, "S = moved + R + tiny",
         "S = R + tiny", SMALL),
        ("margin without what rounding moved in the centroids", FILTER, "S = moved + R + tiny",
         "S = moved + tiny", SMALL),
        ("margin not scaled by the distance", FILTER, "margin = 2 * (eps + S * (distance + S))",
         "margin = 2 * (eps + S * S)", SMALL),
        ("second best of the best one's block forgotten", FILTER,
         "return tl.maximum(second, tl.max(others, 1)), block + place",
         "return second, block + place", SMALL),
        ("rows beyond the last not masked", FILTER,
         "tl.arange(0, BLOCK_N)\n    exist = rows < N", "tl.arange(0, BLOCK_N)\n    exist = rows >= 0",
         SMALL),
        ("NaN counts as decided", FILTER, "decided = second < limit  # false for NaN",
         "decided = (second >= limit) == 0",
         f"{OF_NEAREST}test_rows_with_nan_or_inf_get_minus_one[euclidean-triton]"),
        ("padded and dead centroids may win", f"{NEAREST}prepare.py",
         'tl.where(lives, (-half * kept_square).to(tl.float32), float("-inf"))',
         "(-half * kept_square).to(tl.float32)", f"{OF_NEAREST}test_bug14_padding_never_wins[15]"),
        ("places in a list off by one", f"{NEAREST}lists.py", "tl.cumsum(number, 0) - number",
         "tl.cumsum(number, 0)", TIES),
        ("of equal centroids the last wins", f"{NEAREST}exact.py", "if nearer > 0:",
         "if nearer >= 0:", TIES),
        ("float64 taken for exact", RESCORE, "relative = 1.01 * (D + 8.0) * UNIT64",
         "relative = 0.0 * D", TIES),
        ("exact sums: all windows but the last forgotten", f"{NEAREST}integers.py",
         "rest |= carry & SUM_MASK", "rest = carry & SUM_MASK",
         "tests/ops/test_nearest_centroid_ties.py::test_every_bit_counts[60]"),
        ("rows' offsets in 32 bits", f"{NEAREST}rows.py", "rows.to(tl.int64) * source[1]",
         "rows * source[1]", f"{OFFSETS}test_nearest_centroid"),
        ("columns' stride forgotten", f"{NEAREST}rows.py", "ds.to(tl.int64) * source[2]",
         "ds.to(tl.int64)", f"{OFFSETS}test_nearest_centroid_of_strided_columns"),
    )
]  # fmt: skip
