// Elements of any type as vectors of float, W lanes at a time.
#pragma once

// This order: with AVX2 ATen's headers include each other.
#include <ATen/cpu/vec/vec.h>

#include <ATen/cpu/vec/functional_base.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "arrays.h"

namespace hgrnx {

using Floats = at::vec::Vectorized<float>;
constexpr int64_t kLanes = Floats::size();

// The first `count` lanes from memory, zeros beyond.
template <typename S>
Floats load_floats(const S* from, int64_t count = kLanes) {
  if constexpr (std::is_same_v<S, float>) {
    return count >= kLanes ? Floats::loadu(from) : Floats::loadu(from, count);
  } else {
    alignas(64) float lanes[kLanes] = {};
    for (int64_t i = 0; i < std::min(count, kLanes); ++i) lanes[i] = static_cast<float>(from[i]);
    return Floats::loadu(lanes);
  }
}

template <typename S>
void store_floats(const Floats& x, S* to, int64_t count = kLanes) {
  if constexpr (std::is_same_v<S, float>) {
    x.store(to, std::min(count, kLanes));
  } else {
    alignas(64) float lanes[kLanes];
    x.store(lanes);
    for (int64_t i = 0; i < std::min(count, kLanes); ++i) to[i] = static_cast<S>(lanes[i]);
  }
}

// Calls f with a null pointer of the type; the arithmetic is in float, so there is no double.
template <typename F>
void with_type(int64_t type, const F& f) {
  switch (type) {
    case kFloat:
      return f(static_cast<float*>(nullptr));
    case kBFloat16:
      return f(static_cast<c10::BFloat16*>(nullptr));
    default:
      return f(static_cast<c10::Half*>(nullptr));
  }
}

// The sum of the lanes.
template <typename T>
T total(const at::vec::Vectorized<T>& x) {
  return at::vec::vec_reduce_all<T>([](const auto& a, const auto& b) { return a + b; }, x);
}

struct Sigmoids {
  Floats of_x, of_minus_x;
};

// sigmoid(x) and sigmoid(-x): each is exact where it is small, as one minus the other is not.
inline Sigmoids sigmoids(const Floats& x) {
  const Floats one(1), small = x.abs().neg().exp(), large_side = one / (one + small), small_side = small * large_side;
  const Floats positive = x >= Floats(0);
  return {Floats::blendv(small_side, large_side, positive), Floats::blendv(large_side, small_side, positive)};
}

}  // namespace hgrnx
