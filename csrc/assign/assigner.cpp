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
constexpr int64_t kMaxBlockRows = 512, kMaxNarrowBlockRows = 1024;
constexpr int64_t kMaxTaskBlocks = 8;
constexpr int64_t kMaxChunkColumns = kMaxScanColumns;
constexpr int64_t kTiesTogether = 16;     // more, of half the entries: decided with others
constexpr float kMaxRowNorm2 = 0x1p120f;  // keeps float32 scores far from overflow

int64_t chunk_tiles(const Codebook& book) {
  const int64_t bytes = std::max<int64_t>(1, packed_tile_bytes(*book.kernel, book.filter_dim()));
  const int64_t tiles = std::min(kChunkBytes / bytes, kMaxChunkColumns / book.kernel->tile);
  return std::max<int64_t>(2, tiles / 2 * 2);
}

}  // namespace

int64_t block_rows(const Codebook& codebook) {
  const int64_t strip = codebook.kernel->strip_rows;
  const int64_t rows = kBlockBytes / packed_row_bytes(*codebook.kernel, codebook.dim);
  const bool narrow = codebook.narrow.usable() || codebook.integers.usable();
  const int64_t most = narrow ? kMaxNarrowBlockRows : kMaxBlockRows;
  const int64_t block = std::clamp(rows, strip, most) / strip * strip;
  const int64_t wanted = (codebook.num_rows + strip - 1) / strip * strip;
  return codebook.num_rows > 0 ? std::min(block, wanted) : block;
}

template <typename T>
Assigner<T>::Assigner(const Codebook& codebook)
    : book_(codebook),
      row_bytes_(packed_row_bytes(*codebook.kernel, codebook.dim)),
      sweep_(codebook.columns, block_rows(codebook), codebook.kernel->strip_rows,
             chunk_tiles(codebook), codebook.kernel->scan),
      narrow_(codebook.narrow, codebook.columns, block_rows(codebook)),
      integers_(codebook.integers, block_rows(codebook)),
      decider_(codebook) {
  const int64_t rows = block_rows(book_);
  packed_.resize(rows * row_bytes_);
  if constexpr (!std::is_same_v<T, float>) {
    single_.resize(book_.kernel->strip_rows * book_.dim);
    zeros_.resize(book_.dim);
  }
  if (book_.projection.size) {
    projected_.resize(rows * packed_row_bytes(*book_.kernel, book_.projection.size));
    coordinates_.resize(book_.kernel->strip_rows * book_.projection.parts * book_.projection.size);
    zeros_.resize(std::max(book_.dim, book_.projection.size));
  }
  norm2_.resize(rows);
  error2_.resize(rows);
  filterable_.resize(rows);
  entries_.assign(rows, -1);
}

// Rows [first, first + count) of the block to the filter's format.
template <typename T>
void Assigner<T>::load(const T* rows, int64_t stride, int64_t first, int64_t count) {
  const float scale = book_.row_scale();
  char* packed = packed_.data() + first * row_bytes_;
  float *norm2 = norm2_.data() + first, *error2 = error2_.data() + first;
  rows += first * stride;
  if constexpr (std::is_same_v<T, float>) {
    book_.kernel->pack_rows(rows, stride, count, book_.centre.data(), scale, book_.dim, packed,
                            row_bytes_, norm2, error2);
  } else {
    for (int64_t r = 0; r < count; ++r) {
      float* to = single_.data() + r * book_.dim;
      for (int64_t d = 0; d < book_.dim; ++d) {
        to[d] = static_cast<float>((rows[r * stride + d] - book_.centre[d]) * scale);
      }
    }
    book_.kernel->pack_rows(single_.data(), book_.dim, count, zeros_.data(), 1.0f, book_.dim,
                            packed, row_bytes_, norm2, error2);
  }
  for (int64_t r = 0; r < count; ++r) {
    filterable_[first + r] = norm2[r] < kMaxRowNorm2;  // false for Inf and NaN
    sweep_.row(first + r) = row_bounds(norm2[r], error2[r], book_.dim);
  }
  if (book_.projection.size) project(first, count);
}

