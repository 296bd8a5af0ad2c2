// dX of the linear loss: two rows of a tile for each thread.
#pragma once

#include "hopper/instructions.h"
#include "hopper/operands.h"
#include "masked_cross_entropy/hopper_linear_arguments.h"
#include "masked_cross_entropy/hopper_linear_layout.h"

namespace clustermim::hopper {

template <class F>
struct InputRows {
  static constexpr int kColumns = F::kInputColumns;
  int token[2];
  float relative[2];  // of smoothing's part
  bool counts[2];

  InputRows() = default;
  CMIM_DEVICE InputRows(const LinearArguments& a, LinearMemory<F> memory,
                        const TokenTiles<F>& tiles, int counted) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int64 slot = int64(tiles.tile) * F::kRows + row_of(h);
      counts[h] = slot < counted;
      token[h] = load_int(memory.token(tiles.stage, row_of(h)));
      relative[h] = a.direction && a.relative && counts[h] ? load(a.relative + slot) : 1.0f;
    }
  }

  // dX = factor (dZ W / kShift - relative direction)
  CMIM_DEVICE void make(const LinearArguments& a, LinearMemory<F> memory, int group, int rank) {
    const float factor = load(a.factor), scale = factor / F::kShift;
    uint16* row[2];
#pragma unroll
    for (int h = 0; h < 2; ++h)
      row[h] = static_cast<uint16*>(a.dx) + place_of(a, token[h], a.dx_sample, a.dx_row);
#pragma unroll 1
    for (int part = 0; part < F::kDepth / kColumns; ++part) {
      float sums[kColumns / 2];
      multiply(memory, group, part, sums);
      const int first = rank * F::kDepth + part * kColumns, quad = thread_index_again() % 4;
#pragma unroll
      for (int g = 0; g < kColumns / 8; g += 4) {
        Words words[2];
        const int pair = opaque(first + 2 * quad);  // else all of direction is loaded at once
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int column = pair + 8 * (g + i), at = 4 * (g + i);
          float low = 0, high = 0;
          if (a.direction && column < a.dim) {
            const uint64 two = load_8_bytes(a.direction + column);
            low = factor * float_of_bits(static_cast<uint32>(two));
            high = factor * float_of_bits(static_cast<uint32>(two >> 32));
          }
#pragma unroll
          for (int h = 0; h < 2; ++h)
            words[h].w[i] = to_16_bits<F::kType>(sums[at + 2 * h] * scale - relative[h] * low,
                                                 sums[at + 2 * h + 1] * scale - relative[h] * high);
        }
        const int column = first + 8 * (g + quad);
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const Words side_by_side = exchange_in_quad(words[h]);
          if (counts[h] && column < a.dim) store_words_at(row[h] + column, side_by_side);
        }
      }
    }
  }

 private:
  CMIM_DEVICE static void multiply(LinearMemory<F> memory, int group, int part,
                                   float (&sums)[kColumns / 2]) {
    products_fence();
    const Operand dz(memory.dz(group), Swizzle::bytes_128);
    const Operand weight =
        Operand::mn(memory.weight() + part * (kColumns / 64) * F::kWeightBytes, F::kWeightBytes);
#pragma unroll
    for (int k = 0; k < F::kClasses / 16; ++k)
      product<F::kType, Major::k, Major::mn>(sums,
                                             dz.descriptor(k / 4 * F::kChunkBytes + k % 4 * 32),
                                             weight.descriptor(2048 * k), k > 0);
    products_commit();
    products_wait<0>();
    products_are_in(sums);
  }

  // In: word i of the thread's four words for place i of the quad. Out: the quad's words for this
  // thread's place.
  CMIM_DEVICE static Words exchange_in_quad(Words words) {
    const bool odd = thread_index_again() & 1, high = thread_index() & 2;
    uint32(&w)[4] = words.w;
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
      const uint32 got = from_lane_xor(odd ? w[i] : w[i + 1], 1);
      w[i] = odd ? got : w[i];
      w[i + 1] = odd ? w[i + 1] : got;
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint32 got = from_lane_xor(high ? w[i] : w[i + 2], 2);
      w[i] = high ? got : w[i];
      w[i + 2] = high ? w[i + 2] : got;
    }
    return words;
  }
};

}  // namespace clustermim::hopper
