// Accumulation without Python: the kernels of all ISA paths give the same bits, and shards of rows
// are added in their order by any number of threads.
#include "lloyd_step/lloyd_step.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <memory>
#include <mutex>
#include <new>
#include <random>
#include <utility>
#include <vector>

#include "check.h"
#include "core/cpu_features.h"
#include "core/parallel_for.h"
#include "lloyd_step/accumulate.h"
#include "lloyd_step/parts_in_order.h"
#include "lloyd_step/row_groups.h"
#include "lloyd_step/worker_sums.h"

using namespace clustermim;

namespace {

std::vector<const AccumulateKernels*> usable_kernels() {
  std::vector<const AccumulateKernels*> out = {&kAccumulateGeneric};
#if defined(__x86_64__)
  if (isa_usable(Isa::avx2)) out.push_back(&kAccumulateAvx2);
  if (isa_usable(Isa::avx512)) out.push_back(&kAccumulateAvx512);
#endif
  return out;
}

struct Found {
  std::vector<double> sums, distances, squares;
  bool operator==(const Found& other) const {
    const auto same = [](const std::vector<double>& a, const std::vector<double>& b) {
      return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](double u, double v) {
        return std::bit_cast<uint64_t>(u) == std::bit_cast<uint64_t>(v);
      });
    };
    return same(sums, other.sums) && same(distances, other.distances) &&
           same(squares, other.squares);
  }
};

// Rows in a matrix whose memory ends with the last row, so that a read beyond it is caught.
template <typename X, typename C>
void same_bits_on_every_path(int64_t rows, int64_t dim, int64_t clusters, int kind, bool grouped) {
  std::mt19937 random(static_cast<unsigned>(rows * 1000 + dim));
  std::normal_distribution<double> normal;
  std::vector<X> x(rows * dim);
  std::vector<C> centroids(clusters * dim);
  std::vector<double> weights(rows);
  for (X& v : x) v = static_cast<X>(normal(random));
  for (C& v : centroids) v = static_cast<C>(normal(random));
  for (double& v : weights) v = std::abs(normal(random));
  std::vector<int64_t> ids(rows);
  for (int64_t& id : ids) id = static_cast<int64_t>(random() % (clusters + 1)) - 1;

  std::vector<Found> results;
  for (const AccumulateKernels* kernels : usable_kernels()) {
    Found found = {std::vector<double>(clusters * dim, 0.0), std::vector<double>(rows, -1.0),
                   std::vector<double>(kDistanceSums * kDistanceLanes, 0.0)};
    Upcoming upcoming;
    const BlockRows<X> block = {
        x.data(), dim, weights.data(), found.distances.data(), found.squares.data(), &upcoming};
    const CentroidSums<C> to = {centroids.data(), dim, dim, found.sums.data()};
    const auto& kernel = kernel_of(*kernels, x.data(), centroids.data());
    if (grouped) {
      RowGroups groups(clusters);
      for (int again = 0; again < 2; ++again) groups.build(ids.data(), rows);
      int64_t seen = 0;
      for (const RowGroups::Group& group : groups.groups()) {
        seen += group.rows();
        kernel.add_group[kind](block, groups.order(group), group.rows(), groups.rows_after(group),
                               to, group.id);
      }
      CHECK(seen == rows - std::count(ids.begin(), ids.end(), -1));
    } else {
      kernel.add_rows[kind](block, ids.data(), rows, to);
    }
    results.push_back(found);
  }
  for (const Found& other : results) CHECK(other == results[0]);

  double total = 0.0, truth = 0.0;
  for (double v : results[0].squares) total += v;
  for (int64_t r = 0; r < rows; ++r) {
    if (ids[r] < 0) continue;
    double distance = 0.0;
    for (int64_t d = 0; d < dim; ++d) {
      const double difference = static_cast<double>(x[r * dim + d]) - centroids[ids[r] * dim + d];
      distance += difference * difference;
    }
    truth += distance;
    if (kind != kPlain) CHECK(std::abs(results[0].distances[r] - distance) <= 1e-12 * distance);
  }
  if (kind == kPlain) CHECK(std::abs(total - truth) <= 1e-12 * truth);
}

void kernels_agree() {
  for (int64_t dim : {1, 15, 16, 17, 48, 100}) {
    for (int kind = 0; kind < kKinds; ++kind) {
      for (bool grouped : {false, true}) {
        for (int64_t rows : {0, 1, 2, 3, 7, 61}) {
          same_bits_on_every_path<float, float>(rows, dim, 4, kind, grouped);
          same_bits_on_every_path<float, double>(rows, dim, 4, kind, grouped);
          if (kind != kQuantised) {
            same_bits_on_every_path<double, double>(rows, dim, 4, kind, grouped);
          }
        }
      }
    }
  }
}