// A strip of packed rows to packed coordinates in the projection's subspace.
template <typename T>
void Assigner<T>::project(int64_t first, int64_t count) {
  const FilterKernel& kernel = *book_.kernel;
  const Projection& p = book_.projection;
  const int64_t stride = p.parts * p.size, row_bytes = packed_row_bytes(kernel, p.size);
  float *y = coordinates_.data(), *norm2 = norm2_.data() + first, *error2 = error2_.data() + first;
  kernel.scores(packed_.data() + first * row_bytes_, row_bytes_, count, p.panels.data(),
                p.zero_bias.data(), p.parts * p.tiles, book_.dim, y, stride, nullptr, 0);
  for (int64_t r = 0; p.parts == 2 && r < count; ++r) {
    float* high = y + r * stride;
    for (int64_t k = 0; k < p.size; ++k) high[k] += high[p.size + k];
  }
  kernel.pack_rows(y, stride, count, zeros_.data(), 1.0f, p.size,
                   projected_.data() + first * row_bytes, row_bytes, norm2, error2);
  const float relative = p.error(kernel.format, book_.dim);
  for (int64_t r = 0; r < count; ++r) {
    sweep_.row(first + r) =
        projected_bounds(sweep_.row(first + r), norm2[r], error2[r], p.size, relative);
  }
}

template <typename T>
void Assigner<T>::filter(const T* rows, int64_t stride, int64_t count) {
  const FilterKernel& kernel = *book_.kernel;
  const int64_t dim = book_.filter_dim(), row_bytes = packed_row_bytes(kernel, dim);
  const char* operands = book_.projection.size ? projected_.data() : packed_.data();
  const int64_t strip_bytes = kernel.strip_rows * stride * static_cast<int64_t>(sizeof(T));
  kernel.enter();
  sweep_.run(
      count, [&](int64_t first, int64_t n) { load(rows, stride, first, n); },
      [&](int64_t first, int64_t n, int64_t tile, int64_t tiles, float* out, int64_t out_stride,
          bool rows_follow) {
        // The strip after this one, or the first one of the block that probably comes next.
        const char* ahead = reinterpret_cast<const char*>(rows + (first + n) * stride);
        kernel.scores(operands + first * row_bytes, row_bytes, n, book_.panel(tile),
                      book_.columns.bias.data() + tile * kernel.tile, tiles, dim, out, out_stride,
                      ahead, rows_follow && stride < 2 * book_.dim ? strip_bytes : 0);
      });
  kernel.leave();
}

template <typename T>
void Assigner<T>::assign(const T* rows, int64_t stride, int64_t count, int64_t* ids,
                         double* value) {
  ties_.clear();
  if (std::is_same_v<T, float> && book_.narrow.usable()) {
    assign_narrow(rows, stride, count);
  } else if (std::is_same_v<T, float> && book_.integers.usable()) {
    assign_integers(rows, stride, count);
  } else if (book_.entries() > 0) {
    assign_filtered(rows, stride, 0, count);
  }
  decide_ties(rows, stride);
  int64_t invalid = 0;
  for (int64_t r = 0; r < count; ++r) {
    const int32_t entry = entries_[r];
    invalid += entry < 0;
    ids[r] = entry < 0 ? -1 : book_.ids[entry];
  }
  tiers.invalid += invalid;
  for (int64_t r = 0; value && r < count; ++r) {
    const int32_t entry = entries_[r];
    value[r] = entry < 0
                   ? std::numeric_limits<double>::quiet_NaN()
                   : metric_value(book_.metric, rows + r * stride, book_.value(entry), book_.dim);
  }
}

// Rows [first, first + count) of the block, through the filter.
template <typename T>
void Assigner<T>::assign_filtered(const T* rows, int64_t stride, int64_t first, int64_t count) {
  rows += first * stride;
  if (book_.columns.size() > 0) filter(rows, stride, count);
  const size_t ties = ties_.size();
  for (int64_t r = 0; r < count; ++r) entries_[first + r] = nearest(rows + r * stride, r);
  for (size_t i = ties; i < ties_.size(); ++i) ties_[i] += first;
}

