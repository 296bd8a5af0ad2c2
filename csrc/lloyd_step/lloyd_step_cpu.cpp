#include "lloyd_step/lloyd_step.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#include "assign/assigner.h"
#include "assign/check_matrix.h"
#include "core/kernel_call.h"
#include "core/parallel_for.h"

namespace clustermim {
namespace {

constexpr double kQuantum = 0x1p-28;  // clustermim_fast/ops/lloyd_step/reference.py has it too
// Normalised pixels are below 3 in practice. Beyond this, or with so many rows that an int64 sum
// could overflow, sums are float64.
constexpr double kLargestQuantised = 64.0;
constexpr double kLargestSum = 0x1p63 * kQuantum;
constexpr int64_t kSuperblockBytes = 4 << 20;  // assigned rows wait for accumulation in cache
constexpr int64_t kMaxSuperblockRows = 8192;
constexpr int64_t kColumnsPerTask = 16;  // two cache lines of float64 sums

__int128 quantise(double v) {
  return static_cast<__int128>(std::nearbyint(v / kQuantum));
}

// Adds rows to sums. `Sum` is double, or int64_t for multiples of kQuantum.
template <typename T, typename Sum>
class Accumulator {
 public:
  Accumulator(const LloydStepArgs& args, int64_t dim)
      : args_(args), dim_(dim), sums_(args.centroids.rows * dim, Sum{}) {
    const int64_t k = args.centroids.rows;
    if (args.weights) {
      std::fill_n(static_cast<double*>(args.counts), k, 0.0);
    } else {
      std::fill_n(static_cast<int64_t*>(args.counts), k, 0);
    }
  }

  int64_t column_tasks() const { return (dim_ + kColumnsPerTask - 1) / kColumnsPerTask; }

  void add_columns(int64_t task, const T* rows, int64_t stride, int64_t begin, int64_t count) {
    const int64_t from = task * kColumnsPerTask, to = std::min(dim_, from + kColumnsPerTask);
    for (int64_t r = 0; r < count; ++r) {
      const int64_t id = args_.ids[begin + r];
      if (id < 0) continue;
      const T* row = rows + r * stride;
      Sum* sum = sums_.data() + id * dim_;
      const double weight = args_.weights ? args_.weights[begin + r] : 1.0;
      for (int64_t d = from; d < to; ++d) {
        if constexpr (__is_same(Sum, double)) {
          sum[d] += weight * static_cast<double>(row[d]);
        } else {
          sum[d] += static_cast<int64_t>(std::nearbyint(static_cast<double>(row[d]) / kQuantum));
        }
      }
    }
  }

  void add_counts(const double* values, int64_t begin, int64_t count) {
    for (int64_t r = 0; r < count; ++r) {
      const int64_t id = args_.ids[begin + r];
      if (id < 0) continue;
      const double cost = args_.metric == Metric::euclidean ? values[r]
                          : args_.metric == Metric::cosine  ? 1.0 - values[r]
                                                            : -values[r];
      if (args_.weights) {
        static_cast<double*>(args_.counts)[id] += args_.weights[begin + r];
        inertia_ += args_.weights[begin + r] * cost;
      } else {
        ++static_cast<int64_t*>(args_.counts)[id];
        inertia_ += cost;
      }
      if constexpr (!__is_same(Sum, double)) {
        if (std::abs(cost) < 0x1p60) {
          quantised_inertia_ += quantise(cost);
        } else {
          inertia_is_huge_ = true;
        }
      }
    }
  }

  void finish() const {
    const int64_t size = static_cast<int64_t>(sums_.size());
    for (int64_t i = 0; i < size; ++i) {
      if constexpr (__is_same(Sum, double)) {
        args_.sums[i] = sums_[i];
      } else {
        args_.sums[i] = static_cast<double>(sums_[i]) * kQuantum;
      }
    }
    const bool exact = !__is_same(Sum, double) && !inertia_is_huge_;
    *args_.inertia = exact ? static_cast<double>(quantised_inertia_) * kQuantum : inertia_;
  }

