// From the logits of a token to its loss and their gradient: four threads have a token, each every
// fourth pair of classes.
#pragma once

#include "hopper/instructions.h"
#include "hopper/operands.h"
#include "masked_cross_entropy/hopper_linear_arguments.h"
#include "masked_cross_entropy/hopper_linear_layout.h"
#include "masked_cross_entropy/hopper_linear_totals.h"

namespace clustermim::hopper {

// A row of a tile; `slot`: its place in the list of tokens.
struct Token {
  int64 slot;
  bool counts;
  int token, target;   // target: -1 for none
  float relative = 0;  // of its gradient
  float saved = 0;     // of the stats, where they are read
};

template <class F>
CMIM_DEVICE Token token_of(const LinearArguments& a, LinearMemory<F> memory,
                           const TokenTiles<F>& tiles, int row, int counted) {
  const int64 slot = int64(tiles.tile) * F::kRows + row;
  Token t = {slot, slot < counted, load_int(memory.token(tiles.stage, row)),
             load_int(memory.target(tiles.stage, row))};
  if (!t.counts) return t;
  t.relative = a.relative ? load(a.relative + slot) : 1.0f;
  if (!a.writes_losses) t.saved = load(a.stats + slot);
  return t;
}

CMIM_DEVICE float sum_of_quad(float value) {
  value += from_lane_xor(value, 1);
  return value + from_lane_xor(value, 2);
}

template <class F>
struct Softmax {
  static constexpr int kValues = F::kValues;
  const LinearArguments& a;
  LinearMemory<F> memory;
  int quad;  // which of the four threads

  CMIM_DEVICE Softmax(const LinearArguments& a, LinearMemory<F> memory)
      : a(a), memory(memory), quad(thread_index_again() % 4) {}

  // In: logits without bias. Out: their gradient, by relative but not by factor.
  CMIM_DEVICE void run(const Token& t, float (&values)[kValues], LinearTotals<F>& totals) const {
    float top = float_of_bits(0xff800000u);  // -infinity
#pragma unroll
    for (int i = 0; i < kValues; i += 2) {
      float bias[2];
      load_float2(memory.bias(class_of_value(quad, i)), bias[0], bias[1]);
      // What an infinite weight makes of no token is no number; its logits are the biases.
      for (int c = 0; c < 2; ++c) values[i + c] = (t.counts ? values[i + c] : 0.0f) + bias[c];
      top = larger(top, larger(values[i], values[i + 1]));
    }
    top = larger(top, from_lane_xor(top, 1));
    top = larger(top, from_lane_xor(top, 2));
#pragma unroll
    for (int i = 0; i < kValues; ++i) values[i] = top - values[i];
    const Distances distances = a.writes_losses ? distances_of(t, values) : Distances();
    float total = 0;
#pragma unroll
    for (int i = 0; i < kValues; ++i) {
      values[i] = two_to_the(values[i] * -1.4426950408889634f);
      total += values[i];
    }
    total = sum_of_quad(total);
    const bool is_sound = a.writes_losses ? total == total : t.saved == t.saved;
    const bool known = t.target >= 0 && is_sound;
    const float nan = float_of_bits(0x7fc00000u);
    if (a.writes_losses && t.counts && quad == 0) {
      a.stats[t.slot] = known ? top : nan;
      a.stats[a.num_tokens + t.slot] = total;
      const float loss = known ? natural_logarithm(total) + distances.loss : nan;
      add_loss(t, loss, distances.best, totals);
    }
    const float share = known || !t.counts ? quotient(t.relative, total) : nan;  // of none: 0
    const float hard = (1 - a.smoothing) * t.relative;
    const int own = t.target - 2 * quad;
#pragma unroll
    for (int i = 0; i < kValues; ++i)
      values[i] = values[i] * share - (own == 8 * (i / 2) + i % 2 ? hard : 0.0f);
  }

 private:
  struct Distances {
    float loss = 0;  // but for the logarithm of the sum
    int best = 0;    // the class of the largest logit, the lowest of equal ones
  };

  // values: how far each logit is below the largest.
  CMIM_DEVICE Distances distances_of(const Token& t, const float (&values)[kValues]) const {
    float all = 0, of_target = 0;
    Distances found = {0, F::kClasses};
#pragma unroll
    for (int i = kValues - 1; i >= 0; --i) {
      const int k = class_of_value(quad, i);
      // Only of the last sixteen some may be none.
      if (8 * (i / 2) + 16 < F::kClasses || k < a.num_classes) all += values[i];
      if (k == t.target) of_target = values[i];
      if (values[i] == 0) found.best = k;  // the lowest comes last
    }
    all = sum_of_quad(all), of_target = sum_of_quad(of_target);
    for (int with = 1; with < 4; with *= 2) {
      const int other = from_lane_xor(found.best, with);
      if (other < found.best) found.best = other;
    }
    // Neither of them is 0 times infinity.
    if (a.smoothing > 0)
      found.loss += quotient(a.smoothing, static_cast<float>(opaque(a.num_classes))) * all;
    if (a.smoothing < 1) found.loss += (1 - a.smoothing) * of_target;
    return found;
  }

  CMIM_DEVICE void add_loss(const Token& t, float loss, int best, LinearTotals<F>& totals) const {
    const double weighted = a.token_weight ? loss * load(a.token_weight + t.token) : loss;
    if (a.each)
      a.each[t.token] = static_cast<float>(weighted);
    else
      totals.loss += weighted;
    if (!a.correct || loss != loss) return;
    totals.correct += best == t.target;
    add_to_shared(memory.chosen(best), 1);
  }
};

}  // namespace clustermim::hopper
