// Problems for the Hopper filter: rows, a codebook made ready for it (docs/certificate.md, section
// 8, in float64), and what of its answer has to be true.
#pragma once

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "check.h"
#include "nearest_centroid/run_filter.h"

namespace clustermim::hopper::emulated {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

inline float up(double v) {  // to float32, not below
  return static_cast<float>(v) * (1 + 0x1p-20f);
}

// rows, points: values in the filter's frame, x' and c'; operands: what they are as float16, and
// units: what one of an operand is worth there (of pixels on a line, else 1).
struct Problem {
  int N, D, K, depth, tiles;
  bool euclidean = true;
  std::vector<double> rows, points, row_operands, units;
  std::vector<bool> dead;

  // What the filter is given.
  std::vector<uint16> packed;
  std::vector<float> bias, frame;
  std::vector<uint16> weights;  // the frame of pixels
  std::vector<int8> near;
  double scale = 1;
  int facts[5];
  FilterArguments arguments = {};

  // What it gives.
  std::vector<int64> ids;
  std::vector<int> open_rows;
  std::vector<float> open_limits;
  int counters[4] = {};

  std::vector<double> kept, lengths;  // of centroids: cr; and |cr|

  Problem(int n, int d, int k)
      : N(n), D(d), K(k), depth((d + 63) / 64 * 64), tiles((k + 127) / 128), units(d, 1.0) {
    dead.resize(k);
    frame.resize(depth);
  }

  // Once rows, points and operands are there.
  void prepare(bool is_line) {
    packed.assign(size_t(tiles) * 128 * depth, 0);
    bias.assign(tiles * 128, -std::numeric_limits<float>::infinity());
    near.assign(tiles * 128, 0);
    kept.assign(size_t(K) * D, 0);
    lengths.assign(K, 0);
    float rest[2] = {}, reach[2] = {}, far = std::numeric_limits<float>::infinity();
    for (int k = 0; k < K; ++k) {
      if (dead[k]) continue;
      double rests = 0, squares = 0, size = 0;
      for (int d = 0; d < D; ++d) {
        const double point = points[k * D + d];
        const double operand = std::min(65504.0, std::max(-65504.0, point * units[d]));
        packed[size_t(k) * depth + d] = to_half(operand);
        const double cr = of_half(to_half(operand)) / units[d];
        kept[k * D + d] = cr;
        rests += (point - cr) * (point - cr);
        squares += cr * cr;
        size += point * point;
      }
      lengths[k] = std::sqrt(squares);
      bias[k] = euclidean ? static_cast<float>(-squares / 2) : 0.0f;
      near[k] = !euclidean || size < (is_line ? 0x1p20 : 4096.0) * D;
      for (int all = near[k] ? 0 : 1; all < 2; ++all) {
        rest[all] = std::max(rest[all], up(std::sqrt(rests) + std::sqrt(size) * 0x1p-40));
        reach[all] = std::max(reach[all], up(lengths[k]));
      }
      if (!near[k]) far = std::min(far, float(std::sqrt(std::min(size, squares))) * (1 - 0x1p-20f));
    }
    const float values[5] = {rest[0], rest[1], reach[0], reach[1], far};
    for (int i = 0; i < 5; ++i) facts[i] = std::bit_cast<int>(values[i]);

    ids.assign(N, -7);
    open_rows.assign(N, -7);
    open_limits.assign(N, 7);
    const double unit = 0x1p-24, product = 1.01 * (depth + 16) * unit;
    FilterArguments& a = arguments;
    a.bias = bias.data(), a.near = near.data(), a.scale = &scale, a.facts = facts;
    a.frame = is_line ? static_cast<const void*>(weights.data()) : frame.data();
    a.ids = ids.data(), a.counters = counters;
    a.open_rows = open_rows.data(), a.open_limits = open_limits.data();
    a.num_rows = N, a.dim = D, a.column_tiles = tiles;
    a.accumulation = static_cast<float>(product + 2 * unit);
    a.factor = static_cast<float>(
        1 + (is_line ? 0x1p-10 + 1.2 * product : 2.02 * (depth + depth / 64 + 16) * unit));
    a.tiny = static_cast<float>(std::sqrt(D) * 0x1p-60);
    a.rho_square = 0;
  }

  // Larger is nearer.
  double nearness(int row, int k) const {
    double sum = 0;
    for (int d = 0; d < D; ++d) {
      const double x = rows[size_t(row) * D + d], c = points[size_t(k) * D + d];
      sum += euclidean ? -(x - c) * (x - c) : x * c;
    }
    return sum;
  }

