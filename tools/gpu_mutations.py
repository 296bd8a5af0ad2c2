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
LINEAR = "clustermim_fast/ops/masked_linear_cross_entropy/triton_fused.py"
SOFTMAX = "clustermim_fast/ops/masked_linear_cross_entropy/triton_softmax.py"
REST = "clustermim_fast/ops/masked_linear_cross_entropy/triton_rest.py"
MANY_CLASSES = "tests/gpu/test_many_classes.py::"
CHUNKS = f"{MANY_CLASSES}test_chunks_and_tiles[forward-dtype0-None]"
LOGITS = "clustermim_fast/ops/masked_cross_entropy/triton_rows.py"
COMPACT = "clustermim_fast/ops/masked_cross_entropy/triton_compact.py"
OF_LOSSES = "tests/ops/test_masked_loss_bugs"
BUG07 = "test_bug07_probability_rounded_before_the_one_hot_is_subtracted"
BUG03 = f"{OF_LOSSES}.py::test_bug03_mean_over_all_rows_instead_of_counted_ones[dtype0-triton]"
MANY_TOKENS = "tests/gpu/test_many_tokens.py::test_gradients_of_many_tokens"
SUMS = "clustermim_fast/ops/lloyd_step/triton_sums.py"
IMAGES = "tests/gpu/test_small_images.py::"
GREY = f"{IMAGES}test_grey_pixels_between_two_centroids"
SMALL = f"{OF_NEAREST}test_every_size[129-17-7]"
OF_TIES = "tests/gpu/test_small_ties.py::"
TIES = f"{OF_TIES}test_permuted_centroids[3-euclidean]"
TERMS = "tests/gpu/test_bound_terms.py::"
FAR = f"{TERMS}test_a_far_centroid_that_is_nearest"
LIMITS = f"{TERMS}test_limits_are_those_of_the_equations[euclidean]"
LENGTHS = f"{TERMS}test_measured_lengths_are_upper_bounds"
BARRIER = "tl.debug_barrier()  # "
BARRIERS = "tests/gpu/test_barriers.py::"

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
        ("ids beyond the last centroid looked up", REPLACE,
         "(token >= 0) & (token < num_centroids)",
         "token >= 0", f"{OFFSETS}test_ids_beyond_the_last_centroid"),
        ("pixels of a patch by column, then row", REPLACE,
         "(c * PATCH + y % PATCH)[:, None] * PATCH + x % PATCH",
         "(c * PATCH)[:, None] * PATCH + x % PATCH * PATCH + (y % PATCH)[:, None]",
         f"{OF_REPLACE}test_pixels[None-None-dtype0-hwc-triton]"),
        # ---- nearest_centroid
        ("margin without what rounding moved in a row", FILTER, "S = moved + R",
         "S = R", SMALL),
        ("margin without what rounding moved in the centroids", FILTER, "S = moved + R",
         "S = moved", f"{OF_TIES}test_centroids_that_float16_cannot_tell_apart"),
        ("margin not scaled by the distance", FILTER, "margin = 2 * (eps + S * (distance + S))",
         "margin = 2 * (eps + S * S)", SMALL),
        # The terms of docs/certificate.md's (12) to (15), beside the three above.
        ("(13) sm_80: alpha halved", f"{NEAREST}sizes.py", '"sm_80": 1.5', '"sm_80": 0.75',
         f"{TERMS}test_accumulation[sm_80]"),
        ("(13) sm_90: alpha halved", f"{NEAREST}sizes.py", '"sm_90": 0.75', '"sm_90": 0.375',
         f"{TERMS}test_accumulation[sm_90]"),
        ("(13) other GPUs: alpha of sm_80", f"{NEAREST}sizes.py", "get(arch, 4.0)",
         "get(arch, 1.5)", f"{TERMS}test_accumulation[any other]"),
        ("(14) without 2^-22 C^2", FILTER, "eps += 2.0**-22 * C * C", "eps += 0.0",
         f"{TERMS}test_biases"),
        ("(15) without S^2", FILTER, "margin = 2 * (eps + S * (distance + S))",
         "margin = 2 * (eps + S * distance)", f"{TERMS}test_the_square_of_the_roundings"),
        ("(15) without the centroids' roundings, dot", FILTER, "eps + length * R + moved * (C + R)",
         "eps + moved * (C + R)", f"{TERMS}test_roundings_of_centroids_in_products"),
        ("(15) without the row's roundings, dot", FILTER, "eps + length * R + moved * (C + R)",
         "eps + length * R", f"{TERMS}test_roundings_of_rows_in_products"),
        ("far centroids: without the row's length", FILTER, "(length + moved + nearest) * ROOM",
         "(moved + nearest) * ROOM", FAR),
        ("far centroids: without delta + S", FILTER, "(length + moved + nearest) * ROOM",
         "(length + moved) * ROOM", FAR),
        ("(12) without the rounding of x s - m", FILTER, "+ 2.0**-23 * length + tiny", "+ tiny",
         LENGTHS),
        ("(12) without tiny", FILTER, "+ 2.0**-23 * length + tiny", "+ 2.0**-23 * length", LENGTHS),
        ("(12) without factor", FILTER, "tl.sqrt(rests * factor)", "tl.sqrt(rests)", LENGTHS),
        ("the row's length without factor", FILTER, "tl.sqrt(squares * factor)",
         "tl.sqrt(squares)", LENGTHS),
        ("delta^2 without 4 eps", FILTER, "- 2 * best + 4 * eps", "- 2 * best", LIMITS),
        ("delta^2 without factor", FILTER, "length * length * factor", "length * length", LIMITS),
        ("delta without room for its rounding", FILTER, "nearest = (distance + S) * ROOM",
         "nearest = distance + S", LIMITS),
        ("margin without room for its rounding", FILTER, "best - margin * ROOM", "best - margin",
         LIMITS),
        ("second best of the best one's block forgotten", FILTER,
         "return tl.maximum(second, tl.max(others, 1)), block + place",
         "return second, block + place", SMALL),
        ("rows beyond the last not masked", FILTER,
         "exist = rows < N", "exist = rows >= 0",
         SMALL),
        ("NaN counts as decided", FILTER, "decided = second < limit  # false for NaN",
         "decided = (second >= limit) == 0",
         f"{OF_NEAREST}test_rows_with_nan_or_inf_get_minus_one[euclidean-triton]"),
        ("padded and dead centroids may win", f"{NEAREST}prepare.py",
         'tl.where(lives, (-share * kept_square).to(tl.float32), float("-inf"))',
         "(-share * kept_square).to(tl.float32)", f"{OF_NEAREST}test_bug14_padding_never_wins[15]"),
        ("places in a list off by one", f"{NEAREST}lists.py", "tl.cumsum(number, 0) - number",
         "tl.cumsum(number, 0)", TIES),
        ("of equal centroids the last wins", f"{NEAREST}exact.py", "if nearer > 0:",
         "if nearer >= 0:", TIES),
        ("float64 taken for exact", RESCORE, "relative = 1.01 * (D + 8.0) * UNIT64",
         "relative = 0.0 * D", TIES),
        ("exact sums: all windows but the last forgotten", f"{NEAREST}integers.py",
         "rest |= carry & SUM_MASK", "rest = carry & SUM_MASK",
         f"{OF_TIES}test_one_is_nearer_by_the_lowest_bit"),
        ("rows' offsets in 32 bits", f"{NEAREST}rows.py", "rows.to(tl.int64) * source[1]",
         "rows * source[1]", f"{OFFSETS}test_nearest_centroid"),
        ("columns' stride forgotten", f"{NEAREST}rows.py", "ds.to(tl.int64) * source[2]",
         "ds.to(tl.int64)", f"{OFFSETS}test_nearest_centroid_of_strided_columns"),
        ("missing barrier: rows in scratch are read", FILTER,
         f"{BARRIER}other threads' values are read from here on", "pass",
         f"{BARRIERS}test_rounded_rows_in_scratch"),
        ("missing barrier: rows in scratch are overwritten", FILTER,
         f"{BARRIER}before the next rows overwrite scratch", "pass",
         f"{BARRIERS}test_rounded_rows_in_scratch"),
        ("missing barrier: slots of the sweep", f"{NEAREST}sweep.py",
         f"{BARRIER}the slots that other threads stored are read", "pass",
         f"{OF_TIES}test_permuted_centroids[10-euclidean]"),
        ("missing barrier: exact sums are read", f"{NEAREST}integers.py",
         f"{BARRIER}other threads read what one stored", "pass",
         f"{BARRIERS}test_numbers_of_several_comparisons"),
        ("missing barrier: exact sums are overwritten", f"{NEAREST}integers.py",
         f"{BARRIER}dot may be overwritten, the others be read", "pass",
         f"{BARRIERS}test_numbers_of_several_comparisons"),
        ("missing barrier: exact products are overwritten", f"{NEAREST}integers.py",
         f"{BARRIER}scratch may be overwritten", "pass",
         f"{BARRIERS}test_numbers_of_several_comparisons"),
        # ---- images read in place, Lloyd steps
        ("lines' stride taken for columns'", f"{NEAREST}images.py",
         "ds // P % P * source[H_STRIDE]", "ds // P % P * source[W_STRIDE]",
         f"{IMAGES}test_tokens_of_strided_images"),
        ("pixels multiplied by 1 / 255", f"{NEAREST}images.py",
         "values * HIGH + values * LOW", "values * (1.0 / 255.0)",
         f"{IMAGES}test_pixels_are_divided_as_promised"),
        ("quotients rounded twice", f"{NEAREST}images.py", "((bits + 4) & -8)", "bits",
         "tests/gpu/test_pixel_values.py::test_quotients_halfway_between_subnormal_numbers"),
        ("pixels' quotients cut, not rounded", f"{NEAREST}images.py", "(bits + 2**28)", "bits",
         "tests/gpu/test_pixel_values.py::test_every_uint8_pixel[mean3-std0]"),
        ("pixels taken for points on their line", f"{NEAREST}pixels.py",
         "(eta * power) @ (eta * power)", "0.0 * (eta @ eta)", f"{GREY}[values off the line]"),
        ("centroids' rounding counted in operands' units", f"{NEAREST}prepare.py",
         "rest = values - kept", "rest = operands - half.to(tl.float64)",
         f"{GREY}[centroids rounded]"),
        ("a pixel's offset off by one", f"{NEAREST}pixels.py", "(1024.0 + MIDDLE)",
         "(1025.0 + MIDDLE)", f"{GREY}[values off the line]"),
        ("images' offsets in 32 bits", f"{NEAREST}images.py",
         "image.to(tl.int64) * source[B_STRIDE]", "image * source[B_STRIDE]",
         f"{IMAGES}test_images_far_apart"),
        ("a part reads into the next centroid's rows", SUMS,
         "end = tl.minimum(begin + PART, tl.load(starts + own_bin + 1))", "end = begin + PART",
         f"{IMAGES}test_sums_of_uint8_images_are_the_cpu_s"),
        ("the last part of each centroid left out", SUMS, "range(tl.max(end - begin, 0))",
         "range(tl.max(end - begin, 0) - 1)", f"{IMAGES}test_sums_of_uint8_images_are_the_cpu_s"),
        # ---- the masked losses
        ("the mask not looked at", COMPACT, "other=0) != 0)", "other=0) >= 0)", BUG03),
        ("tokens that do not count placed over others", COMPACT, "count + tokens - earlier",
         "tokens", BUG03),
        ("samples' offsets in 32 bits", LOGITS, "sample.to(tl.int64) * stride_sample",
         "sample * stride_sample", f"{OFFSETS}test_masked_cross_entropy"),
        ("classes beyond the last not masked", LOGITS,
         'return tl.where(inside[None, :], z, float("-inf"))', "return z",
         f"{OFFSETS}test_masked_cross_entropy"),
        ("gradient of what does not count not zero", LINEAR,
         "for start in range(n + pid * ROWS, N, programs * ROWS):",
         "for start in range(n + pid * ROWS, n, programs * ROWS):",
         f"{OF_LOSSES}.py::test_bug10_outputs_that_are_not_written[dtype1-triton]"),
        ("an atomic sum of losses", LINEAR, "tl.store(sums_ptr + pid, tl.sum(losses, axis=0))",
         "tl.atomic_add(sums_ptr, tl.sum(losses, axis=0))",
         f"{OF_LOSSES}.py::test_bug29_bias_without_a_test[dtype1-0.3-triton]"),
        ("smoothing taken from the target alone", LINEAR,
         "tl.where(onehot, 1.0 - smoothing + each, each)",
         "tl.where(onehot, 1.0 - smoothing, each)",
         f"{OF_LOSSES}.py::test_bug29_bias_without_a_test[dtype1-0.3-triton]"),
        ("probability rounded before the one-hot is subtracted", LINEAR,
         "dz = p * share[:, None] - ",
         "dz = (p * share[:, None]).to(w_ptr.dtype.element_ty).to(tl.float32) - ",
         f"{OF_LOSSES}_precision.py::{BUG07}[triton]"),
        ("float16's gradient not shifted up", LINEAR, "dz_narrow = (dz * shift)",
         "dz_narrow = (dz)",
         f"{MANY_TOKENS}[dtype1]"),
        ("the last tokens left out of dW", LINEAR, "tl.cdiv(tl.cdiv(n, ROWS), splits) * ROWS",
         "tl.cdiv(n, ROWS) // splits * ROWS", f"{MANY_TOKENS}[dtype0]"),
        ("many classes: those beyond the last not masked", SOFTMAX, "    if PADDED:\n",
         "    if False:\n", CHUNKS),
        ("many classes: tiles' sums added without their tops", SOFTMAX,
         "under * totals, 0.0)", "totals, 0.0)", CHUNKS),
        ("many classes: smoothing left in dW", SOFTMAX,
         "dz = tl.where(ks[None, :] == K, part[:, None], dz)", "pass", CHUNKS),
        ("many classes: products do not stop at the count", SOFTMAX,
         "start = first + (pid // tiles).to(tl.int64) * ROWS\n    if start >= n:",
         "start = first + (pid // tiles).to(tl.int64) * ROWS\n    if start >= end:",
         f"{MANY_CLASSES}test_products_stop_at_what_counts[None-dtype0]"),
        ("many classes: the target's p from float16", SOFTMAX,
         "tl.where(onehot, hit[:, None], e * (scale * (1.0 / 32768.0))[:, None])",
         "e * (scale / 32768.0)[:, None] - tl.where(onehot, 1.0 - smoothing, 0.0)",
         f"{MANY_CLASSES}test_the_target_s_gradient_is_of_float32[12.125-dtype0]"),
        ("many classes: db summed from 16 bits", SOFTMAX,
         "dz = tl.where(ks[None, :] == target[:, None], dz - hard[:, None], dz)",
         ("dz = tl.where(ks[None, :] == target[:, None], dz - hard[:, None], dz).to(tl.float16)"
          ".to(tl.float32)"), f"{MANY_CLASSES}test_chunks_and_tiles[recompute-dtype1-None]"),
        ("many classes: db of the last chunk alone", SOFTMAX,
         "db = tl.load(db_at, mask=inside, other=0.0)", "db = tl.zeros([COLUMNS], tl.float32)",
         f"{MANY_CLASSES}test_chunks_and_tiles[recompute-dtype1-None]"),
        ("many classes: more tokens than were said left as they lay", REST,
         "first = tl.minimum(n, limit)", "first = n",
         f"{MANY_CLASSES}test_a_mask_with_more_than_was_said[none-dtype0]"),
    )
]  # fmt: skip
