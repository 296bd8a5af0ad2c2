// dX of the linear loss: the product of a few strips, and the rows it goes to. For linear_rows.cpp.
#pragma once

#include <algorithm>
#include <cstring>

#include "core/parallel_for.h"
#include "core/workspace.h"
#include "masked_cross_entropy/linear_kernel.h"
#include "masked_cross_entropy/linear_rows.h"
#include "masked_cross_entropy/linear_weight.h"

namespace clustermim {

// Where a token's values stand in the input or in dX.
template <typename T>
T* token_row(const LinearRowsArgs& a, T* values, int64_t sample_stride, int64_t row_stride,
             int64_t row) {
  const int64_t t = a.rows[row];
  return values + t / a.rows_per_sample * sample_stride + t % a.rows_per_sample * row_stride;
}

class LinearInputGradient {
 public:
  struct Scratch {  // of a thread
    Workspace<char> tokens;
    Workspace<float> product;
    int64_t strips = 0;  // of a product
  };

  LinearInputGradient(const LinearRowsArgs& args, const LinearKernel& kernel,
                      const LinearWeight& weight)
      : a_(args), kernel_(kernel), shape_{args.dim, args.num_classes}, weight_(weight) {}

  bool wanted() const { return a_.scale && a_.grad_input; }

  void reserve(Scratch& s, int64_t strips) const {
    const int64_t panels = shape_.panels();
    // More than one only where W would pass through the cache for each.
    s.strips = panels * shape_.strip_bytes() > kCachedBytes ? strips : 1;
    s.tokens.reserve(strips * panels * kPanelBytes);
    s.product.reserve(s.strips * kStripTokens * stride());
  }

  // `strips` strips from strip `first` of all, of which `tokens` holds dZ.
  void multiply(int64_t first, int64_t strips, Scratch& s) const {
    const int64_t panels = shape_.panels();
    for (int64_t done = 0; done < strips; done += s.strips) {
      const int64_t end = std::min(done + s.strips, strips);
      for (int64_t begin = 0; begin < panels; begin += kPanelStep) {
        const int64_t count = std::min(panels - begin, kPanelStep);
        for (int64_t step = 0; step < shape_.steps(); ++step) {
          for (int64_t i = done; i < end; ++i) {
            kernel_.input_gradient(
                s.tokens.data() + (i * panels + begin) * kPanelBytes,
                weight_.pairs() + (step * panels + begin) * kPanelBytes, count, begin > 0,
                s.product.data() + (i - done) * kStripTokens * stride() + step * kStepValues,
                stride());
          }
        }
      }
      store((first + done) * kStripTokens, (end - done) * kStripTokens, s.product.data());
    }
  }

  // Zeros for the tokens that do not count, some of them at once.
  int64_t zero_blocks() const {
    return a_.grad_input ? (a_.num_rest + kZeroRows - 1) / kZeroRows : 0;
  }
  void zero_block(int64_t block) const {
    const int64_t begin = a_.num_rows + block * kZeroRows;
    const int64_t end = std::min(begin + kZeroRows, a_.num_rows + a_.num_rest);
    for (int64_t i = begin; i < end; ++i) std::memset(out(i), 0, a_.dim * sizeof(uint16_t));
  }
  Status zero_rest() const {
    auto task = [&](int64_t block, int) { zero_block(block); };
    return parallel_for(a_.threads, zero_blocks(), task);
  }

 private:
  static constexpr int64_t kPanelStep = 64;           // panels whose operands stay in the cache
  static constexpr int64_t kCachedBytes = 256 << 10;  // of W, beside a strip
  static constexpr int64_t kZeroRows = 64;

  // Off the powers of two, where a tile's rows would share two sets of the cache.
  int64_t stride() const { return shape_.steps() * kStepValues + 16; }
  uint16_t* out(int64_t row) const {
    return token_row(a_, a_.grad_input, a_.grad_sample_stride, a_.grad_row_stride, row);
  }

  void store(int64_t first, int64_t rows, const float* product) const {
    const int64_t end = std::min(first + rows, a_.num_rows);
    for (int64_t row = first; row < end; ++row) {
      const float factor = static_cast<float>(a_.scale[row] * a_.label_smoothing);
      kernel_.store_row(product + (row - first) * stride(), a_.dim, factor, weight_.mean(),
                        out(row));
    }
  }

  const LinearRowsArgs& a_;
  const LinearKernel& kernel_;
  const LinearShape shape_;
  const LinearWeight& weight_;
};

}  // namespace clustermim
