#include "assign/pixel_codebook.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/cpu_features.h"
#include "core/parallel_for.h"

namespace clustermim {
namespace {

constexpr int64_t kMaxDim = 65536;
constexpr double kLargestCoarse = 127, kLargestFine = 127 * 256 + 127;
constexpr double kLargestSum = (1 << 24) - 1;  // of |v|: int32 holds 128 times as much
constexpr int64_t kRowsPerTask = 64;

float round_up(double v) {
  const float f = static_cast<float>(v);
  return static_cast<double>(f) < v ? std::nextafter(f, INFINITY) : f;
}

}  // namespace

const PixelKernel* pixel_kernel(Metric metric, const ImageView& images) {
  if (metric != Metric::euclidean || images.dtype != DType::u8 || images.per_patch_norm ||
      images.dim() < 1 || images.dim() > kMaxDim) {
    return nullptr;
  }
#if defined(__x86_64__)
  switch (current_isa()) {
    case Isa::amx: return &kPixelsAmx;
    case Isa::avx512_vnni: return &kPixelsVnni;
    default: break;
  }
#endif
  return nullptr;
}

PixelLayout::PixelLayout(const ImageView& v) {
  const int64_t p = v.patch_size, channels = v.channels;
  const int64_t* s = v.strides;
  const bool interleaved = channels > 1 && s[1] == 1 && s[3] == channels;
  in_runs = interleaved || s[3] == 1;
  if (interleaved) {
    runs = {1, 0, p, s[2], p * channels, p * channels};
  } else {
    runs = {channels, s[1], p, s[2], p, p};
  }
  const auto add = [&](int64_t c, int64_t i, int64_t j) {
    offset.push_back(c * s[1] + i * s[2] + j * s[3]);
    feature_of.push_back(static_cast<int32_t>(
        v.order == PatchOrder::hwc ? (i * p + j) * channels + c : (c * p + i) * p + j));
    channel_of.push_back(static_cast<int32_t>(c));
  };
  const int64_t planes = interleaved ? 1 : channels, depth = interleaved ? channels : 1;
  for (int64_t c = 0; c < planes; ++c) {
    for (int64_t i = 0; i < p; ++i) {
      for (int64_t j = 0; j < p; ++j) {
        for (int64_t z = 0; z < depth; ++z) add(c + z, i, j);
      }
    }
  }
}

PixelCodebook::PixelCodebook(const Codebook& codebook, const PixelKernel& pixel_kernel,
                             const ImageView& images, const ImageRows& values)
    : book(codebook),
      kernel(pixel_kernel),
      layout(images),
      dim(images.dim()),
      padded_dim((dim + kPixelStep - 1) / kPixelStep * kPixelStep) {
  fit_values(values, images.channels);
}

// Steps and origins from the first and the last value; how far the others are from the line.
void PixelCodebook::fit_values(const ImageRows& values, int64_t channels) {
  usable_ = book.columns.size() > 0;  // none where packing would not pay
  for (int64_t c = 0; c < channels; ++c) {
    const float* table = values.u8_values(c);
    const double first = table[0], last = table[255];
    const double step = (last - first) / 255.0, origin = first + 128.0 * step;
    double error = 0.0;
    for (int u = 0; u < 256; ++u) {
      error = std::max(error, std::abs(table[u] - (step * (u - 128) + origin)));
    }
    // This was evaluated with a few roundings of numbers of at most that size.
    error += 0x1p-50 * (std::abs(step) * 128.0 + std::abs(origin));
    step_.push_back(step);
    origin_.push_back(origin);
    error_.push_back(error);
    usable_ = usable_ && std::abs(step) > 1e-30 && std::abs(step) < 1e30 && error < 1e30;
  }
  for (int64_t k = 0; k < dim; ++k) {
    scaled_step_.push_back(step_[layout.channel_of[k]]);
    feature_origin_.push_back(origin_[layout.channel_of[k]]);
  }
}

double PixelCodebook::centred_norm(int64_t entry) const {
  std::vector<double> scratch(2 * dim);
  const double* c = book.value(entry, scratch.data());
  const CentredSums sums = kernel.centre(c, layout.feature_of.data(), feature_origin_.data(),
                                         scaled_step_.data(), 1.0, dim, scratch.data() + dim);
  return std::sqrt(sums.norm2);
}

void PixelCodebook::weigh() {
  weights.assign(padded_dim, 0.0f);
  double error2 = 0.0, norm2 = 0.0;
  for (int64_t k = 0; k < dim; ++k) {
    const double step = scaled_step_[k] *= scale_;
    const double error = error_[layout.channel_of[k]] * scale_;
    inverse_step_.push_back(1.0 / step);
    weights[k] = round_up(step * step);
    norm2 += 128.0 * 128.0 * step * step;
    error2 += error * error;
  }
  row_residual = round_up(std::sqrt(error2) * (1.0 + 0x1p-30));
  // Rows far longer than every centroid would overflow float32.
  usable_ = usable_ && norm2 < 0x1p100 && error2 < 0x1p100;
  group_weights.clear();
  for (int64_t k = 0; k < padded_dim; k += kPixelStep) {
    const auto end = weights.begin() + k + kPixelStep;
    if (!std::all_of(weights.begin() + k, end, [&](float w) { return w == weights[k]; })) break;
    group_weights.push_back(weights[k]);
  }
  if (static_cast<int64_t>(group_weights.size()) < steps()) group_weights.clear();
}

Status PixelCodebook::prepare(int threads) {
  if (!usable_) return Status();
  std::vector<double> norms(book.entries());
  auto measure = [&](int64_t task, int) {
    const int64_t end = std::min(book.entries(), (task + 1) * kRowsPerTask);
    for (int64_t e = task * kRowsPerTask; e < end; ++e) norms[e] = centred_norm(e);
  };
  CMIM_RETURN_IF_ERROR(
      parallel_for(threads, (book.entries() + kRowsPerTask - 1) / kRowsPerTask, measure));
  scale_ = choose_columns(norms, static_cast<int>(kPixelTile), columns);
  weigh();
  if (!usable_) return Status();

  // fl(fl(sigma fl(V)) + fl(bias)), or fused, with sigma V = x^'.cr.
  columns.error.dot = 1.01f * 3.0f * 0x1p-24f;
  columns.error.bias = 1.01f * 2.0f * 0x1p-24f;
  panels.resize(columns.size() / kPixelTile * tile_bytes());
  start.resize(columns.size());
  sigma.resize(columns.size());
  fine.resize(book.entries());
  fine_values.resize(book.entries() * 2 * padded_dim);
  std::vector<float> lengths(columns.size(), 0.0f);
  auto pack = [&](int64_t t, int) { pack_tile(t, lengths); };
  CMIM_RETURN_IF_ERROR(parallel_for(threads, columns.size() / kPixelTile, pack));
  bound_segments(lengths, columns);
  return Status();
}

void PixelCodebook::pack_tile(int64_t tile, std::vector<float>& lengths) {
  std::vector<double> scratch(2 * dim);
  std::vector<int8_t> v(padded_dim);
  int8_t* panel = panels.data() + tile * tile_bytes();
  for (int64_t j = 0; j < kPixelTile; ++j) {
    const int64_t column = tile * kPixelTile + j;
    const int32_t entry = columns.entry_of[column];
    if (entry < 0) continue;
    pack_entry(entry, column, scratch.data(), v.data(), lengths);
    for (int64_t k = 0; k < padded_dim; k += 4) {  // padded_dim / 64 steps stand one after another
      std::memcpy(panel + k * kPixelTile + 4 * j, v.data() + k, 4);
    }
  }
}

// The fine form is stored; v [padded_dim] is left with the coarse one.
void PixelCodebook::pack_entry(int32_t entry, int64_t column, double* scratch, int8_t* v,
                               std::vector<float>& lengths) {
  double* centred = scratch + dim;
  const CentredSums sums =
      kernel.centre(book.value(entry, scratch), layout.feature_of.data(), feature_origin_.data(),
                    scaled_step_.data(), scale_, dim, centred);
  // Each |v| fits 16 bits, and their sum, up to half a unit each from sum / unit, 24.
  const double least = sums.sum / (kLargestSum - static_cast<double>(dim));
  int8_t *hi = fine_values.data() + entry * 2 * padded_dim, *lo = hi + padded_dim;
  const Rounded r = quantise(centred, std::max(sums.most / kLargestFine, least), hi, lo);
  fine[entry] = {r.start, r.sigma, r.bias, {r.residual, r.norm, -r.bias}};
  const Rounded coarse = quantise(centred, sums.most / kLargestCoarse, nullptr, v);
  start[column] = coarse.start;
  sigma[column] = coarse.sigma;
  columns.bias[column] = coarse.bias;
  columns.residual[column] = coarse.residual;
  lengths[column] = coarse.norm;
}

// c' ~ cr = sigma v / A, so that x^'.cr = sigma sum (p - 128) v; sigma >= unit.
PixelCodebook::Rounded PixelCodebook::quantise(const double* centred, double unit, int8_t* hi,
                                               int8_t* lo) const {
  Rounded r;
  r.sigma = unit > 0.0 ? round_up(unit * (1.0 + 0x1p-40)) : 1.0f;
  const RoundedSums sums =
      kernel.quantise(centred, scaled_step_.data(), inverse_step_.data(), r.sigma, dim, hi, lo);
  // Float64 roundings: D / 8 + 4 in a sum, five in a residual, of |c'| and |cr|.
  const double length = std::sqrt(sums.norm2) * (1.0 + 0x1p-30);
  const double error = std::sqrt(sums.error2) * (1.0 + 0x1p-30);
  r.start = -128 * sums.total;
  r.bias = static_cast<float>(-0.5 * sums.norm2);
  r.norm = round_up(std::max(length, kSmallestMedian));
  r.residual = round_up(error + 0x1p-48 * (length + error));
  return r;
}

float PixelCodebook::fine_score(const uint8_t* row, int32_t entry) const {
  const int8_t* hi = fine_values.data() + entry * 2 * padded_dim;
  const Fine& f = fine[entry];
  const uint32_t sum = kernel.dot(row, hi, hi + padded_dim, padded_dim);
  const int32_t integer = static_cast<int32_t>(sum + static_cast<uint32_t>(f.start));
  return static_cast<float>(integer) * f.sigma + f.bias;
}

}  // namespace clustermim
