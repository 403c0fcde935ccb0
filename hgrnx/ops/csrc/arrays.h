// Tensors as Python hands them over, and rows of them copied into a thread's own aligned, padded buffers.
#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <algorithm>
#include <cstdint>
#include <new>

namespace hgrnx {

enum Type : int64_t { kDouble = 0, kFloat = 1, kBFloat16 = 2, kHalf = 3 };

// [rows, tokens, heads, width]; strides in elements, that of the width is 1.
struct Array {
  void* data;
  int64_t type;
  int64_t row_stride, token_stride, head_stride;
};

// `count` tokens of one head from token `first` of a row.
struct Span {
  int64_t row, head, first, count;
};

template <typename F>
void with_elements(const Array& array, const Span& at, const F& f) {
  const int64_t offset = at.row * array.row_stride + at.first * array.token_stride + at.head * array.head_stride;
  switch (array.type) {
    case kDouble:
      return f(static_cast<double*>(array.data) + offset);
    case kFloat:
      return f(static_cast<float*>(array.data) + offset);
    case kBFloat16:
      return f(static_cast<c10::BFloat16*>(array.data) + offset);
    default:
      return f(static_cast<c10::Half*>(array.data) + offset);
  }
}

// Into [tokens, padded_width], with zeros beyond the array's width and beyond the span.
template <typename T>
void load(const Array& array, const Span& at, int64_t width, T* to, int64_t tokens, int64_t padded_width) {
  with_elements(array, at, [&](const auto* from) {
    for (int64_t t = 0; t < at.count; ++t) {
      for (int64_t i = 0; i < width; ++i) to[t * padded_width + i] = static_cast<T>(from[t * array.token_stride + i]);
      std::fill(to + t * padded_width + width, to + (t + 1) * padded_width, T(0));
    }
  });
  std::fill(to + at.count * padded_width, to + tokens * padded_width, T(0));
}

// Columns [begin, end) of the span, from rows that are `padded_width` apart.
template <typename T>
void store(const T* from, int64_t padded_width, int64_t begin, int64_t end, const Array& array, const Span& at) {
  with_elements(array, at, [&](auto* to) {
    using S = std::remove_reference_t<decltype(*to)>;
    for (int64_t t = 0; t < at.count; ++t)
      for (int64_t i = begin; i < end; ++i) to[t * array.token_stride + i] = static_cast<S>(from[t * padded_width + i]);
  });
}

// Memory that stays with its thread: fresh pages at every call would cost more than small calls take.
template <typename T>
class Buffer {
 public:
  Buffer() = default;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { release(); }

  T* get(int64_t elements) {
    if (elements > elements_) {
      release();
      data_ = static_cast<T*>(::operator new(elements * sizeof(T), kAlignment));
      elements_ = elements;
    }
    return data_;
  }

 private:
  static constexpr std::align_val_t kAlignment{64};

  void release() {
    if (data_ != nullptr) ::operator delete(data_, kAlignment);
    data_ = nullptr;
    elements_ = 0;
  }

  T* data_ = nullptr;
  int64_t elements_ = 0;
};

}  // namespace hgrnx
