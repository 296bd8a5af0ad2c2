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

namespace clustermim {
namespace {

constexpr const char* kOp = "masked_linear_cross_entropy";
constexpr int64_t kMiB = 1 << 20;
constexpr int64_t kPanelStep = 64;  // panels of dX's product whose operands stay in the cache
constexpr int64_t kMostStrips = 4;  // of a task: more wait for the last, fewer read W more often
// dW's product: inputs of a chunk for this many steps stay in a core's cache (1 MiB), and dW itself
// is read and written once a chunk.
constexpr int64_t kChunkStrips = 64, kChunkBytes = 12 * kMiB, kStepBlock = 8;
// Strips that follow each other would otherwise fall into the same sets of the caches.
constexpr int64_t kSpread = 2048 + 64 * 2;

const LinearKernel* linear_kernel() {
#if defined(__x86_64__)
  if (current_isa() == Isa::amx) return &kLinearAmx;
#endif
  return nullptr;
}

// Operands of dW for the strips of one chunk.
struct Chunk {
  int64_t classes_stride, pairs_stride;
  Workspace<char> classes, pairs;
  Workspace<float> sums;  // of dZ over a strip's tokens
  std::vector<float> scale;
};

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
        threads_(std::max(args.threads, 1)) {
    const int64_t panels = shape_.panels();
    const int64_t each = panels * (4096 + 2048 + 128) + shape_.strip_bytes();
    strips_ = gradients() ? std::clamp<int64_t>(24 * kMiB / threads_ / each, 1, kMostStrips)
                          : kMostStrips;
  }

  Status run() {
    CMIM_RETURN_IF_ERROR(prepare());
    const int64_t total = (a_.num_rows + kStripTokens - 1) / kStripTokens;
    chunk_.classes_stride = shape_.panels() * kPanelClasses * 64 + kSpread;
    chunk_.pairs_stride = shape_.strip_bytes() + kSpread;
    const int64_t room = std::clamp<int64_t>(
        kChunkBytes / (chunk_.classes_stride + chunk_.pairs_stride), strips_, kChunkStrips);
    const int64_t chunk = for_weight() ? std::min(room, total) : total;
    if (for_weight()) {
      chunk_.classes.reserve(chunk * chunk_.classes_stride);
      chunk_.pairs.reserve(chunk * chunk_.pairs_stride);
      chunk_.sums.reserve(chunk * shape_.panels() * kPanelClasses);
      chunk_.scale.resize(chunk * kStripTokens);
    }
    for (int64_t begin = 0; begin < total; begin += chunk) {
      const int64_t count = std::min(chunk, total - begin);
      auto task = [&](int64_t t, int worker) {
        const int64_t first = t * strips_;
        run_block(begin, first, std::min(strips_, count - first), scratch_[worker]);
      };
      CMIM_RETURN_IF_ERROR(parallel_for(a_.threads, (count + strips_ - 1) / strips_, task));
      if (for_weight()) CMIM_RETURN_IF_ERROR(add_to_weight(count, begin > 0));
    }
    return finish();
  }

