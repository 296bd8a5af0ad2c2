// Crops without Python: the definition of resized_crop.h in plain loops, images whose memory ends
// with their last byte, and any number of threads.
#include "resized_crop/resized_crop.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <memory>
#include <random>
#include <vector>

#include "check.h"

using namespace clustermim;

namespace {

using Bytes = std::vector<uint8_t>;

double cubic(double x) {
  x = std::abs(x);
  if (x < 1) return ((-0.5 + 2.0) * x - (-0.5 + 3.0)) * x * x + 1.0;
  return x < 2 ? (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5 : 0.0;
}

// Lines of `inputs` bytes -> of `outputs` bytes.
Bytes resized(const Bytes& in, int64_t inputs, int64_t outputs) {
  const int64_t lines = static_cast<int64_t>(in.size()) / inputs;
  const double scale = static_cast<double>(inputs) / static_cast<double>(outputs);
  const double wide = std::max(scale, 1.0), inverse = scale >= 1 ? 1 / scale : 1.0;
  std::vector<std::vector<double>> weights(outputs);
  std::vector<int64_t> first(outputs);
  double largest = 0;
  for (int64_t x = 0; x < outputs; ++x) {
    const double center = scale * (static_cast<double>(x) + 0.5);
    first[x] = std::max<int64_t>(0, static_cast<int64_t>(center - 2 * wide + 0.5));
    const int64_t end = std::min(inputs, static_cast<int64_t>(center + 2 * wide + 0.5));
    double total = 0;
    for (int64_t i = first[x]; i < end; ++i) {
      weights[x].push_back(cubic((static_cast<double>(i) - center + 0.5) * inverse));
      total += weights[x].back();
    }
    for (double& weight : weights[x]) largest = std::max(largest, weight /= total);
  }
  int shift = 0;
  while (shift < 22 && 0.5 + largest * std::exp2(shift + 1) < 32768) ++shift;
  Bytes out(lines * outputs);
  for (int64_t line = 0; line < lines; ++line) {
    for (int64_t x = 0; x < outputs; ++x) {
      int64_t sum = int64_t{1} << (shift - 1);
      for (size_t t = 0; t < weights[x].size(); ++t) {
        const double scaled = weights[x][t] * std::exp2(shift);
        const int64_t weight = static_cast<int64_t>(scaled < 0 ? scaled - 0.5 : scaled + 0.5);
        sum += weight * in[line * inputs + first[x] + t];
      }
      out[line * outputs + x] = static_cast<uint8_t>(std::clamp<int64_t>(sum >> shift, 0, 255));
    }
  }
  return out;
}

Bytes transposed(const Bytes& in, int64_t width) {
  const int64_t height = static_cast<int64_t>(in.size()) / width;
  Bytes out(in.size());
  for (int64_t y = 0; y < height; ++y) {
    for (int64_t x = 0; x < width; ++x) out[x * height + y] = in[y * width + x];
  }
  return out;
}

struct Image {
  int64_t height, width, box[4];
  bool flip;
  Bytes pixels;  // of two channels
};

Bytes expected(const Image& image, int64_t channel, int64_t height, int64_t width) {
  const auto& [top, left, rows, columns] = image.box;
  Bytes cut(rows * columns);
  for (int64_t y = 0; y < rows; ++y) {
    for (int64_t x = 0; x < columns; ++x) {
      const int64_t from = left + (image.flip ? columns - 1 - x : x);
      cut[y * columns + x] = image.pixels[(channel * image.height + top + y) * image.width + from];
    }
  }
  const Bytes narrow = resized(cut, columns, width);
  return transposed(resized(transposed(narrow, width), rows, height), height);
}

void check_batch(const std::vector<Image>& images, int64_t height, int64_t width, int threads) {
  std::vector<uint64_t> places;
  std::vector<int64_t> heights, widths, boxes;
  const auto flips = std::make_unique<bool[]>(images.size());
  for (size_t i = 0; i < images.size(); ++i) {
    places.push_back(reinterpret_cast<uint64_t>(images[i].pixels.data()));
    heights.push_back(images[i].height);
    widths.push_back(images[i].width);
    boxes.insert(boxes.end(), images[i].box, images[i].box + 4);
    flips[i] = images[i].flip;
  }
  const int64_t size = height * width;
  Bytes out(images.size() * 2 * size);
  ResizedCropArgs args;
  args.images = places.data();
  args.heights = heights.data();
  args.widths = widths.data();
  args.boxes = boxes.data();
  args.flip = flips.get();
  args.out = out.data();
  args.batch = static_cast<int64_t>(images.size());
  args.channels = 2;
  args.out_height = height;
  args.out_width = width;
  args.threads = threads;
  CHECK(resized_crop_cpu(args).ok());
  for (size_t i = 0; i < images.size(); ++i) {
    for (int64_t channel = 0; channel < 2; ++channel) {
      const Bytes right = expected(images[i], channel, height, width);
      CHECK(std::equal(right.begin(), right.end(), out.begin() + (2 * i + channel) * size));
    }
  }
}

}  // namespace

int main() {
  std::mt19937 random(0);
  const auto up_to = [&](int64_t most) { return static_cast<int64_t>(random() % most) + 1; };
  // Sizes of outputs: vectors and their tails; images from a pixel to ten times an output.
  for (const int64_t side : {1, 7, 16, 33, 70}) {
    std::vector<Image> images;
    for (int i = 0; i < 24; ++i) {
      Image image{
          up_to(side * (i % 4 == 0 ? 10 : 2)), up_to(side * (i % 3 == 0 ? 10 : 2)), {}, {}, {}};
      image.box[2] = i % 5 == 0 ? image.height : up_to(image.height);
      image.box[3] = i % 5 == 0 ? image.width : up_to(image.width);
      image.box[0] = image.height - image.box[2];  // to the last line
      image.box[1] = up_to(image.width - image.box[3] + 1) - 1;
      image.flip = i % 2 == 1;
      image.pixels.resize(2 * image.height * image.width);
      for (uint8_t& pixel : image.pixels) pixel = static_cast<uint8_t>(random());
      images.push_back(image);
    }
    for (const int threads : {0, 1, 3}) check_batch(images, side, side + 3, threads);
  }
  std::printf("resized_crop: ok\n");
  return 0;
}
