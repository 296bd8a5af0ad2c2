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
#include "masked_cross_entropy/linear_kernel.h"
#include "masked_cross_entropy/linear_weight_gradient.h"

namespace clustermim {
namespace {

constexpr const char* kOp = "masked_linear_cross_entropy";
constexpr int64_t kMiB = 1 << 20;
constexpr int64_t kPanelStep = 64;  // panels of dX's product whose operands stay in the cache
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
  Workspace<char> columns, tokens;
  Workspace<float> exponentials, references, gradient;
  Workspace<StripState> states;
};

class Step {
 public:
  Step(const LinearRowsArgs& args, const LinearKernel& kernel)
      : a_(args),
        kernel_(kernel),
        shape_{args.dim, args.num_classes},
        threads_(std::max(args.threads, 1)),
        weight_gradient_(args, kernel) {
    // Of a strip: exponentials, dZ and references; columns and dX.
    const int64_t each = shape_.panels() * (4096 + kPanelBytes + 128) + 3 * shape_.strip_bytes();
    strips_ = gradients() ? std::clamp<int64_t>(kScratchBytes / threads_ / each, 1, kMostStrips)
                          : kMostStrips;
  }

  Status run() {
    CMIM_RETURN_IF_ERROR(prepare());
    const int64_t total = (a_.num_rows + kStripTokens - 1) / kStripTokens;
    if (for_weight()) weight_gradient_.reserve(total, strips_);
    const int64_t chunk = for_weight() ? weight_gradient_.chunk() : total;
    for (int64_t begin = 0; begin < total; begin += chunk) {
      const int64_t count = std::min(chunk, total - begin);
      auto task = [&](int64_t t, int worker) {
        const int64_t first = t * strips_;
        run_block(begin, first, std::min(strips_, count - first), scratch_[worker]);
      };
      CMIM_RETURN_IF_ERROR(parallel_for(a_.threads, (count + strips_ - 1) / strips_, task));
      if (for_weight()) CMIM_RETURN_IF_ERROR(weight_gradient_.add(count, begin == 0));
    }
    return for_weight() ? weight_gradient_.finish() : Status();
  }

 private:
  bool gradients() const { return a_.scale != nullptr; }
  bool for_weight() const { return weight_gradient_.wanted(); }
  bool for_input() const { return gradients() && a_.grad_input; }
  bool smooth() const { return a_.label_smoothing > 0; }

  // The weight as the products read it.
  Status prepare() {
    const int64_t panels = shape_.panels(), width = shape_.steps() * kStepValues;
    scratch_.resize(threads_);
    // Tiles read whole panels of whole steps: what is not there gets a copy with zeros.
    first_copied_ = a_.dim == width ? a_.num_classes / kPanelClasses : 0;
    const int64_t copied = (panels - first_copied_) * kPanelClasses * width;
    copied_.reserve(copied);
    std::fill_n(copied_.data(), copied, uint16_t{0});
    for (int64_t k = first_copied_ * kPanelClasses; k < a_.num_classes; ++k) {
      std::memcpy(copied_.data() + (k - first_copied_ * kPanelClasses) * width,
                  a_.weight + k * a_.weight_stride, a_.dim * 2);
    }
    if (for_input()) {
      weight_pairs_.reserve(shape_.steps() * panels * kPanelBytes);
      auto pack = [&](int64_t panel, int) {
        kernel_.pack_weight(a_.weight, a_.weight_stride, shape_, panel, weight_pairs_.data());
      };
      CMIM_RETURN_IF_ERROR(parallel_for(a_.threads, panels, pack));
      if (smooth()) {
        direction_.reserve(width);
        auto sum = [&](int64_t step, int) {
          float* out = direction_.data() + step * kStepValues;
          kernel_.mean_rows(a_.weight, a_.weight_stride, a_.num_classes, a_.dim, step, out);
        };
        CMIM_RETURN_IF_ERROR(parallel_for(a_.threads, shape_.steps(), sum));
      }
    }
    return Status();
  }

  int64_t token(int64_t row, int64_t sample_stride, int64_t row_stride) const {
    const int64_t t = a_.rows[row];
    return t / a_.rows_per_sample * sample_stride + t % a_.rows_per_sample * row_stride;
  }

  void reserve(Scratch& s) const {
    const int64_t panels = shape_.panels(), kept = gradients() ? strips_ * panels : 1;
    s.states.reserve(strips_);
    s.columns.reserve(strips_ * shape_.strip_bytes());
    s.exponentials.reserve(kept * kPanelClasses * kStripTokens);
    s.references.reserve(kept * kStripTokens);
    if (!for_input()) return;
    s.tokens.reserve(strips_ * panels * kPanelBytes);
    s.gradient.reserve(strips_ * kStripTokens * gradient_stride());
  }

  LinearPanel panel(int64_t p, int64_t strip, int64_t at, Scratch& s) const {
    const int64_t first = p * kPanelClasses;
    return {first, std::min(kPanelClasses, a_.num_classes - first),
            s.exponentials.data() + at * kPanelClasses * kStripTokens,
            s.references.data() + at * kStripTokens, s.states.data() + strip};
  }

