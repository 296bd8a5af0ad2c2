#include "assign/narrow_integer_search.h"

#include <algorithm>
#include <cmath>

#include "assign/certificate.h"

namespace clustermim {
namespace {

constexpr int64_t kIntegerColumnsBesideTiles = 64;

}  // namespace

const IntegerKernel* integer_kernel(Isa isa, const Columns& columns, int64_t dim) {
  const bool one = columns.segments.size() == 1 && columns.far_entries.empty();
  const bool narrow = dim >= 1 && dim <= kIntegerValues && columns.size() <= kIntegerColumns;
  if (columns.metric != Metric::euclidean || !one || !narrow) return nullptr;
#if defined(__x86_64__)
  switch (isa) {
    // Tiles start to pay where there are more columns (docs/measurements.md).
    case Isa::amx: return columns.size() <= kIntegerColumnsBesideTiles ? &kIntegersVnni : nullptr;
    case Isa::avx512_vnni: return &kIntegersVnni;
    case Isa::avx512: return &kIntegersAvx512;
    case Isa::avx2: return &kIntegersAvx2;
    case Isa::generic: return &kIntegersGeneric;
  }
#endif
  (void)isa;
  return nullptr;
}

// In units of the integers: c'' = (c - centre) * scale, |c''| <= kMostCentroidNorm.
void IntegerPanels::pack(const IntegerKernel& kernel, int64_t entries,
                         const std::vector<float>& centre, float scale, double largest,
                         const std::function<const double*(int64_t)>& value) {
  // Rounding adds at most sqrt(128) / 2 to a norm.
  const double unit = (kMostCentroidNorm - 8.0) / std::max(largest, 0.5);
  book_.scale = scale * static_cast<float>(unit);
  if (!(book_.scale > 1e-30f && book_.scale < 1e30f)) return;
  const double factor = book_.scale;
  const int64_t dim = static_cast<int64_t>(centre.size()), pairs = (dim + 1) / 2;
  const int64_t most = kernel.most_columns, blocks = (entries + most - 1) / most;
  int64_t columns = std::max<int64_t>(2, (entries + blocks - 1) / blocks);
  while ((most - columns) % kernel.fewer) ++columns;
  centre_ = centre;
  panels_.assign(blocks * pairs * columns, 0);
  start_.assign(blocks * columns, 0);
  column_.assign(blocks * columns, 0);
  std::vector<int64_t> first(pairs);
  for (int64_t p = 0; p < pairs; ++p) first[p] = kernel.first_value(dim, p);

  double residual2 = 0.0, norm2 = 0.0;  // the largest ones
  for (int64_t e = 0; e < entries; ++e) {
    const double* v = value(e);
    int32_t* panel = panels_.data() + e / columns * pairs * columns + e % columns;
    int64_t own_norm2 = 0;
    double own_residual2 = 0.0;
    const auto round = [&](int64_t d) {
      const double exact = (v[d] - centre[d]) * factor;
      const long rounded = std::lrint(exact);
      own_norm2 += rounded * rounded;
      own_residual2 += (exact - rounded) * (exact - rounded);
      return static_cast<int32_t>(rounded);
    };
    for (int64_t p = 0; p < pairs; ++p) {
      const int32_t low = round(first[p]), high = first[p] + 1 < dim ? round(first[p] + 1) : 0;
      panel[p * columns] = (low & 0xffff) | static_cast<int32_t>(static_cast<uint32_t>(high) << 16);
    }
    residual2 = std::max(residual2, own_residual2);
    norm2 = std::max(norm2, static_cast<double>(own_norm2));
    start_[e] = kScoreZero - static_cast<int32_t>(own_norm2 / 2);
    column_[e] = static_cast<int32_t>(e);
  }
  if (!(norm2 <= kMostCentroidNorm * kMostCentroidNorm)) return;

  kernel_ = &kernel;
  book_.dim = dim;
  book_.pairs = pairs;
  book_.blocks = blocks;
  book_.block_columns = columns;
  book_.panels = panels_.data();
  book_.start = start_.data();
  book_.column = column_.data();
  book_.centre = centre_.data();
  while (book_.marks + 1 < entries) book_.marks = 2 * book_.marks + 1;
  // Equation (10): two roundings of float32, then at most a half for each value.
  const double row = 0.5 * std::sqrt(static_cast<double>(dim)) + 0x1.04p-23 * kMostRowNorm;
  const double centroid = std::sqrt(residual2) + 0x1p-40 * kMostCentroidNorm;
  book_.slack = static_cast<float>((row + centroid) * (1.0 + 0x1p-20));
  book_.margin = certified() ? 1.0f + 0x1p-18f : 0.0f;
}

IntegerSearch::IntegerSearch(const IntegerPanels& panels, int64_t block_rows) : panels_(panels) {
  if (!panels.usable()) return;
  lists_.resize(3 * block_rows);
  open_.row = lists_.data();
  open_.threshold = open_.row + block_rows;
  open_.beyond = open_.threshold + block_rows;
  hits_.resize(panels.kernel().rows * kCapacity);
  counts_.resize(panels.kernel().rows);
}

bool IntegerSearch::take(int64_t i) {
  if (counts_[i] > kCapacity) return false;
  candidates_.assign(hits_.begin() + i * kCapacity, hits_.begin() + i * kCapacity + counts_[i]);
  return true;
}

}  // namespace clustermim
