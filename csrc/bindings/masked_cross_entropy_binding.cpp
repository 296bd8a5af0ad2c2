#include <pybind11/pybind11.h>

#include "bindings/raise_status.h"
#include "masked_cross_entropy/linear_rows.h"
#include "masked_cross_entropy/masked_cross_entropy.h"

namespace py = pybind11;

namespace clustermim::bindings {
namespace {

py::tuple row_list(uintptr_t target, uintptr_t mask, int64_t num_tokens, int64_t tokens_per_sample,
                   int64_t ignore_index, int64_t num_classes, int64_t masked_per_sample,
                   uintptr_t rows) {
  const RowListArgs args = {pointer<const int64_t>(target),
                            pointer<const uint8_t>(mask),
                            num_tokens,
                            tokens_per_sample,
                            ignore_index,
                            num_classes,
                            masked_per_sample,
                            pointer<int64_t>(rows)};
  RowListResult result;
  Status status;
  {
    const py::gil_scoped_release release;
    status = masked_row_list(args, result);
  }
  raise_if_error(status);
  return py::make_tuple(result.count, result.wrong_target, result.wrong_sample, result.found);
}

template <typename Args, Status (*kFunction)(const Args&)>
void call(const Args& args) {
  Status status;
  {
    const py::gil_scoped_release release;
    status = kFunction(args);
  }
  raise_if_error(status);
}

void forward(uintptr_t logits, int logits_dtype, int64_t sample_stride, int64_t row_stride,
             int64_t rows_per_sample, bool compact, int64_t num_classes, uintptr_t rows,
             int64_t num_rows, int64_t num_tokens, uintptr_t target, uintptr_t bias,
             uintptr_t class_weight, double class_weight_sum, double label_smoothing,
             uintptr_t stats, uintptr_t loss, uintptr_t argmax, int threads) {
  call<CrossEntropyForwardArgs, cross_entropy_forward>(
      {{pointer<const void>(logits), static_cast<DType>(logits_dtype), sample_stride, row_stride,
        rows_per_sample, compact, num_classes, pointer<const int64_t>(rows), num_rows, num_tokens,
        pointer<const int64_t>(target), pointer<const void>(bias),
        pointer<const void>(class_weight), class_weight_sum, label_smoothing, threads},
       pointer<void>(stats),
       pointer<void>(loss),
       pointer<int64_t>(argmax)});
}

void backward(uintptr_t logits, int logits_dtype, int64_t sample_stride, int64_t row_stride,
              int64_t rows_per_sample, bool compact, int64_t num_classes, uintptr_t rows,
              int64_t num_rows, int64_t num_tokens, uintptr_t target, uintptr_t bias,
              uintptr_t class_weight, double class_weight_sum, double label_smoothing,
              uintptr_t stats, uintptr_t scale, uintptr_t grad, bool zero_rest, int threads) {
  call<CrossEntropyBackwardArgs, cross_entropy_backward>(
      {{pointer<const void>(logits), static_cast<DType>(logits_dtype), sample_stride, row_stride,
        rows_per_sample, compact, num_classes, pointer<const int64_t>(rows), num_rows, num_tokens,
        pointer<const int64_t>(target), pointer<const void>(bias),
        pointer<const void>(class_weight), class_weight_sum, label_smoothing, threads},
       pointer<const void>(stats),
       pointer<const double>(scale),
       pointer<void>(grad),
       zero_rest});
}

void gather(uintptr_t source, int dtype, int64_t sample_stride, int64_t row_stride,
            int64_t rows_per_sample, int64_t dim, uintptr_t rows, int64_t num_rows,
            int64_t num_tokens, uintptr_t out, int threads) {
  call<GatherArgs, gather_token_rows>(
      {{static_cast<DType>(dtype), sample_stride, row_stride, rows_per_sample, dim,
        pointer<const int64_t>(rows), num_rows, num_tokens, threads},
       pointer<const void>(source),
       pointer<void>(out)});
}

void scatter(uintptr_t source, int dtype, int64_t sample_stride, int64_t row_stride,
             int64_t rows_per_sample, int64_t dim, uintptr_t rows, int64_t num_rows,
             int64_t num_tokens, uintptr_t destination, int threads) {
  call<ScatterArgs, scatter_token_rows>(
      {{static_cast<DType>(dtype), sample_stride, row_stride, rows_per_sample, dim,
        pointer<const int64_t>(rows), num_rows, num_tokens, threads},
       pointer<const void>(source),
       pointer<void>(destination)});
}

void linear(uintptr_t input, int64_t sample_stride, int64_t row_stride, int64_t rows_per_sample,
            int64_t dim, uintptr_t rows, int64_t num_rows, int64_t num_rest, int64_t num_tokens,
            uintptr_t weight, int64_t weight_stride, int64_t num_classes, uintptr_t bias,
            uintptr_t target, double label_smoothing, uintptr_t stats, uintptr_t loss,
            uintptr_t argmax, uintptr_t scale, uintptr_t grad_input, int64_t grad_sample_stride,
            int64_t grad_row_stride, uintptr_t grad_weight, uintptr_t grad_bias, int threads) {
  call<LinearRowsArgs, linear_cross_entropy_rows>({pointer<const uint16_t>(input),
                                                   sample_stride,
                                                   row_stride,
                                                   rows_per_sample,
                                                   dim,
                                                   pointer<const int64_t>(rows),
                                                   num_rows,
                                                   num_rest,
                                                   num_tokens,
                                                   pointer<const uint16_t>(weight),
                                                   weight_stride,
                                                   num_classes,
                                                   pointer<const float>(bias),
                                                   pointer<const int64_t>(target),
                                                   label_smoothing,
                                                   pointer<float>(stats),
                                                   pointer<float>(loss),
                                                   pointer<int64_t>(argmax),
                                                   pointer<const double>(scale),
                                                   pointer<uint16_t>(grad_input),
                                                   grad_sample_stride,
                                                   grad_row_stride,
                                                   pointer<float>(grad_weight),
                                                   pointer<float>(grad_bias),
                                                   threads});
}

}  // namespace

void register_masked_cross_entropy(py::module_& m) {
  using py::arg;
  m.def("masked_row_list", &row_list, py::kw_only(), arg("target"), arg("mask"), arg("num_tokens"),
        arg("tokens_per_sample"), arg("ignore_index"), arg("num_classes"), arg("masked_per_sample"),
        arg("rows"));
  m.def("cross_entropy_forward", &forward, py::kw_only(), arg("logits"), arg("logits_dtype"),
        arg("sample_stride"), arg("row_stride"), arg("rows_per_sample"), arg("compact"),
        arg("num_classes"), arg("rows"), arg("num_rows"), arg("num_tokens"), arg("target"),
        arg("bias"), arg("class_weight"), arg("class_weight_sum"), arg("label_smoothing"),
        arg("stats"), arg("loss"), arg("argmax"), arg("threads"));
  m.def("cross_entropy_backward", &backward, py::kw_only(), arg("logits"), arg("logits_dtype"),
        arg("sample_stride"), arg("row_stride"), arg("rows_per_sample"), arg("compact"),
        arg("num_classes"), arg("rows"), arg("num_rows"), arg("num_tokens"), arg("target"),
        arg("bias"), arg("class_weight"), arg("class_weight_sum"), arg("label_smoothing"),
        arg("stats"), arg("scale"), arg("grad"), arg("zero_rest"), arg("threads"));
  m.def("gather_token_rows", &gather, py::kw_only(), arg("source"), arg("dtype"),
        arg("sample_stride"), arg("row_stride"), arg("rows_per_sample"), arg("dim"), arg("rows"),
        arg("num_rows"), arg("num_tokens"), arg("out"), arg("threads"));
  m.def("scatter_token_rows", &scatter, py::kw_only(), arg("source"), arg("dtype"),
        arg("sample_stride"), arg("row_stride"), arg("rows_per_sample"), arg("dim"), arg("rows"),
        arg("num_rows"), arg("num_tokens"), arg("destination"), arg("threads"));
  m.def("linear_rows_usable", &linear_rows_usable);
  m.def("linear_cross_entropy_rows", &linear, py::kw_only(), arg("input"), arg("sample_stride"),
        arg("row_stride"), arg("rows_per_sample"), arg("dim"), arg("rows"), arg("num_rows"),
        arg("num_rest"), arg("num_tokens"), arg("weight"), arg("weight_stride"), arg("num_classes"),
        arg("bias"), arg("target"), arg("label_smoothing"), arg("stats"), arg("loss"),
        arg("argmax"), arg("scale"), arg("grad_input"), arg("grad_sample_stride"),
        arg("grad_row_stride"), arg("grad_weight"), arg("grad_bias"), arg("threads"));
}

}  // namespace clustermim::bindings
