// bfloat16 on AMX with the rows in the lanes: tiles of 16 centroids times tiles of 16 rows.
#include "assign/narrow.h"

#include "assign/narrow_pack_avx512.h"
#include "assign/narrow_verdict_avx512.h"
#include "assign/tiles_amx.h"

namespace clustermim {
namespace {

constexpr int64_t kStep = 32;
constexpr int64_t kTileBytes = 1024;
constexpr int64_t kSpare = 3;     // values of a row that the bias takes
constexpr int64_t kMaxSteps = 5;  // 128 values and the bias

int64_t steps_of(int64_t dim) {
  return (dim + kSpare + kStep - 1) / kStep;
}

// A tile of scores is written while its product is under way, for some 150 cycles. A load whose
// address has the same last 12 bits waits for it; so the tiles that follow each other, of centroids
// and of scores, start in alternate halves of a page.
constexpr int64_t kPage = 4096, kHalf = kPage / 2;
int64_t tile_bytes(int64_t dim) {
  return (steps_of(dim) * kTileBytes + kHalf - 1) / kPage * kPage + kHalf;
}

// Two groups of rows as second operands: [group][step][16 pairs of values][16 rows][2].
struct alignas(64) Operands {
  uint32_t pairs[2][kMaxSteps][16][kGroup];

