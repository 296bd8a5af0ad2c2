// The linear loss's weight as its products read it. For linear_rows.cpp.
#pragma once

#include <algorithm>
#include <cstring>

#include "core/parallel_for.h"
#include "core/workspace.h"
#include "masked_cross_entropy/linear_kernel.h"
#include "masked_cross_entropy/linear_rows.h"

namespace clustermim {

class LinearWeight {
 public:
  LinearWeight(const LinearRowsArgs& args, const LinearKernel& kernel)
      : a_(args), kernel_(kernel), shape_{args.dim, args.num_classes} {}

  Status prepare(bool for_input) {
    const int64_t panels = shape_.panels();
    // Tiles read whole panels of whole steps: what is not there gets a copy with zeros.
    first_copied_ = a_.dim == width() ? a_.num_classes / kPanelClasses : 0;
    const int64_t copied = (panels - first_copied_) * kPanelClasses * width();
    copied_.reserve(copied);
    std::fill_n(copied_.data(), copied, uint16_t{0});
    for (int64_t k = first_copied_ * kPanelClasses; k < a_.num_classes; ++k) {
      std::memcpy(copied_.data() + (k - first_copied_ * kPanelClasses) * width(),
                  a_.weight + k * a_.weight_stride, a_.dim * 2);
    }
    if (!for_input) return Status();
    pairs_.reserve(shape_.steps() * panels * kPanelBytes);
    auto pack = [&](int64_t panel, int) {
      kernel_.pack_weight(a_.weight, a_.weight_stride, shape_, panel, pairs_.data());
    };
    CMIM_RETURN_IF_ERROR(parallel_for(a_.threads, panels, pack));
    if (a_.label_smoothing <= 0) return Status();
    mean_.reserve(width());
    auto sum = [&](int64_t step, int) {
      float* out = mean_.data() + step * kStepValues;
      kernel_.mean_rows(a_.weight, a_.weight_stride, a_.num_classes, a_.dim, step, out);
    };
    return parallel_for(a_.threads, shape_.steps(), sum);
  }

  // First operand of the logits: a panel's rows and their stride.
  const uint16_t* rows(int64_t panel) const {
    return copy(panel) ? copied_.data() + (panel - first_copied_) * kPanelClasses * width()
                       : a_.weight + panel * kPanelClasses * a_.weight_stride;
  }
  int64_t stride(int64_t panel) const { return copy(panel) ? width() : a_.weight_stride; }
  // Second operand of dX: [steps][panels][kPanelBytes].
  const char* pairs() const { return pairs_.data(); }
  // Of all classes; null without smoothing.
  const float* mean() const { return mean_.data(); }

 private:
  int64_t width() const { return shape_.steps() * kStepValues; }
  bool copy(int64_t panel) const { return panel >= first_copied_; }

  const LinearRowsArgs& a_;
  const LinearKernel& kernel_;
  const LinearShape shape_;
  int64_t first_copied_ = 0;  // panel
  Workspace<uint16_t> copied_;
  Workspace<char> pairs_;
  Workspace<float> mean_;
};

}  // namespace clustermim
