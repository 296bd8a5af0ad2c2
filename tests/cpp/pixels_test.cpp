// The 8-bit filter of uint8 patches against plain loops: packed rows, norms, scores within the
// stated error, centroids within the stated residuals.
#include "assign/pixels.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <random>
#include <vector>

#include "assign/pixel_assigner.h"
#include "check.h"
#include "core/cpu_features.h"

using namespace clustermim;

namespace {

enum class Memory { nchw, nhwc, every_second_pixel };

struct Images {
  int64_t p, channels, grid_rows, grid_columns;
  std::unique_ptr<uint8_t[]> bytes;  // exactly as many as are needed: a read beyond is an error
  ImageView view;
  std::vector<float> mean, deviation;

  Images(int64_t patch, int64_t c, int64_t rows, int64_t columns, Memory memory, PatchOrder order,
         unsigned seed)
      : p(patch), channels(c), grid_rows(rows), grid_columns(columns) {
    const int64_t batch = 2, h = p * rows, w = p * columns;
    const int64_t column = memory == Memory::nhwc ? c : memory == Memory::nchw ? 1 : 2;
    const int64_t line = w * column, plane = memory == Memory::nhwc ? 1 : h * line;
    const int64_t image = memory == Memory::nhwc ? h * line : c * plane;
    const int64_t last = (batch - 1) * image + (c - 1) * plane + (h - 1) * line + (w - 1) * column;
    std::mt19937 random(seed);
    bytes.reset(new uint8_t[last + 1]);
    const int kind = static_cast<int>(random() % 3);  // any, black and white, dark
    for (int64_t i = 0; i <= last; ++i) {
      const unsigned v = random() % 256;
      bytes[i] = static_cast<uint8_t>(kind == 0 ? v : kind == 1 ? v / 128 * 255 : v / 32);
    }
    for (int64_t i = 0; i < c; ++i) {
      mean.push_back(0.1f * static_cast<float>(random() % 10));
      deviation.push_back(0.1f + 0.1f * static_cast<float>(random() % 10));
    }
    view = {bytes.get(), DType::u8, batch, c, h, w, {image, plane, line, column}, p};
    view.mean = mean.data();
    view.std = deviation.data();
    view.order = order;
  }
  // Byte k of patch `row` in the layout's order.
  int pixel(int64_t row, int64_t k, const PixelLayout& layout) const {
    const int64_t patch = row % view.patches(), *s = view.strides;
    return bytes[row / view.patches() * s[0] + patch / grid_columns * p * s[2] +
                 patch % grid_columns * p * s[3] + layout.offset[k]];
  }
};

// Rows near the images' own patches, one of them far away, one twice.
std::vector<float> centroids_like(const ImageRows& rows, int64_t dim, int64_t count) {
  std::mt19937 random(7);
  std::vector<float> c(count * dim), row(dim);
  for (int64_t k = 0; k < count; ++k) {
    int64_t stride = 0;
    const float* x =
        rows.rows(static_cast<int64_t>(random()) % rows.num_rows(), 1, row.data(), &stride);
    for (int64_t d = 0; d < dim; ++d) {
      c[k * dim + d] = x[d] + 0.01f * static_cast<float>(random() % 7);
    }
  }
  if (count > 2) std::copy_n(c.begin(), dim, c.begin() + dim);
  if (count > 3) c[3 * dim] = 1e9f;
  return c;
}

void check_layout(const Images& images, const ImageRows& values, const PixelLayout& layout) {
  std::vector<float> row(images.view.dim());
  int64_t stride = 0;
  const int64_t last = values.num_rows() - 1;
  values.rows(last, 1, row.data(), &stride);
  for (int64_t k = 0; k < images.view.dim(); ++k) {
    const float* table = values.u8_values(layout.channel_of[k]);
    CHECK(row[layout.feature_of[k]] == table[images.pixel(last, k, layout)]);
  }
}

// Integers of a column: 8 bits from the panels, or 16 bits by its entry.
int64_t coarse(const PixelCodebook& book, int64_t column, int64_t k) {
  return book.panels[column / kPixelTile * book.tile_bytes() + k / kPixelStep * kPixelStepBytes +
                     k % kPixelStep / 4 * 64 + column % kPixelTile * 4 + k % 4];
}

int64_t fine(const PixelCodebook& book, int64_t entry, int64_t k) {
  const int8_t* values = book.fine_values.data() + entry * 2 * book.padded_dim;
  return 256 * values[k] + values[book.padded_dim + k];
}

// What a pixel's step is in the filter's units, and a pixel of 128 in the images' own.
struct Line {
  std::vector<double> step, origin;

