#include "lloyd_step/lloyd_step.h"

#include <cmath>
#include <type_traits>

#include "assign/check_matrix.h"
#include "assign/image_codebook.h"
#include "core/cpu_features.h"
#include "core/kernel_call.h"
#include "lloyd_step/gathered_rows.h"
#include "lloyd_step/worker_sums.h"

namespace clustermim {
namespace {

// Normalised pixels are below 3 in practice. Beyond this, or with so many rows that an int64 sum
// could overflow, sums are float64.
constexpr double kLargestQuantised = 64.0;
constexpr double kLargestSum = 0x1p63 * kQuantum;

const AccumulateKernels& kernels() {
#if defined(__x86_64__)
  if (current_isa() >= Isa::avx512) return kAccumulateAvx512;
  if (current_isa() >= Isa::avx2) return kAccumulateAvx2;
#endif
  return kAccumulateGeneric;
}

// The centroids in memory as C, copied only when they are of another type.
template <typename C>
class CentroidsAs {
 public:
  explicit CentroidsAs(const MatrixView& m) : data_(static_cast<const C*>(m.data)) {
    stride_ = m.row_stride;
    visit_dtype(m.dtype, [&](auto element) {
      using E = decltype(element);
      if constexpr (!std::is_same_v<C, E>) {
        const E* from = static_cast<const E*>(m.data);
        copy_.resize(m.rows * m.cols);
        for (int64_t k = 0; k < m.rows; ++k) {
          for (int64_t d = 0; d < m.cols; ++d) {
            copy_[k * m.cols + d] = static_cast<C>(to_double(from[k * m.row_stride + d]));
          }
        }
        data_ = copy_.data();
        stride_ = m.cols;
      }
    });
  }
  const C* data() const { return data_; }
  int64_t stride() const { return stride_; }

 private:
  const C* data_;
  int64_t stride_;
  std::vector<C> copy_;
};

// Sums of quantised values, as the kernels leave them, to values.
void finish_quantised(const Sums& total, int64_t clusters, int64_t dim) {
  for (int64_t k = 0; k < clusters; ++k) {
    const uint64_t zero = static_cast<uint64_t>(total.counts[k]) * kQuantisedZero;
    for (double* sum = total.sums + k * dim; sum < total.sums + (k + 1) * dim; ++sum) {
      const int64_t quanta = static_cast<int64_t>(std::bit_cast<uint64_t>(*sum) - zero);
      *sum = static_cast<double>(quanta) * kQuantum;
    }
  }
}

template <typename C, typename T>
Status run_with(const RowSource<T>& source, const StepCodebook& codebook, const LloydStepArgs& args,
                int kind, bool in_memory, TierCounts* tiers) {
  const CentroidsAs<C> centroids(args.centroids);
  const auto& kernel = kernel_of(kernels(), static_cast<const T*>(nullptr), centroids.data());
  const StepProblem<T, C> problem = {args,   source, codebook, centroids.data(), centroids.stride(),
                                     kernel, kind,   in_memory};

  const int64_t clusters = problem.clusters(), size = clusters * problem.dim();
  Sums total;
  total.sums = args.sums;
  std::fill_n(args.sums, size, 0.0);
  if (args.weights) {
    total.weighted_counts = static_cast<double*>(args.counts);
    std::fill_n(total.weighted_counts, clusters, 0.0);
  } else {
    total.counts = static_cast<int64_t*>(args.counts);
    std::fill_n(total.counts, clusters, 0);
  }
  // Decided by sizes alone: the two ways add in different orders.
  using Workers = WorkerSums<T, C>;
  const bool by_worker = size * static_cast<int64_t>(sizeof(double)) <= Workers::kMaxSumsBytes &&
                         source.num_rows() >= Workers::kMinRows;
  if (by_worker) {
    CMIM_RETURN_IF_ERROR(Workers(problem, &total).run(tiers));
  } else {
    CMIM_RETURN_IF_ERROR((GatheredRows<T, C>(problem, &total).run(tiers)));
  }
  *args.inertia = total.inertia.value(kind);
  if (kind == kQuantised) finish_quantised(total, clusters, problem.dim());
  return Status();
}

// Whether the assigner's values are asked for, and with them float64 centroids.
bool keeps_values(const LloydStepArgs& args) {
  return args.metric != Metric::euclidean;
}

template <typename T>
Status run(const RowSource<T>& source, const StepCodebook& codebook, const LloydStepArgs& args,
           int kind, bool in_memory, TierCounts* tiers) {
  if constexpr (std::is_same_v<T, float>) {
    if (args.centroids.dtype != DType::f64) {
      return run_with<float>(source, codebook, args, kind, in_memory, tiers);
    }
  }
  return run_with<double>(source, codebook, args, kind, in_memory, tiers);
}

template <typename T>
Status run_rows(const RowSource<T>& source, const LloydStepArgs& args, int kind, bool in_memory,
                TierCounts* tiers) {
  Codebook codebook;
  CMIM_RETURN_IF_ERROR(prepare_codebook(source, args.centroids, args.metric, args.threads,
                                        keeps_values(args), codebook));
  return run(source, {codebook, nullptr}, args, kind, in_memory, tiers);
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
    const int kind = args.weights ? kWeighted : kPlain;
    const bool in_memory = x.dtype == DType::f32 || x.dtype == DType::f64;
    Status status;
    const bool known = visit_matrix_rows(
        x, [&](const auto& source) { status = run_rows(source, args, kind, in_memory, tiers); });
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
    ImageCodebook codebook;
    CMIM_RETURN_IF_ERROR(prepare_image_codebook(images, source, args.centroids, args.metric,
                                                args.threads, keeps_values(args), codebook));
    std::unique_ptr<const PixelPatches> pixels;
    if (codebook.pixels) pixels.reset(new PixelPatches{*codebook.pixels, images, source});
    const RowSource<float>& rows = source;
    return run(rows, {codebook.rows, pixels.get()}, args, quantised ? kQuantised : kPlain, false,
               tiers);
  });
}

}  // namespace clustermim
