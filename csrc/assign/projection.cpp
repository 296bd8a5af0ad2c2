#include "assign/projection.h"

#include <algorithm>
#include <atomic>
#include <cmath>

#include "assign/certificate.h"
#include "assign/filter_sizes.h"
#include "core/cpu_features.h"
#include "core/parallel_for.h"

namespace clustermim {
namespace {

const FilterKernel& float32_kernel() {
#if defined(__x86_64__)
  const Isa isa = current_isa();
  if (isa >= Isa::avx512) return kFilterAvx512;
  if (isa == Isa::avx2) return kFilterAvx2;
#endif
  return kFilterGeneric;
}

std::vector<float> transposed(const std::vector<float>& a, int64_t rows, int64_t columns) {
  std::vector<float> out(rows * columns);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < columns; ++c) out[c * rows + r] = a[r * columns + c];
  }
  return out;
}

std::atomic<int> mode{0};

}  // namespace

ProjectionMode projection_mode() {
  return static_cast<ProjectionMode>(mode.load(std::memory_order_relaxed));
}
void set_projection_mode(ProjectionMode wanted) {
  mode.store(static_cast<int>(wanted), std::memory_order_relaxed);
}

Status multiply_transposed(const float* a, int64_t n, const float* b, int64_t m, int64_t k,
                           int threads, float* out) {
  const FilterKernel& kernel = float32_kernel();
  const int64_t tiles = (m + kernel.tile - 1) / kernel.tile,
                row_bytes = packed_row_bytes(kernel, k);
  const std::vector<float> zeros(std::max(k, tiles * kernel.tile), 0.0f);
  AlignedVector<char> panels(tiles * packed_tile_bytes(kernel, k));
  auto pack_tile = [&](int64_t t, int) {
    AlignedVector<char> rows(kernel.tile * row_bytes, 0);
    std::vector<float> unused(2 * kernel.tile);
    const int64_t count = std::min<int64_t>(kernel.tile, m - t * kernel.tile);
    kernel.pack_rows(b + t * kernel.tile * k, k, count, zeros.data(), 1.0f, k, rows.data(),
                     row_bytes, unused.data(), unused.data() + kernel.tile);
    kernel.pack_tile(rows.data(), row_bytes, k, panels.data() + t * packed_tile_bytes(kernel, k));
  };
  CMIM_RETURN_IF_ERROR(parallel_for(threads, tiles, pack_tile));
  const int64_t strip = kernel.strip_rows, columns = tiles * kernel.tile;
  auto multiply = [&](int64_t task, int) {
    const int64_t begin = task * strip, count = std::min(strip, n - begin);
    AlignedVector<char> rows(strip * row_bytes, 0);
    std::vector<float> unused(2 * strip), scores(strip * columns);
    kernel.pack_rows(a + begin * k, k, count, zeros.data(), 1.0f, k, rows.data(), row_bytes,
                     unused.data(), unused.data() + strip);
    kernel.scores(rows.data(), row_bytes, count, panels.data(), zeros.data(), tiles, k,
                  scores.data(), columns, nullptr, 0);
    for (int64_t r = 0; r < count; ++r) {
      std::copy_n(scores.data() + r * columns, m, out + (begin + r) * m);
    }
  };
  return parallel_for(threads, (n + strip - 1) / strip, multiply);
}

int64_t Projection::choose_size(Format format, int64_t dim, int64_t columns, int64_t rows) {
  constexpr int64_t kMinimum = 64;
  if (projection_mode() == ProjectionMode::never) return 0;
  if (projection_mode() == ProjectionMode::always) {
    return dim > 32 && columns > 32 ? std::min(dim, columns) / 2 / 32 * 32 : 0;
  }
  // On tiles products are so cheap that a candidate more costs as much as many columns.
  const bool tiles = format == Format::bfloat16;
  if (dim < 256 || columns < (tiles ? 4096 : 256)) return 0;
  const int64_t size = std::max(kMinimum, (columns >= 4096 ? dim / 4 : dim / 8) / 32 * 32);
  // Products of a row, and of the preparation, which runs in float32 and partly without vectors:
  // the factors are what makes up for it on one core (docs/measurements.md).
  const int64_t whole = dim * columns, here = (tiles ? 2 : 1) * dim * size + size * columns;
  if (5 * here >= 3 * whole) return 0;  // as when size > columns, where `once` could overflow
  const int64_t once = (tiles ? 36 : 4) * (columns + 28 * size) * dim * size;
  return rows * (whole - here) > 2 * once ? size : 0;
}

