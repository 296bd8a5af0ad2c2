// dW and db of the linear loss, chunk by chunk: the strips' operands side by side, and their
// products. For linear_rows.cpp.
#pragma once

#include <algorithm>
#include <vector>

#include "core/parallel_for.h"
#include "core/workspace.h"
#include "masked_cross_entropy/linear_kernel.h"
#include "masked_cross_entropy/linear_rows.h"

namespace clustermim {

class LinearWeightGradient {
 public:
  LinearWeightGradient(const LinearRowsArgs& args, const LinearKernel& kernel)
      : a_(args),
        kernel_(kernel),
        shape_{args.dim, args.num_classes},
        classes_stride_(shape_.panels() * kPanelBytes + kSpread),
        pairs_stride_(shape_.strip_bytes() + kSpread) {}

  bool wanted() const { return a_.scale && (a_.grad_weight || a_.grad_bias); }

  // Room for a chunk: of at most `total` strips, and of `least` of them if there are so many.
  void reserve(int64_t total, int64_t least) {
    const int64_t fitting = kChunkBytes / (classes_stride_ + pairs_stride_);
    chunk_ = std::min(std::clamp(fitting, least, kMostChunkStrips), total);
    classes_.reserve(chunk_ * classes_stride_);
    pairs_.reserve(chunk_ * pairs_stride_);
    sums_.reserve(chunk_ * shape_.panels() * kPanelClasses);
    scale_.resize(chunk_ * kStripTokens);
    if (smooth()) scaled_inputs_.assign(width(), 0.0f);
  }
  int64_t chunk() const { return chunk_; }

  // What the kernel fills in for a strip of the chunk.
  char* classes(int64_t strip, int64_t panel) {
    return classes_.data() + strip * classes_stride_ + panel * kPanelBytes;
  }
  char* pairs(int64_t strip) { return pairs_.data() + strip * pairs_stride_; }
  float* sums(int64_t strip, int64_t panel) {  // of dZ over the strip's tokens
    return sums_.data() + (strip * shape_.panels() + panel) * kPanelClasses;
  }
  float* scale(int64_t strip) { return scale_.data() + strip * kStripTokens; }

  // The chunk's `strips` strips, in order, on top of the chunks before.
  Status add(int64_t strips, bool first) {
    if (a_.grad_weight) CMIM_RETURN_IF_ERROR(multiply(strips, first));
    if (a_.grad_bias) {
      const int64_t classes = shape_.panels() * kPanelClasses;
      for (int64_t k = 0; k < classes; ++k) {
        float sum = first ? 0.0f : a_.grad_bias[k];
        for (int64_t i = 0; i < strips; ++i) sum += sums_.data()[i * classes + k];
        a_.grad_bias[k] = sum;
      }
    }
    if (!smooth()) return Status();
    for (int64_t i = 0; i < strips * kStripTokens; ++i) scales_ += scale_[i];
    auto sum = [&](int64_t step, int) {
      kernel_.scaled_sum(pairs_.data(), pairs_stride_, strips, scale_.data(), step,
                         scaled_inputs_.data() + step * kStepValues);
    };
    return parallel_for(a_.threads, shape_.steps(), sum);
  }

  // What the smoothing takes off every class alike.
  Status finish() {
    if (!smooth()) return Status();
    const float each = static_cast<float>(a_.label_smoothing / static_cast<double>(a_.num_classes));
    auto classes = [&](int64_t k, int) {
      if (a_.grad_bias) a_.grad_bias[k] -= static_cast<float>(each * scales_);
      if (!a_.grad_weight) return;
      float* row = a_.grad_weight + k * width();
      for (int64_t d = 0; d < width(); ++d) row[d] -= each * scaled_inputs_[d];
    };
    return parallel_for(a_.threads, a_.num_classes, classes);
  }

 private:
  // Inputs of a chunk for kStepBlock steps stay in a core's cache (1 MiB), and dW itself is read
  // and written once a chunk.
  static constexpr int64_t kMostChunkStrips = 64, kChunkBytes = 12 << 20, kStepBlock = 8;
  // Strips that follow each other would otherwise fall into the same sets of the caches.
  static constexpr int64_t kSpread = 2048 + 64 * 2;

  bool smooth() const { return a_.label_smoothing > 0; }
  int64_t width() const { return shape_.steps() * kStepValues; }

  // A task keeps its inputs, 32 tokens times kStepBlock steps a strip, in its core's cache while
  // the classes pass by.
  Status multiply(int64_t strips, bool first) {
    const int64_t panels = shape_.panels(), threads = std::max(a_.threads, 1);
    const int64_t blocks = (shape_.steps() + kStepBlock - 1) / kStepBlock;
    const int64_t group = (panels + 2 * threads - 1) / (2 * threads);
    const int64_t groups = (panels + group - 1) / group;
    auto task = [&](int64_t t, int) {
      const int64_t begin = t / groups * kStepBlock;
      const int64_t end = std::min(begin + kStepBlock, shape_.steps());
      const int64_t last = std::min((t % groups + 1) * group, panels);
      kernel_.enter();
      for (int64_t p = t % groups * group; p < last; ++p) {
        kernel_.weight_gradient(classes(0, p), classes_stride_, pairs_.data(), pairs_stride_,
                                strips, begin, end, !first,
                                a_.grad_weight + p * kPanelClasses * width(), width());
      }
      kernel_.leave();
    };
    return parallel_for(a_.threads, blocks * groups, task);
  }

  const LinearRowsArgs& a_;
  const LinearKernel& kernel_;
  const LinearShape shape_;
  const int64_t classes_stride_, pairs_stride_;  // bytes of a strip's operands
  int64_t chunk_ = 0;                            // strips
  Workspace<char> classes_, pairs_;
  Workspace<float> sums_;
  std::vector<float> scale_, scaled_inputs_;
  double scales_ = 0.0;
};

}  // namespace clustermim
