// Accumulation into sums of each worker's own, for sums that fit its second-level cache: a block's
// rows are added right after their assignment, while they are in that cache too.
//
// Rows are cut into shards, whose size depends on N and D alone. A worker takes a whole shard, and
// its sums are added to the total in the order of the shards (parts_in_order.h), so that the result
// does not depend on who did what.
#pragma once

#include <utility>

#include "core/parallel_for.h"
#include "lloyd_step/parts_in_order.h"
#include "lloyd_step/row_groups.h"
#include "lloyd_step/step_problem.h"

namespace clustermim {

template <typename T, typename C>
class WorkerSums {
 public:
  // Sums of each worker's own of this size stay in a second-level cache of 2 MiB, beside a block.
  static constexpr int64_t kMaxSumsBytes = 1 << 20;
  static constexpr int64_t kBlockBytes = 512 << 10;  // of the same cache
  static constexpr int64_t kMinShardRows = 4096, kMaxShardRows = 32768, kShards = 64;
  static constexpr int64_t kMinRows = 8 * kMinShardRows;  // fewer shards leave threads without work
  // Sorting a block's rows by centroid pays for itself when a row of sums is long.
  static constexpr int64_t kSortedDim = 128;

  WorkerSums(const StepProblem<T, C>& problem, Sums* total)
      : problem_(problem),
        total_(total),
        assigners_(problem.codebook, problem.args.threads),
        own_(std::max(problem.args.threads, 1)),
        block_(rows_of_bytes<T>(kBlockBytes, problem.dim())) {
    const int64_t rows =
        std::clamp(problem.source.num_rows() / kShards, kMinShardRows, kMaxShardRows);
    shard_ = (rows + block_ - 1) / block_ * block_;
  }

  Status run(TierCounts* tiers) {
    const int64_t shards = (problem_.source.num_rows() + shard_ - 1) / shard_;
    PartsInOrder<Part> parts(shards, static_cast<int>(own_.size()));
    auto body = [&](int64_t shard, int worker) {
      try {
        run_shard(shard, worker, parts);
      } catch (...) {
        parts.give_up();
        throw;
      }
    };
    CMIM_RETURN_IF_ERROR(parallel_for(problem_.args.threads, shards, body));
    assigners_.add_tiers(tiers);
    return Status();
  }

 private:
  // A shard's sums and counts: zeros when it begins.
  struct Part : Sums {
    explicit Part(const StepProblem<T, C>& problem)
        : zeros(problem.clusters() * problem.dim()),
          weighted(problem.args.weights ? problem.clusters() : 0, 0.0),
          whole(problem.args.weights ? 0 : problem.clusters(), 0) {
      this->sums = zeros.get();
      this->counts = whole.empty() ? nullptr : whole.data();
      this->weighted_counts = weighted.empty() ? nullptr : weighted.data();
    }
    AlignedZeros zeros;
    std::vector<double> weighted;
    std::vector<int64_t> whole;
  };

  // One worker's memory.
  struct Own {
    Own(const StepProblem<T, C>& problem, int64_t block)
        : groups(problem.clusters()),
          distances(block),
          values(problem.needs_values() ? block : 0),
          scratch(problem.in_memory ? nullptr
                                    : std::make_unique_for_overwrite<T[]>(block * problem.dim())) {}
    RowGroups groups;
    std::vector<double> distances, values;
    std::unique_ptr<T[]> scratch;
  };

  void run_shard(int64_t shard, int worker, PartsInOrder<Part>& parts) {
    const int64_t begin = shard * shard_;
    const int64_t end = std::min(begin + shard_, problem_.source.num_rows());
    auto part = parts.take(shard, [&] { return std::make_unique<Part>(problem_); });
    if (!part) return;
    if (!own_[worker]) own_[worker] = std::make_unique<Own>(problem_, block_);
    for (int64_t first = begin; first < end; first += block_) {
      add_block(first, std::min(block_, end - first), end, worker, *part);
    }
    parts.finish(shard, std::move(part), [this](Part& added) { merge(added); });
  }

  void add_block(int64_t begin, int64_t count, int64_t end, int worker, Part& part) {
    Own& own = *own_[worker];
    const int64_t dim = problem_.dim();
    int64_t* ids = problem_.args.ids + begin;
    const double* weights = problem_.weights(begin);
    int64_t stride = dim;
    const T* x =
        assigners_.assign(worker, problem_.source, begin, count, own.scratch.get(), &stride, ids,
                          problem_.needs_values() ? own.values.data() : nullptr);

    double squares[kDistanceSums * kDistanceLanes] = {};
    Upcoming upcoming;
    const int64_t next = std::min(block_, end - begin - count);
    if (problem_.in_memory && next > 0) {
      upcoming = {reinterpret_cast<const char*>(x + count * stride),
                  reinterpret_cast<const char*>(x + (count + next - 1) * stride + dim)};
    }
    const BlockRows<T> block = {x, stride, weights, own.distances.data(), squares, &upcoming};
    const CentroidSums<C> to = problem_.centroid_sums(part.sums);
    if (dim < kSortedDim) {
      problem_.kernel.add_rows[problem_.kind](block, ids, count, to);
    } else {
      own.groups.build(ids, count);
      for (const RowGroups::Group& group : own.groups.groups()) {
        problem_.kernel.add_group[problem_.kind](block, own.groups.order(group), group.rows(),
                                                 own.groups.rows_after(group), to, group.id);
      }
    }
    part.add_counts(ids, weights, count);
    if (problem_.cost().is_summed_by_kernel()) {
      part.inertia.add_squares(squares);
    } else {
      const auto& values = problem_.needs_values() ? own.values : own.distances;
      part.inertia.add_values(problem_.cost(), ids, weights, values.data(), count);
    }
  }

  // Adds a shard's sums to the total and leaves zeros.
  void merge(Part& part) {
    const int64_t dim = problem_.dim();
    for (int64_t id = 0; id < problem_.clusters(); ++id) {
      if (part.counts ? part.counts[id] == 0 : part.weighted_counts[id] == 0.0) continue;
      double* from = part.sums + id * dim;
      double* to = total_->sums + id * dim;
      if (problem_.kind == kQuantised) {
        for (int64_t d = 0; d < dim; ++d) to[d] = add_quantised(to[d], from[d]);
      } else {
        for (int64_t d = 0; d < dim; ++d) to[d] += from[d];
      }
      std::fill_n(from, dim, 0.0);
      if (part.counts) {
        total_->counts[id] += std::exchange(part.counts[id], 0);
      } else {
        total_->weighted_counts[id] += std::exchange(part.weighted_counts[id], 0.0);
      }
    }
    total_->inertia.add(std::exchange(part.inertia, Inertia()));
  }

  const StepProblem<T, C>& problem_;
  Sums* total_;
  Assigners<T> assigners_;
  std::vector<std::unique_ptr<Own>> own_;
  int64_t block_, shard_;
};

}  // namespace clustermim
