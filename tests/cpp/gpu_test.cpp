// The look-up of the driver and of NVRTC from several threads at once, and what is refused without
// either. Launches are tested in tests/gpu/test_driver.py, on a driver that writes them down.
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "gpu/compiler.h"
#include "gpu/driver.h"
#include "gpu/launch.h"
#include "gpu/tensor_map.h"

using namespace clustermim;

namespace {

void threads_agree_about_the_driver() {
  const Status expected = gpu::check_driver();
  std::vector<std::thread> threads;
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([&expected] {
      CHECK(std::strcmp(gpu::check_driver().message, expected.message) == 0);
      if (expected.ok()) return;
      gpu::CuFunction kernel = nullptr;
      CHECK(gpu::load_kernel({"cubin", "name", 0, 0}, &kernel).code == StatusCode::unsupported);
      CHECK(kernel == nullptr);
      CHECK(gpu::launch_kernel({}).code == StatusCode::unsupported);
    });
  }
  for (std::thread& t : threads) t.join();
}

void a_missing_compiler_is_named_on_every_thread() {
  std::vector<std::thread> threads;
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([t] {
      const std::string library = "no-such-nvrtc-" + std::to_string(t % 2) + ".so";
      gpu::CompileArgs args;
      args.library = library.c_str();
      args.name = "a.cu";
      args.source = "";
      gpu::Compiled out;
      const Status status = gpu::compile(args, &out);
      CHECK(std::strstr(status.message, library.c_str()) != nullptr);
      int major = 0, minor = 0;
      CHECK(!gpu::compiler_version(library.c_str(), &major, &minor).ok());
    });
  }
  for (std::thread& t : threads) t.join();
}

void tensor_maps_are_checked_before_the_driver_is_asked() {
  alignas(16) static char data[64];
  gpu::TensorMapArgs args = {};
  args.address = data;
  args.rank = gpu::kMaxTensorMapRank + 1;
  gpu::TensorMap map;
  CHECK(gpu::encode_tensor_map(args, &map).code == StatusCode::invalid_argument);
  args.rank = 2;
  args.sizes[0] = 8;
  args.sizes[1] = 2;
  args.strides[0] = 8;
  args.box[0] = 8;
  args.box[1] = 1;
  if (!gpu::check_driver().ok()) {
    CHECK(gpu::encode_tensor_map(args, &map).code == StatusCode::unsupported);
  }
  args.strides[0] = 9;
  CHECK(gpu::encode_tensor_map(args, &map).code == StatusCode::invalid_argument);
}

}  // namespace

int main() {
  threads_agree_about_the_driver();
  a_missing_compiler_is_named_on_every_thread();
  tensor_maps_are_checked_before_the_driver_is_asked();
  return 0;
}
