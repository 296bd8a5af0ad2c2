// Where the filter's rows come from: eight values of a row at a time, and what they are as float16.
#pragma once

#include "hopper/instructions.h"
#include "nearest_centroid/hopper_arguments.h"

namespace clustermim::hopper {

// Of a row: upper sums for docs/certificate.md's (12).
struct Squares {
  float kept = 0, rest = 0;
};

struct Float32 {
  static constexpr int bytes = 4;
  static CMIM_DEVICE float value(const Words (&raw)[2], int i) {
    return float_of_bits(raw[i / 4].w[i % 4]);
  }
};
struct Float16 {
  static constexpr int bytes = 2;
  static CMIM_DEVICE float value(const Words (&raw)[1], int i) {
    return i % 2 ? high_half(raw[0].w[i / 2]) : low_half(raw[0].w[i / 2]);
  }
};
struct Bfloat16 {
  static constexpr int bytes = 2;
  static CMIM_DEVICE float value(const Words (&raw)[1], int i) {
    const uint32 pair = raw[0].w[i / 2];
    return float_of_bits(i % 2 ? pair & 0xffff0000u : pair << 16);
  }
};

// Rows of a matrix. kAligned: eight values lie side by side at a multiple of 16 bytes, and dim
// is a multiple of eight.
template <class Type, bool kAligned_, bool kFramed>
struct MatrixRows {
  static constexpr bool kAligned = kAligned_;
  static constexpr int kWords = Type::bytes / 2;
  static constexpr bool kExact = false;
  static constexpr int kAtOnce = kAligned ? 2 : 1;  // rows of a lane
  struct Raw {
    Words words[kWords];
  };

  // What the eight values from `first` on need, whatever the row.
  struct Columns {
    float middle[8];
    float scale;
    int first;
  };
  static CMIM_DEVICE Columns columns(const FilterArguments& a, int first) {
    Columns c;
    c.scale = static_cast<float>(load(a.scale));
    c.first = first;
    for (int i = 0; i < 8; ++i)
      c.middle[i] = kFramed ? load(static_cast<const float*>(a.frame) + first + i) : 0.0f;
    return c;
  }

  static CMIM_DEVICE int64 start(const FilterArguments& a, int row) { return row * a.row_stride; }

  // Zeros where there is no such value.
  static CMIM_DEVICE Raw read(const FilterArguments& a, const Columns& c, int64 start) {
    Raw raw = {};
    if constexpr (kAligned) {
      const uint8* from = static_cast<const uint8*>(a.x) + (start + c.first) * Type::bytes;
      if (c.first < a.dim)
        for (int w = 0; w < kWords; ++w) raw.words[w] = load_words(from + 16 * w);
    } else {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const int d = opaque(c.first) + i;  // eight places are not kept for all rows
        if (d >= a.dim) continue;
        const int64 at = start + d * a.column_stride;
        if (Type::bytes == 4) {
          raw.words[i / 4].w[i % 4] = load(static_cast<const uint32*>(a.x) + at);
        } else {
          const uint32 half = load(static_cast<const uint16*>(a.x) + at);
          raw.words[0].w[i / 2] |= half << (i % 2 * 16);
        }
      }
    }
    return raw;
  }

  static CMIM_DEVICE void prefetch(const FilterArguments& a, int row) {
    if (!kAligned || row >= a.num_rows) return;
    prefetch_bytes(static_cast<const uint8*>(a.x) + row * a.row_stride * Type::bytes,
                   a.dim * Type::bytes);
  }

  // x' = x s - m, rounded.
  static CMIM_DEVICE Words round(const FilterArguments&, const Raw& raw, const Columns& c,
                                 Squares& squares) {
    Words out;
#pragma unroll
    for (int i = 0; i < 8; i += 2) {
      const float low = Type::value(raw.words, i) * c.scale - c.middle[i];
      const float high = Type::value(raw.words, i + 1) * c.scale - c.middle[i + 1];
      const uint32 halves = to_halves(low, high);
      const float kept[2] = {low_half(halves), high_half(halves)};
      const float rest[2] = {low - kept[0], high - kept[1]};
      squares.kept += kept[0] * kept[0];
      squares.kept += kept[1] * kept[1];
      squares.rest += rest[0] * rest[0];
      squares.rest += rest[1] * rest[1];
      out.w[i / 2] = halves;
    }
    return out;
  }
};

