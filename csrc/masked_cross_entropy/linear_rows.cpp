#include "masked_cross_entropy/linear_rows.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "core/cpu_features.h"
#include "core/kernel_call.h"
#include "core/parallel_for.h"
#include "core/workspace.h"
#include "masked_cross_entropy/linear_input_gradient.h"
#include "masked_cross_entropy/linear_kernel.h"
#include "masked_cross_entropy/linear_weight.h"
#include "masked_cross_entropy/linear_weight_gradient.h"

namespace clustermim {
namespace {

constexpr const char* kOp = "masked_linear_cross_entropy";
constexpr int64_t kMiB = 1 << 20;
// Of a task: with more, threads wait for the last one; with fewer, W is read more often.
constexpr int64_t kMostStrips = 4;
constexpr int64_t kScratchBytes = 24 * kMiB;  // of all threads

const LinearKernel* linear_kernel() {
#if defined(__x86_64__)
  if (current_isa() == Isa::amx) return &kLinearAmx;
#endif
  return nullptr;
}

struct Scratch {
  Workspace<char> columns;
  Workspace<float> exponentials, references;
  Workspace<StripState> states;
  LinearInputGradient::Scratch input;
};

class Step {
 public:
  Step(const LinearRowsArgs& args, const LinearKernel& kernel)
      : a_(args),
        kernel_(kernel),
        shape_{args.dim, args.num_classes},
        threads_(std::max(args.threads, 1)),
        weight_(args, kernel),
        input_gradient_(args, kernel, weight_),
        weight_gradient_(args, kernel) {
    // Of a strip: exponentials, dZ and references; columns and dX.
    const int64_t each = shape_.panels() * (4096 + kPanelBytes + 128) + 3 * shape_.strip_bytes();
    strips_ = gradients() ? std::clamp<int64_t>(kScratchBytes / threads_ / each, 1, kMostStrips)
                          : kMostStrips;
  }

  Status run() {
    const int64_t total = (a_.num_rows + kStripTokens - 1) / kStripTokens;
    if (total == 0) return input_gradient_.zero_rest();
    scratch_.resize(threads_);
    CMIM_RETURN_IF_ERROR(weight_.prepare(input_gradient_.wanted()));
    if (for_weight()) weight_gradient_.reserve(total, strips_);
    const int64_t parts = for_weight() ? weight_gradient_.parts() : 1;
    if (parts == 1) {
      CMIM_RETURN_IF_ERROR(input_gradient_.zero_rest());
      CMIM_RETURN_IF_ERROR(run_part(0, 0, total, 0, threads_));
    } else {
      std::vector<Status> statuses(parts);
      auto task = [&](int64_t t, int worker) {
        if (t >= parts) return input_gradient_.zero_block(t - parts);
        statuses[t] = run_part(t, total * t / parts, total * (t + 1) / parts, worker, 1);
      };
      // The zeros come last: a thread that is done with its parts makes them.
      CMIM_RETURN_IF_ERROR(parallel_for(a_.threads, parts + input_gradient_.zero_blocks(), task));
      for (const Status& status : statuses) CMIM_RETURN_IF_ERROR(status);
    }
    return for_weight() ? weight_gradient_.finish() : Status();
  }

 private:
  bool gradients() const { return a_.scale != nullptr; }
  bool for_weight() const { return weight_gradient_.wanted(); }

  // Strips [begin, end), for one part of dW, by `threads` threads of which `worker` is the first.
  Status run_part(int64_t part, int64_t begin, int64_t end, int worker, int threads) {
    if (!for_weight()) return run_strips(begin, end - begin, nullptr, worker, threads);
    StripOperands& operands = weight_gradient_.operands(worker);
    for (int64_t at = begin; at < end; at += weight_gradient_.chunk()) {
      const int64_t count = std::min(weight_gradient_.chunk(), end - at);
      CMIM_RETURN_IF_ERROR(run_strips(at, count, &operands, worker, threads));
      CMIM_RETURN_IF_ERROR(weight_gradient_.add(operands, part, count, at == begin, threads));
    }
    return Status();
  }

