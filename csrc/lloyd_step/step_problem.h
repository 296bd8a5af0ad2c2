// What the two ways to accumulate (worker_sums.h, gathered_rows.h) share.
#pragma once

#include <algorithm>
#include <bit>
#include <memory>
#include <new>
#include <vector>

#include "assign/assigner.h"
#include "assign/pixel_assigner.h"
#include "lloyd_step/accumulate.h"
#include "lloyd_step/inertia.h"
#include "lloyd_step/lloyd_step.h"

namespace clustermim {

inline const auto& kernel_of(const AccumulateKernels& all, const float*, const float*) {
  return all.float_float;
}
inline const auto& kernel_of(const AccumulateKernels& all, const float*, const double*) {
  return all.float_double;
}
inline const auto& kernel_of(const AccumulateKernels& all, const double*, const double*) {
  return all.double_double;
}

// Patches whose ids come from their pixels.
struct PixelPatches {
  const PixelCodebook& codebook;
  const ImageView& images;
  const ImageRows& values;
};

// What rows are assigned by; pixels is null for float rows.
struct StepCodebook {
  const Codebook& rows;
  const PixelPatches* pixels;

  int64_t block() const { return pixels ? block_rows(pixels->codebook) : block_rows(rows); }
};

// T: rows, C: centroids. Quantised sums are bits of int64 in the memory of float64 until the end.
template <typename T, typename C>
struct StepProblem {
  const LloydStepArgs& args;
  const RowSource<T>& source;
  const StepCodebook& codebook;
  const C* centroids;
  int64_t centroid_stride;
  const AccumulateKernel<T, C>& kernel;
  int kind;
  bool in_memory;  // the source's rows are not copied

  int64_t clusters() const { return args.centroids.rows; }
  int64_t dim() const { return args.centroids.cols; }
  CentroidSums<C> centroid_sums(double* sums) const {
    return {centroids, centroid_stride, dim(), sums};
  }
  const double* weights(int64_t row) const { return args.weights ? args.weights + row : nullptr; }
  // Euclidean costs come from the accumulation, others from the assignment.
  bool needs_values() const { return args.metric != Metric::euclidean; }
  Cost cost() const { return {args.metric, kind}; }
};

inline double add_quantised(double a, double b) {
  return std::bit_cast<double>(std::bit_cast<uint64_t>(a) + std::bit_cast<uint64_t>(b));
}

// Zeros at the start of a cache line: vectors that cross two lines take twice as long.
class AlignedZeros {
 public:
  explicit AlignedZeros(int64_t size)
      : data_(static_cast<double*>(::operator new(size * sizeof(double), std::align_val_t{64}))) {
    std::fill_n(data_.get(), size, 0.0);
  }
  double* get() const { return data_.get(); }

 private:
  struct Free {
    void operator()(double* p) const { ::operator delete(p, std::align_val_t{64}); }
  };
  std::unique_ptr<double, Free> data_;
};

// Sums, counts and costs of some rows. Counts are int64, or float64 with weights.
struct Sums {
  double* sums = nullptr;     // [K, D]
  int64_t* counts = nullptr;  // [K], one of the two is null
  double* weighted_counts = nullptr;
  Inertia inertia;

  void add_counts(const int64_t* ids, const double* weights, int64_t count) {
    for (int64_t r = 0; r < count; ++r) {
      if (ids[r] < 0) continue;
      if (counts) {
        ++counts[ids[r]];
      } else {
        weighted_counts[ids[r]] += weights[r];
      }
    }
  }
};

// What is added in which order depends on sizes that are the same on every machine, unlike the
// assigners' blocks.
template <typename T>
int64_t rows_of_bytes(int64_t bytes, int64_t dim) {
  constexpr int64_t kMultiple = 32, kMost = 1 << 16;
  const int64_t rows = bytes / (std::max<int64_t>(dim, 1) * static_cast<int64_t>(sizeof(T)));
  return std::clamp(rows / kMultiple * kMultiple, kMultiple, kMost);
}

// An Assigner for each worker that comes.
template <typename T>
class Assigners {
 public:
  Assigners(const StepCodebook& codebook, int threads)
      : codebook_(codebook),
        by_rows_(codebook.pixels ? 0 : std::max(threads, 1)),
        by_pixels_(codebook.pixels ? std::max(threads, 1) : 0) {}

  // Assigns rows first, first + 1, ... of the source, any number of them, and gives their memory:
  // see RowSource::rows.
  const T* assign(int worker, const RowSource<T>& source, int64_t first, int64_t count, T* scratch,
                  int64_t* stride, int64_t* ids, double* values) {
    if (codebook_.pixels) {  // before the rows are made: it fetches pixels early
      const PixelPatches& p = *codebook_.pixels;
      auto& assigner = made(by_pixels_[worker], p.codebook, p.images, p.values);
      in_blocks(count, [&](int64_t begin, int64_t size) {
        assigner.assign(first + begin, size, ids + begin);
      });
      return source.rows(first, count, scratch, stride);
    }
    const T* x = source.rows(first, count, scratch, stride);
    auto& assigner = made(by_rows_[worker], codebook_.rows);
    in_blocks(count, [&](int64_t begin, int64_t size) {
      assigner.assign(x + begin * *stride, *stride, size, ids + begin,
                      values ? values + begin : nullptr);
    });
    return x;
  }

  void add_tiers(TierCounts* tiers) const {
    for (const auto& assigner : by_rows_) {
      if (assigner) tiers->add(assigner->tiers);
    }
    for (const auto& assigner : by_pixels_) {
      if (assigner) tiers->add(assigner->tiers);
    }
  }

 private:
  // Blocks that the assigner takes, of about equal size.
  template <typename Body>
  void in_blocks(int64_t count, Body body) const {
    constexpr int64_t kTile = 16;  // rows that filters like to have together
    const int64_t largest = codebook_.block();
    for (int64_t begin = 0, size = 0; begin < count; begin += size) {
      const int64_t left = count - begin, blocks = (left + largest - 1) / largest;
      const int64_t even = (left / blocks + kTile - 1) / kTile * kTile;
      size = std::min({even, largest, left});
      body(begin, size);
    }
  }

  template <typename A, typename... Args>
  static A& made(std::unique_ptr<A>& slot, const Args&... args) {
    if (!slot) slot = std::make_unique<A>(args...);
    return *slot;
  }

  const StepCodebook& codebook_;
  std::vector<std::unique_ptr<Assigner<T>>> by_rows_;
  std::vector<std::unique_ptr<PixelAssigner>> by_pixels_;
};

}  // namespace clustermim