// Patches of uint8 images whose values lie on a line: the operands are p - 128, exact in float16.
// kPacked: channels lie side by side. kAligned: eight values of a patch do, at a multiple of 8, and
// dim is one. kAcross, kPatches: patches of a line of them, and of an image.
template <bool kPacked, bool kAligned_, int kPatch, int kChannels, int kAcross, int kPatches>
struct ImageRows {
  static constexpr bool kAligned = kAligned_;
  struct Raw {
    uint64 pixels;
  };
  struct Columns {
    int64 place;  // of the first value
    float weight;
    int first;
    bool inside;
  };
  static constexpr int kAtOnce = kAligned ? 4 : 1;
  static constexpr bool kExact = true;  // rounding moves nothing
  // Eight pixels of one channel: their squares are summed before they are weighed.
  static constexpr bool kOneWeight = kAligned && !kPacked;

  static CMIM_DEVICE int64 place_of(const FilterArguments& a, int d) {
    if (kPacked) return d / (kPatch * kChannels) * a.strides.line + d % (kPatch * kChannels);
    return d / (kPatch * kPatch) * a.strides.channel + d / kPatch % kPatch * a.strides.line +
           d % kPatch * a.strides.pixel;
  }

  static CMIM_DEVICE float weight(const FilterArguments& a, int d) {
    return low_half(load(static_cast<const uint16*>(a.frame) + d));
  }

  static CMIM_DEVICE Columns columns(const FilterArguments& a, int first) {
    return {kAligned ? place_of(a, first) : 0, weight(a, first), first, first < a.dim};
  }

  static CMIM_DEVICE int64 start(const FilterArguments& a, int row) {
    const int image = row / kPatches, patch = row % kPatches;
    return image * a.strides.image + patch / kAcross * (kPatch * a.strides.line) +
           patch % kAcross * (kPatch * a.strides.pixel);
  }

  static CMIM_DEVICE Raw read(const FilterArguments& a, const Columns& c, int64 start) {
    constexpr uint64 kZeros = 0x8080808080808080ull;
    const uint8* from = static_cast<const uint8*>(a.x) + start;
    if constexpr (kAligned) {
      return {c.inside ? load_8_bytes(from + c.place) : kZeros};
    } else {
      uint64 pixels = 0;
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const int d = opaque(c.first) + i;  // eight places are not kept for all rows
        pixels |= uint64(d < a.dim ? load(from + place_of(a, d)) : uint8(128)) << (8 * i);
      }
      return {pixels};
    }
  }

  static CMIM_DEVICE void prefetch(const FilterArguments&, int) {}

  static CMIM_DEVICE Words round(const FilterArguments& a, const Raw& raw, const Columns& c,
                                 Squares& squares) {
    constexpr uint32 kExponents = 0x64646464;  // 0x6400 + p is the float16 1024 + p
    Words out;
    int sum = 0;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint32 pixels = static_cast<uint32>(raw.pixels >> (32 * half));
      const uint32 pairs[2] = {pick_bytes(pixels, kExponents, 0x4140),
                               pick_bytes(pixels, kExponents, 0x4342)};
      for (int i = 0; i < 2; ++i) out.w[2 * half + i] = subtract_halves(pairs[i], 0x64806480);
      if (kOneWeight) {
        const uint32 centred = pixels ^ 0x80808080u;
        sum = dot_of_signed_bytes(centred, centred, sum);
      } else {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float value =
              i % 2 ? high_half(out.w[2 * half + i / 2]) : low_half(out.w[2 * half + i / 2]);
          squares.kept += value * value * weight(a, c.first + 4 * half + i);
        }
      }
    }
    if (kOneWeight) squares.kept += static_cast<float>(sum) * c.weight;
    return out;
  }
};

}  // namespace clustermim::hopper
