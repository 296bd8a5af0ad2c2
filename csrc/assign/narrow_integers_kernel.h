// narrow_integers.h's body, included by one translation unit per ISA with its vectors. Everything
// is in an anonymous namespace: a shared inline helper compiled for one ISA could otherwise replace
// another's.
#pragma once

#include "assign/narrow_integers.h"
#include "core/inline.h"

namespace clustermim {
namespace {

// V: the vectors of an ISA. V::narrow interleaves by pieces of 128 bits: of 2 * kLanes values a row
// has in turn two pairs of the first and two pairs of the second half.
template <typename V>
struct Integers {
  static constexpr int kLanes = V::kLanes, kGroups = 2;
  static constexpr int kMostColumns = V::kMostColumns;
  using Float = typename V::Float;
  using Int = typename V::Int;

  static CMIM_INLINE Int splat(int32_t v) { return Int{} + v; }
  static CMIM_INLINE Float splat(float v) { return Float{} + v; }
  static CMIM_INLINE Float bits(Int v) { return reinterpret_cast<Float>(v); }
  static CMIM_INLINE Int bits(Float v) { return reinterpret_cast<Int>(v); }

  static CMIM_INLINE int64_t value_of_lane(int lane) {
    return lane / 4 * 4 + (lane % 4 / 2) * kLanes + lane % 2 * 2;
  }

  static int64_t first_value(int64_t dim, int64_t pair) {
    for (int64_t d = 0;; d += 2 * kLanes) {
      for (int lane = 0; lane < kLanes; ++lane) {
        const int64_t value = d + value_of_lane(lane);
        if (value < dim && pair-- == 0) return value;
      }
    }
  }

  // Of kLanes rows: x [pairs], and their |X|^2 in units of V::kSquares, rounded down for each pair.
  static __attribute__((noinline)) Int pack(const float* const* row, const IntegerBook& book,
                                            Int* x) {
    const Float scale = splat(book.scale);
    Int squares = {};
    for (int64_t d = 0; d < book.dim; d += 2 * kLanes) {
      const int64_t left = book.dim - d;
      Int v[kLanes];
      if (left >= 2 * kLanes) {
        const Float low = V::load(book.centre + d), high = V::load(book.centre + d + kLanes);
#pragma GCC unroll 16
        for (int r = 0; r < kLanes; ++r) {
          v[r] = V::narrow(V::round((V::load(row[r] + d) - low) * scale),
                           V::round((V::load(row[r] + d + kLanes) - high) * scale));
        }
      } else if (left == kLanes) {
        const Float low = V::load(book.centre + d);
#pragma GCC unroll 16
        for (int r = 0; r < kLanes; ++r) {
          v[r] = V::narrow(V::round((V::load(row[r] + d) - low) * scale), Int{});
        }
      } else {
        const int64_t some = left < kLanes ? left : kLanes, more = left - some;
        const Float low = V::load_some(book.centre + d, some);
        const Float high = V::load_some(book.centre + d + kLanes, more);
        for (int r = 0; r < kLanes; ++r) {
          v[r] = V::narrow(V::round((V::load_some(row[r] + d, some) - low) * scale),
                           V::round((V::load_some(row[r] + d + kLanes, more) - high) * scale));
        }
      }
      V::transpose(v);
#pragma GCC unroll 16
      for (int lane = 0; lane < kLanes; ++lane) {
        if (value_of_lane(lane) >= left) continue;
        squares = V::add_squares(squares, v[lane]);
        *x++ = v[lane];
      }
    }
    return squares;
  }

  // Scores of kColumns columns.
  template <int kColumns>
  static CMIM_INLINE void score(const Int* x0, const Int* x1, const IntegerBook& book,
                                int64_t block, Int (&sum)[kGroups][kColumns]) {
    const int32_t* start = book.start + block * kColumns;
#pragma GCC unroll 16
    for (int c = 0; c < kColumns; ++c) sum[0][c] = sum[1][c] = splat(start[c]);
    const int32_t* panel = book.panels + block * book.pairs * kColumns;
    for (int64_t p = 0; p < book.pairs; ++p, panel += kColumns) {
      const Int a = x0[p], b = x1[p];
#pragma GCC unroll 16
      for (int c = 0; c < kColumns; ++c) {
        const Int both = splat(panel[c]);
        sum[0][c] = V::dot(sum[0][c], both, a);
        sum[1][c] = V::dot(sum[1][c], both, b);
      }
    }
  }

