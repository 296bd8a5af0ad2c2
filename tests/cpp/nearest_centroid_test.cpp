// The assignment engine without Python, small enough for the sanitizers; the full tests of right
// answers are in tests/ops.
#include "nearest_centroid/nearest_centroid.h"

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "check.h"
#include "core/cpu_features.h"
#include "lloyd_step/lloyd_step.h"
#include "patch_tokens/patch_tokens.h"
#include "replace_patches/replace_patches.h"

using namespace clustermim;

namespace {

struct Problem {
  int64_t rows, dim, clusters;
  std::vector<float> x, centroids;

  // Small integers: float arithmetic is exact, and ties are many.
  Problem(int64_t n, int64_t d, int64_t k, int range) : rows(n), dim(d), clusters(k) {
    std::mt19937 random(static_cast<unsigned>(n + 31 * d + 977 * k));
    std::uniform_int_distribution<int> value(-range, range);
    for (int64_t i = 0; i < n * d; ++i) x.push_back(static_cast<float>(value(random)));
    for (int64_t i = 0; i < k * d; ++i) centroids.push_back(static_cast<float>(value(random)));
  }
  int64_t nearest(int64_t row) const {
    int64_t best = -1;
    float smallest = std::numeric_limits<float>::infinity();
    for (int64_t k = 0; k < clusters; ++k) {
      float sum = 0;
      for (int64_t d = 0; d < dim; ++d) {
        const float difference = x[row * dim + d] - centroids[k * dim + d];
        sum += difference * difference;
      }
      if (sum < smallest) {
        smallest = sum;
        best = k;
      }
    }
    return best;
  }
  MatrixView x_view() const { return {x.data(), DType::f32, rows, dim, dim}; }
  MatrixView centroid_view() const { return {centroids.data(), DType::f32, clusters, dim, dim}; }
};

void matches_brute_force(const Problem& p, int threads) {
  std::vector<int64_t> ids(p.rows, -7);
  std::vector<double> value(p.rows);
  NearestCentroidArgs args;
  args.x = p.x_view();
  args.centroids = p.centroid_view();
  args.ids = ids.data();
  args.value = value.data();
  args.threads = threads;
  TierCounts tiers;
  CHECK(nearest_centroid_cpu(args, &tiers).ok());
  for (int64_t r = 0; r < p.rows; ++r) CHECK(ids[r] == p.nearest(r));
}

void lloyd_sums_are_exact_on_integers(const Problem& p, int threads) {
  std::vector<int64_t> ids(p.rows), counts(p.clusters);
  std::vector<double> sums(p.clusters * p.dim), truth(p.clusters * p.dim, 0.0);
  double inertia = -1;
  LloydStepArgs args;
  args.centroids = p.centroid_view();
  args.ids = ids.data();
  args.sums = sums.data();
  args.counts = counts.data();
  args.inertia = &inertia;
  args.threads = threads;
  TierCounts tiers;
  CHECK(lloyd_step_cpu(p.x_view(), args, &tiers).ok());
  int64_t total = 0;
  for (int64_t r = 0; r < p.rows; ++r) {
    for (int64_t d = 0; d < p.dim; ++d) truth[ids[r] * p.dim + d] += p.x[r * p.dim + d];
  }
  for (int64_t c : counts) total += c;
  CHECK(total == p.rows);
  CHECK(sums == truth);
}

void images_in_place(int threads) {
  const int64_t batch = 3, channels = 3, side = 8, patch = 4, dim = patch * patch * channels;
  std::vector<uint8_t> pixels(batch * channels * side * side);
  for (size_t i = 0; i < pixels.size(); ++i) pixels[i] = static_cast<uint8_t>(i * 37 % 251);
  std::vector<float> centroids(5 * dim);
  for (size_t i = 0; i < centroids.size(); ++i) centroids[i] = static_cast<float>(i % 17) / 17.0f;
  PatchTokensArgs args;
  args.images.data = pixels.data();
  args.images.batch = batch;
  args.images.channels = channels;
  args.images.height = args.images.width = side;
  const int64_t strides[4] = {channels * side * side, side * side, side, 1};
  for (int i = 0; i < 4; ++i) args.images.strides[i] = strides[i];
  args.images.patch_size = patch;
  args.images.per_patch_norm = true;
  args.centroids = {centroids.data(), DType::f32, 5, dim, dim};
  std::vector<int64_t> ids(batch * 4, -7);
  args.ids = ids.data();
  args.threads = threads;
  TierCounts tiers;
  CHECK(patch_tokens_cpu(args, &tiers).ok());
  for (int64_t id : ids) CHECK(id >= 0 && id < 5);
  args.images.data = nullptr;
  CHECK(patch_tokens_cpu(args, &tiers).code == StatusCode::invalid_argument);

  std::vector<char> where(batch * 4, 1);
  std::vector<uint8_t> paint(5 * dim, 9);
  ReplacePatchesArgs replace;
  replace.images = pixels.data();
  replace.batch = batch;
  replace.channels = channels;
  replace.height = replace.width = side;
  replace.patch_size = patch;
  replace.ids = ids.data();
  replace.where = reinterpret_cast<const bool*>(where.data());
  replace.pixels = paint.data();
  replace.num_centroids = 5;
  replace.threads = threads;
  CHECK(replace_patches_cpu(replace).ok());
  for (uint8_t v : pixels) CHECK(v == 9);
  ids[3] = 5;
  CHECK(replace_patches_cpu(replace).code == StatusCode::index_error);
}

void hostile_values() {
  const float nan = std::nanf(""), inf = std::numeric_limits<float>::infinity();
  const std::vector<float> x = {0, 0, nan, 1, inf, 0, 3e38f, 3e38f, 1e-40f, 0};
  const std::vector<float> c = {nan, 0, 1e-40f, 0, -3e38f, -3e38f, 3e38f, 3e38f};
  std::vector<int64_t> ids(5);
  NearestCentroidArgs args;
  args.x = {x.data(), DType::f32, 5, 2, 2};
  args.centroids = {c.data(), DType::f32, 4, 2, 2};
  args.ids = ids.data();
  TierCounts tiers;
  CHECK(nearest_centroid_cpu(args, &tiers).ok());
  CHECK((ids == std::vector<int64_t>{1, -1, -1, 3, 1}));
  args.centroids.rows = 0;
  CHECK(nearest_centroid_cpu(args, &tiers).code == StatusCode::invalid_argument);
}

}  // namespace

int main() {
  for (const char* isa : {"generic", "avx2", "avx512", "avx512_vnni"}) {
    if (!set_isa(isa).ok()) {
      std::printf("skipped ISA path %s: this machine lacks it\n", isa);
      continue;
    }
    for (int threads : {1, 3}) {
      for (int64_t rows : {0, 1, 13, 14, 15, 300}) {
        for (int64_t dim : {1, 7, 16, 65}) {
          matches_brute_force(Problem(rows, dim, 33, 1), threads);
          lloyd_sums_are_exact_on_integers(Problem(rows, dim, 5, 3), threads);
        }
      }
      images_in_place(threads);
    }
    hostile_values();
  }
  CHECK(set_isa("sse9").code == StatusCode::invalid_argument);
  return 0;
}
