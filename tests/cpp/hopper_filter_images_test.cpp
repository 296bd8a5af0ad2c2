// The Hopper filter's own source on the CPU, patches of uint8 images read in place.
#include "hopper_filter_problem.h"

using namespace clustermim;
using namespace clustermim::hopper;
using emulated::Problem;

namespace {

// kAcross x kDown patches an image; images and their lines lie apart.
template <bool kPacked_, bool kAligned, int kPatch_, int kChannels_, int kAcross_, int kDown_>
struct Images {
  static constexpr bool kPacked = kPacked_;
  static constexpr int kPatch = kPatch_, kChannels = kChannels_, kAcross = kAcross_;
  static constexpr int kPatches = kAcross_ * kDown_, kDim = kPatch * kPatch * kChannels;
  using Source = ImageRows<kPacked, kAligned, kPatch, kChannels, kAcross, kPatches>;
  template <int kCluster, bool kOneTile>
  using Kind = Filter<Source, (kDim + 63) / 64 * 64, kCluster, true, kOneTile>;
};

template <class I, int kCluster, bool kOneTile>
void run(int images, int K, int blocks, bool dead = false) {
  using Kind = typename I::template Kind<kCluster, kOneTile>;
  Problem p(images * I::kPatches, I::kDim, K);
  std::minstd_rand random(static_cast<unsigned>(K));
  std::normal_distribution<double> normal;
  const float factors[] = {0.9f, 0.53f, 0.77f, 0.61f};

  const long long line = 8 * ((I::kAcross * I::kPatch * (I::kPacked ? I::kChannels : 1) + 15) / 8);
  const long long height = I::kPatches / I::kAcross * I::kPatch, plane = line * height + 8;
  const ImageStrides strides = {plane * (I::kPacked ? 1 : I::kChannels) + 16,
                                I::kPacked ? 1 : plane, line, I::kPacked ? I::kChannels : 1};
  std::vector<uint64> memory(images * strides.image / 8 + 1);
  uint8* pixels = reinterpret_cast<uint8*>(memory.data());
  for (size_t i = 0; i < memory.size() * 8; ++i) pixels[i] = static_cast<uint8>(random() >> 8);

  // Value d of a patch: channel, line and column in the order in which they lie in memory.
  const auto places = [](int d, int& c, int& y, int& x) {
    if (I::kPacked)
      c = d % I::kChannels, x = d / I::kChannels % I::kPatch, y = d / I::kChannels / I::kPatch;
    else
      x = d % I::kPatch, y = d / I::kPatch % I::kPatch, c = d / I::kPatch / I::kPatch;
  };
  p.weights.assign(p.depth, 0);
  for (int d = 0; d < p.D; ++d) {
    int c, y, x;
    places(d, c, y, x);
    p.units[d] = factors[c];
    p.weights[d] = emulated::to_half(factors[c] * factors[c]) + 1;
  }
  for (int row = 0; row < p.N; ++row)
    for (int d = 0; d < p.D; ++d) {
      int c, y, x;
      places(d, c, y, x);
      const int image = row / I::kPatches, patch = row % I::kPatches;
      y += patch / I::kAcross * I::kPatch, x += patch % I::kAcross * I::kPatch;
      const uint8 pixel = pixels[image * strides.image + c * strides.channel + y * strides.line +
                                 x * strides.pixel];
      p.rows.push_back((int(pixel) - 128) * p.units[d]);
    }
  p.row_operands = p.rows;  // exact
  for (int k = 0; k < K; ++k) {
    p.dead[k] = dead && k % 3 == 0;
    for (int d = 0; d < p.D; ++d) p.points.push_back(60 * normal(random));
  }
  p.prepare(true);
  p.arguments.x = pixels;
  p.arguments.strides = strides;
  CHECK(p.depth == Kind::kDepth && (p.tiles == 1 || !kOneTile));
  emulated::run_filter<Kind>(p.arguments, p.packed.data(), blocks);
  const int open = p.check_answer();
  std::printf("%d images, %d patches of %d, K %d: %d open\n", images, p.N, I::kPatch, K, open);
  CHECK(open < p.N / 5 + 1);
}

}  // namespace

int main() {
  run<Images<false, true, 8, 3, 5, 3>, 1, false>(9, 200, 1);
  run<Images<true, true, 8, 3, 3, 5>, 2, false>(9, 300, 2, true);
  run<Images<true, true, 16, 1, 2, 2>, 1, true>(70, 100, 2);
  run<Images<false, false, 4, 3, 7, 3>, 1, true>(8, 128, 1);
  run<Images<true, false, 3, 3, 4, 5>, 2, true>(7, 90, 4, true);
  run<Images<false, true, 8, 1, 1, 1>, 1, true>(1, 2, 1);
  return 0;
}