  struct Best {
    Float first, second;
    CMIM_INLINE void add(Float high, Float low) {
      second = V::max(V::max(second, low), V::min(first, high));
      first = V::max(first, high);
    }
  };

  // The two largest scores, each with its column in its last bits.
  template <int kColumns>
  static CMIM_INLINE void search(const Int (&sum)[kColumns], const int32_t* column, Int keep,
                                 Best& best) {
    Float score[kColumns];
#pragma GCC unroll 16
    for (int c = 0; c < kColumns; ++c) score[c] = bits(V::mark(sum[c], keep, splat(column[c])));
#pragma GCC unroll 16
    for (int c = 0; c + 1 < kColumns; c += 2) {
      best.add(V::max(score[c], score[c + 1]), V::min(score[c], score[c + 1]));
    }
    if (kColumns % 2) best.add(score[kColumns - 1], splat(0.0f));
  }

  // Equation (11): the entries of kLanes rows, or their place in `open`.
  static CMIM_INLINE void finish(const IntegerBook& book, Int squares, const Best& best,
                                 int64_t first_row, int64_t count, int32_t* entries,
                                 IntegerOpen* open) {
    const Int first = bits(best.first), gap = V::subtract(first, bits(best.second));
    const float marks = static_cast<float>(book.marks);
    const Float norm2 = (V::to_float(squares) + static_cast<float>(book.pairs)) * V::kSquares;
    const Float twice = V::to_float(V::subtract(first, splat(kScoreZero))) * 2.0f;
    const Float size = norm2 + V::max(twice, -twice);
    const Float distance2 = (norm2 - twice) + (size * 0x1p-21f + (2.0f * marks + 1.0f));
    const Float distance = V::sqrt(V::max(distance2, Float{}));
    const Float margin = (distance + book.slack) * (2.0f * book.slack * book.margin);
    const Float with_marks = margin + (2.0f * marks + 1.0f) * book.margin;
    const uint32_t in = count >= kLanes ? (1ull << kLanes) - 1 : (1u << count) - 1;
    const uint32_t near = V::less(norm2, splat(kMostRowNorm * kMostRowNorm));
    const Int column = first & splat(book.marks);
    if (count >= kLanes) {
      *reinterpret_cast<typename V::UnalignedInt*>(entries + first_row) = column;
    } else {
      for (int r = 0; r < count; ++r) entries[first_row + r] = column[r];
    }
    const uint32_t left = in & ~(near & V::less(with_marks, V::to_float(gap)));
    if (!left) return;
    const Int limit = V::subtract(V::subtract(first, V::round(margin)), splat(book.marks + 3));
    for (uint32_t rest = left; rest; rest &= rest - 1) {
      const int lane = __builtin_ctz(rest);
      const int32_t row = static_cast<int32_t>(first_row + lane);
      if (near >> lane & 1) {
        open->row[open->rows] = row;
        open->threshold[open->rows++] = limit[lane];
      } else {
        open->beyond[open->beyonds++] = row;
      }
    }
  }

