// The row functions, included by one translation unit per ISA, each with its own vector width.
// Everything is in an anonymous namespace (see row_vector.h).
#pragma once

#include "masked_cross_entropy/row_kernel.h"
#include "masked_cross_entropy/row_vector.h"

namespace clustermim {
namespace {

template <typename V, Element kElement>
struct Row {
  using Scalar = typename V::Scalar;
  using Vec = typename V::Vec;
  using Int = typename V::Int;
  static constexpr int kLanes = V::kLanes;
  static constexpr int kElementBytes = kElement == Element::f64   ? 8
                                       : kElement == Element::f32 ? 4
                                                                  : 2;

  // Elements [offset, offset + count), count < kLanes, the other lanes from `padding`.
  static CMIM_INLINE Vec load_tail(const void* base, int64_t offset, int64_t count,
                                   Scalar padding) {
    alignas(64) char buffer[kLanes * kElementBytes] = {};
    __builtin_memcpy(buffer, static_cast<const char*>(base) + offset * kElementBytes,
                     count * kElementBytes);
    return valid(count) ? V::template load<kElement>(buffer, 0) : V::set(padding);
  }
  static CMIM_INLINE void store_tail(void* base, int64_t offset, int64_t count, Vec v) {
    alignas(64) char buffer[kLanes * kElementBytes];
    V::template store<kElement>(buffer, 0, v);
    __builtin_memcpy(static_cast<char*>(base) + offset * kElementBytes, buffer,
                     count * kElementBytes);
  }
  static CMIM_INLINE Vec load_acc_tail(const void* base, int64_t offset, int64_t count) {
    Vec v = {};
    __builtin_memcpy(&v, static_cast<const Scalar*>(base) + offset, count * sizeof(Scalar));
    return v;
  }
  static CMIM_INLINE Vec load_acc(const void* base, int64_t offset) {
    Vec v;
    __builtin_memcpy(&v, static_cast<const Scalar*>(base) + offset, sizeof(v));
    return v;
  }
  static CMIM_INLINE Int lane() {
    Int lanes;
    for (int i = 0; i < kLanes; ++i) lanes[i] = i;
    return lanes;
  }
  static CMIM_INLINE Int valid(int64_t count) { return lane() < Int{} + static_cast<int>(count); }

  // z = logits + bias at [k, k + kLanes); lanes past the end hold `padding`.
  template <bool kBias>
  static CMIM_INLINE Vec load_z(const RowTask& task, int64_t k, Scalar padding) {
    const int64_t left = task.num_classes - k;
    if (left >= kLanes) {
      Vec z = V::template load<kElement>(task.logits, k);
      if constexpr (kBias) z += load_acc(task.bias, k);
      return z;
    }
    Vec z = load_tail(task.logits, k, left, padding);
    if constexpr (kBias) z += load_acc_tail(task.bias, k, left);
    return z;
  }
  static CMIM_INLINE Scalar one_z(const RowTask& task, int64_t k) {
    const Scalar z = load_tail(task.logits, k, 1, 0)[0];
    return task.bias ? z + static_cast<const Scalar*>(task.bias)[k] : z;
  }
  static CMIM_INLINE Scalar sum_lanes(Vec v) {
    for (int width = kLanes / 2; width > 0; width /= 2) {
      for (int i = 0; i < width; ++i) v[i] += v[i + width];
    }
    return v[0];
  }

  // NaN never wins: it reaches the loss through the sum. Without a logit above -inf index is -1.
  template <bool kBias, bool kIndex>
  static CMIM_INLINE Scalar find_max(const RowTask& task, int64_t& index) {
    Vec best = V::set(V::kLowest);
    Int first = Int{} - 1;
    for (int64_t k = 0; k < task.num_classes; k += kLanes) {
      const Vec z = load_z<kBias>(task, k, V::kLowest);
      const Int better = z > best;
      best = better ? z : best;
      if constexpr (kIndex) first = better ? lane() + static_cast<int>(k) : first;
    }
    Scalar top = best[0];
    index = first[0];
    for (int i = 1; i < kLanes; ++i) {
      if (best[i] > top || (best[i] == top && first[i] < index)) {
        top = best[i];
        index = first[i];
      }
    }
    return top;
  }

