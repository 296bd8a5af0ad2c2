// Memory for intermediate results: on cache lines, not initialised, and on huge pages where it is
// large, since first touching 4 KiB pages one by one takes longer than the work on them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace clustermim {

template <typename T>
class Workspace {
 public:
  Workspace() = default;
  Workspace(Workspace&& other) noexcept : data_(other.data_), size_(other.size_) {
    other.data_ = nullptr;
    other.size_ = 0;
  }
  Workspace& operator=(Workspace&&) = delete;
  ~Workspace() { ::operator delete(data_, alignment(size_)); }

  // At least `size` elements; what stood there is lost if that is more than before.
  void reserve(int64_t size) {
    if (size <= size_) return;
    ::operator delete(data_, alignment(size_));
    data_ = nullptr;
    size_ = 0;
    const std::size_t bytes = static_cast<std::size_t>(size) * sizeof(T);
    data_ = static_cast<T*>(::operator new(bytes, alignment(size)));
    size_ = size;
#if defined(__linux__)
    if (bytes >= kHuge) madvise(data_, bytes, MADV_HUGEPAGE);  // a hint: failing is no error
#endif
  }
  T* data() { return data_; }
  const T* data() const { return data_; }

 private:
  static constexpr std::size_t kHuge = std::size_t{2} << 20;
  static std::align_val_t alignment(int64_t size) {
    return std::align_val_t{static_cast<std::size_t>(size) * sizeof(T) >= kHuge ? kHuge : 64};
  }

  T* data_ = nullptr;
  int64_t size_ = 0;
};

}  // namespace clustermim