  template <int kColumns>
  static void assign_rows(const IntegerBook& book, const float* rows, int64_t stride, int64_t count,
                          int32_t* entries, IntegerOpen* open) {
    alignas(64) Int x[kGroups][kIntegerValues / 2];
    const Int keep = splat(~book.marks);
    // Memory is asked for all the time, in small pieces and in order.
    const int64_t bytes = kGroups * kLanes * stride * 4;
    const int64_t lines = stride < 2 * book.dim ? (bytes / 64 + book.blocks) / book.blocks : 0;
    for (int64_t begin = 0; begin < count; begin += kGroups * kLanes) {
      Int squares[kGroups];
      for (int g = 0; g < kGroups; ++g) {
        const float* row[kLanes];
        for (int r = 0; r < kLanes; ++r) {
          const int64_t at = begin + g * kLanes + r;
          row[r] = rows + (at < count ? at : count - 1) * stride;
        }
        squares[g] = pack(row, book, x[g]);
      }
      Best best[kGroups] = {};
      const char* ahead = reinterpret_cast<const char*>(rows + begin * stride) + 2 * bytes;
      for (int64_t b = 0; b < book.blocks; ++b) {
        Int sum[kGroups][kColumns];
        score<kColumns>(x[0], x[1], book, b, sum);
        for (int64_t i = 0; i < lines; ++i, ahead += 64) __builtin_prefetch(ahead, 0, 2);
        for (int g = 0; g < kGroups; ++g) {
          search<kColumns>(sum[g], book.column + b * kColumns, keep, best[g]);
        }
      }
      for (int g = 0; g < kGroups && begin + g * kLanes < count; ++g) {
        const int64_t row = begin + g * kLanes;
        finish(book, squares[g], best[g], row, count - row, entries, open);
      }
    }
  }

  template <int kColumns>
  static void list_candidates(const IntegerBook& book, const float* rows, int64_t stride,
                              const int32_t* which, const int32_t* threshold, int64_t count,
                              int32_t* columns, int32_t* counts, int64_t capacity) {
    alignas(64) Int x[kGroups][kIntegerValues / 2];
    Int limit[kGroups];
    for (int g = 0; g < kGroups; ++g) {
      const float* row[kLanes];
      for (int r = 0; r < kLanes; ++r) {
        const int64_t at = g * kLanes + r;
        row[r] = rows + which[at < count ? at : count - 1] * stride;
        limit[g][r] = at < count ? threshold[at] - 1 : INT32_MAX;
        if (at < count) counts[at] = 0;
      }
      pack(row, book, x[g]);
    }
    for (int64_t b = 0; b < book.blocks; ++b) {
      Int sum[kGroups][kColumns];
      score<kColumns>(x[0], x[1], book, b, sum);
      for (int g = 0; g < kGroups; ++g) {
        for (int c = 0; c < kColumns; ++c) {
          for (uint32_t in = V::greater(sum[g][c], limit[g]); in; in &= in - 1) {
            const int64_t r = g * kLanes + __builtin_ctz(in);
            const int32_t n = counts[r]++;
            if (n < capacity) columns[r * capacity + n] = static_cast<int32_t>(b * kColumns + c);
          }
        }
      }
    }
  }

  template <int kColumns = kMostColumns>
  static void assign(const IntegerBook& book, const float* rows, int64_t stride, int64_t count,
                     int32_t* entries, IntegerOpen* open) {
    if constexpr (kColumns == kMostColumns) open->rows = open->beyonds = 0;
    if constexpr (kColumns > 2) {
      if (book.block_columns < kColumns) {
        return assign<kColumns - V::kFewer>(book, rows, stride, count, entries, open);
      }
    }
    assign_rows<kColumns>(book, rows, stride, count, entries, open);
  }

  template <int kColumns = kMostColumns>
  static void candidates(const IntegerBook& book, const float* rows, int64_t stride,
                         const int32_t* which, const int32_t* threshold, int64_t count,
                         int32_t* columns, int32_t* counts, int64_t capacity) {
    if constexpr (kColumns > 2) {
      if (book.block_columns < kColumns) {
        return candidates<kColumns - V::kFewer>(book, rows, stride, which, threshold, count,
                                                columns, counts, capacity);
      }
    }
    list_candidates<kColumns>(book, rows, stride, which, threshold, count, columns, counts,
                              capacity);
  }

  static constexpr IntegerKernel kernel() {
    return {first_value, kMostColumns, V::kFewer, kGroups * kLanes, assign<>, candidates<>};
  }
};

}  // namespace
}  // namespace clustermim