  Line(const PixelCodebook& book, const ImageRows& values) {
    double unit = 0;
    for (int64_t k = 0; k < book.dim; ++k) {
      const float* table = values.u8_values(book.layout.channel_of[k]);
      step.push_back((static_cast<double>(table[255]) - table[0]) / 255.0);
      origin.push_back(table[0] + 128.0 * step[k]);
      // A power of two: the weights, rounded, give it away.
      unit = std::exp2(std::round(std::log2(std::sqrt(book.weights[k]) / step[k])));
    }
    scale = unit;
    for (double& s : step) s *= scale;
  }
  double scale;
};

template <typename Integer>
void check_rounded(const PixelCodebook& book, const Line& line, int32_t entry, Integer&& integer,
                   const PixelCodebook::Fine& stored) {
  std::vector<double> scratch(book.dim);
  const double* c = book.book.value(entry, scratch.data());
  double norm2 = 0, error2 = 0, halves2 = 0;
  int64_t absolute = 0, total = 0;
  for (int64_t k = 0; k < book.dim; ++k) {
    const int64_t v = integer(k);
    const double unit = stored.sigma / line.step[k];
    const double rounded = static_cast<double>(v) * unit;
    const double difference =
        (c[book.layout.feature_of[k]] - line.origin[k]) * line.scale - rounded;
    norm2 += rounded * rounded;
    error2 += difference * difference;
    halves2 += 0.25 * unit * unit;
    absolute += std::abs(v);
    total += v;
  }
  CHECK(128 * absolute < int64_t{1} << 31);
  CHECK(stored.start == -128 * total);
  const double norm = std::sqrt(norm2), error = std::sqrt(error2);
  CHECK(stored.bounds.norm >= norm * (1 - 1e-12) && stored.bounds.norm <= norm * 1.000001);
  CHECK(stored.bounds.residual >= error * (1 - 1e-12) - 1e-14 * norm);
  CHECK(stored.bounds.residual <= std::sqrt(halves2) * 1.000001 + 1e-13 * norm);
  CHECK(std::abs(stored.bias + 0.5 * norm2) <= 0x1p-25 * norm2);
  for (int64_t k = book.dim; k < book.padded_dim; ++k) CHECK(integer(k) == 0);
}

void check_column(const PixelCodebook& book, const Line& line, int64_t column) {
  const int32_t entry = book.columns.entry_of[column];
  check_rounded(
      book, line, entry, [&](int64_t k) { return fine(book, entry, k); }, book.fine[entry]);
  PixelCodebook::Fine stored = {book.start[column], book.sigma[column], book.columns.bias[column],
                                book.fine[entry].bounds};
  stored.bounds.residual = book.columns.residual[column];
  double norm2 = -2.0 * book.columns.bias[column];  // bounds.norm is the fine one's
  stored.bounds.norm = static_cast<float>(std::sqrt(norm2) * 1.0000005);
  check_rounded(book, line, entry, [&](int64_t k) { return coarse(book, column, k); }, stored);
}

// A score against T in integers and float64.
template <typename Integer>
void check_score(const PixelCodebook& book, const Images& images, const Line& line, int64_t row,
                 Integer&& integer, float sigma, float score) {
  int64_t sum = 0;
  double row2 = 0, column2 = 0;
  for (int64_t k = 0; k < book.dim; ++k) {
    const int64_t pixel = images.pixel(row, k, book.layout) - 128, v = integer(k);
    const double x = static_cast<double>(pixel) * line.step[k];
    const double c = static_cast<double>(v) * sigma / line.step[k];
    sum += pixel * v;
    row2 += x * x;
    column2 += c * c;
  }
  CHECK(std::abs(sum) < int64_t{1} << 31);
  const double exact = sigma * static_cast<double>(sum) - 0.5 * column2;
  const double bound =
      book.columns.error.dot * std::sqrt(row2 * column2) + book.columns.error.bias * 0.5 * column2;
  CHECK(std::abs(score - exact) <= bound + 1e-30);
}

void check_kernel(const PixelCodebook& book, const Images& images, const Line& line) {
  const int64_t rows = images.grid_columns, row_bytes = book.row_bytes();
  const PixelKernel& kernel = book.kernel;
  const int64_t strip = kernel.strip_rows, padded_rows = (rows + strip - 1) / strip * strip;
  AlignedVector<uint8_t> packed(padded_rows * row_bytes, 128);
  const auto pixel = [&](int64_t r, int64_t k) { return images.pixel(r, k, book.layout); };
  if (book.layout.in_runs) {
    const uint8_t* first = static_cast<const uint8_t*>(images.view.data);
    kernel.pack_rows(book.layout.runs, first, nullptr, rows, packed.data(), row_bytes);
  }
  for (int64_t r = 0; r < rows; ++r) {
    uint8_t* row = packed.data() + r * row_bytes;
    for (int64_t k = 0; k < book.dim; ++k) {
      CHECK(!book.layout.in_runs || row[k] == pixel(r, k));
      row[k] = static_cast<uint8_t>(pixel(r, k));
    }
    for (int64_t k = book.dim; k < row_bytes; ++k) CHECK(row[k] == 128);
  }
  std::vector<float> norm2(rows), again(rows);
  const float* groups = book.group_weights.empty() ? nullptr : book.group_weights.data();
  kernel.norms(packed.data(), row_bytes, rows, book.padded_dim, book.weights.data(), groups,
               norm2.data());
  kernel.norms(packed.data(), row_bytes, rows, book.padded_dim, book.weights.data(), nullptr,
               again.data());
  const int64_t columns = book.columns.size(), stride = columns + 16;
  AlignedVector<float> out(kernel.strip_rows * stride, NAN);
  for (int64_t first = 0; first < rows; first += kernel.strip_rows) {
    const int64_t count = std::min<int64_t>(kernel.strip_rows, rows - first);
    kernel.enter();
    kernel.scores(packed.data() + first * row_bytes, row_bytes, count, book.panels.data(),
                  book.start.data(), book.sigma.data(), book.columns.bias.data(),
                  columns / kPixelTile, book.steps(), out.data(), stride);
    kernel.leave();
    for (int64_t r = 0; r < count; ++r) {
      double squares = 0;
      for (int64_t k = 0; k < book.dim; ++k) {
        const double x = (pixel(first + r, k) - 128) * line.step[k];
        squares += x * x;
      }
      CHECK(std::abs(norm2[first + r] - squares) <= 1e-5 * squares);
      CHECK(std::abs(again[first + r] - squares) <= 1e-5 * squares);
      for (int64_t column = 0; column < columns; ++column) {
        const float score = out[r * stride + column];
        if (book.columns.entry_of[column] < 0) {
          CHECK(score == kNeverWins);
          continue;
        }
        check_score(
            book, images, line, first + r, [&](int64_t k) { return coarse(book, column, k); },
            book.sigma[column], score);
        const int32_t entry = book.columns.entry_of[column];
        check_score(
            book, images, line, first + r, [&](int64_t k) { return fine(book, entry, k); },
            book.fine[entry].sigma,
            book.fine_score(packed.data() + (first + r) * row_bytes, entry));
      }
    }
  }
}

// The ids of the whole path: equal to a search in float64 (the rows are float32 values).
void check_ids(const PixelCodebook& book, const Images& images, const ImageRows& values,
               const std::vector<float>& centroids) {
  const int64_t total = values.num_rows(), dim = book.dim;
  std::vector<int64_t> ids(total, -7);
  TierCounts tiers;
  CHECK(assign_pixels(book, images.view, values, 2, ids.data(), &tiers).ok());
  std::vector<float> row(dim);
  for (int64_t r = 0; r < total; ++r) {
    int64_t stride = 0;
    values.rows(r, 1, row.data(), &stride);
    double smallest = INFINITY, found = NAN;
    for (size_t k = 0; k * dim < centroids.size(); ++k) {
      double sum = 0;
      for (int64_t d = 0; d < dim; ++d) {
        const double difference = static_cast<double>(row[d]) - centroids[k * dim + d];
        sum += difference * difference;
      }
      if (static_cast<int64_t>(k) == ids[r]) found = sum;
      smallest = std::min(smallest, sum);
    }
    CHECK(found <= smallest * (1 + 1e-12) && ids[r] != 1);  // 1 equals 0, if there are two
  }
}

void check_problem(int64_t p, int64_t channels, int64_t columns, int64_t clusters, Memory memory,
                   PatchOrder order) {
  const Images images(p, channels, 2, columns, memory, order,
                      static_cast<unsigned>(p + 37 * channels + 101 * columns + clusters));
  const ImageRows values(images.view);
  const PixelKernel* kernel = pixel_kernel(Metric::euclidean, images.view);
  CHECK(kernel != nullptr);
  const int64_t dim = images.view.dim();
  const std::vector<float> centroids = centroids_like(values, dim, clusters);
  Codebook codebook;
  CHECK(
      codebook
          .prepare({centroids.data(), DType::f32, clusters, dim, dim}, Metric::euclidean, 1, false)
          .ok());
  PixelCodebook book(codebook, *kernel, images.view, values);
  CHECK(book.prepare(2).ok() && book.usable());
  check_layout(images, values, book.layout);
  const Line line(book, values);
  for (int64_t column = 0; column < book.columns.size(); ++column) {
    if (book.columns.entry_of[column] >= 0) check_column(book, line, column);
  }
  check_kernel(book, images, line);
  check_ids(book, images, values, centroids);
}

// What the format cannot hold goes the way of float32 rows.
void unusable_values() {
  Images images(4, 3, 1, 2, Memory::nchw, PatchOrder::hwc, 5);
  const std::vector<float> centroids(2 * 48, 1.0f);
  Codebook codebook;
  CHECK(codebook.prepare({centroids.data(), DType::f32, 2, 48, 48}, Metric::euclidean, 1).ok());
  for (const float bad : {0.0f, INFINITY, NAN, 1e-38f, 1e38f}) {
    images.deviation[1] = bad;
    const ImageRows values(images.view);
    PixelCodebook book(codebook, *pixel_kernel(Metric::euclidean, images.view), images.view,
                       values);
    CHECK(book.prepare(1).ok() && !book.usable());
  }
  CHECK(!pixel_kernel(Metric::cosine, images.view) && !pixel_kernel(Metric::dot, images.view));
  images.view.per_patch_norm = true;
  CHECK(!pixel_kernel(Metric::euclidean, images.view));
}

}  // namespace

int main() {
  for (const char* isa : {"avx512_vnni", "amx"}) {
    if (!set_isa(isa).ok()) {
      std::printf("%s: skipped, this machine lacks it\n", isa);
      continue;
    }
    for (const Memory memory : {Memory::nchw, Memory::nhwc, Memory::every_second_pixel}) {
      for (const PatchOrder order : {PatchOrder::hwc, PatchOrder::chw}) {
        check_problem(1, 1, 3, 1, memory, order);
        check_problem(1, 3, 70, 5, memory, order);
        check_problem(3, 5, 25, 17, memory, order);
        check_problem(4, 3, 33, 50, memory, order);
        check_problem(7, 2, 12, 33, memory, order);
        check_problem(16, 3, 14, 40, memory, order);
        check_problem(24, 4, 3, 9, memory, order);
      }
    }
    unusable_values();
  }
  return 0;
}