  // The ones that meet the bias stand where packing never writes.
  explicit Operands(int64_t dim) {
    for (auto& group : pairs) {
      uint32_t* p = &group[0][0][0];
      for (int64_t i = 0; i < steps_of(dim) * 16 * kGroup; ++i) p[i] = 0;
      for (int64_t d = dim; d < dim + kSpare; ++d) {
        for (int64_t r = 0; r < kGroup; ++r) p[d / 2 * kGroup + r] |= 0x3f80u << (d % 2 * 16);
      }
    }
  }
};

// Scores of a tile of centroids against both groups: out [2][16 centroids][16 rows].
// Up to two steps the rows stay in tiles 4 to 7.
template <int kSteps>
CMIM_INLINE void load_rows(const Operands& rows) {
  if constexpr (kSteps <= 2) {
    CMIM_TILE_LOAD(4, rows.pairs[0][0], 64);
    CMIM_TILE_LOAD(5, rows.pairs[1][0], 64);
    if constexpr (kSteps == 2) {
      CMIM_TILE_LOAD(6, rows.pairs[0][1], 64);
      CMIM_TILE_LOAD(7, rows.pairs[1][1], 64);
    }
  }
}

template <int kSteps>
CMIM_INLINE void score_tile(const Operands& rows, const char* panel, int64_t steps, float* out) {
  if constexpr (kSteps <= 2) {
    CMIM_TILE_LOAD(2, panel, 64);
    if constexpr (kSteps == 2) CMIM_TILE_LOAD(3, panel + kTileBytes, 64);
    CMIM_TILE_ZERO(0);
    CMIM_TILE_DOT_BF16(0, 2, 4);
    CMIM_TILE_ZERO(1);
    CMIM_TILE_DOT_BF16(1, 2, 5);
    if constexpr (kSteps == 2) {
      CMIM_TILE_DOT_BF16(0, 3, 6);
      CMIM_TILE_DOT_BF16(1, 3, 7);
    }
  } else {
    CMIM_TILE_ZERO(0);
    CMIM_TILE_ZERO(1);
    for (int64_t s = 0; s < steps; ++s) {
      CMIM_TILE_LOAD(2, panel + s * kTileBytes, 64);
      CMIM_TILE_LOAD(4, rows.pairs[0][s], 64);
      CMIM_TILE_DOT_BF16(0, 2, 4);
      CMIM_TILE_LOAD(5, rows.pairs[1][s], 64);
      CMIM_TILE_DOT_BF16(1, 2, 5);
    }
  }
  CMIM_TILE_STORE(0, out, 64);
  CMIM_TILE_STORE(1, out + 256, 64);
}

CMIM_INLINE void search_tile(const float* scores, int64_t tile, Grid grids[2]) {
#pragma GCC unroll 2
  for (int g = 0; g < 2; ++g) {
    Grid& grid = grids[g];
    __m512 largest[4];
#pragma GCC unroll 16
    for (int c = 0; c < 16; ++c) {
      const __m512 v = _mm512_load_ps(scores + g * 256 + c * 16);
      largest[c % 4] = c < 4 ? v : _mm512_max_ps(largest[c % 4], v);
      _mm512_store_ps(grid.place[c], _mm512_max_ps(_mm512_load_ps(grid.place[c]), v));
    }
    _mm512_store_ps(grid.tile[tile], _mm512_max_ps(_mm512_max_ps(largest[0], largest[1]),
                                                   _mm512_max_ps(largest[2], largest[3])));
  }
}

template <int kSteps>
void assign_rows(const NarrowBook& book, const float* x, int64_t stride, int64_t count,
                 int32_t* entries, NarrowOpen* open) {
  const int64_t steps = steps_of(book.dim), tiles = book.tiles, panel_bytes = tile_bytes(book.dim);
  const char* panels = static_cast<const char*>(book.panels);
  Operands operands(book.dim);
  alignas(kPage) float scores[2][2][kHalf / 4];
  Sums sums[2], last_sums[2];
  Grid grids[2];
  // 32 rows in pieces: for each tile, block of values to pack and group to finish.
  const int64_t pieces = tiles + 2 * (book.dim / 16) + 2;
  Ahead ahead = {reinterpret_cast<const char*>(x),
                 stride < 2 * book.dim ? (2 * kGroup * stride / 16 + pieces) / pieces : 0};
  const auto start = [&](int64_t begin, float* first_scores) __attribute__((always_inline)) {
    for (int g = 0; g < 2; ++g) {
      const float* row[kGroup];
      for (int64_t r = 0; r < kGroup; ++r) {
        const int64_t at = begin + g * kGroup + r;
        row[r] = x + (at < count ? at : count - 1) * stride;
      }
      sums[g] =
          pack_group(row, book.dim, book.shift, book.scale, &operands.pairs[g][0][0][0], &ahead);
    }
    load_rows<kSteps>(operands);
    score_tile<kSteps>(operands, panels, steps, first_scores);
  };
  start(0, scores[0][0]);
  for (int64_t begin = 0, page = 0; begin < count; begin += 2 * kGroup, page ^= 1) {
    for (Grid& grid : grids) {
      for (auto& place : grid.place) _mm512_store_ps(place, splat(-0x1p127f));
    }
    ahead.next = reinterpret_cast<const char*>(x + (begin + kNarrowAhead) * stride);
    const auto search = [&](int64_t t) __attribute__((always_inline)) {
      ahead.ask();
      search_tile(scores[page][t & 1], t, grids);
    };
    for (int64_t t = 1; t < tiles; ++t) {
      score_tile<kSteps>(operands, panels + t * panel_bytes, steps, scores[page][t & 1]);
      search(t - 1);
    }
    last_sums[0] = sums[0];
    last_sums[1] = sums[1];
    // The next rows start before these end: a product takes a while.
    if (begin + 2 * kGroup < count) start(begin + 2 * kGroup, scores[page ^ 1][0]);
    search(tiles - 1);
    for (int64_t g = 0; g < 2 && begin + g * kGroup < count; ++g) {
      ahead.ask();
      finish(book, last_sums[g], grids[g], begin + g * kGroup, count - begin - g * kGroup, entries,
             open);
    }
  }
}

void assign(const NarrowBook& book, const float* rows, int64_t stride, int64_t count,
            int32_t* entries, NarrowOpen* open) {
  open->rows = open->few = 0;
  if (count == 0) return;
  enter_tiles();
  switch (steps_of(book.dim)) {
    case 1: assign_rows<1>(book, rows, stride, count, entries, open); break;
    case 2: assign_rows<2>(book, rows, stride, count, entries, open); break;
    default: assign_rows<3>(book, rows, stride, count, entries, open);
  }
  leave_tiles();
}

template <int kSteps>
void list_candidates(const NarrowBook& book, const float* rows, int64_t stride,
                     const int32_t* which, const float* threshold, int64_t count, Hits hits) {
  const int64_t steps = steps_of(book.dim), panel_bytes = tile_bytes(book.dim);
  Operands operands(book.dim);
  Ahead nothing = {nullptr, 0};
  alignas(kPage) float scores[2][2][16][kGroup];
  alignas(64) float limits[2][kGroup];
  alignas(32) uint16_t above[16];
  for (int64_t g = 0; g < 2; ++g) {
    const float* row[kGroup];
    for (int64_t r = 0; r < kGroup; ++r) {
      const int64_t at = g * kGroup + r;
      row[r] = rows + which[at < count ? at : count - 1] * stride;
      limits[g][r] = at < count ? threshold[at] : __builtin_nanf("");  // no score is above
      if (at < count) hits.counts[at] = 0;
    }
    pack_group(row, book.dim, book.shift, book.scale, &operands.pairs[g][0][0][0], &nothing);
  }
  load_rows<kSteps>(operands);
  const char* panels = static_cast<const char*>(book.panels);
  score_tile<kSteps>(operands, panels, steps, scores[0][0][0]);
  for (int64_t t = 0; t < book.tiles; ++t) {
    if (t + 1 < book.tiles) {
      score_tile<kSteps>(operands, panels + (t + 1) * panel_bytes, steps,
                         scores[(t + 1) & 1][0][0]);
    }
    const auto& tile = scores[t & 1];
    for (int64_t g = 0; g < 2; ++g) {
      const __m512 limit = _mm512_load_ps(limits[g]);
#pragma GCC unroll 16
      for (int c = 0; c < 16; ++c) {
        above[c] = _mm512_cmp_ps_mask(_mm512_load_ps(tile[g][c]), limit, _CMP_GE_OQ);
      }
      const __m256i words = _mm256_load_si256(reinterpret_cast<const __m256i*>(above));
      for (uint32_t in = _mm256_test_epi16_mask(words, words); in; in &= in - 1) {
        const int c = __builtin_ctz(in);
        for (uint32_t bits = above[c]; bits; bits &= bits - 1) {
          const int64_t lane = __builtin_ctz(bits), r = g * kGroup + lane;
          const int32_t n = hits.counts[r]++;
          if (n >= hits.capacity) continue;
          hits.columns[r * hits.capacity + n] = static_cast<int32_t>(t * 16 + c);
          hits.scores[r * hits.capacity + n] = tile[g][c][lane];
        }
      }
    }
  }
}

void candidates(const NarrowBook& book, const float* rows, int64_t stride, const int32_t* which,
                const float* threshold, int64_t count, Hits hits) {
  enter_tiles();
  const int64_t steps = steps_of(book.dim);
  if (steps == 1) {
    list_candidates<1>(book, rows, stride, which, threshold, count, hits);
  } else if (steps == 2) {
    list_candidates<2>(book, rows, stride, which, threshold, count, hits);
  } else {
    list_candidates<3>(book, rows, stride, which, threshold, count, hits);
  }
  leave_tiles();
}

// Of a float32, the three bfloat16 values that it is the sum of.
void split(float value, uint16_t parts[kSpare]) {
  for (int64_t i = 0; i < kSpare; ++i) {
    uint32_t bits;
    __builtin_memcpy(&bits, &value, 4);
    parts[i] = static_cast<uint16_t>(bits >> 16);
    bits &= 0xffff0000u;
    float part;
    __builtin_memcpy(&part, &bits, 4);
    value -= part;
  }
}

// To [steps][16 centroids][32 values], as tdpbf16ps reads its first operand; filter_amx.cpp's tiles
// are [pairs of values][16 centroids][2].
void pack_column(const void* filter_tile, int64_t from, float bias, int64_t dim, void* tile,
                 int64_t to) {
  const uint16_t* in = static_cast<const uint16_t*>(filter_tile);
  uint16_t* out = static_cast<uint16_t*>(tile);
  uint16_t parts[kSpare];
  split(bias, parts);
  for (int64_t d = 0; d < dim + kSpare; ++d) {
    out[(d / kStep * 16 + to) * kStep + d % kStep] =
        d < dim ? in[(d / 2 * 16 + from) * 2 + d % 2] : parts[d - dim];
  }
}

}  // namespace

extern const NarrowKernel kNarrowAmx;
const NarrowKernel kNarrowAmx = {tile_bytes, pack_column, assign, candidates};

}  // namespace clustermim
