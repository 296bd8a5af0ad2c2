// The two best scores of a row, kept while its tiles of scores come: a thread has two rows, and of
// each tile 32 columns of either (hopper/instructions.h says which).
#pragma once

#include "hopper/instructions.h"
#include "nearest_centroid/hopper_decide.h"

namespace clustermim::hopper {

CMIM_DEVICE float no_score() {
  return float_of_bits(0xff800000u);
}  // -infinity

// best: the largest score, in tile `tile`; next: the largest of the other tiles; places: of each
// column of a tile the largest score in any. A next best column is in another tile, or at another
// place.
struct Scores {
  float best[2], next[2], largest[2];
  int tile[2];
  float places[64];

  CMIM_DEVICE void clear() {
    for (int h = 0; h < 2; ++h) best[h] = next[h] = largest[h] = no_score(), tile[h] = 0;
#pragma unroll
    for (int i = 0; i < 64; ++i) places[i] = no_score();
  }

  // Of a tile: eight columns, whose biases begin at `bias`.
  CMIM_DEVICE void add_columns(int group, const float (&sums)[64], Address bias) {
    float addend[2];
    load_float2(bias + (8 * group + 2 * (thread_index() % 4)) * 4, addend[0], addend[1]);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int i = 4 * group + j;
      const float score = sums[i] + addend[j % 2];
      places[i] = larger(places[i], score);
      largest[j / 2] = larger(largest[j / 2], score);
    }
  }

  CMIM_DEVICE void end_tile(int number) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      if (largest[h] > best[h]) tile[h] = number;
      next[h] = larger(next[h], smaller(best[h], largest[h]));
      best[h] = larger(best[h], largest[h]);
      largest[h] = no_score();
    }
  }

  // Of half h's row, the columns of the quad's four threads together.
  CMIM_DEVICE Best of_row(int h) const {
    Best found = {best[h], next[h], 0};
    int place = 0, equal = 0;
#pragma unroll
    for (int i = 63; i >= 0; --i) {  // the lowest comes last
      if (i / 2 % 2 != h) continue;
      if (places[i] == found.score) {
        place = 8 * (i / 4) + i % 2;
        ++equal;
      } else {
        found.next = larger(found.next, places[i]);
      }
    }
    if (equal > 1) found.next = found.score;
    found.id = tile[h] * 128 + place + 2 * (thread_index() % 4);
#pragma unroll
    for (int with = 1; with < 4; with *= 2) {
      const Best other = {from_lane_xor(found.score, with), from_lane_xor(found.next, with),
                          from_lane_xor(found.id, with)};
      found.next = larger(larger(found.next, other.next), smaller(found.score, other.score));
      if (other.score > found.score) found.id = other.id;
      found.score = larger(found.score, other.score);
    }
    return found;
  }
};

}  // namespace clustermim::hopper
