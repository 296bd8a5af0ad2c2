#include "assign/codebook.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "assign/scores.h"
#include "core/cpu_features.h"
#include "core/parallel_for.h"

namespace clustermim {
namespace {

constexpr int64_t kRowsPerTask = 64;
constexpr int64_t kFewRows = 4;

typedef float Vec4 __attribute__((vector_size(16)));

inline Vec4 load4(const float* p) {
  Vec4 v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}

const FilterKernel& filter_for(Isa isa) {
#if defined(__x86_64__)
  switch (isa) {
    case Isa::amx: return kFilterAmx;
    case Isa::avx512_vnni:
    case Isa::avx512: return kFilterAvx512;
    case Isa::avx2: return kFilterAvx2;
    case Isa::generic: break;
  }
#endif
  (void)isa;
  return kFilterGeneric;
}

// Pseudo-random weight of a coordinate, in [0.5, 1.5): equal rows have equal weighted sums.
float key_weight(int64_t d) {
  return 0.5f + static_cast<float>((static_cast<uint32_t>(d) * 0x9e3779b1u) >> 8) * 0x1p-24f;
}

// The weighted sum of a row; NaN when a value is NaN or infinite.
float row_key(const float* v, const float* weights, int64_t dim) {
  Vec4 key[2] = {}, zero[2] = {};
  int64_t d = 0;
  for (; d + 8 <= dim; d += 8) {
    for (int i = 0; i < 2; ++i) {
      const Vec4 x = load4(v + d + 4 * i);
      key[i] += x * load4(weights + d + 4 * i);
      zero[i] += x * 0.0f;
    }
  }
  float tail = 0.0f, bad = 0.0f;
  for (; d < dim; ++d) {
    tail += v[d] * weights[d];
    bad += v[d] * 0.0f;
  }
  const Vec4 sum = key[0] + key[1], nothing = zero[0] + zero[1];
  bad += (nothing[0] + nothing[1]) + (nothing[2] + nothing[3]);
  const float total = (sum[0] + sum[1]) + (sum[2] + sum[3]) + tail;
  return bad != 0.0f ? bad : std::isfinite(total) ? total : 0.0f;  // NaN != 0
}

float squared_norm(const float* v, const float* centre, int64_t dim) {
  Vec4 sums[4] = {};
  int64_t d = 0;
  for (; d + 16 <= dim; d += 16) {
    for (int i = 0; i < 4; ++i) {
      const Vec4 difference = load4(v + d + 4 * i) - load4(centre + d + 4 * i);
      sums[i] += difference * difference;
    }
  }
  float tail = 0.0f;
  for (; d < dim; ++d) tail += (v[d] - centre[d]) * (v[d] - centre[d]);
  const Vec4 sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  return (sum[0] + sum[1]) + (sum[2] + sum[3]) + tail;
}

}  // namespace

const double* Codebook::value(int64_t entry, double* scratch) const {
  if (!values.empty()) return value(entry);
  const float* row = row32(entry);
  for (int64_t d = 0; d < dim; ++d) scratch[d] = row[d];
  return scratch;
}

Status Codebook::prepare(const MatrixView& centroids, Metric which, int threads, bool keep_values,
                         int64_t rows) {
  metric = which;
  num_rows = rows;
  dim = centroids.cols;
  CMIM_RETURN_IF_ERROR(read(centroids, threads, keep_values));
  choose_entries();
  kernel = &filter_for(current_isa());
  columns.metric = metric;
  // Packing all centroids costs as much as comparing a few rows with them directly.
  const bool few = num_rows > 0 && num_rows <= kFewRows;
  if (entries() == 0 || few) return Status();
  choose_centre();
  return pack(threads);
}

Status Codebook::read(const MatrixView& centroids, int threads, bool keep_values) {
  const int64_t num = centroids.rows;
  const bool in_place = centroids.dtype == DType::f32, wide = centroids.dtype == DType::f64;
  if (!in_place) copied_.resize(num * dim);
  rows32_ = in_place ? static_cast<const float*>(centroids.data) : copied_.data();
  stride32_ = in_place ? centroids.row_stride : dim;
  if (wide || keep_values) values.resize(num * dim);
  finite_.resize(num);
  keys_.resize(num);
  std::vector<char> exact(num, 1);
  std::vector<float> weights(dim);
  for (int64_t d = 0; d < dim; ++d) weights[d] = key_weight(d);
  Status status;
  const bool known = visit_dtype(centroids.dtype, [&](auto element) {
    using T = decltype(element);
    auto read_rows = [&](int64_t task, int) {
      for (int64_t k = task * kRowsPerTask; k < std::min(num, (task + 1) * kRowsPerTask); ++k) {
        const T* from = static_cast<const T*>(centroids.data) + k * centroids.row_stride;
        if (!in_place) {
          float* to = copied_.data() + k * dim;
          for (int64_t d = 0; d < dim; ++d) to[d] = static_cast<float>(to_double(from[d]));
        }
        if (!values.empty()) {
          double* to = values.data() + k * dim;
          for (int64_t d = 0; d < dim; ++d) to[d] = to_double(from[d]);
        }
        const float* row = rows32_ + k * stride32_;
        keys_[k] = row_key(row, weights.data(), dim);
        finite_[k] = keys_[k] == keys_[k];
        if (wide) {
          const double* v = value(k);
          finite_[k] = std::all_of(v, v + dim, [](double d) { return std::isfinite(d); });
          exact[k] = !finite_[k] || std::equal(row, row + dim, v);
          if (keys_[k] != keys_[k]) keys_[k] = 0.0f;  // beyond float32's range
        }
      }
    };
    status = parallel_for(threads, (num + kRowsPerTask - 1) / kRowsPerTask, read_rows);
  });
  if (!known) return Status::error(StatusCode::invalid_argument, "unknown dtype of centroids");
  exact_float32_ = std::all_of(exact.begin(), exact.end(), [](char e) { return e != 0; });
  return status;
}

// Equal centroids tie for every row, which would send every such row to the exact tier.
void Codebook::choose_entries() {
  for (size_t k = 0; k < finite_.size(); ++k) {
    if (finite_[k]) ids.push_back(static_cast<int64_t>(k));
  }
  std::vector<int64_t> order = ids;
  std::sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    return keys_[a] != keys_[b] ? keys_[a] < keys_[b] : a < b;
  });
  const auto equal = [&](int64_t a, int64_t b) {  // 0 == -0, as in the metric
    if (exact_float32_) {
      const float* row = rows32_ + a * stride32_;
      return std::equal(row, row + dim, rows32_ + b * stride32_);
    }
    return std::equal(value(a), value(a) + dim, value(b));
  };
  std::vector<char> repeated(finite_.size(), 0);
  for (size_t i = 0; i < order.size(); ++i) {
    for (size_t j = i; j-- > 0 && keys_[order[j]] == keys_[order[i]];) {
      if (repeated[order[j]] || !equal(order[i], order[j])) continue;
      repeated[order[i]] = 1;
      break;
    }
  }
  std::erase_if(ids, [&](int64_t k) { return repeated[k]; });

  for (int64_t e = 0; !values.empty() && e < entries(); ++e) {
    if (ids[e] != e) std::copy_n(value(ids[e]), dim, values.data() + e * dim);
  }
  if (!values.empty()) values.resize(entries() * dim);
  norms.assign(entries(), 0.0);
  std::vector<double> scratch(dim);
  for (int64_t e = 0; metric == Metric::cosine && e < entries(); ++e) {
    norms[e] = scaled_norm(value(e, scratch.data()), dim);
  }
}

