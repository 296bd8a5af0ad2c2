// Accumulation into one set of sums, for sums that no second-level cache holds and for few rows:
// many rows are assigned first, then gathered by centroid, so that a centroid and its sums are read
// once for several rows. A task takes whole centroids, whose rows are added in the order of the
// data.
#pragma once

#include "core/parallel_for.h"
#include "lloyd_step/row_groups.h"
#include "lloyd_step/step_problem.h"

namespace clustermim {

template <typename T, typename C>
class GatheredRows {
 public:
  // The more rows, the more of them share a centroid; those that have to be copied are bounded.
  static constexpr int64_t kGatheredBytes = 128 << 20, kCopiedBytes = 16 << 20;

  GatheredRows(const StepProblem<T, C>& problem, Sums* total)
      : problem_(problem),
        total_(total),
        assigners_(problem.codebook, problem.args.threads),
        groups_(problem.clusters()),
        block_(problem.codebook.block()),
        gathered_(
            rows_of_bytes<T>(problem.in_memory ? kGatheredBytes : kCopiedBytes, problem.dim())) {
    const int64_t size = std::min(gathered_, problem.source.num_rows());
    if (!problem.in_memory) scratch_ = std::make_unique_for_overwrite<T[]>(size * problem.dim());
    distances_.resize(size);
    values_.resize(problem.needs_values() ? size : 0);
  }

  Status run(TierCounts* tiers) {
    const int64_t rows = problem_.source.num_rows();
    for (int64_t begin = 0; begin < rows; begin += gathered_) {
      const int64_t count = std::min(gathered_, rows - begin);
      BlockRows<T> gathered = {};
      CMIM_RETURN_IF_ERROR(assign(begin, count, &gathered));
      const int64_t* ids = problem_.args.ids + begin;
      groups_.build(ids, count);
      CMIM_RETURN_IF_ERROR(accumulate(gathered));
      total_->add_counts(ids, gathered.weights, count);
      if (problem_.cost().is_summed_by_kernel()) {
        for (const Inertia& inertia : group_inertia_) total_->inertia.add(inertia);
      } else {
        const auto& values = problem_.needs_values() ? values_ : distances_;
        total_->inertia.add_values(problem_.cost(), ids, gathered.weights, values.data(), count);
      }
    }
    assigners_.add_tiers(tiers);
    return Status();
  }

 private:
  Status assign(int64_t begin, int64_t count, BlockRows<T>* gathered) {
    const int64_t dim = problem_.dim();
    gathered->weights = problem_.weights(begin);
    gathered->distances = distances_.data();
    auto assign_block = [&](int64_t task, int worker) {
      const int64_t first = task * block_, size = std::min(block_, count - first);
      int64_t stride = dim;
      T* copied = problem_.in_memory ? nullptr : scratch_.get() + first * dim;
      const T* x = assigners_.assign(worker, problem_.source, begin + first, size, copied, &stride,
                                     problem_.args.ids + begin + first,
                                     problem_.needs_values() ? values_.data() + first : nullptr);
      if (task == 0) {  // the others follow it, in the matrix or in scratch_
        gathered->x = x;
        gathered->x_stride = stride;
      }
    };
    return parallel_for(problem_.args.threads, (count + block_ - 1) / block_, assign_block);
  }

  Status accumulate(const BlockRows<T>& gathered) {
    const auto& groups = groups_.groups();
    const int64_t num_groups = static_cast<int64_t>(groups.size());
    group_inertia_.assign(num_groups, Inertia());
    // Tasks of about as many rows each; which groups a task holds changes no result.
    const int64_t rows = num_groups > 0 ? groups.back().end : 0;
    const int64_t tasks = std::min<int64_t>(num_groups, 8 * std::max(problem_.args.threads, 1));
    auto add_groups = [&](int64_t task, int) {
      const int64_t end = first_group((task + 1) * rows / tasks);
      for (int64_t g = first_group(task * rows / tasks); g < end; ++g) {
        double squares[kDistanceSums * kDistanceLanes] = {};
        Upcoming nothing;
        BlockRows<T> block = gathered;
        block.squares = squares;
        block.upcoming = &nothing;
        const RowGroups::Group& group = groups[g];
        problem_.kernel.add_group[problem_.kind](block, groups_.order(group), group.rows(),
                                                 groups_.rows_after(group),
                                                 problem_.centroid_sums(total_->sums), group.id);
        group_inertia_[g].add_squares(squares);
      }
    };
    return parallel_for(problem_.args.threads, tasks, add_groups);
  }

  // The first group that begins at or after position `row` of the order.
  int64_t first_group(int64_t row) const {
    const auto& groups = groups_.groups();
    return std::partition_point(groups.begin(), groups.end(),
                                [&](const auto& g) { return g.begin < row; }) -
           groups.begin();
  }

  const StepProblem<T, C>& problem_;
  Sums* total_;
  Assigners<T> assigners_;
  RowGroups groups_;
  int64_t block_, gathered_;
  std::unique_ptr<T[]> scratch_;
  std::vector<double> distances_, values_;
  std::vector<Inertia> group_inertia_;
};

}  // namespace clustermim
