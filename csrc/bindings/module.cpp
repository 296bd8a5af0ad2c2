// The compiled module clustermim_fast._core: a list of its parts. No torch, ever.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <dlfcn.h>

#include <string>
#include <vector>

#include "assign/certificate.h"
#include "assign/projection.h"
#include "bindings/raise_status.h"
#include "core/build_info.h"
#include "core/cpu_features.h"
#include "core/parallel_for.h"

namespace py = pybind11;

namespace clustermim::bindings {
void register_nearest_centroid(py::module_& m);
void register_patch_tokens(py::module_& m);
void register_lloyd_step(py::module_& m);
void register_replace_patches(py::module_& m);
void register_resized_crop(py::module_& m);
void register_masked_cross_entropy(py::module_& m);
void register_gpu(py::module_& m);
}  // namespace clustermim::bindings

PYBIND11_MODULE(_core, m) {
  using namespace clustermim;
  m.doc() = "Kernels of clustermim_fast. Private: call clustermim_fast.ops instead.";
  bindings::raise_if_error(check_isa_environment());
  bindings::register_nearest_centroid(m);
  bindings::register_patch_tokens(m);
  bindings::register_lloyd_step(m);
  bindings::register_replace_patches(m);
  bindings::register_resized_crop(m);
  bindings::register_masked_cross_entropy(m);
  bindings::register_gpu(m);

  m.def("build_info", [] {
    py::dict isas;
    for (int i = 0; i < kNumIsas; ++i) {
      const Isa isa = static_cast<Isa>(i);
      isas[isa_name(isa)] = !isa_compiled(isa) ? "not compiled for this processor family"
                            : isa_usable(isa)  ? "usable"
                                               : "this machine lacks it";
    }
    py::dict info;
    info["compiler"] = build_compiler();
    info["build_type"] = build_type();
    info["flags"] = build_flags();
    info["isa_paths"] = isas;
    info["isa"] = isa_name(current_isa());
    return info;
  });
  // True: kernels run on the OpenMP threads that `library`, loaded already, is linked with; False:
  // it has none, or "" was given, and they run on our own.
  m.def(
      "share_threads",
      [](const std::string& library) {
        void* handle = library.empty() ? nullptr : dlopen(library.c_str(), RTLD_LAZY | RTLD_NOLOAD);
        void* region = handle ? dlsym(handle, "GOMP_parallel") : nullptr;
        set_parallel_region(reinterpret_cast<ParallelRegion>(region));
        return region != nullptr;
      },
      py::kw_only(), py::arg("library"));
  m.def(
      "set_isa", [](const std::string& name) { bindings::raise_if_error(set_isa(name.c_str())); },
      py::kw_only(), py::arg("name"));
  m.def("set_certified", &set_certified, py::kw_only(), py::arg("certified"));
  m.def(
      "set_projection",
      [](const std::string& when) {
        if (when != "auto" && when != "always" && when != "never") {
          throw py::value_error("when must be auto, always or never, got '" + when + "'");
        }
        set_projection_mode(when == "always"  ? ProjectionMode::always
                            : when == "never" ? ProjectionMode::never
                                              : ProjectionMode::automatic);
      },
      py::kw_only(), py::arg("when"));
}