  template <bool kBias>
  static CMIM_INLINE void forward_row(const RowTask& task, RowResult& result) {
    int64_t index = -1;
    const Scalar top =
        task.want_argmax ? find_max<kBias, true>(task, index) : find_max<kBias, false>(task, index);
    const bool smooth = task.label_smoothing > 0;
    Vec sum = {}, below = {};  // below: sum of w_k (z_k - max)
    for (int64_t k = 0; k < task.num_classes; k += kLanes) {
      const int64_t left = task.num_classes - k;
      const Vec delta = load_z<kBias>(task, k, V::kLowest) - top;
      const Vec e = V::exp(delta);
      if (left >= kLanes) {
        sum += e;
        if (smooth) below += task.class_weight ? delta * load_acc(task.class_weight, k) : delta;
      } else {
        const Int in_row = valid(left);
        sum += in_row ? e : Vec{};
        const Vec kept = in_row ? delta : Vec{};
        if (smooth)
          below += task.class_weight ? kept * load_acc_tail(task.class_weight, k, left) : kept;
      }
    }
    const double total = sum_lanes(sum);
    const double log_sum = __builtin_log(total);
    const double e = task.label_smoothing;
    const double num_classes = static_cast<double>(task.num_classes);
    const double weight = weight_of_target(task);
    const double nll = log_sum + (static_cast<double>(top) - one_z(task, task.target));
    double loss = (1.0 - e) * weight * nll;
    if (smooth) {
      const double weights = task.class_weight ? task.class_weight_sum : num_classes;
      loss += e / num_classes * (weights * log_sum - sum_lanes(below));
    }
    result.loss = loss;
    result.max = top;
    result.sum = total;
    result.argmax = total == total ? index : -1;
  }

  static CMIM_INLINE double weight_of_target(const RowTask& task) {
    return task.class_weight ? static_cast<const Scalar*>(task.class_weight)[task.target] : 1.0;
  }

  template <bool kBias>
  static CMIM_INLINE void backward_row(const RowTask& task, double max, double sum, double scale,
                                       void* grad) {
    const double e = task.label_smoothing;
    const double per_class = e / static_cast<double>(task.num_classes);
    const double weights =
        task.class_weight ? task.class_weight_sum : static_cast<double>(task.num_classes);
    const double hard = (1.0 - e) * weight_of_target(task);
    const double mass = task.class_weight ? hard + per_class * weights : 1.0;
    const Vec top = V::set(static_cast<Scalar>(max));
    const Vec inverse = V::set(static_cast<Scalar>(mass / sum));
    // The scale as a sum of two: its own rounding would shift the whole gradient one way.
    const Vec s = V::set(static_cast<Scalar>(scale));
    const Vec s_rest = V::set(static_cast<Scalar>(scale - static_cast<double>(s[0])));
    const bool smooth = e > 0;
    const Scalar uniform = static_cast<Scalar>(per_class);
    // The target's own value is read before grad, which may be the same memory, is written.
    const Scalar target_z = one_z(task, task.target);
    for (int64_t k = 0; k < task.num_classes; k += kLanes) {
      const int64_t left = task.num_classes - k;
      Vec g = V::exp(load_z<kBias>(task, k, V::kLowest) - top) * inverse;
      if (left >= kLanes) {
        if (smooth) {
          g -= task.class_weight ? load_acc(task.class_weight, k) * uniform : V::set(uniform);
        }
        V::template store<kElement>(grad, k, g * s + g * s_rest);
      } else {
        if (smooth) {
          g -= task.class_weight ? load_acc_tail(task.class_weight, k, left) * uniform
                                 : V::set(uniform);
        }
        store_tail(grad, k, left, g * s + g * s_rest);
      }
    }
    // p - 1 in full precision, rounded once: rounding p first would lose small target gradients.
    const Vec target_exp = V::exp(V::set(target_z) - top) * inverse;
    double value = static_cast<double>(target_exp[0]) - hard;
    if (smooth) value -= per_class * weight_of_target(task);
    store_tail(grad, task.target, 1, V::set(static_cast<Scalar>(value * scale)));
  }

  static void forward(const RowTask& task, RowResult& result) {
    task.bias ? forward_row<true>(task, result) : forward_row<false>(task, result);
  }
  static void backward(const RowTask& task, double max, double sum, double scale, void* grad) {
    task.bias ? backward_row<true>(task, max, sum, scale, grad)
              : backward_row<false>(task, max, sum, scale, grad);
  }

  static void widen(const void* source, int64_t n, void* out) {
    int64_t k = 0;
    for (; k + kLanes <= n; k += kLanes) {
      const Vec v = V::template load<kElement>(source, k);
      __builtin_memcpy(static_cast<Scalar*>(out) + k, &v, sizeof(v));
    }
    if (k < n) {
      const Vec v = load_tail(source, k, n - k, 0);
      __builtin_memcpy(static_cast<Scalar*>(out) + k, &v, (n - k) * sizeof(Scalar));
    }
  }

  static void narrow(const void* source, int64_t n, void* out) {
    int64_t k = 0;
    for (; k + kLanes <= n; k += kLanes) V::template store<kElement>(out, k, load_acc(source, k));
    if (k < n) store_tail(out, k, n - k, load_acc_tail(source, k, n - k));
  }

  static constexpr RowFunctions functions() { return {&forward, &backward, &widen, &narrow}; }
};

constexpr RowKernel kThisUnit = {
    {Row<FloatVector, Element::f32>::functions(), Row<DoubleVector, Element::f64>::functions(),
     Row<FloatVector, Element::f16>::functions(), Row<FloatVector, Element::bf16>::functions()}};

}  // namespace
}  // namespace clustermim
