// dW and db of the linear loss: the operands of a chunk of strips side by side, and their products.
// For linear_rows.cpp.
#pragma once

#include <algorithm>
#include <bit>
#include <vector>

#include "core/parallel_for.h"
#include "core/workspace.h"
#include "masked_cross_entropy/linear_kernel.h"
#include "masked_cross_entropy/linear_rows.h"

namespace clustermim {

// What the kernel fills in for the strips of a chunk.
class StripOperands {
 public:
  void reserve(const LinearShape& shape, int64_t strips) {
    shape_ = shape;
    classes_.reserve(strips * classes_stride());
    pairs_.reserve(strips * pairs_stride());
    sums_.reserve(strips * shape_.panels() * kPanelClasses);
    scale_.reserve(strips * kStripTokens);
  }
  char* classes(int64_t strip, int64_t panel) {
    return classes_.data() + strip * classes_stride() + panel * kPanelBytes;
  }
  char* pairs(int64_t strip) { return pairs_.data() + strip * pairs_stride(); }
  float* sums(int64_t strip, int64_t panel) {  // of dZ over the strip's tokens
    return sums_.data() + (strip * shape_.panels() + panel) * kPanelClasses;
  }
  float* scale(int64_t strip) { return scale_.data() + strip * kStripTokens; }

  static int64_t classes_stride(const LinearShape& shape) {
    return shape.panels() * kPanelBytes + kSpread;
  }
  static int64_t pairs_stride(const LinearShape& shape) { return shape.strip_bytes() + kSpread; }
  int64_t classes_stride() const { return classes_stride(shape_); }
  int64_t pairs_stride() const { return pairs_stride(shape_); }

 private:
  // Strips that follow each other would otherwise fall into the same sets of the caches.
  static constexpr int64_t kSpread = 2048 + 64 * 2;

  LinearShape shape_ = {};
  Workspace<char> classes_, pairs_;
  Workspace<float> sums_, scale_;
};

// A small dW is summed in parts: each belongs to as many strips in a row and to one thread at a
// time, whose cache holds the part and the operands of its chunk. A large one has one part, to
// which all threads add every chunk.
class LinearWeightGradient {
 public:
  LinearWeightGradient(const LinearRowsArgs& args, const LinearKernel& kernel)
      : a_(args), kernel_(kernel), shape_{args.dim, args.num_classes} {}

  bool wanted() const { return a_.scale && (a_.grad_weight || a_.grad_bias); }

  // For `total` strips, of which `least` are made at once.
  void reserve(int64_t total, int64_t least) {
    if (classes() * width() * 4 <= kPartBytes) {
      const auto enough = static_cast<uint64_t>(std::max<int64_t>(total / kPartStrips, 1));
      parts_ = static_cast<int64_t>(std::bit_floor(std::min<uint64_t>(enough, kMostParts)));
    }
    if (parts_ > 1) {
      // Much alike: for a few strips the products would mostly read and write dW.
      const int64_t strips = (total + parts_ - 1) / parts_;
      const int64_t chunks = (strips + kPartChunkStrips - 1) / kPartChunkStrips;
      chunk_ = (strips + chunks - 1) / chunks;
    } else {
      const int64_t bytes =
          StripOperands::classes_stride(shape_) + StripOperands::pairs_stride(shape_);
      chunk_ = std::min(std::clamp(kChunkBytes / bytes, least, kMostChunkStrips), total);
    }
    operands_.resize(parts_ > 1 ? std::max(a_.threads, 1) : 1);
    part_weights_.reserve(a_.grad_weight && parts_ > 1 ? parts_ * classes() * width() : 0);
    part_biases_.reserve(a_.grad_bias ? (parts_ - 1) * classes() : 0);
    if (smooth()) scaled_inputs_.assign(parts_ * width(), 0.0f);
    scales_.assign(parts_, 0.0);
  }
  int64_t parts() const { return parts_; }
  int64_t chunk() const { return chunk_; }  // strips
  StripOperands& operands(int worker) {
    StripOperands& found = operands_[parts_ > 1 ? worker : 0];
    found.reserve(shape_, chunk_);
    return found;
  }

  // A chunk's `strips` strips, in order, on top of the part's chunks before, on `threads` threads.
  Status add(StripOperands& from, int64_t part, int64_t strips, bool first, int threads) {
    if (a_.grad_weight) CMIM_RETURN_IF_ERROR(multiply(from, part, strips, first, threads));
    if (a_.grad_bias) {
      float* bias = part_bias(part);
      for (int64_t k = 0; k < classes(); ++k) {
        float sum = first ? 0.0f : bias[k];
        for (int64_t i = 0; i < strips; ++i) sum += from.sums(i, 0)[k];
        bias[k] = sum;
      }
    }
    if (!smooth()) return Status();
    for (int64_t i = 0; i < strips * kStripTokens; ++i) scales_[part] += from.scale(0)[i];
    auto sum = [&](int64_t step, int) {
      kernel_.scaled_sum(from.pairs(0), from.pairs_stride(), strips, from.scale(0), step,
                         scaled_inputs_.data() + part * width() + step * kStepValues);
    };
    return parallel_for(threads, shape_.steps(), sum);
  }

