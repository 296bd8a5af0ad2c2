#include "assign/narrow_search.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace clustermim {
namespace {

constexpr int64_t kMostValues = 128;
constexpr int64_t kMostColumns = 1024;
constexpr int64_t kTile = 16;
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
  for (int64_t k = 0; k < columns.size(); ++k) {
    if (columns.entry_of[k] >= 0) order_.push_back(static_cast<int32_t>(k));
  }
  std::stable_sort(order_.begin(), order_.end(),
                   [&](int32_t a, int32_t b) { return columns.residual[a] < columns.residual[b]; });
  const int64_t used = static_cast<int64_t>(order_.size()), tiles = (used + kTile - 1) / kTile;
  order_.resize(tiles * kTile, -1);
  entry_of_.resize(tiles * kTile, -1);
  tiles_.resize(tiles * bytes + kPage);
  char* first = tiles_.data() + (-reinterpret_cast<uintptr_t>(tiles_.data())) % kPage;
  std::vector<char> empty(tile_bytes);
  for (int64_t k = 0; k < tiles * kTile; ++k) {
    char* tile = first + k / kTile * bytes;
    if (k >= used) {
      kernel.pack_column(empty.data(), 0, kNeverWins, dim, tile, k % kTile);
      continue;
    }
    const int64_t from = order_[k];
    entry_of_[k] = columns.entry_of[from];
    kernel.pack_column(panels + from / columns.tile * tile_bytes, from % columns.tile,
                       columns.bias[from], dim, tile, k % kTile);
  }
  for (int64_t t = 0; t < tiles; ++t) {
    tile_residual_.push_back(columns.residual[order_[std::min((t + 1) * kTile, used) - 1]]);
  }
  for (float c : centre) shift_.push_back(-c * scale);

  const float d = static_cast<float>(dim);
  book_.dim = dim;
  book_.tiles = tiles;
  book_.panels = first;
  book_.shift = shift_.data();
  book_.scale = scale;
  book_.entry_of = entry_of_.data();
  book_.tile_residual = tile_residual_.data();
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
  lists_.resize(5 * room);
  threshold_.resize(room);
  bounds_.resize(room);
  open_.row = lists_.data();
  open_.few_row = open_.row + room;
  open_.few_tiles[0] = open_.few_row + room;
  open_.few_tiles[1] = open_.few_tiles[0] + room;
  open_.few_places = open_.few_tiles[1] + room;
  open_.threshold = threshold_.data();
  open_.bounds = bounds_.data();
  hit_columns_.resize(kBatch * kCapacity);
  hit_scores_.resize(kBatch * kCapacity);
}

void NarrowSearch::take_few(int64_t open) {
  candidates_.clear();
  for (int64_t half = 0; half < 2; ++half) {
    for (uint32_t t = open_.few_tiles[half][open]; t; t &= t - 1) {
      for (uint32_t p = open_.few_places[open]; p; p &= p - 1) {
        const int64_t tile = 32 * half + std::countr_zero(t);
        const int32_t entry = panels_.book().entry_of[kTile * tile + std::countr_zero(p)];
        if (entry >= 0) candidates_.push_back(entry);
      }
    }
  }
  std::sort(candidates_.begin(), candidates_.end());
}

bool NarrowSearch::take(int64_t open, int64_t hit) {
  if (!(open_.threshold[open] == open_.threshold[open])) return false;
  int32_t* found = hit_columns_.data() + hit * kCapacity;
  float* scores = hit_scores_.data() + hit * kCapacity;
  const int64_t count = std::min<int64_t>(counts_[hit], kCapacity);
  for (int64_t i = 0; i < count; ++i) found[i] = panels_.column(found[i]);
  return take_candidates(columns_, panels_.book().error, open_.bounds[open], found, scores,
                         counts_[hit], kCapacity, candidates_);
}

}  // namespace clustermim