  Status run_strips(int64_t begin, int64_t count, StripOperands* operands, int worker,
                    int threads) {
    auto task = [&](int64_t t, int helper) {
      const int64_t first = t * strips_;
      run_block(begin, first, std::min(strips_, count - first), scratch_[worker + helper],
                operands);
    };
    return parallel_for(threads, (count + strips_ - 1) / strips_, task);
  }

  void reserve(Scratch& s) const {
    const int64_t panels = shape_.panels(), kept = gradients() ? strips_ * panels : 1;
    s.states.reserve(strips_);
    s.columns.reserve(strips_ * shape_.strip_bytes());
    s.exponentials.reserve(kept * kPanelClasses * kStripTokens);
    s.references.reserve(kept * kStripTokens);
    if (input_gradient_.wanted()) input_gradient_.reserve(s.input, strips_);
  }

  LinearPanel panel(int64_t p, int64_t strip, int64_t at, Scratch& s) const {
    const int64_t first = p * kPanelClasses;
    return {first, std::min(kPanelClasses, a_.num_classes - first),
            s.exponentials.data() + at * kPanelClasses * kStripTokens,
            s.references.data() + at * kStripTokens, s.states.data() + strip};
  }

  // `strips` strips from strip `first` of the chunk that begins with strip `chunk` of all; null
  // operands: no dW.
  void run_block(int64_t chunk, int64_t first, int64_t strips, Scratch& s,
                 StripOperands* operands) {
    reserve(s);
    const int64_t panels = shape_.panels();
    for (int64_t i = 0; i < strips; ++i) {
      const int64_t row = (chunk + first + i) * kStripTokens;
      const uint16_t* rows[kStripTokens];
      StripState& state = s.states.data()[i];
      for (int64_t t = 0; t < kStripTokens; ++t) {
        const bool in = row + t < a_.num_rows;
        rows[t] = in ? token_row(a_, a_.input, a_.sample_stride, a_.row_stride, row + t) : nullptr;
        state.target[t] = in ? static_cast<int32_t>(a_.target[a_.rows[row + t]]) : -1;
        state.max[t] = -std::numeric_limits<float>::infinity();
        state.sum[t] = state.total[t] = state.target_logit[t] = 0.0f;
        state.argmax[t] = -1;
      }
      kernel_.pack_tokens(rows, a_.dim, s.columns.data() + i * shape_.strip_bytes(),
                          operands ? operands->pairs(first + i) : nullptr);
    }

    kernel_.enter();
    LinearPanel last = {};
    for (int64_t p = 0; p < panels; ++p) {
      for (int64_t i = 0; i < strips; ++i) {
        // Without gradients one place suffices: a product is written after the softmax beside it.
        const LinearPanel next = panel(p, i, gradients() ? i * panels + p : 0, s);
        kernel_.logits(weight_.rows(p), weight_.stride(p), shape_.steps(),
                       s.columns.data() + i * shape_.strip_bytes(), last.state ? &last : nullptr,
                       a_.bias, a_.argmax != nullptr, next.values);
        last = next;
      }
    }
    kernel_.finish_logits(last, a_.bias, a_.argmax != nullptr);
    for (int64_t i = 0; i < strips; ++i) {
      const int64_t row = (chunk + first + i) * kStripTokens;
      store_losses(row, s.states.data()[i]);
      if (gradients()) make_gradient(row, i, s, operands, first + i);
    }
    if (input_gradient_.wanted()) input_gradient_.multiply(chunk + first, strips, s.input);
    kernel_.leave();
  }

  void store_losses(int64_t row, const StripState& state) const {
    const double e = a_.label_smoothing, classes = static_cast<double>(a_.num_classes);
    const int64_t count = std::min(kStripTokens, a_.num_rows - row);
    for (int64_t t = 0; t < count; ++t) {
      const double log_sum = std::log(static_cast<double>(state.sum[t]));
      const double below = static_cast<double>(state.max[t]) - state.target_logit[t];
      double loss = (1.0 - e) * (log_sum + below);
      if (e > 0) loss += e * (log_sum - state.total[t] / classes);
      a_.loss[row + t] = static_cast<float>(loss);
      a_.stats[a_.rows[row + t]] = state.max[t];
      a_.stats[a_.num_tokens + a_.rows[row + t]] = state.sum[t];
      if (a_.argmax) a_.argmax[row + t] = loss == loss ? state.argmax[t] : -1;
    }
  }

