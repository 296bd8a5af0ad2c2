#include "assign/codebook.h"

#include <algorithm>
#include <cmath>

#include "assign/scores.h"
#include "core/cpu_features.h"
#include "core/parallel_for.h"

namespace clustermim {
namespace {

constexpr float kNeverWins = 0x1p126f;  // above any score: |x'| < 2^60 (Assigner), |c'| < 2^40
constexpr double kMaxFilterNorm = 0x1p40;

const FilterKernel& filter_for(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::avx512) return kFilterAvx512;
  if (isa == Isa::avx2) return kFilterAvx2;
#endif
  (void)isa;
  return kFilterGeneric;
}

}  // namespace

double Codebook::filter_error(double x_norm, double c_norm, double abs_bias) const {
  const double unit = 0x1p-24;
  const double runs = static_cast<double>((dim + kChain - 1) / kChain);
  const double chain = static_cast<double>(std::min(dim, kChain)) + runs + 6.0;
  const double underflow = static_cast<double>(dim + 1) * 0x1p-140 * (1.0 + x_norm + c_norm);
  return 1.01 * (unit * (chain * x_norm * c_norm + 3.0 * abs_bias) + underflow);
}

Status Codebook::prepare(const MatrixView& centroids, Metric which, int threads) {
  metric = which;
  dim = centroids.cols;
  std::vector<double> all(centroids.rows * dim);
  const bool known = visit_dtype(centroids.dtype, [&](auto element) {
    using T = decltype(element);
    const T* data = static_cast<const T*>(centroids.data);
    for (int64_t k = 0; k < centroids.rows; ++k) {
      for (int64_t d = 0; d < dim; ++d) {
        all[k * dim + d] = to_double(data[k * centroids.row_stride + d]);
      }
    }
  });
  if (!known) return Status::error(StatusCode::invalid_argument, "unknown dtype of centroids");
  choose_entries(all, centroids.rows);
  kernel = &filter_for(current_isa());
  if (entries() == 0) return Status();
  choose_centre();
  return pack(threads);
}

void Codebook::choose_entries(const std::vector<double>& all, int64_t num_centroids) {
  std::vector<int64_t> finite;
  for (int64_t k = 0; k < num_centroids; ++k) {
    const double* c = all.data() + k * dim;
    if (std::all_of(c, c + dim, [](double v) { return std::isfinite(v); })) finite.push_back(k);
  }
  // Equal centroids tie for every row, which would send every such row to the exact tier.
  const auto less = [&](int64_t a, int64_t b) {
    const double *ca = all.data() + a * dim, *cb = all.data() + b * dim;
    for (int64_t d = 0; d < dim; ++d) {
      if (ca[d] != cb[d]) return ca[d] < cb[d];
    }
    return a < b;
  };
  const auto equal = [&](int64_t a, int64_t b) {
    const double *ca = all.data() + a * dim, *cb = all.data() + b * dim;
    return std::equal(ca, ca + dim, cb);  // 0 == -0 here, as in the metric
  };
  std::sort(finite.begin(), finite.end(), less);
  finite.erase(std::unique(finite.begin(), finite.end(), equal), finite.end());
  std::sort(finite.begin(), finite.end());

  ids = std::move(finite);
  values.resize(entries() * dim);
  norms.resize(entries());
  for (int64_t e = 0; e < entries(); ++e) {
    std::copy_n(all.data() + ids[e] * dim, dim, values.data() + e * dim);
    norms[e] = scaled_norm(value(e), dim);
  }
}

void Codebook::choose_centre() {
  centre.assign(dim, 0.0f);
  if (metric == Metric::euclidean) {
    // The median of a sample: one far centroid must not drag the centre away from the others.
    const int64_t samples = std::min<int64_t>(entries(), 33);
    std::vector<double> column(samples);
    for (int64_t d = 0; d < dim; ++d) {
      for (int64_t s = 0; s < samples; ++s) column[s] = value(s * entries() / samples)[d];
      std::nth_element(column.begin(), column.begin() + samples / 2, column.end());
      const double median = column[samples / 2];
      if (std::abs(median) < 1e30) centre[d] = static_cast<float>(median);
    }
  }
  if (metric == Metric::cosine) return;  // directions: already of size one
  double largest = 0.0;
  for (int64_t e = 0; e < entries(); ++e) {
    for (int64_t d = 0; d < dim; ++d) {
      largest = std::max(largest, std::abs(value(e)[d] - centre[d]));
    }
  }
  // Scaled centroids have entries of at most 1; the clamp keeps scale itself a normal float.
  int exponent = 0;
  if (largest > 0.0 && std::isfinite(largest)) std::frexp(largest, &exponent);
  scale = std::ldexp(1.0f, -std::clamp(exponent, -120, 120));
}

Status Codebook::pack(int threads) {
  const int64_t columns = kernel->columns;
  num_panels = (entries() + columns - 1) / columns;
  panels.assign(num_panels * dim * columns, 0.0f);
  bias.assign(num_panels * columns, kNeverWins);
  filter_norms.assign(entries(), 0.0f);
  auto pack_panel = [&](int64_t p, int) {
    for (int64_t j = 0; j < columns && p * columns + j < entries(); ++j) {
      const int64_t e = p * columns + j;
      const double factor = metric == Metric::cosine ? (norms[e] > 0.0 ? 1.0 / norms[e] : 0.0)
                                                     : static_cast<double>(scale);
      double sum = 0.0;
      for (int64_t d = 0; d < dim; ++d) {
        const double v = (value(e)[d] - centre[d]) * factor;
        panels[(p * dim + d) * columns + j] = static_cast<float>(v);
        sum += v * v;
      }
      bias[e] = metric == Metric::euclidean ? static_cast<float>(0.5 * sum) : 0.0f;
      filter_norms[e] = static_cast<float>(std::sqrt(sum) * (1.0 + 0x1p-20));
    }
  };
  CMIM_RETURN_IF_ERROR(parallel_for(threads, num_panels, pack_panel));
  for (int64_t e = 0; e < entries(); ++e) {
    if (metric == Metric::cosine && !norm_is_safe(norms[e])) filter_usable = false;
    max_filter_norm = std::max<double>(max_filter_norm, filter_norms[e]);
    max_bias = std::max<double>(max_bias, bias[e]);
    if (!(filter_norms[e] < kMaxFilterNorm)) filter_usable = false;  // also NaN
  }
  error_base_ = filter_error(0.0, max_filter_norm, max_bias);
  error_slope_ = filter_error(1.0, max_filter_norm, max_bias) - error_base_;
  error_slope_ *= 1.0 + 0x1p-20;  // the subtraction rounds
  return Status();
}

}  // namespace clustermim
