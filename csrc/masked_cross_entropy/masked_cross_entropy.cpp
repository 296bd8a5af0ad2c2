#include "masked_cross_entropy/masked_cross_entropy.h"

#include <algorithm>
#include <cstring>

#include "core/cpu_features.h"
#include "core/parallel_for.h"
#include "masked_cross_entropy/row_kernel.h"

namespace clustermim {
namespace {

constexpr const char* kOp = "masked_cross_entropy";

// Elements that one task handles: some 10 us of work, far above the cost of handing it out.
constexpr int64_t kTaskElements = 1 << 15;

const RowKernel& row_kernel() {
#if defined(__x86_64__)
  switch (current_isa()) {
    case Isa::amx:
    case Isa::avx512_vnni:
    case Isa::avx512: return kRowKernelAvx512;
    case Isa::avx2: return kRowKernelAvx2;
    case Isa::generic: break;
  }
#endif
  return kRowKernelGeneric;
}

Status check_dtype(DType dtype) {
  const int code = static_cast<int>(dtype);
  if (code < 0 || code > static_cast<int>(DType::bf16)) {
    return Status::error(StatusCode::invalid_argument, "%s: no kernel for dtype code %d", kOp,
                         code);
  }
  return Status();
}

int64_t element_size(DType dtype) {
  return dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2;
}

double read_acc(const void* base, int64_t index, bool is_double) {
  return is_double ? static_cast<const double*>(base)[index]
                   : static_cast<double>(static_cast<const float*>(base)[index]);
}
void write_acc(void* base, int64_t index, bool is_double, double value) {
  if (is_double) {
    static_cast<double*>(base)[index] = value;
  } else {
    static_cast<float*>(base)[index] = static_cast<float>(value);
  }
}
const void* acc_at(const void* base, int64_t index, bool is_double) {
  return static_cast<const char*>(base) + index * (is_double ? 8 : 4);
}

// Runs body(begin, end) over [0, count) in blocks of kTaskElements / row_elements rows.
template <typename Body>
Status for_row_blocks(int threads, int64_t count, int64_t row_elements, Body body) {
  const int64_t block = std::max<int64_t>(1, kTaskElements / std::max<int64_t>(1, row_elements));
  auto task = [&](int64_t index, int) {
    body(index * block, std::min(count, (index + 1) * block));
  };
  return parallel_for(threads, (count + block - 1) / block, task);
}

// A list that names a token outside the tensors would read and write foreign memory.
Status check_rows(const int64_t* rows, int64_t num_rows, int64_t num_tokens) {
  CMIM_RETURN_IF_ERROR(check_pointer(kOp, "rows", rows, num_rows > 0));
  for (int64_t i = 0; i < num_rows; ++i) {
    if (rows[i] < 0 || rows[i] >= num_tokens) {
      return Status::error(StatusCode::invalid_argument, "%s: rows[%lld] = %lld is not a token",
                           kOp, static_cast<long long>(i), static_cast<long long>(rows[i]));
    }
  }
  return Status();
}

Status check_cross_entropy(const CrossEntropyRows& a) {
  CMIM_RETURN_IF_ERROR(check_dtype(a.logits_dtype));
  if (a.num_classes < 1 || a.num_classes > INT32_MAX) {
    return Status::error(StatusCode::invalid_argument, "%s: number of classes must be in [1, 2^31)",
                         kOp);
  }
  CMIM_RETURN_IF_ERROR(check_rows(a.rows, a.num_rows, a.num_tokens));
  CMIM_RETURN_IF_ERROR(check_pointer(kOp, "logits", a.logits, a.num_rows > 0));
  CMIM_RETURN_IF_ERROR(check_pointer(kOp, "target", a.target, a.num_rows > 0));
  for (int64_t i = 0; i < a.num_rows; ++i) {
    const int64_t target = a.target[a.rows[i]];
    if (target < 0 || target >= a.num_classes) {
      return Status::error(StatusCode::index_error,
                           "%s: target %lld of token %lld is outside [0, %lld)", kOp,
                           static_cast<long long>(target), static_cast<long long>(a.rows[i]),
                           static_cast<long long>(a.num_classes));
    }
  }
  return Status();
}

int64_t token_offset(int64_t token, int64_t rows_per_sample, int64_t sample_stride,
                     int64_t row_stride) {
  return token / rows_per_sample * sample_stride + token % rows_per_sample * row_stride;
}

RowTask row_task(const CrossEntropyRows& a, int64_t i) {
  const int64_t token = a.rows[i];
  const int64_t offset =
      a.compact ? i * a.row_stride
                : token_offset(token, a.rows_per_sample, a.sample_stride, a.row_stride);
  RowTask task = {};
  task.logits = static_cast<const char*>(a.logits) + offset * element_size(a.logits_dtype);
  task.bias = a.bias;
  task.class_weight = a.class_weight;
  task.num_classes = a.num_classes;
  task.target = a.target[token];
  task.class_weight_sum = a.class_weight_sum;
  task.label_smoothing = a.label_smoothing;
  return task;
}

}  // namespace

Status masked_row_list(const RowListArgs& a, RowListResult& result) {
  CMIM_RETURN_IF_ERROR(check_pointer(kOp, "target", a.target, a.num_tokens > 0));
  CMIM_RETURN_IF_ERROR(check_pointer(kOp, "rows", a.rows, a.num_tokens > 0));
  // Without branches: a random mask would be guessed wrong at every third token.
  const auto counted = [&a](int64_t t) {
    return static_cast<int64_t>(!a.mask || a.mask[t] != 0) & (a.target[t] != a.ignore_index);
  };
  int64_t count = 0, wrong = 0;
  for (int64_t t = 0; t < a.num_tokens; ++t) {
    count += counted(t);
    wrong |= counted(t) & ((a.target[t] < 0) | (a.target[t] >= a.num_classes));
  }
  result.count = count;
  int64_t first = 0, second = count;
  for (int64_t t = 0; t < a.num_tokens; ++t) {
    const int64_t in = counted(t);
    a.rows[second + in * (first - second)] = t;
    first += in;
    second += 1 - in;
  }
  for (int64_t i = 0; wrong && result.wrong_target < 0; ++i) {
    const int64_t target = a.target[a.rows[i]];
    if (target < 0 || target >= a.num_classes) result.wrong_target = a.rows[i];
  }
  if (a.masked_per_sample < 0) return Status();
  for (int64_t begin = 0; begin < a.num_tokens; begin += a.tokens_per_sample) {
    int64_t masked = a.tokens_per_sample;
    if (a.mask) {
      masked = 0;
      for (int64_t t = 0; t < a.tokens_per_sample; ++t) masked += a.mask[begin + t] != 0;
    }
    if (masked != a.masked_per_sample) {
      result.wrong_sample = begin / a.tokens_per_sample;
      result.found = masked;
      return Status();
    }
  }
  return Status();
}

Status cross_entropy_forward(const CrossEntropyForwardArgs& a) {
  CMIM_RETURN_IF_ERROR(check_cross_entropy(a));
  CMIM_RETURN_IF_ERROR(check_pointer(kOp, "stats", a.stats, a.num_rows > 0));
  CMIM_RETURN_IF_ERROR(check_pointer(kOp, "loss", a.loss, a.num_rows > 0));
  const bool is_double = a.logits_dtype == DType::f64;
  const auto forward = row_kernel().of[static_cast<int>(a.logits_dtype)].forward;
  return for_row_blocks(a.threads, a.num_rows, a.num_classes, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      RowTask task = row_task(a, i);
      task.want_argmax = a.argmax != nullptr;
      RowResult result;
      forward(task, result);
      write_acc(a.stats, a.rows[i], is_double, result.max);
      write_acc(a.stats, a.num_tokens + a.rows[i], is_double, result.sum);
      write_acc(a.loss, i, is_double, result.loss);
      if (a.argmax) a.argmax[i] = result.argmax;
    }
  });
}

