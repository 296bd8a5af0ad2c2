"""The planted bugs of check_cuda_mutations.py in the filter on Hopper."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutation:
    """``text`` stands in ``file``; with ``bug`` in its place the test ``witness`` has to fail.

    witness: a program of tests/cpp, and the sanitizer it is built with ("" for none).
    """

    name: str
    file: str
    text: str
    bug: str
    witness: tuple[str, str]


LAYOUT, FILTER, CONVERTER, CONSUMER, SCORES, DECIDE, ROWS = (
    f"csrc/nearest_centroid/hopper_{part}.h"
    for part in ("layout", "filter", "converter", "consumer", "scores", "decide", "rows")
)
ONE_TILE, TILES, IMAGES = (
    "hopper_filter_test",
    "hopper_filter_tiles_test",
    "hopper_filter_images_test",
)
WAIT, RELEASE = "products_wait<0>();\n", "release_chunk(F::kChunks - 1);\n"
SUMS = "if (next == 0) store_sums(group, sums, false);\n"
END, END_TILE = "end_chunk(chunk);\n", "  CMIM_DEVICE void end_tile(int number) {\n"
PLAIN, RACES, BOUNDS = "", "thread", "address"

MUTATIONS = [
    Mutation(*entry)
    for entry in (
        # ---- barriers
        ("missing barrier: centroids are read", CONSUMER,
         "    barrier_wait(memory.full(ring.at), ring.parity);\n", "", (TILES, RACES)),
        ("missing barrier: rows are read", CONSUMER,
         "if (is_first && part == 0) barrier_wait(memory.chunk_full(chunk), row_parity);", "",
         (TILES, RACES)),
        ("missing barrier: rows are overwritten", CONVERTER,
         "if (first == group) barrier_wait(memory.chunk_empty(chunk), tile.parity ^ 1);", "",
         (TILES, RACES)),
        ("missing barrier: centroids are overwritten", FILTER,
         "        barrier_wait(memory.empty(ring.at), ring.parity ^ 1);\n", "", (TILES, PLAIN)),
        ("wrong parity: an empty ring is waited for", FILTER,
         "barrier_wait(memory.empty(ring.at), ring.parity ^ 1)",
         "barrier_wait(memory.empty(ring.at), ring.parity)", (ONE_TILE, PLAIN)),
        ("wrong parity: the ring's turns are not counted", LAYOUT,
         "if (++at == kSize) at = 0, parity ^= 1;", "if (++at == kSize) at = 0;",
         (TILES, PLAIN)),
        ("too few bytes announced", FILTER,
         "F::kStepBytes + (step == 0 ? F::kBiasBytes : 0)", "F::kStepBytes", (ONE_TILE, PLAIN)),
        ("too few arrivals expected of the converters", FILTER,
         "barrier_init(memory.chunk_full(c), F::kConverters)",
         "barrier_init(memory.chunk_full(c), 1)", (TILES, PLAIN)),
        ("remote arrival missing", CONSUMER,
         "if (lane < F::kCluster) barrier_arrive_of", "if (lane < 1) barrier_arrive_of",
         (TILES, PLAIN)),
        ("arrivals of the first warpgroup alone", FILTER,
         "barrier_init(memory.empty(s), 8 * F::kCluster)",
         "barrier_init(memory.empty(s), 4 * F::kCluster)", (TILES, PLAIN)),
        ("the second warpgroup's start is never given", CONSUMER,
         "if (!F::kOneTile && step == lag_step &&", "if (!F::kOneTile && step == -2 &&",
         (TILES, PLAIN)),
        ("no cluster_sync at the end", FILTER,
         "  if (F::kCluster != 1) cluster_sync();\n", "", (TILES, PLAIN)),
        ("no cluster_sync at the beginning", FILTER,
         "  else\n    cluster_sync();\n", "  else\n    block_sync();\n", (TILES, PLAIN)),
        ("lanes' stores not awaited before the warp arrives", CONVERTER,
         "    warp_sync();\n", "", (ONE_TILE, RACES)),
        ("missing proxy fence", CONVERTER,
         "    make_visible_to_products();\n", "", (ONE_TILE, PLAIN)),
        ("more registers than the block has", LAYOUT, "kOneTile ? 128 : 224",
         "kOneTile ? 144 : 224", (ONE_TILE, PLAIN)),
        # ---- what is used too early
        ("stage released early", CONSUMER, "    products_wait<1>();\n", "    products_wait<2>();\n",
         (TILES, PLAIN)),
        ("stage released while its products are under way", CONSUMER,
         "memory.empty(ring.last())", "memory.empty(ring.at)", (TILES, RACES)),
        ("accumulators read before the wait", CONSUMER, "    products_wait<0>();\n", "",
         (ONE_TILE, PLAIN)),
        ("accumulators taken back without telling the compiler", CONSUMER,
         "      if (step == 0) products_are_in(before);\n", "", (TILES, PLAIN)),
        ("no products_fence", CONSUMER, "    products_fence();\n", "", (ONE_TILE, PLAIN)),
        ("A chunk released early", CONSUMER, "release_chunk(chunk - 1)",
         "release_chunk(chunk - 1), release_chunk(chunk)", (TILES, PLAIN)),
        ("rows released before the last products", CONSUMER,
         f"    {WAIT}    products_are_in(sums);\n    release_stage();\n    {RELEASE}",
         f"    {RELEASE}    {WAIT}    products_are_in(sums);\n    release_stage();\n",
         (TILES, RACES)),
        ("bias slot reused too early", LAYOUT, "(stages + kSteps - 1) / kSteps + 2",
         "(stages + kSteps - 1) / kSteps", (TILES, RACES)),
        ("sums of rows stored after the arrival", CONVERTER, f"      {SUMS}      {END}",
         f"      {END}      {SUMS}", (ONE_TILE, RACES)),
        # ---- what is where
        ("wrong swizzle of centroids", LAYOUT,
         "kStep == 64 ? Swizzle::bytes_128 : Swizzle::bytes_64",
         "kStep == 64 ? Swizzle::bytes_64 : Swizzle::bytes_128", (ONE_TILE, PLAIN)),
        ("wrong operand offset", CONSUMER, "ring.at * F::kStepBytes + 32 * k",
         "ring.at * F::kStepBytes + 16 * k", (ONE_TILE, PLAIN)),
        ("both blocks copy the same half", FILTER, "row + rank * (F::kColumns / 2)", "row",
         (TILES, PLAIN)),
        ("rows of the second warpgroup are the first's", CONSUMER,
         "memory.chunk(0) + group * (F::kChunkBytes / 2)", "memory.chunk(0)", (ONE_TILE, PLAIN)),
        ("offsets of rows in 32 bits", ROWS, "{ return row * a.row_stride; }",
         "{ return row * static_cast<int>(a.row_stride) * 1; }", (TILES, BOUNDS)),
        ("columns beyond the last are read", ROWS, "        if (d >= a.dim) continue;\n", "",
         (ONE_TILE, PLAIN)),
        ("columns' stride forgotten", ROWS, "start + d * a.column_stride", "start + d",
         (ONE_TILE, PLAIN)),
        ("lines' stride taken for columns'", ROWS,
         "patch % kAcross * (kPatch * a.strides.pixel)",
         "patch % kAcross * (kPatch * a.strides.line)", (IMAGES, PLAIN)),
        ("weights of another channel's pixels", ROWS, "weight(a, c.first + 4 * half + i)",
         "weight(a, i)", (IMAGES, PLAIN)),
        # ---- what is left out
        ("last rows dropped", LAYOUT, "* F::kRows < a.num_rows", "* F::kRows + 127 < a.num_rows",
         (ONE_TILE, PLAIN)),
        ("rows beyond the last listed", CONSUMER, "thread % 4 < 2 && row < a.num_rows",
         "thread % 4 < 2", (ONE_TILE, BOUNDS)),
        ("last tile of centroids never waited for", CONSUMER,
         "          multiply(odd, even, tile + 1, rows.parity);\n", "", (TILES, PLAIN)),
        ("last tile of centroids dropped", SCORES,
         END_TILE, f"{END_TILE}    if (number == 2) largest[0] = largest[1] = no_score();\n",
         (TILES, PLAIN)),
        ("second best of other tiles forgotten", SCORES,
         "      next[h] = larger(next[h], smaller(best[h], largest[h]));\n", "", (TILES, PLAIN)),
        ("second best of the best one's tile forgotten", SCORES,
         "        found.next = larger(found.next, places[i]);\n", "", (ONE_TILE, PLAIN)),
        ("of equal scores the second forgotten", SCORES,
         "    if (equal > 1) found.next = found.score;\n", "", (ONE_TILE, PLAIN)),
        ("second best of the quad's other threads forgotten", SCORES,
         "larger(larger(found.next, other.next), smaller(found.score, other.score))",
         "larger(found.next, smaller(found.score, other.score))", (ONE_TILE, PLAIN)),
        # ---- the bound
        ("NaN counts as decided", DECIDE, "decided = best.next < limit.score",
         "decided = !(best.next >= limit.score)", (ONE_TILE, PLAIN)),
        ("margin not scaled by the distance", DECIDE, "2 * (eps + slack * (away + slack))",
         "2 * (eps + slack * slack)", (ONE_TILE, PLAIN)),
        ("margin without what rounding moved in a row", DECIDE, "slack = moved + rest",
         "slack = rest", (ONE_TILE, PLAIN)),
        ("a lane's half of the rows' sums handed on twice", CONVERTER,
         "const float kept = upper ? sums[left + i] : sums[i];", "const float kept = sums[i];",
         (ONE_TILE, PLAIN)),
        ("places in the list off by one", DECIDE, "open & ((1u << lane) - 1)",
         "open & ((2u << lane) - 1)", (ONE_TILE, PLAIN)),
    )
]  # fmt: skip