 private:
  const LloydStepArgs& args_;
  int64_t dim_;
  std::vector<Sum> sums_;
  double inertia_ = 0.0;
  __int128 quantised_inertia_ = 0;
  bool inertia_is_huge_ = false;
};

template <typename Sum, typename T>
Status run(const RowSource<T>& source, int64_t dim, const LloydStepArgs& args, TierCounts* tiers) {
  Codebook codebook;
  CMIM_RETURN_IF_ERROR(codebook.prepare(args.centroids, args.metric, args.threads));
  const int64_t block = block_rows(codebook), total = source.num_rows();
  const int64_t row_bytes = std::max<int64_t>(1, dim) * static_cast<int64_t>(sizeof(T));
  const int64_t superblock = std::clamp(kSuperblockBytes / row_bytes / block * block, block,
                                        kMaxSuperblockRows / block * block);

  Accumulator<T, Sum> accumulator(args, dim);
  std::vector<std::unique_ptr<Assigner<T>>> assigners(std::max(args.threads, 1));
  std::vector<T> scratch(std::min(superblock, total) * dim);
  std::vector<double> values(std::min(superblock, total));
  for (int64_t begin = 0; begin < total; begin += superblock) {
    const int64_t count = std::min(superblock, total - begin);
    struct Rows {
      const T* data = nullptr;
      int64_t stride = 0, count = 0;
    };
    std::vector<Rows> blocks((count + block - 1) / block);
    auto assign_block = [&](int64_t task, int worker) {
      if (!assigners[worker]) assigners[worker] = std::make_unique<Assigner<T>>(codebook);
      const int64_t first = task * block;
      Rows& rows = blocks[task];
      rows.count = std::min(block, count - first);
      rows.data =
          source.rows(begin + first, rows.count, scratch.data() + first * dim, &rows.stride);
      assigners[worker]->assign(rows.data, rows.stride, rows.count, args.ids + begin + first,
                                values.data() + first);
    };
    CMIM_RETURN_IF_ERROR(
        parallel_for(args.threads, static_cast<int64_t>(blocks.size()), assign_block));
    auto accumulate = [&](int64_t task, int) {
      if (task == accumulator.column_tasks()) {
        accumulator.add_counts(values.data(), begin, count);
        return;
      }
      for (size_t b = 0; b < blocks.size(); ++b) {
        accumulator.add_columns(task, blocks[b].data, blocks[b].stride,
                                begin + static_cast<int64_t>(b) * block, blocks[b].count);
      }
    };
    CMIM_RETURN_IF_ERROR(parallel_for(args.threads, accumulator.column_tasks() + 1, accumulate));
  }
  accumulator.finish();
  for (const auto& assigner : assigners) {
    if (assigner) tiers->add(assigner->tiers);
  }
  return Status();
}

Status check_outputs(const char* op, const LloydStepArgs& args, int64_t rows, int64_t dim) {
  CMIM_RETURN_IF_ERROR(check_centroids(op, args.centroids, dim));
  CMIM_RETURN_IF_ERROR(check_pointer(op, "ids", args.ids, rows > 0));
  CMIM_RETURN_IF_ERROR(check_pointer(op, "sums", args.sums, args.centroids.rows * dim > 0));
  CMIM_RETURN_IF_ERROR(check_pointer(op, "counts", args.counts, true));
  return check_pointer(op, "inertia", args.inertia, true);
}

}  // namespace

Status lloyd_step_cpu(const MatrixView& x, const LloydStepArgs& args, TierCounts* tiers) {
  constexpr const char* op = "lloyd_step";
  CMIM_RETURN_IF_ERROR(check_matrix(op, "x", x));
  CMIM_RETURN_IF_ERROR(check_outputs(op, args, x.rows, x.cols));
  return kernel_call(op, [&] {
    Status status;
    const bool known = visit_matrix_rows(
        x, [&](const auto& source) { status = run<double>(source, x.cols, args, tiers); });
    if (!known) return Status::error(StatusCode::invalid_argument, "%s: x must be floating", op);
    return status;
  });
}

Status lloyd_step_images_cpu(const ImageView& images, const LloydStepArgs& args,
                             TierCounts* tiers) {
  constexpr const char* op = "lloyd_step_images";
  CMIM_RETURN_IF_ERROR(check_images(op, images));
  CMIM_RETURN_IF_ERROR(check_outputs(op, args, images.batch * images.patches(), images.dim()));
  return kernel_call(op, [&] {
    const ImageRows source(images);
    const double largest = images.per_patch_norm ? std::sqrt(static_cast<double>(images.dim()))
                                                 : static_cast<double>(source.largest_u8_value());
    const bool quantised = images.dtype == DType::u8 && largest <= kLargestQuantised &&
                           largest * static_cast<double>(source.num_rows()) < kLargestSum;
    const RowSource<float>& rows = source;
    return quantised ? run<int64_t>(rows, images.dim(), args, tiers)
                     : run<double>(rows, images.dim(), args, tiers);
  });
}

}  // namespace clustermim