Status cross_entropy_backward(const CrossEntropyBackwardArgs& a) {
  CMIM_RETURN_IF_ERROR(check_cross_entropy(a));
  if (a.zero_rest) CMIM_RETURN_IF_ERROR(check_rows(a.rows, a.num_tokens, a.num_tokens));
  CMIM_RETURN_IF_ERROR(check_pointer(kOp, "stats", a.stats, a.num_rows > 0));
  CMIM_RETURN_IF_ERROR(check_pointer(kOp, "scale", a.scale, a.num_rows > 0));
  const int64_t total = a.zero_rest ? a.num_tokens : a.num_rows;
  CMIM_RETURN_IF_ERROR(check_pointer(kOp, "grad", a.grad, total > 0));
  const bool is_double = a.logits_dtype == DType::f64;
  const int64_t row_bytes = a.num_classes * element_size(a.logits_dtype);
  const auto backward = row_kernel().of[static_cast<int>(a.logits_dtype)].backward;
  return for_row_blocks(a.threads, total, a.num_classes, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      char* grad = static_cast<char*>(a.grad) + (a.compact ? i : a.rows[i]) * row_bytes;
      if (i >= a.num_rows) {
        std::memset(grad, 0, row_bytes);
        continue;
      }
      backward(row_task(a, i), read_acc(a.stats, a.rows[i], is_double),
               read_acc(a.stats, a.num_tokens + a.rows[i], is_double), a.scale[i], grad);
    }
  });
}

Status gather_token_rows(const GatherArgs& a) {
  CMIM_RETURN_IF_ERROR(check_dtype(a.dtype));
  CMIM_RETURN_IF_ERROR(check_rows(a.rows, a.num_rows, a.num_tokens));
  const bool any = a.num_rows > 0 && a.dim > 0;
  CMIM_RETURN_IF_ERROR(check_pointer(kOp, "source", a.source, any));
  CMIM_RETURN_IF_ERROR(check_pointer(kOp, "out", a.out, any));
  const bool is_double = a.dtype == DType::f64;
  const auto widen = row_kernel().of[static_cast<int>(a.dtype)].widen;
  return for_row_blocks(a.threads, a.num_rows, a.dim, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t offset =
          token_offset(a.rows[i], a.rows_per_sample, a.sample_stride, a.row_stride);
      widen(static_cast<const char*>(a.source) + offset * element_size(a.dtype), a.dim,
            static_cast<char*>(a.out) + i * a.dim * (is_double ? 8 : 4));
    }
  });
}

Status scatter_token_rows(const ScatterArgs& a) {
  CMIM_RETURN_IF_ERROR(check_dtype(a.dtype));
  CMIM_RETURN_IF_ERROR(check_rows(a.rows, a.num_rows, a.num_tokens));
  const bool any = a.num_rows > 0 && a.dim > 0;
  CMIM_RETURN_IF_ERROR(check_pointer(kOp, "destination", a.destination, any));
  const bool is_double = a.dtype == DType::f64;
  const auto narrow = row_kernel().of[static_cast<int>(a.dtype)].narrow;
  return for_row_blocks(a.threads, a.num_rows, a.dim, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t offset =
          token_offset(a.rows[i], a.rows_per_sample, a.sample_stride, a.row_stride);
      char* out = static_cast<char*>(a.destination) + offset * element_size(a.dtype);
      if (!a.source) {
        std::memset(out, 0, a.dim * element_size(a.dtype));
        continue;
      }
      narrow(acc_at(a.source, i * a.dim, is_double), a.dim, out);
    }
  });
}

}  // namespace clustermim
