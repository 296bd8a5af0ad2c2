#include "assign/narrow_search.h"

#include <algorithm>
#include <cmath>

namespace clustermim {
namespace {

constexpr int64_t kMostValues = 128;
constexpr int64_t kMostColumns = 1024;
constexpr uintptr_t kPage = 4096;
constexpr float kUnit = 0x1p-24f;

}  // namespace

const NarrowKernel* narrow_kernel(const FilterKernel& filter, const Columns& columns, int64_t dim) {
#if defined(__x86_64__)
  const bool one = columns.segments.size() == 1 && columns.far_entries.empty();
  if (&filter == &kFilterAmx && columns.metric == Metric::euclidean && one && dim <= kMostValues &&
      columns.size() <= kMostColumns) {
    return &kNarrowAmx;
  }
#endif
  (void)filter, (void)columns, (void)dim;
  return nullptr;
}

void NarrowPanels::pack(const NarrowKernel& kernel, const Columns& columns, const char* panels,
                        int64_t tile_bytes, const std::vector<float>& centre, float scale) {
  kernel_ = &kernel;
  const int64_t dim = static_cast<int64_t>(centre.size()), bytes = kernel.tile_bytes(dim);
  const int64_t tiles = columns.size() / columns.tile;
  tiles_.resize(tiles * bytes + kPage);
  char* first = tiles_.data() + (-reinterpret_cast<uintptr_t>(tiles_.data())) % kPage;
  for (int64_t t = 0; t < tiles; ++t) {
    kernel.pack_tile(panels + t * tile_bytes, columns.bias.data() + t * columns.tile, dim,
                     first + t * bytes);
  }
  for (float c : centre) shift_.push_back(-c * scale);

  const float d = static_cast<float>(dim);
  book_.dim = dim;
  book_.tiles = tiles;
  book_.panels = first;
  book_.shift = shift_.data();
  book_.scale = scale;
  book_.entry_of = columns.entry_of.data();
  book_.residual = columns.residual.data();
  book_.bounds = columns.bounds[0];
  // The bias is three products by one of bfloat16 values of the same sign whose sum it is, so the
  // terms of a dot product add up to at most |xr| |cr| + |bias|, and equation (6) holds with the
  // chains of the dot product for both: 16 roundings within a step, one for each step, and before
  // them that of the row's value or the bias itself.
  const float chain = 17.0f + std::ceil((d + 3.0f) / 32.0f);
  book_.error.dot = book_.error.bias = 1.01f * kUnit * chain;
  book_.margin = certified() ? 1.0f + 0x1p-18f : 0.0f;
}

NarrowSearch::NarrowSearch(const NarrowPanels& panels, const Columns& columns, int64_t block_rows)
    : panels_(panels), columns_(columns) {
  if (!panels.usable()) return;
  const int64_t room = block_rows + 16;
  lists_.resize(4 * room);
  threshold_.resize(room);
  bounds_.resize(room);
  open_.pair_row = lists_.data();
  open_.first = open_.pair_row + room;
  open_.second = open_.first + room;
  open_.row = open_.second + room;
  open_.threshold = threshold_.data();
  open_.bounds = bounds_.data();
  hit_columns_.resize(kBatch * kCapacity);
  hit_scores_.resize(kBatch * kCapacity);
}

void NarrowSearch::take_pair(int64_t pair) {
  const int32_t a = columns_.entry_of[open_.first[pair]];
  const int32_t b = columns_.entry_of[open_.second[pair]];
  candidates_.assign({std::min(a, b), std::max(a, b)});
}

bool NarrowSearch::take(int64_t open, int64_t hit) {
  if (!(open_.threshold[open] == open_.threshold[open])) return false;
  return take_candidates(
      columns_, panels_.book().error, open_.bounds[open], hit_columns_.data() + hit * kCapacity,
      hit_scores_.data() + hit * kCapacity, counts_[hit], kCapacity, candidates_);
}

}  // namespace clustermim
