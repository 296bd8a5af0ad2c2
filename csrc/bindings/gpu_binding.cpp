#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "bindings/raise_status.h"
#include "gpu/compiler.h"
#include "gpu/driver.h"
#include "gpu/launch.h"
#include "gpu/tensor_map.h"

namespace clustermim::bindings {
namespace {

namespace py = pybind11;
using Sizes = std::array<unsigned, 3>;

std::string gpu_problem() {
  return gpu::check_driver().message;
}

std::pair<int, int> nvrtc_version(const std::string& library) {
  int major = 0, minor = 0;
  raise_if_error(gpu::compiler_version(library.c_str(), &major, &minor));
  return {major, minor};
}

std::pair<py::bytes, std::string> compile_gpu_kernels(
    const std::string& library, const std::string& name, const std::string& source,
    const std::map<std::string, std::string>& headers, const std::vector<std::string>& options) {
  const gpu::CompileArgs args = {
      library.c_str(), name.c_str(), source.c_str(), {headers.begin(), headers.end()}, options};
  gpu::Compiled out;
  Status status;
  {
    const py::gil_scoped_release release;
    status = gpu::compile(args, &out);
  }
  if (!status.ok() && !out.log.empty()) {  // longer than a Status holds
    throw std::runtime_error(std::string(status.message) + "\n" + out.log);
  }
  raise_if_error(status);
  return {py::bytes(out.cubin), out.log};
}

uintptr_t load_gpu_kernel(const std::string& cubin, const std::string& name, int shared_bytes,
                          int device) {
  gpu::CuFunction kernel = nullptr;
  Status status;
  {
    const py::gil_scoped_release release;
    status = gpu::load_kernel({cubin.data(), name.c_str(), shared_bytes, device}, &kernel);
  }
  raise_if_error(status);
  return reinterpret_cast<uintptr_t>(kernel);
}

// Arguments are copied to places aligned as the most demanding kind (a TensorMap) has to be.
struct alignas(128) Line {
  char bytes[128];
};

void launch_gpu_kernel(uintptr_t kernel, const Sizes& grid, const Sizes& block,
                       const Sizes& cluster, unsigned shared_bytes, uintptr_t stream, int device,
                       const std::vector<py::bytes>& arguments) {
  std::vector<std::vector<Line>> values;
  std::vector<void*> places;
  for (const py::bytes& argument : arguments) {
    const auto given = static_cast<std::string_view>(argument);
    values.emplace_back(given.size() / sizeof(Line) + 1);
    std::memcpy(values.back().data(), given.data(), given.size());
    places.push_back(values.back().data());
  }
  gpu::LaunchArgs args;
  args.kernel = pointer<gpu::CuFunctionOpaque>(kernel);
  for (int i = 0; i < 3; ++i) {
    args.grid[i] = grid[i];
    args.block[i] = block[i];
    args.cluster[i] = cluster[i];
  }
  args.shared_bytes = shared_bytes;
  args.stream = pointer<gpu::CuStreamOpaque>(stream);
  args.device = device;
  args.arguments = places.data();
  Status status;
  {
    const py::gil_scoped_release release;
    status = gpu::launch_kernel(args);
  }
  raise_if_error(status);
}

py::bytes encode_tensor_map(uintptr_t address, int dtype, const std::vector<int64_t>& sizes,
                            const std::vector<int64_t>& strides, const std::vector<int64_t>& box,
                            int swizzle) {
  if (strides.size() + 1 != sizes.size() || box.size() != sizes.size()) {
    throw py::value_error(
        "encode_tensor_map: strides must have one number less than sizes, and "
        "box as many");
  }
  gpu::TensorMapArgs args = {};
  args.address = pointer<const void>(address);
  args.dtype = static_cast<DType>(dtype);
  args.rank = static_cast<int>(sizes.size());
  if (args.rank <= gpu::kMaxTensorMapRank) {  // else refused below
    std::copy(sizes.begin(), sizes.end(), args.sizes);
    std::copy(strides.begin(), strides.end(), args.strides);
    std::copy(box.begin(), box.end(), args.box);
  }
  args.swizzle = swizzle;
  gpu::TensorMap map;
  raise_if_error(gpu::encode_tensor_map(args, &map));
  return py::bytes(reinterpret_cast<const char*>(&map), sizeof(map));
}

}  // namespace

void register_gpu(py::module_& m) {
  using py::arg;
  m.def("gpu_problem", &gpu_problem);
  m.def("nvrtc_version", &nvrtc_version, py::kw_only(), arg("library"));
  m.def("compile_gpu_kernels", &compile_gpu_kernels, py::kw_only(), arg("library"), arg("name"),
        arg("source"), arg("headers"), arg("options"));
  m.def("load_gpu_kernel", &load_gpu_kernel, py::kw_only(), arg("cubin"), arg("name"),
        arg("shared_bytes"), arg("device"));
  m.def("launch_gpu_kernel", &launch_gpu_kernel, py::kw_only(), arg("kernel"), arg("grid"),
        arg("block"), arg("cluster"), arg("shared_bytes"), arg("stream"), arg("device"),
        arg("arguments"));
  m.def("encode_tensor_map", &encode_tensor_map, py::kw_only(), arg("address"), arg("dtype"),
        arg("sizes"), arg("strides"), arg("box"), arg("swizzle"));
}

}  // namespace clustermim::bindings