Status Projection::find(const std::vector<float>& centroids, int64_t count, int64_t dim,
                        int64_t wanted, const FilterKernel& kernel, int threads) {
  // Two steps of subspace iteration on a sample of centroids: close to the leading singular
  // vectors. Whatever it finds is valid, since the errors of the basis are measured.
  const int64_t sample = std::min(count, 4 * wanted);
  std::vector<float> rows(sample * dim), mixed(sample * wanted);
  for (int64_t s = 0; s < sample; ++s) {
    std::copy_n(centroids.data() + s * count / sample * dim, dim, rows.data() + s * dim);
  }
  const std::vector<float> rows_t = transposed(rows, sample, dim);
  size = wanted;
  basis.resize(size * dim);
  for (int64_t i = 0; i < size; ++i) {
    std::copy_n(rows.data() + i * sample / size * dim, dim, basis.data() + i * dim);
  }
  for (int step = 0; step < 2; ++step) {
    CMIM_RETURN_IF_ERROR(
        multiply_transposed(rows.data(), sample, basis.data(), size, dim, threads, mixed.data()));
    const std::vector<float> mixed_t = transposed(mixed, sample, size);
    CMIM_RETURN_IF_ERROR(multiply_transposed(mixed_t.data(), size, rows_t.data(), dim, sample,
                                             threads, basis.data()));
    orthonormalise(dim);
  }

  std::vector<double> off(size);
  auto compare = [&](int64_t i, int) {
    for (int64_t j = 0; j <= i; ++j) {
      double lanes[8] = {};
      const float *u = basis.data() + i * dim, *v = basis.data() + j * dim;
      int64_t d = 0;
      for (; d + 8 <= dim; d += 8) {
        for (int l = 0; l < 8; ++l) lanes[l] += static_cast<double>(u[d + l]) * v[d + l];
      }
      for (; d < dim; ++d) lanes[0] += static_cast<double>(u[d]) * v[d];
      double sum = i == j ? -1.0 : 0.0;
      for (double lane : lanes) sum += lane;
      off[i] += (i == j ? 1.0 : 2.0) * sum * sum;
    }
  };
  CMIM_RETURN_IF_ERROR(parallel_for(threads, size, compare));
  double squares = 0.0;
  for (double o : off) squares += o;
  skew = static_cast<float>(std::sqrt(squares) * 1.001 + 1e-9);  // Frobenius; float64 rounds too
  if (!(skew < 0.01f)) {  // dependent centroids: no basis of this size
    size = 0;
    return Status();
  }
  return pack(dim, kernel, threads);
}

// Section 3. bfloat16: the packed basis, in two products; float32: the basis itself.
float Projection::error(Format format, int64_t dim) const {
  const float packed = format == Format::bfloat16 ? rounding : 0.0f;
  const float root = std::sqrt(static_cast<float>(size));
  return skew + packed + 1.05f * (score_error(format, dim).dot * root + 0x1p-23f);
}

// Gram-Schmidt, every vector twice against those before it.
void Projection::orthonormalise(int64_t dim) {
  const ScanKernel& scan = float32_kernel().scan;
  for (int64_t i = 0; i < size; ++i) {
    float* v = basis.data() + i * dim;
    for (int pass = 0; pass < 3; ++pass) {
      const float length = std::sqrt(scan.dot(v, v, dim));
      const float factor = length > 0.0f ? 1.0f / length : 0.0f;
      for (int64_t d = 0; d < dim; ++d) v[d] *= factor;
      if (pass == 2) break;
      for (int64_t j = 0; j < i; ++j) {
        const float* u = basis.data() + j * dim;
        scan.subtract(scan.dot(u, v, dim), u, v, dim);
      }
    }
  }
}

Status Projection::pack(int64_t dim, const FilterKernel& kernel, int threads) {
  parts = kernel.format == Format::bfloat16 ? 2 : 1;
  tiles = size / kernel.tile;
  const int64_t row_bytes = packed_row_bytes(kernel, dim);
  panels.resize(parts * tiles * packed_tile_bytes(kernel, dim));
  zero_bias.assign(parts * size, 0.0f);
  const std::vector<float> zeros(dim, 0.0f);
  std::vector<double> errors(tiles, 0.0);
  auto pack_tile = [&](int64_t t, int) {
    AlignedVector<char> rows(kernel.tile * row_bytes, 0);
    std::vector<float> rest(basis.begin() + t * kernel.tile * dim,
                            basis.begin() + (t + 1) * kernel.tile * dim);
    std::vector<float> norm2(kernel.tile), error2(kernel.tile);
    for (int part = 0; part < parts; ++part) {
      kernel.pack_rows(rest.data(), dim, kernel.tile, zeros.data(), 1.0f, dim, rows.data(),
                       row_bytes, norm2.data(), error2.data());
      kernel.pack_tile(rows.data(), row_bytes, dim,
                       panels.data() + (part * tiles + t) * packed_tile_bytes(kernel, dim));
      if (parts == 1) return;
      for (int64_t j = 0; j < kernel.tile; ++j) {  // what the bfloat16 of this part leaves
        const uint16_t* high = reinterpret_cast<const uint16_t*>(rows.data() + j * row_bytes);
        for (int64_t d = 0; d < dim; ++d) {
          const uint32_t bits = static_cast<uint32_t>(high[d]) << 16;
          float value;
          __builtin_memcpy(&value, &bits, 4);
          rest[j * dim + d] -= value;  // exact
        }
      }
    }
    for (float left : rest) errors[t] += static_cast<double>(left) * left;
  };
  CMIM_RETURN_IF_ERROR(parallel_for(threads, tiles, pack_tile));
  double sum = 0.0;
  for (double e : errors) sum += e;
  rounding = static_cast<float>(std::sqrt(sum) * 1.001);
  return Status();
}

}  // namespace clustermim