 private:
  bool gradients() const { return a_.scale != nullptr; }
  bool for_weight() const { return gradients() && (a_.grad_weight || a_.grad_bias); }
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
      weight_pairs_.reserve(shape_.steps() * panels * 2048);
      auto pack = [&](int64_t panel, int) {
        kernel_.pack_weight(a_.weight, a_.weight_stride, shape_, panel, weight_pairs_.data());
      };
      CMIM_RETURN_IF_ERROR(parallel_for(a_.threads, panels, pack));
      if (smooth()) {
        direction_.reserve(width);
        auto sum = [&](int64_t step, int) {
          float* out = direction_.data() + step * kStepValues;
          kernel_.sum_rows(a_.weight, a_.weight_stride, a_.num_classes, a_.dim, step, out);
          for (int64_t i = 0; i < kStepValues; ++i) out[i] /= static_cast<float>(a_.num_classes);
        };
        CMIM_RETURN_IF_ERROR(parallel_for(a_.threads, shape_.steps(), sum));
      }
    }
    if (for_weight() && smooth()) scaled_inputs_.assign(width, 0.0f);
    return Status();
  }

  int64_t token(int64_t row, int64_t sample_stride, int64_t row_stride) const {
    const int64_t t = a_.rows[row];
    return t / a_.rows_per_sample * sample_stride + t % a_.rows_per_sample * row_stride;
  }

  void reserve(Scratch& s) const {
    const int64_t panels = shape_.panels(), kept = gradients() ? strips_ * panels : 2;
    s.states.reserve(strips_);
    s.columns.reserve(strips_ * shape_.strip_bytes());
    s.exponentials.reserve(kept * kPanelClasses * kStripTokens);
    s.references.reserve(kept * kStripTokens);
    if (!for_input()) return;
    s.tokens.reserve(strips_ * panels * 2048);
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
      kernel_.pack_tokens(
          rows, a_.dim, s.columns.data() + i * shape_.strip_bytes(),
          for_weight() ? chunk_.pairs.data() + (first + i) * chunk_.pairs_stride : nullptr);
    }

    kernel_.enter();
    LinearPanel last = {};
    for (int64_t p = 0; p < panels; ++p) {
      const bool copy = p >= first_copied_;
      const uint16_t* weight = copy ? copied_.data() + (p - first_copied_) * kPanelClasses * width
                                    : a_.weight + p * kPanelClasses * a_.weight_stride;
      for (int64_t i = 0; i < strips; ++i) {
        // Without gradients two places suffice: the next panel's product and this one's softmax.
        const LinearPanel next =
            panel(p, i, gradients() ? i * panels + p : (p * strips + i) % 2, s);
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
      for (int64_t t = 0; t < kStripTokens; ++t) {
        chunk_.scale[in_chunk * kStripTokens + t] =
            row + t < a_.num_rows ? static_cast<float>(a_.scale[row + t]) : 0.0f;
      }
    }
    for (int64_t p = 0; p < panels; ++p) {
      const int64_t at = i * panels + p;
      kernel_.gradient(
          panel(p, i, at, s), factors,
          for_weight() ? chunk_.classes.data() + in_chunk * chunk_.classes_stride + p * 2048
                       : nullptr,
          for_input() ? s.tokens.data() + at * 2048 : nullptr,
          for_weight() ? chunk_.sums.data() + (in_chunk * panels + p) * kPanelClasses : nullptr);
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
              s.tokens.data() + (i * panels + begin) * 2048,
              weight_pairs_.data() + (step * panels + begin) * 2048, count, begin > 0,
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

  // A task keeps its inputs, 32 tokens times kStepBlock values a strip, in its core's cache while
  // the classes pass by.
  Status add_to_weight(int64_t strips, bool accumulate) {
    const int64_t width = shape_.steps() * kStepValues, panels = shape_.panels();
    const int64_t blocks = (shape_.steps() + kStepBlock - 1) / kStepBlock;
    const int64_t group = (panels + 2 * threads_ - 1) / (2 * threads_);
    const int64_t groups = (panels + group - 1) / group;
    auto task = [&](int64_t t, int) {
      const int64_t begin = t / groups * kStepBlock;
      const int64_t end = std::min(begin + kStepBlock, shape_.steps());
      const int64_t last = std::min((t % groups + 1) * group, panels);
      kernel_.enter();
      for (int64_t p = t % groups * group; p < last; ++p) {
        const char* classes = chunk_.classes.data() + p * 2048;
        if (a_.grad_weight) {
          kernel_.weight_gradient(classes, chunk_.classes_stride, chunk_.pairs.data(),
                                  chunk_.pairs_stride, strips, begin, end, accumulate,
                                  a_.grad_weight + p * kPanelClasses * width, width);
        }
      }
      kernel_.leave();
    };
    CMIM_RETURN_IF_ERROR(parallel_for(a_.threads, blocks * groups, task));
    if (a_.grad_bias) {
      for (int64_t k = 0; k < panels * kPanelClasses; ++k) {
        float sum = accumulate ? a_.grad_bias[k] : 0.0f;
        for (int64_t i = 0; i < strips; ++i)
          sum += chunk_.sums.data()[i * panels * kPanelClasses + k];
        a_.grad_bias[k] = sum;
      }
    }
    if (!smooth()) return Status();
    for (int64_t i = 0; i < strips * kStripTokens; ++i) scales_ += chunk_.scale[i];
    auto sum = [&](int64_t step, int) {
      kernel_.scaled_sum(chunk_.pairs.data(), chunk_.pairs_stride, strips, chunk_.scale.data(),
                         step, scaled_inputs_.data() + step * kStepValues);
    };
    return parallel_for(a_.threads, shape_.steps(), sum);
  }

  // What the smoothing takes off every class alike.
  Status finish() {
    if (!for_weight() || !smooth()) return Status();
    const int64_t width = shape_.steps() * kStepValues;
    const float each = static_cast<float>(a_.label_smoothing / static_cast<double>(a_.num_classes));
    auto classes = [&](int64_t k, int) {
      if (a_.grad_bias) a_.grad_bias[k] -= static_cast<float>(each * scales_);
      if (!a_.grad_weight) return;
      float* row = a_.grad_weight + k * width;
      for (int64_t d = 0; d < width; ++d) row[d] -= each * scaled_inputs_[d];
    };
    return parallel_for(a_.threads, a_.num_classes, classes);
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
  std::vector<float> scaled_inputs_;
  double scales_ = 0.0;
  Chunk chunk_;
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