void quantised_values_round_half_to_even() {
  const float q = static_cast<float>(kQuantum);
  const std::vector<float> x = {0.5f * q, 1.5f * q, -0.5f * q, 2.4f * q, -63.75f, 64.0f};
  const std::vector<int64_t> quanta = {0, 2, 0, 2, -(int64_t{255} << 26), int64_t{1} << 34};
  const std::vector<float> centroids(x.size(), 0.0f);
  for (const AccumulateKernels* kernels : usable_kernels()) {
    std::vector<double> sums(x.size(), 0.0);
    double distance = 0.0, squares[kDistanceSums * kDistanceLanes] = {};
    Upcoming upcoming;
    const int64_t dim = static_cast<int64_t>(x.size()), id = 0;
    kernels->float_float.add_rows[kQuantised](
        {x.data(), dim, nullptr, &distance, squares, &upcoming}, &id, 1,
        {centroids.data(), dim, dim, sums.data()});
    for (int64_t d = 0; d < dim; ++d) {
      CHECK(std::bit_cast<uint64_t>(sums[d]) - kQuantisedZero == static_cast<uint64_t>(quanta[d]));
    }
  }
}

struct Step {
  std::vector<int64_t> ids, counts;
  std::vector<double> sums;
  double inertia = -1.0;
};

Step lloyd(const std::vector<float>& x, const std::vector<float>& centroids, int64_t dim,
           int threads) {
  const int64_t rows = static_cast<int64_t>(x.size()) / dim;
  const int64_t clusters = static_cast<int64_t>(centroids.size()) / dim;
  Step step;
  step.ids.resize(rows);
  step.counts.resize(clusters);
  step.sums.resize(clusters * dim);
  LloydStepArgs args;
  args.centroids = {centroids.data(), DType::f32, clusters, dim, dim};
  args.ids = step.ids.data();
  args.sums = step.sums.data();
  args.counts = step.counts.data();
  args.inertia = &step.inertia;
  args.threads = threads;
  TierCounts tiers;
  CHECK(lloyd_step_cpu({x.data(), DType::f32, rows, dim, dim}, args, &tiers).ok());
  return step;
}

// Enough rows for shards, and too few; sorted by centroid, and not.
void threads_change_nothing() {
  for (int64_t dim : {3, 130}) {
    for (int64_t rows : {int64_t{1000}, WorkerSums<float, float>::kMinRows + 777}) {
      std::mt19937 random(5);
      std::normal_distribution<float> normal;
      std::vector<float> x(rows * dim), centroids(4 * dim);
      for (float& v : x) v = std::exp(normal(random));
      for (float& v : centroids) v = normal(random);
      x[5 * dim] = std::nanf("");
      const Step one = lloyd(x, centroids, dim, 1);
      CHECK(one.ids[5] == -1);
      int64_t total = 0;
      for (int64_t count : one.counts) total += count;
      CHECK(total == rows - 1);
      for (int threads : {2, 5}) {
        const Step many = lloyd(x, centroids, dim, threads);
        CHECK(many.ids == one.ids && many.counts == one.counts);
        CHECK(many.sums == one.sums && many.inertia == one.inertia);
      }
    }
  }
}

void sums_of_shards_are_exact_on_integers() {
  const int64_t dim = 2, rows = 3 * WorkerSums<float, float>::kMinRows;
  std::vector<float> x(rows * dim);
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i * 7 % 11);
  const std::vector<float> centroids = {0, 0, 3, 8, 9, 1};
  const Step step = lloyd(x, centroids, dim, 3);
  std::vector<double> truth(centroids.size(), 0.0);
  double inertia = 0.0;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t d = 0; d < dim; ++d) {
      const double difference = x[r * dim + d] - centroids[step.ids[r] * dim + d];
      truth[step.ids[r] * dim + d] += x[r * dim + d];
      inertia += difference * difference;
    }
  }
  CHECK(step.sums == truth);
  CHECK(step.inertia == inertia);
}

struct Count {
  int64_t turn = -1;
};

// Turns are added in their order, each once; workers that wait go on when a turn was given up.
void parts_are_added_in_order() {
  for (const int64_t fails : {int64_t{-1}, int64_t{3}}) {
    for (const int workers : {1, 4}) {
      PartsInOrder<Count> parts(9, workers);
      int64_t added = 0, made = 0;
      std::mutex making;
      auto make = [&] {
        const std::lock_guard lock(making);
        ++made;
        return std::make_unique<Count>();
      };
      auto body = [&](int64_t turn, int) {
        auto part = parts.take(turn, make);
        if (!part) return;
        if (turn == fails) {
          parts.give_up();
          throw std::bad_alloc();
        }
        CHECK(part->turn == -1);
        part->turn = turn;
        parts.finish(turn, std::move(part),
                     [&](Count& count) { CHECK(std::exchange(count.turn, -1) == added++); });
      };
      const Status status = parallel_for(workers, 9, body);
      CHECK(made <= 2 * workers);
      CHECK(fails < 0 ? status.ok() : status.code == StatusCode::out_of_memory);
      CHECK(fails < 0 ? added == 9 : added <= fails);
    }
  }
}

}  // namespace

int main() {
  kernels_agree();
  quantised_values_round_half_to_even();
  threads_change_nothing();
  sums_of_shards_are_exact_on_integers();
  for (int repeat = 0; repeat < 20; ++repeat) parts_are_added_in_order();
  return 0;
}
