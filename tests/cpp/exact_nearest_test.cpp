// Exact decisions among many centroids at once, beside the slow exact comparison of pairs.
#include "assign/exact_nearest.h"

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "assign/scores.h"
#include "check.h"
#include "core/cpu_features.h"
#include "core/exact_sum.h"

using namespace clustermim;

namespace {

using Matrix = std::vector<std::vector<float>>;

int32_t slow_nearest(Metric metric, const std::vector<float>& row, const Matrix& centroids,
                     const std::vector<int32_t>& entries) {
  int32_t best = -1;
  for (int32_t e : entries) {
    const std::vector<double> c(centroids[e].begin(), centroids[e].end());
    if (best < 0) {
      best = e;
      continue;
    }
    const std::vector<double> b(centroids[best].begin(), centroids[best].end());
    const int64_t dim = static_cast<int64_t>(row.size());
    if (exact_compare(metric, row.data(), c.data(), b.data(), dim) < 0) best = e;
  }
  return best;
}

// Returns how many rows were decided; all that are must be right.
int decided_rows(Metric metric, const Matrix& rows, const Matrix& given) {
  Matrix centroids;  // as a codebook keeps them: without duplicates
  for (const auto& c : given) {
    if (std::find(centroids.begin(), centroids.end(), c) == centroids.end()) centroids.push_back(c);
  }
  const int64_t dim = static_cast<int64_t>(rows[0].size());
  std::vector<float> flat;
  for (const auto& c : centroids) flat.insert(flat.end(), c.begin(), c.end());
  Codebook book;
  const int64_t num = static_cast<int64_t>(centroids.size());
  CHECK(book.prepare({flat.data(), DType::f32, num, dim, dim}, metric, 1, false).ok());
  CHECK(book.entries() == num);
  ExactNearest exact(book);
  if (!exact.usable()) return 0;
  std::vector<int32_t> all(num), odd;
  for (int32_t e = 0; e < num; ++e) {
    all[e] = e;
    if (e % 2 == 1) odd.push_back(e);
  }
  int decided = 0;
  for (size_t begin = 0; begin < rows.size(); begin += ExactNearest::kMaxRows) {
    const int count =
        static_cast<int>(std::min<size_t>(ExactNearest::kMaxRows, rows.size() - begin));
    std::vector<const float*> pointers;
    for (int r = 0; r < count; ++r) pointers.push_back(rows[begin + r].data());
    std::vector<int32_t> winners(count), of_odd(count);
    exact.decide(pointers.data(), count, nullptr, 0, winners.data());
    exact.decide(pointers.data(), count, odd.data(), static_cast<int64_t>(odd.size()),
                 of_odd.data());
    for (int r = 0; r < count; ++r) {
      if (winners[r] < 0) continue;
      ++decided;
      CHECK(winners[r] == slow_nearest(metric, rows[begin + r], centroids, all));
      CHECK(of_odd[r] == slow_nearest(metric, rows[begin + r], centroids, odd));
    }
  }
  return decided;
}

struct Random {
  std::mt19937_64 engine{7};
  float normal() { return std::normal_distribution<float>()(engine); }
  int below(int n) { return static_cast<int>(engine() % static_cast<uint64_t>(n)); }
  // 24 random bits at 2^exponent.
  float at(int exponent) {
    return std::ldexp(static_cast<float>(0x800000 + below(0x800000)), exponent - 24) *
           static_cast<float>(1 - 2 * below(2));
  }
};

Matrix matrix(size_t rows, size_t dim, auto value) {
  Matrix m(rows, std::vector<float>(dim));
  for (auto& row : m) std::generate(row.begin(), row.end(), value);
  return m;
}

// Permutations of one centroid are equally far from a row of one value; one of them, a last bit
// nearer, must win.
void permutations(Metric metric, size_t dim, float scale) {
  Random random;
  std::vector<float> one(dim);
  for (float& v : one) v = random.normal() * scale;
  Matrix centroids;
  for (int k = 0; k < 20; ++k) {
    std::shuffle(one.begin(), one.end(), random.engine);
    centroids.push_back(one);
  }
  Matrix rows;
  for (int r = 0; r < 37; ++r) rows.emplace_back(dim, random.normal() * scale);
  rows.emplace_back(dim, 0.0f);
  CHECK(decided_rows(metric, rows, centroids) == 38);
  float& v = centroids[13][dim / 2];
  v = std::nextafter(v, rows[0][0] > v ? 1e30f : -1e30f);
  CHECK(decided_rows(metric, rows, centroids) == 38);
}

void wide_ranges(Metric metric, size_t dim) {
  Random random;
  for (int spread : {0, 5, 10, 15, 20, 25, 40, 120}) {
    for (int middle : {-120, -60, 0, 60, 100}) {
      const auto value = [&] {
        const int exponent = middle + random.below(spread + 1) - spread / 2;
        return random.below(8) == 0 ? 0.0f : random.at(std::clamp(exponent, -148, 127));
      };
      Matrix rows = matrix(9, dim, value), centroids = matrix(6, dim, value);
      const int decided = decided_rows(metric, rows, centroids);
      if (spread <= 15) CHECK(decided == 9);
    }
  }
}

// A row of two equal halves is as far from a centroid as from the same with values exchanged
// between its halves. Every bit of the values, however far apart their sizes, has its part in that.
void exchanged_halves(Metric metric, size_t half) {
  Random random;
  for (int spread : {0, 10, 16, 18, 20, 22, 24, 26, 28, 30, 34}) {
    const auto value = [&] { return random.at(random.below(spread + 1)); };
    Matrix centroids = matrix(1, 2 * half, value);
    for (int k = 0; k < 12; ++k) {
      auto c = centroids[0];
      for (size_t d = 0; d < half; ++d) {
        if (random.below(2)) std::swap(c[d], c[half + d]);
      }
      centroids.push_back(c);
    }
    Matrix rows = matrix(5, 2 * half, value);
    for (auto& row : rows) std::copy_n(row.begin(), half, row.begin() + half);
    const int decided = decided_rows(metric, rows, centroids);
    if (spread <= 16) CHECK(decided == 5);
  }
}

// Centroids along a few directions: the cosine ties where norms differ.
void parallel_centroids() {
  Random random;
  for (size_t dim : {1, 2, 9, 64}) {
    const auto value = [&] { return static_cast<float>(random.below(7) - 3); };
    Matrix centroids;
    for (int k = 0; k < 3; ++k) {
      const Matrix direction = matrix(1, dim, value);
      for (float length : {7.0f, 0x1p-9f, 1.0f, 0.0f, 3.0f}) {
        auto c = direction[0];
        for (float& v : c) v *= length;
        centroids.push_back(c);
      }
    }
    CHECK(decided_rows(Metric::cosine, matrix(9, dim, value), centroids) == 9);
  }
}

void unequal_sizes(Metric metric) {
  Random random;
  for (int of_rows : {-110, -50, 0, 50, 110}) {
    for (int of_centroids : {-110, -50, 0, 50, 110}) {
      decided_rows(metric, matrix(4, 20, [&] { return random.at(of_rows + random.below(4)); }),
                   matrix(9, 20, [&] { return random.at(of_centroids + random.below(4)); }));
    }
  }
}

void grids(Metric metric, float unit) {
  Random random;
  for (size_t dim : {1, 2, 7, 8, 9, 16, 33, 100, 1024}) {
    const auto value = [&] { return unit * static_cast<float>(random.below(1 << 12)); };
    CHECK(decided_rows(metric, matrix(6, dim, value), matrix(5, dim, value)) == 6);
  }
}

// Sums at the edge of what fits: all products as large as they come, of one sign and of both.
void largest_sums() {
  for (size_t dim : {64, 1024}) {
    const float top = std::nextafter(1.0f, 0.0f);
    Matrix centroids(3, std::vector<float>(dim, top));
    centroids[1][0] = std::nextafter(top, 0.0f);
    for (size_t d = 0; d < dim; ++d) centroids[2][d] = d % 2 ? top : -top;
    for (int low : {-10, -19, -20, -30}) {  // of the row's smallest value: more and more bits
      Matrix rows(5, std::vector<float>(dim, top));
      rows[1].assign(dim, -top);
      for (size_t d = 0; d < dim; ++d) rows[2][d] = d % 3 ? top : -top;
      for (auto& row : rows) row[dim / 3] = std::ldexp(top, low);
      for (Metric metric : {Metric::euclidean, Metric::dot, Metric::cosine}) {
        CHECK(decided_rows(metric, rows, centroids) == 5);
      }
    }
  }
}

void refuses_what_it_cannot_hold() {
  const std::vector<double> wide = {0.1, 0.2};  // not float32 values
  Codebook book;
  CHECK(book.prepare({wide.data(), DType::f64, 2, 1, 1}, Metric::euclidean, 1).ok());
  CHECK(!ExactNearest(book).usable());
  CHECK(decided_rows(Metric::euclidean, {{1.0f}}, {{1e38f}, {1e-38f}}) == 0);
  CHECK(decided_rows(Metric::dot, {{1e38f, 1e-38f}, {1.0f, 2.0f}}, {{3.0f, 1.0f}, {1.0f, 0.1f}}) ==
        1);
}

}  // namespace

int main() {
  for (const char* isa : {"generic", "avx2", "avx512"}) {
    if (!set_isa(isa).ok()) {
      std::printf("skipped ISA path %s: this machine lacks it\n", isa);
      continue;
    }
    for (Metric metric : {Metric::euclidean, Metric::dot, Metric::cosine}) {
      for (size_t dim : {3, 16, 48, 100}) {
        for (float scale : {1e-38f, 1.0f, 1e18f}) permutations(metric, dim, scale);
      }
      for (size_t dim : {1, 5, 48}) wide_ranges(metric, dim);
      for (size_t half : {4, 24, 300}) exchanged_halves(metric, half);
      unequal_sizes(metric);
      for (float unit : {1.0f, 0x1p-149f, 0x1p100f}) grids(metric, unit);
    }
    largest_sums();
    parallel_centroids();
    refuses_what_it_cannot_hold();
  }
  return 0;
}