template <typename T>
void Assigner<T>::assign_narrow(const T* rows, int64_t stride, int64_t count) {
  if constexpr (std::is_same_v<T, float>) {
    narrow_.run(rows, stride, count, entries_.data(),
                [&](int64_t r, std::vector<int32_t>* candidates) {
                  return decide_open(rows + r * stride, r, candidates);
                });
  }
}

template <typename T>
void Assigner<T>::assign_integers(const T* rows, int64_t stride, int64_t count) {
  if constexpr (std::is_same_v<T, float>) {
    integers_.run(
        rows, stride, count, entries_.data(),
        [&](int64_t r, std::vector<int32_t>* candidates) {
          return decide_open(rows + r * stride, r, candidates);
        },
        [&](int64_t first, int64_t some) { assign_filtered(rows, stride, first, some); });
  }
}

// Row r, which a search left open; candidates: null when every entry is one.
template <typename T>
int32_t Assigner<T>::decide_open(const T* row, int64_t r, std::vector<int32_t>* candidates) {
  if (candidates && few(*candidates)) return decider_.decide(row, *candidates, tiers);
  if (std::all_of(row, row + book_.dim, [](T v) { return std::isfinite(v); })) {
    ties_.push_back(r);
  }
  return -1;  // or what decide_ties finds
}

template <typename T>
bool Assigner<T>::few(const std::vector<int32_t>& candidates) const {
  const int64_t some = static_cast<int64_t>(candidates.size());
  return some <= kTiesTogether || 2 * some < book_.entries();
}

// Rows that nearly tie with most entries, several at a time.
template <typename T>
void Assigner<T>::decide_ties(const T* rows, int64_t stride) {
  constexpr size_t kMost = ExactNearest::kMaxRows;
  for (size_t i = 0; i < ties_.size(); i += kMost) {
    const int count = static_cast<int>(std::min(kMost, ties_.size() - i));
    const T* together[kMost];
    int32_t winners[kMost];
    for (int r = 0; r < count; ++r) together[r] = rows + ties_[i + r] * stride;
    decider_.decide_ties(together, count, winners, tiers);
    for (int r = 0; r < count; ++r) entries_[ties_[i + r]] = winners[r];
  }
}

template <typename T>
int32_t Assigner<T>::nearest(const T* row, int64_t r) {
  if (filterable_[r]) {  // never without columns
    const int32_t only = sweep_.only_entry(r);
    if (only >= 0) return only;
    if (sweep_.take_candidates(r, candidates_) && few(candidates_)) {
      rescored += candidates_.size() > 1 ? static_cast<int64_t>(candidates_.size()) : 0;
      return decider_.decide(row, candidates_, tiers);
    }
    rescored += book_.entries();
    ties_.push_back(r);  // its entry comes from decide_ties
    return -1;
  }
  return nearest_of_all(row);
}

// -1 for a row that is not finite.
template <typename T>
int32_t Assigner<T>::nearest_of_all(const T* row) {
  if (!std::all_of(row, row + book_.dim, [](T v) { return std::isfinite(v); })) return -1;
  rescored += book_.entries();
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
  // Several blocks in turn: each asks for the first rows of the next one.
  const int64_t blocks = (total + block - 1) / block;
  const int64_t task_rows =
      block * std::clamp<int64_t>(blocks / (8 * std::max(threads, 1)), 1, kMaxTaskBlocks);
  auto body = [&](int64_t task, int index) {
    auto& worker = workers[index];
    if (!worker) {
      worker = std::make_unique<Worker>(
          Worker{Assigner<T>(codebook), std::vector<T>(block * codebook.dim)});
    }
    const int64_t end = std::min(task * task_rows + task_rows, total);
    for (int64_t begin = task * task_rows; begin < end; begin += block) {
      const int64_t count = std::min(block, end - begin);
      int64_t stride = 0;
      const T* rows = source.rows(begin, count, worker->scratch.data(), &stride);
      worker->assigner.assign(rows, stride, count, ids + begin, value ? value + begin : nullptr);
    }
  };
  CMIM_RETURN_IF_ERROR(parallel_for(threads, (total + task_rows - 1) / task_rows, body));
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
