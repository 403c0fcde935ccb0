// What every function that Python calls needs.
#pragma once

#include <cstdint>
#include <exception>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define HGRNX_EXPORT extern "C" __attribute__((visibility("default")))

namespace hgrnx {

// Denormals count as 0: products of many small gates are full of them, and several times slower.
class FlushedDenormals {
 public:
#if defined(__x86_64__)
  FlushedDenormals() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040); }
  ~FlushedDenormals() { _mm_setcsr(before_); }

 private:
  unsigned before_;
#elif defined(__aarch64__)
  FlushedDenormals() {
    asm volatile("mrs %0, fpcr" : "=r"(before_));
    asm volatile("msr fpcr, %0" : : "r"(before_ | (uint64_t(1) << 24)));
  }
  ~FlushedDenormals() { asm volatile("msr fpcr, %0" : : "r"(before_)); }

 private:
  uint64_t before_;
#endif
};

// 0, or 1 where memory is short: no exception may reach Python.
template <typename F>
int64_t guarded(const F& f) {
  try {
    f();
    return 0;
  } catch (const std::exception&) {  // of memory
    return 1;
  }
}

}  // namespace hgrnx