  // The sum of the parts, in order, less what the smoothing takes off every class alike.
  Status finish() {
    for (int64_t p = 1; p < parts_; ++p) {
      scales_[0] += scales_[p];
      for (int64_t d = 0; smooth() && d < width(); ++d) {
        scaled_inputs_[d] += scaled_inputs_[p * width() + d];
      }
      for (int64_t k = 0; a_.grad_bias && k < classes(); ++k) a_.grad_bias[k] += part_bias(p)[k];
    }
    const float each = static_cast<float>(a_.label_smoothing / static_cast<double>(a_.num_classes));
    auto finish_class = [&](int64_t k, int) {
      if (a_.grad_bias && smooth()) a_.grad_bias[k] -= static_cast<float>(each * scales_[0]);
      if (!a_.grad_weight) return;
      float* row = a_.grad_weight + k * width();
      if (parts_ > 1) add_parts(k, row);
      for (int64_t d = 0; smooth() && d < width(); ++d) row[d] -= each * scaled_inputs_[d];
    };
    if (parts_ == 1 && !smooth()) return Status();
    return parallel_for(a_.threads, a_.num_classes, finish_class);
  }

 private:
  // Inputs of a chunk for kStepBlock steps stay in a core's cache (1 MiB), and dW itself is read
  // and written once a chunk.
  static constexpr int64_t kMostChunkStrips = 64, kChunkBytes = 12 << 20, kStepBlock = 8;
  static constexpr int64_t kPartBytes = 512 << 10, kPartStrips = 16, kMostParts = 16;
  static constexpr int64_t kPartChunkStrips = 8, kBlock = kPanelClasses * kStepValues;

  bool smooth() const { return a_.label_smoothing > 0; }
  int64_t classes() const { return shape_.panels() * kPanelClasses; }
  int64_t width() const { return shape_.steps() * kStepValues; }

  // Blocks of 32 classes and 32 values, so that the tiles of one lie together: rows of dW itself
  // can be powers of two apart, and would share a few sets of the cache.
  float* part_weight(int64_t part) {
    return parts_ == 1 ? a_.grad_weight : part_weights_.data() + part * classes() * width();
  }
  void add_parts(int64_t k, float* row) {
    for (int64_t step = 0; step < shape_.steps(); ++step) {
      const int64_t block = (k / kPanelClasses * shape_.steps() + step) * kBlock;
      float sum[kStepValues] = {};
      for (int64_t p = 0; p < parts_; ++p) {
        const float* more = part_weight(p) + block + k % kPanelClasses * kStepValues;
        for (int64_t i = 0; i < kStepValues; ++i) sum[i] += more[i];
      }
      std::copy_n(sum, kStepValues, row + step * kStepValues);
    }
  }
  float* part_bias(int64_t part) {
    return part == 0 ? a_.grad_bias : part_biases_.data() + (part - 1) * classes();
  }

  // A task keeps its inputs, 32 tokens times kStepBlock steps a strip, in its core's cache while
  // the classes pass by.
  Status multiply(StripOperands& from, int64_t part, int64_t strips, bool first, int threads) {
    const int64_t panels = shape_.panels();
    const int64_t blocks = (shape_.steps() + kStepBlock - 1) / kStepBlock;
    const int64_t group = (panels + 2 * threads - 1) / (2 * threads);
    const int64_t groups = (panels + group - 1) / group;
    float* const out = part_weight(part);
    const int64_t stride = parts_ > 1 ? kStepValues : width();
    const int64_t next_step = parts_ > 1 ? kBlock : kStepValues;
    auto task = [&](int64_t t, int) {
      const int64_t begin = t / groups * kStepBlock;
      const int64_t end = std::min(begin + kStepBlock, shape_.steps());
      const int64_t last = std::min((t % groups + 1) * group, panels);
      kernel_.enter();
      for (int64_t p = t % groups * group; p < last; ++p) {
        kernel_.weight_gradient(from.classes(0, p), from.classes_stride(), from.pairs(0),
                                from.pairs_stride(), strips, begin, end, !first,
                                out + p * kPanelClasses * width(), stride, next_step);
      }
      kernel_.leave();
    };
    return parallel_for(threads, blocks * groups, task);
  }

  const LinearRowsArgs& a_;
  const LinearKernel& kernel_;
  const LinearShape shape_;
  int64_t parts_ = 1, chunk_ = 0;
  std::vector<StripOperands> operands_;  // of each thread, or one
  Workspace<float> part_weights_, part_biases_;
  std::vector<float> scaled_inputs_;  // of each part
  std::vector<double> scales_;
};

}  // namespace clustermim
