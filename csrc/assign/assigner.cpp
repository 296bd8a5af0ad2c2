#include "assign/assigner.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <type_traits>

#include "assign/scores.h"
#include "core/parallel_for.h"

namespace clustermim {
namespace {

constexpr int64_t kBlockBytes = 512 * 1024;  // packed rows; the second-level cache has 1 or 2 MiB
constexpr int64_t kChunkBytes = 768 * 1024;  // packed centroids that a strip of rows passes at once
constexpr int64_t kMaxBlockRows = 512;
constexpr int64_t kMaxChunkColumns = 512;  // a strip's scores stay near the first-level cache
constexpr float kMaxRowNorm2 = 0x1p120f;   // keeps float32 scores far from overflow

int64_t chunk_tiles(const Codebook& book) {
  const int64_t bytes = std::max<int64_t>(1, book.kernel->tile_bytes(book.dim));
  const int64_t tiles = std::min(kChunkBytes / bytes, kMaxChunkColumns / book.kernel->tile);
  return std::max<int64_t>(2, tiles / 2 * 2);
}

}  // namespace

int64_t block_rows(const Codebook& codebook) {
  const int64_t strip = codebook.kernel->strip_rows;
  const int64_t rows = kBlockBytes / codebook.kernel->row_bytes(codebook.dim);
  return std::clamp(rows, strip, kMaxBlockRows) / strip * strip;
}

template <typename T>
Assigner<T>::Assigner(const Codebook& codebook)
    : book_(codebook),
      row_bytes_(codebook.kernel->row_bytes(codebook.dim)),
      sweep_(codebook.columns, block_rows(codebook), codebook.kernel->strip_rows,
             chunk_tiles(codebook), codebook.kernel->scan),
      decider_(codebook) {
  const int64_t rows = block_rows(book_);
  packed_.resize(rows * row_bytes_);
  if constexpr (!std::is_same_v<T, float>) {
    single_.resize(rows * book_.dim);
    zeros_.resize(book_.dim);
  }
  norm2_.resize(rows);
  error2_.resize(rows);
  filterable_.resize(rows);
}

template <typename T>
void Assigner<T>::load(const T* rows, int64_t stride, int64_t count) {
  const float scale = book_.row_scale();
  if constexpr (std::is_same_v<T, float>) {
    book_.kernel->pack_rows(rows, stride, count, book_.centre.data(), scale, book_.dim,
                            packed_.data(), row_bytes_, norm2_.data(), error2_.data());
  } else {
    for (int64_t r = 0; r < count; ++r) {
      const T* row = rows + r * stride;
      float* to = single_.data() + r * book_.dim;
      for (int64_t d = 0; d < book_.dim; ++d) {
        to[d] = static_cast<float>((row[d] - book_.centre[d]) * scale);
      }
    }
    book_.kernel->pack_rows(single_.data(), book_.dim, count, zeros_.data(), 1.0f, book_.dim,
                            packed_.data(), row_bytes_, norm2_.data(), error2_.data());
  }
  for (int64_t r = 0; r < count; ++r) {
    filterable_[r] = norm2_[r] < kMaxRowNorm2;  // false for Inf and NaN
    sweep_.row(r) = row_bounds(norm2_[r], error2_[r], book_.dim);
  }
}

template <typename T>
void Assigner<T>::filter(int64_t count) {
  const FilterKernel& kernel = *book_.kernel;
  kernel.enter();
  sweep_.run(count, [&](int64_t row, int64_t rows, int64_t tile, int64_t tiles, float* out,
                        int64_t stride) {
    kernel.scores(packed_.data() + row * row_bytes_, row_bytes_, rows, book_.panel(tile),
                  book_.columns.bias.data() + tile * kernel.tile, tiles, book_.dim, out, stride);
  });
  kernel.leave();
}

template <typename T>
void Assigner<T>::assign(const T* rows, int64_t stride, int64_t count, int64_t* ids,
                         double* value) {
  const bool can_win = book_.entries() > 0;
  if (can_win) {
    load(rows, stride, count);
    filter(count);
  }
  for (int64_t r = 0; r < count; ++r) {
    const T* row = rows + r * stride;
    const int32_t entry = can_win ? nearest(row, r) : -1;
    if (entry < 0) ++tiers.invalid;
    ids[r] = entry < 0 ? -1 : book_.ids[entry];
    if (value) {
      value[r] = entry < 0 ? std::numeric_limits<double>::quiet_NaN()
                           : metric_value(book_.metric, row, book_.value(entry), book_.dim);
    }
  }
}

template <typename T>
int32_t Assigner<T>::nearest(const T* row, int64_t r) {
  if (filterable_[r]) {
    const int32_t only = sweep_.only_entry(r);
    if (only >= 0) return only;
    if (sweep_.take_candidates(r, candidates_)) return decider_.decide(row, candidates_, tiers);
  } else if (!std::all_of(row, row + book_.dim, [](T v) { return std::isfinite(v); })) {
    return -1;
  }
  return decider_.decide_all(row, tiers);
}

template <typename T>
Status assign_rows(const RowSource<T>& source, const Codebook& codebook, int threads, int64_t* ids,
                   double* value, TierCounts* tiers) {
  const int64_t block = block_rows(codebook), total = source.num_rows();
  struct Worker {
    Assigner<T> assigner;
    std::vector<T> scratch;
  };
  std::vector<std::unique_ptr<Worker>> workers(std::max(threads, 1));
  auto body = [&](int64_t task, int index) {
    auto& worker = workers[index];
    if (!worker) {
      worker = std::make_unique<Worker>(
          Worker{Assigner<T>(codebook), std::vector<T>(block * codebook.dim)});
    }
    const int64_t begin = task * block, count = std::min(block, total - begin);
    int64_t stride = 0;
    const T* rows = source.rows(begin, count, worker->scratch.data(), &stride);
    worker->assigner.assign(rows, stride, count, ids + begin, value ? value + begin : nullptr);
  };
  CMIM_RETURN_IF_ERROR(parallel_for(threads, (total + block - 1) / block, body));
  for (const auto& worker : workers) {
    if (worker) tiers->add(worker->assigner.tiers);
  }
  return Status();
}

template class Assigner<float>;
template class Assigner<double>;
template Status assign_rows(const RowSource<float>&, const Codebook&, int, int64_t*, double*,
                            TierCounts*);
template Status assign_rows(const RowSource<double>&, const Codebook&, int, int64_t*, double*,
                            TierCounts*);

}  // namespace clustermim