  // `strips` strips from strip `first` of the chunk that begins with strip `chunk` of all.
  void run_block(int64_t chunk, int64_t first, int64_t strips, Scratch& s) {
    reserve(s);
    const int64_t panels = shape_.panels(), width = shape_.steps() * kStepValues;
    for (int64_t i = 0; i < strips; ++i) {
      const int64_t row = (chunk + first + i) * kStripTokens;
      const uint16_t* rows[kStripTokens];
      StripState& state = s.states.data()[i];
      for (int64_t t = 0; t < kStripTokens; ++t) {
        const bool in = row + t < a_.num_rows;
        rows[t] = in ? a_.input + token(row + t, a_.sample_stride, a_.row_stride) : nullptr;
        state.target[t] = in ? static_cast<int32_t>(a_.target[a_.rows[row + t]]) : -1;
        state.max[t] = -std::numeric_limits<float>::infinity();
        state.sum[t] = state.total[t] = state.target_logit[t] = 0.0f;
        state.argmax[t] = -1;
      }
      kernel_.pack_tokens(rows, a_.dim, s.columns.data() + i * shape_.strip_bytes(),
                          for_weight() ? weight_gradient_.pairs(first + i) : nullptr);
    }

    kernel_.enter();
    LinearPanel last = {};
    for (int64_t p = 0; p < panels; ++p) {
      const bool copy = p >= first_copied_;
      const uint16_t* weight = copy ? copied_.data() + (p - first_copied_) * kPanelClasses * width
                                    : a_.weight + p * kPanelClasses * a_.weight_stride;
      for (int64_t i = 0; i < strips; ++i) {
        // Without gradients one place suffices: a product is written after the softmax beside it.
        const LinearPanel next = panel(p, i, gradients() ? i * panels + p : 0, s);
        kernel_.logits(weight, copy ? width : a_.weight_stride, shape_.steps(),
                       s.columns.data() + i * shape_.strip_bytes(), last.state ? &last : nullptr,
                       a_.bias, a_.argmax != nullptr, next.values);
        last = next;
      }
    }
    kernel_.finish_logits(last, a_.bias, a_.argmax != nullptr);
    for (int64_t i = 0; i < strips; ++i) {
      const int64_t row = (chunk + first + i) * kStripTokens;
      store_losses(row, s.states.data()[i]);
      if (gradients()) make_gradient(row, i, first + i, s);
    }
    if (for_input()) multiply_input(chunk + first, strips, s);
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

  void make_gradient(int64_t row, int64_t i, int64_t in_chunk, Scratch& s) {
    const int64_t panels = shape_.panels();
    StripFactors factors = {};
    for (int64_t t = 0; t < std::min(kStripTokens, a_.num_rows - row); ++t) {
      const double scale = a_.scale[row + t];
      factors.softmax[t] = static_cast<float>(scale / s.states.data()[i].sum[t]);
      factors.hard[t] = static_cast<float>(scale * (1.0 - a_.label_smoothing));
    }
    if (for_weight()) {
      float* scale = weight_gradient_.scale(in_chunk);
      for (int64_t t = 0; t < kStripTokens; ++t) {
        scale[t] = row + t < a_.num_rows ? static_cast<float>(a_.scale[row + t]) : 0.0f;
      }
    }
    for (int64_t p = 0; p < panels; ++p) {
      const int64_t at = i * panels + p;
      kernel_.gradient(panel(p, i, at, s), factors,
                       for_weight() ? weight_gradient_.classes(in_chunk, p) : nullptr,
                       for_input() ? s.tokens.data() + at * kPanelBytes : nullptr,
                       for_weight() ? weight_gradient_.sums(in_chunk, p) : nullptr);
    }
  }

  // Off the powers of two, where a tile's rows would share two sets of the cache.
  int64_t gradient_stride() const { return shape_.steps() * kStepValues + 16; }

  void multiply_input(int64_t first, int64_t strips, Scratch& s) const {
    const int64_t panels = shape_.panels(), stride = gradient_stride();
    for (int64_t begin = 0; begin < panels; begin += kPanelStep) {
      const int64_t count = std::min(panels - begin, kPanelStep);
      for (int64_t step = 0; step < shape_.steps(); ++step) {
        for (int64_t i = 0; i < strips; ++i) {
          kernel_.input_gradient(
              s.tokens.data() + (i * panels + begin) * kPanelBytes,
              weight_pairs_.data() + (step * panels + begin) * kPanelBytes, count, begin > 0,
              s.gradient.data() + i * kStripTokens * stride + step * kStepValues, stride);
        }
      }
    }
    const int64_t rows = std::min(strips * kStripTokens, a_.num_rows - first * kStripTokens);
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t row = first * kStripTokens + i;
      const float factor = static_cast<float>(a_.scale[row] * a_.label_smoothing);
      kernel_.store_row(s.gradient.data() + i * stride, a_.dim, factor,
                        smooth() ? direction_.data() : nullptr,
                        a_.grad_input + token(row, a_.grad_sample_stride, a_.grad_row_stride));
    }
  }

  const LinearRowsArgs& a_;
  const LinearKernel& kernel_;
  const LinearShape shape_;
  const int64_t threads_;
  int64_t strips_ = 1;        // of a task
  int64_t first_copied_ = 0;  // panel
  Workspace<uint16_t> copied_;
  Workspace<char> weight_pairs_;
  Workspace<float> direction_;
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
  CMIM_RETURN_IF_ERROR(check_pointer(kOp, "rows", a.rows, any));
  CMIM_RETURN_IF_ERROR(check_pointer(kOp, "stats", a.stats, any));
  CMIM_RETURN_IF_ERROR(check_pointer(kOp, "loss", a.loss, any));
  for (int64_t i = 0; i < a.num_rows; ++i) {
    const int64_t t = a.rows[i];
    if (t < 0 || t >= a.num_tokens) {
      return Status::error(StatusCode::invalid_argument, "%s: rows[%lld] = %lld is not a token",
                           kOp, static_cast<long long>(i), static_cast<long long>(t));
    }
    if (a.target[t] < 0 || a.target[t] >= a.num_classes) {
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
      return Status();
    }
    return Step(args, *kernel).run();
  });
}

}  // namespace clustermim
