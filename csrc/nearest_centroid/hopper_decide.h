// Which rows the bound on the scores' error decides: docs/certificate.md, section 8.
#pragma once

#include "hopper/instructions.h"
#include "nearest_centroid/hopper_arguments.h"
#include "nearest_centroid/hopper_rows.h"

namespace clustermim::hopper {

// Places in facts and counters: ops/nearest_centroid/triton_lists.py.
enum Fact { kRestNear, kRestAll, kReachNear, kReachAll, kFar };
constexpr int kOpen = 0;
constexpr float kRoom = 1.000244140625f;  // 1 + 2^-12: roundings of sums of a few positive terms

// The best score of a row, the next best, and the centroid of the best.
struct Best {
  float score, next;
  int id;
};

struct Limit {
  float score;     // the lowest that the row's nearest centroid can have
  float distance;  // from the centroid of the best score, at most
};

template <bool kEuclidean>
CMIM_DEVICE Limit limit_of(float best, float length, float moved, float rest, float reach,
                           const FilterArguments& a) {
  float eps = a.accumulation * (length * reach);
  float margin, distance;
  if (kEuclidean) {
    eps += 0x1p-22f * reach * reach;
    const float square = length * length * a.factor - 2 * best + 4 * eps;
    // NaN stays one.
    const float away = square_root(square < 0 ? 0.0f : square);
    const float slack = moved + rest;
    margin = 2 * (eps + slack * (away + slack));
    distance = (away + slack) * kRoom;
  } else {
    margin = 2 * (eps + length * rest + moved * (reach + rest));
    distance = margin;
  }
  return {best - margin * kRoom, distance};
}

CMIM_DEVICE float fact(const FilterArguments& a, Fact which) {
  return float_of_bits(static_cast<uint32>(load(a.facts + which)));
}

// Stores the row's id or lists the row; all lanes of a warp take part, `exists` says which have
// one.
template <bool kEuclidean>
CMIM_DEVICE void decide(const FilterArguments& a, int row, bool exists, const Best& best,
                        const Squares& squares) {
  const float length = square_root(squares.kept * a.factor);
  const float moved =
      square_root((squares.rest + a.rho_square) * a.factor) + 0x1p-23f * length + a.tiny;
  Limit limit =
      limit_of<kEuclidean>(best.score, length, moved, fact(a, kRestAll), fact(a, kReachAll), a);
  if (kEuclidean) {
    const Limit tight =
        limit_of<kEuclidean>(best.score, length, moved, fact(a, kRestNear), fact(a, kReachNear), a);
    const bool none_far =
        load(a.near + best.id) != 0 && (length + moved + tight.distance) * kRoom < fact(a, kFar);
    if (none_far && tight.score > limit.score) limit.score = tight.score;
  }
  const bool decided = best.next < limit.score;  // false for NaN
  if (exists) a.ids[row] = decided ? best.id : -1;

  const uint32 open = lanes_where(exists && !decided);
  if (open == 0) return;
  const int lane = thread_index() % 32;
  int first = 0;
  if (lane == 0) first = add_atomically(a.counters + kOpen, count_bits(open));
  first = from_lane(first, 0);
  if (exists && !decided) {
    const int at = first + count_bits(open & ((1u << lane) - 1));
    a.open_rows[at] = row;
    a.open_limits[at] = limit.score;
  }
}

}  // namespace clustermim::hopper
