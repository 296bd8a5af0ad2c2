// docs/certificate.md (1): squared lengths of rows are measured with at most 54 roundings, however
// wide a row is. The rows here lose as much as any can: a chain of squares starts just above a
// power of two, and all that follows is under half a unit of its last place.
#include <cmath>
#include <cstdio>
#include <vector>

#include "assign/filter_sizes.h"
#include "assign/pixels.h"
#include "check.h"
#include "core/aligned_vector.h"
#include "core/cpu_features.h"

using namespace clustermim;

namespace {

constexpr double kMost = 1.01 * 54 * 0x1p-24;
constexpr int64_t kDims[] = {512, 1024, 2048, 4096, 65535, 65536, 65599};

double share(float computed, double exact) {
  const double error = std::abs(computed - exact) / (kMost * exact);
  CHECK(error <= 1.0);
  return error;
}

// The first value of each of `chains` chains is large: of the row, or of every 32 in a chain.
bool is_large(int64_t d, int64_t chains, bool every_run) {
  return (every_run ? d % (32 * chains) : d) < chains;
}

void check_rows(const char* name, const FilterKernel& kernel, int64_t chains, int64_t dim,
                bool every_run) {
  const std::vector<float> zeros(dim, 0.0f);
  std::vector<float> row(dim);
  const int64_t bytes = packed_row_bytes(kernel, dim);
  AlignedVector<char> packed(bytes);
  float norm2 = 0.0f, error2 = 0.0f;
  double squares = 0.0;
  for (int64_t d = 0; d < dim; ++d) {
    row[d] = is_large(d, chains, every_run) ? 1.0078125f : 0x1p-12f * (255.0f / 256.0f);
    squares += static_cast<double>(row[d]) * row[d];
  }
  kernel.pack_rows(row.data(), dim, 1, zeros.data(), 1.0f, dim, packed.data(), bytes, &norm2,
                   &error2);
  const double of_norm = share(norm2, squares);
  CHECK(error2 == 0.0f);
  CHECK(!every_run || dim % (32 * chains) != 0 || of_norm >= 0.4);  // the bound is not idle
  if (kernel.format == Format::bfloat16) {
    squares = 0.0;
    for (int64_t d = 0; d < dim; ++d) {  // all of them are rounded to 1
      const float lost = is_large(d, chains, every_run) ? 0x1p-8f * 0.984375f : 0x1p-20f * 0.625f;
      row[d] = 1.0f + lost;
      squares += static_cast<double>(lost) * lost;
    }
    kernel.pack_rows(row.data(), dim, 1, zeros.data(), 1.0f, dim, packed.data(), bytes, &norm2,
                     &error2);
    CHECK(norm2 == static_cast<float>(dim));
    share(error2, squares);
  }
  std::printf("%s, %lld values: %.2f of the bound\n", name, static_cast<long long>(dim), of_norm);
}

#if defined(__x86_64__)
// Pixels one above the middle, weighted so that they are the same squares.
void check_pixels(const PixelKernel& kernel, int64_t chains, int64_t padded_dim) {
  const std::vector<uint8_t> row(padded_dim, 129);
  std::vector<float> weights(padded_dim), groups(padded_dim / 64);
  double squares = 0.0;
  for (int64_t d = 0; d < padded_dim; ++d) {
    weights[d] = d < chains ? 1.015625f : 0x1p-24f * 0.24f;  // a group adds four to a lane
    groups[d / 64] = weights[d];
    squares += weights[d];
  }
  float norm2 = 0.0f;
  kernel.norms(row.data(), padded_dim, 1, padded_dim, weights.data(), nullptr, &norm2);
  share(norm2, squares);
  kernel.norms(row.data(), padded_dim, 1, padded_dim, weights.data(), groups.data(), &norm2);
  share(norm2, squares);
}
#endif

}  // namespace

int main() {
  for (const int64_t dim : kDims) {
    for (const bool every_run : {false, true}) {
      check_rows("generic", kFilterGeneric, 16, dim, every_run);
#if defined(__x86_64__)
      if (isa_usable(Isa::avx2)) check_rows("avx2", kFilterAvx2, 32, dim, every_run);
      if (isa_usable(Isa::avx512)) check_rows("avx512", kFilterAvx512, 64, dim, every_run);
      if (isa_usable(Isa::amx)) check_rows("amx", kFilterAmx, 32, dim, every_run);
#endif
    }
#if defined(__x86_64__)
    if (isa_usable(Isa::avx512_vnni)) check_pixels(kPixelsVnni, 64, dim / 64 * 64);
    if (isa_usable(Isa::amx)) check_pixels(kPixelsAmx, 64, dim / 64 * 64);
#endif
  }
}