  void make_gradient(int64_t row, int64_t i, Scratch& s, StripOperands* operands,
                     int64_t in_chunk) {
    const int64_t panels = shape_.panels();
    StripFactors factors = {};
    for (int64_t t = 0; t < std::min(kStripTokens, a_.num_rows - row); ++t) {
      const double scale = a_.scale[row + t];
      factors.softmax[t] = static_cast<float>(scale / s.states.data()[i].sum[t]);
      factors.hard[t] = static_cast<float>(scale * (1.0 - a_.label_smoothing));
    }
    if (operands) {
      float* scale = operands->scale(in_chunk);
      for (int64_t t = 0; t < kStripTokens; ++t) {
        scale[t] = row + t < a_.num_rows ? static_cast<float>(a_.scale[row + t]) : 0.0f;
      }
    }
    for (int64_t p = 0; p < panels; ++p) {
      const int64_t at = i * panels + p;
      kernel_.gradient(
          panel(p, i, at, s), factors, operands ? operands->classes(in_chunk, p) : nullptr,
          input_gradient_.wanted() ? s.input.tokens.data() + at * kPanelBytes : nullptr,
          operands ? operands->sums(in_chunk, p) : nullptr);
    }
  }

  const LinearRowsArgs& a_;
  const LinearKernel& kernel_;
  const LinearShape shape_;
  const int threads_;
  int64_t strips_ = 1;  // of a task
  LinearWeight weight_;
  LinearInputGradient input_gradient_;
  LinearWeightGradient weight_gradient_;
  std::vector<Scratch> scratch_;
};

Status check(const LinearRowsArgs& a) {
  if (a.dim < 1 || a.num_classes < 1 || a.num_classes > INT32_MAX - kPanelClasses) {
    return Status::error(StatusCode::invalid_argument, "%s: sizes must be in [1, 2^31)", kOp);
  }
  const bool any = a.num_rows > 0;
  CMIM_RETURN_IF_ERROR(check_pointer(kOp, "input", a.input, any));
  CMIM_RETURN_IF_ERROR(check_pointer(kOp, "linear_weight", a.weight, any));
  CMIM_RETURN_IF_ERROR(check_pointer(kOp, "target", a.target, any));
  CMIM_RETURN_IF_ERROR(check_pointer(kOp, "rows", a.rows, any || a.num_rest > 0));
  CMIM_RETURN_IF_ERROR(check_pointer(kOp, "stats", a.stats, any));
  CMIM_RETURN_IF_ERROR(check_pointer(kOp, "loss", a.loss, any));
  for (int64_t i = 0; i < a.num_rows + a.num_rest; ++i) {
    const int64_t t = a.rows[i];
    if (t < 0 || t >= a.num_tokens) {
      return Status::error(StatusCode::invalid_argument, "%s: rows[%lld] = %lld is not a token",
                           kOp, static_cast<long long>(i), static_cast<long long>(t));
    }
    if (i < a.num_rows && (a.target[t] < 0 || a.target[t] >= a.num_classes)) {
      return Status::error(StatusCode::index_error,
                           "%s: target %lld of token %lld is outside [0, %lld)", kOp,
                           static_cast<long long>(a.target[t]), static_cast<long long>(t),
                           static_cast<long long>(a.num_classes));
    }
  }
  return Status();
}

}  // namespace

bool linear_rows_usable() {
  return linear_kernel() != nullptr;
}

Status linear_cross_entropy_rows(const LinearRowsArgs& args) {
  return kernel_call(kOp, [&]() -> Status {
    const LinearKernel* kernel = linear_kernel();
    if (!kernel) {
      return Status::error(StatusCode::invalid_argument, "%s: no kernel for this machine", kOp);
    }
    CMIM_RETURN_IF_ERROR(check(args));
    if (args.num_rows == 0) {
      const LinearShape shape{args.dim, args.num_classes};
      const int64_t classes = shape.panels() * kPanelClasses;
      if (args.grad_weight) {
        std::fill_n(args.grad_weight, classes * shape.steps() * kStepValues, 0.0f);
      }
      if (args.grad_bias) std::fill_n(args.grad_bias, classes, 0.0f);
    }
    return Step(args, *kernel).run();
  });
}

}  // namespace clustermim