  // Scores without rounding, and what (15) makes of them; `tight`: of near centroids alone.
  struct Bounds {
    double best = -kInfinity, second = -kInfinity, length = 0, moved = 0;
    int winner = 0;
  };
  Bounds scores(int row, std::vector<double>& score) const {
    Bounds b;
    for (int d = 0; d < D; ++d) {
      const double xr = row_operands[size_t(row) * D + d], x = rows[size_t(row) * D + d];
      b.length += xr * xr;
      b.moved += (x - xr) * (x - xr);
    }
    b.length = std::sqrt(b.length);
    b.moved = std::sqrt(b.moved) + 0x1p-23 * b.length + arguments.tiny;
    score.assign(K, -kInfinity);
    for (int k = 0; k < K; ++k) {
      if (dead[k]) continue;
      score[k] = bias[k];
      for (int d = 0; d < D; ++d)
        score[k] += row_operands[size_t(row) * D + d] * kept[size_t(k) * D + d];
      b.second = std::max(b.second, std::min(b.best, score[k]));
      if (score[k] > b.best) b.best = score[k], b.winner = k;
    }
    return b;
  }
  double error(const Bounds& b, double reach) const {
    const double eps = arguments.accumulation * b.length * reach;
    return euclidean ? eps + 0x1p-22 * reach * reach : eps;
  }
  double fact(int which) const { return std::bit_cast<float>(facts[which]); }
  // The margin of (15) lies between these two: the best score that was computed is within eps of
  // the exact one, and without the far ones the near centroids' bounds may be those of all.
  enum Side { kLeast, kMost };
  double distance(const Bounds& b, bool tight, Side side) const {
    const double eps = error(b, fact(tight ? 2 : 3));
    const double square =
        b.length * b.length * arguments.factor - 2 * b.best + (side == kMost ? 6 : 2) * eps;
    return std::sqrt(std::max(0.0, square)) + b.moved + fact(tight ? 0 : 1);
  }
  double margin(const Bounds& b, Side side) const {
    const bool none_far = (b.length + b.moved + distance(b, true, kMost)) * 1.01 < fact(4);
    const bool tight = euclidean && (side == kLeast || (near[b.winner] && none_far));
    const double R = fact(tight ? 0 : 1), C = fact(tight ? 2 : 3), eps = error(b, C);
    const double roundings = side == kMost ? 1 + 0x1p-9 : 1 - 0x1p-9;
    if (!euclidean) return 2 * (eps + b.length * R + b.moved * (C + R)) * roundings;
    return 2 * (eps + (b.moved + R) * distance(b, tight, side)) * roundings;
  }

  // The answer: decided rows are right, the others' limits hide no nearest centroid and are not
  // lower than they need be. Returns how many rows are open.
  int check_answer() const {
    std::vector<int> listed(N, -1);
    for (int i = 0; i < counters[0]; ++i) {
      CHECK(i < N && open_rows[i] >= 0 && open_rows[i] < N && listed[open_rows[i]] == -1);
      listed[open_rows[i]] = i;
    }
    for (int other = 1; other < 4; ++other) CHECK(counters[other] == 0);
    for (int i = counters[0]; i < N; ++i) CHECK(open_rows[i] == -7 && open_limits[i] == 7);
    std::vector<double> score;
    for (int row = 0; row < N; ++row) {
      const bool is_open = listed[row] != -1;
      CHECK(is_open == (ids[row] == -1));
      bool finite = true;
      for (int d = 0; d < D; ++d)
        finite = finite && std::isfinite(row_operands[size_t(row) * D + d]);
      if (!finite) {
        CHECK(is_open && !(open_limits[listed[row]] > -kInfinity));
        continue;
      }
      int nearest = -1;
      double best = -kInfinity;
      bool tied = false;
      for (int k = 0; k < K; ++k) {
        if (dead[k]) continue;
        const double here = nearness(row, k);
        if (here >= best) tied = here == best, best = here, nearest = tied ? nearest : k;
      }
      const Bounds b = scores(row, score);
      const double eps = error(b, fact(3));
      const double lowest = b.best - eps - margin(b, kMost);
      const double highest = b.best + eps - margin(b, kLeast);
      if (!is_open) {
        CHECK(ids[row] == nearest && !tied);
        CHECK(b.second - eps < highest);  // else it had to be left open
        continue;
      }
      const double limit = open_limits[listed[row]];
      CHECK(limit <= score[nearest] - error(b, lengths[nearest]));
      CHECK(lowest <= limit && limit <= highest);
      CHECK(b.second + eps >= lowest);  // else it had to be decided
    }
    return counters[0];
  }
};

}  // namespace clustermim::hopper::emulated