void Codebook::choose_centre() {
  centre.assign(dim, 0.0f);
  if (metric != Metric::euclidean) return;
  // The median of a sample: one far centroid must not drag the centre away from the others.
  const int64_t samples = std::min<int64_t>(entries(), 17);
  std::vector<float> column(samples);
  for (int64_t d = 0; d < dim; ++d) {
    for (int64_t s = 0; s < samples; ++s) column[s] = row32(s * entries() / samples)[d];
    std::nth_element(column.begin(), column.begin() + samples / 2, column.end());
    const float median = column[samples / 2];
    if (std::abs(median) < 1e30f) centre[d] = median;
  }
}

double Codebook::filter_norm(int64_t e) const {
  if (metric == Metric::cosine) {
    if (!norm_is_safe(norms[e])) return std::numeric_limits<double>::infinity();
    return norms[e] > 0.0 ? 1.0 : 0.0;
  }
  const float squared = squared_norm(row32(e), centre.data(), dim);
  if (exact_float32_ && squared > 1e-25f && squared < 1e35f) return std::sqrt(squared);
  double sum = 0.0;
  std::vector<double> scratch(dim);
  const double* v = value(e, scratch.data());
  for (int64_t d = 0; d < dim; ++d) sum += (v[d] - centre[d]) * (v[d] - centre[d]);
  return std::sqrt(sum);
}

Status Codebook::pack(int threads) {
  std::vector<double> filter_norms(entries());
  auto measure = [&](int64_t task, int) {
    for (int64_t e = task * kRowsPerTask; e < std::min(entries(), (task + 1) * kRowsPerTask); ++e) {
      filter_norms[e] = filter_norm(e);
    }
  };
  CMIM_RETURN_IF_ERROR(
      parallel_for(threads, (entries() + kRowsPerTask - 1) / kRowsPerTask, measure));
  const double usual = choose_columns(filter_norms, kernel->tile, columns);
  scale = metric == Metric::cosine ? 1.0f : static_cast<float>(usual);
  CMIM_RETURN_IF_ERROR(project(threads));
  columns.error = score_error(kernel->format, filter_dim());
  if (projection.size) columns.outside.assign(columns.size(), 0.0f);

  const int64_t tile = kernel->tile, row_bytes = packed_row_bytes(*kernel, filter_dim());
  const int64_t tile_bytes = packed_tile_bytes(*kernel, filter_dim());
  panels.resize(columns.size() / tile * tile_bytes);
  std::vector<float> lengths(columns.size(), 0.0f);
  std::vector<float> constants(columns.size(), 0.0f);
  auto pack_tile = [&](int64_t t, int) {
    AlignedVector<char> rows(tile * row_bytes, 0);
    for (int64_t j = 0; j < tile; ++j) {
      const int64_t column = t * tile + j;
      if (columns.entry_of[column] < 0) continue;
      char* packed = rows.data() + j * row_bytes;
      if (projection.size) {
        pack_coordinates(column, packed, lengths, constants);
      } else {
        pack_column(column, packed, lengths);
      }
    }
    kernel->pack_tile(rows.data(), row_bytes, filter_dim(), panels.data() + t * tile_bytes);
  };
  CMIM_RETURN_IF_ERROR(parallel_for(threads, columns.size() / tile, pack_tile));
  coordinates_ = {};
  outside2_ = {};
  bound_segments(lengths, columns);
  if (projection.size) {
    for (SegmentBounds& b : columns.bounds) {
      b.constant = *std::max_element(constants.begin(), constants.end());
    }
    return Status();
  }
  if (const IntegerKernel* integer = integer_kernel(current_isa(), columns, dim)) {
    std::vector<double> scratch(dim);
    const double largest = *std::max_element(filter_norms.begin(), filter_norms.end()) * scale;
    integers.pack(*integer, entries(), centre, scale, largest,
                  [&](int64_t e) { return value(e, scratch.data()); });
  }
  const NarrowKernel* narrow_rows =
      integers.usable() ? nullptr : narrow_kernel(*kernel, columns, dim);
  if (narrow_rows) {
    narrow.pack(*narrow_rows, columns, panels.data(), packed_tile_bytes(*kernel, dim), centre,
                scale);
  }
  return Status();
}

void Codebook::pack_column(int64_t column, char* packed, std::vector<float>& lengths) {
  const int64_t e = columns.entry_of[column], row_bytes = packed_row_bytes(*kernel, dim);
  const double factor = metric == Metric::cosine ? (norms[e] > 0.0 ? 1.0 / norms[e] : 0.0)
                                                 : static_cast<double>(scale);
  float norm2 = 0.0f, error2 = 0.0f;
  if (exact_float32_ && metric != Metric::cosine) {
    kernel->pack_rows(row32(e), dim, 1, centre.data(), scale, dim, packed, row_bytes, &norm2,
                      &error2);
  } else {
    std::vector<double> scratch(dim);
    std::vector<float> single(dim);
    const double* v = value(e, scratch.data());
    for (int64_t d = 0; d < dim; ++d) {
      single[d] = static_cast<float>((v[d] - centre[d]) * factor);
    }
    const std::vector<float> zeros(dim, 0.0f);
    kernel->pack_rows(single.data(), dim, 1, zeros.data(), 1.0f, dim, packed, row_bytes, &norm2,
                      &error2);
  }
  const RowBounds rounded = row_bounds(norm2, error2, dim);
  lengths[column] = rounded.norm;
  // c' itself was rounded to float32, once.
  columns.residual[column] =
      rounded.residual + 1.01f * 0x1p-24f * (rounded.norm + rounded.residual);
  columns.bias[column] =
      metric == Metric::euclidean ? static_cast<float>(-0.5 * kernel->norm2(packed, dim)) : 0.0f;
}

}  // namespace clustermim
