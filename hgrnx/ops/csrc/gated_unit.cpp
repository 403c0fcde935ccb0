// The gated linear unit of an MLP, silu(x) y = x sigmoid(x) y (arXiv 2002.05202), and its gradients on a CPU.
#include <ATen/Parallel.h>

#include "calls.h"
#include "vectors.h"

namespace hgrnx {
namespace {

constexpr int64_t kGrain = 1 << 14;  // elements below which a thread is not worth waking

template <typename F>
void for_each_vector(int64_t elements, const F& run) {
  const int64_t vectors = at::divup(elements, kLanes);
  at::parallel_for(0, vectors, kGrain / kLanes, [&](int64_t begin, int64_t end) {
    for (int64_t v = begin; v < end; ++v) run(v * kLanes, std::min(kLanes, elements - v * kLanes));
  });
}

}  // namespace
}  // namespace hgrnx

// x, y and out have `elements` of one type.
HGRNX_EXPORT int64_t hgrnx_gated_unit(int64_t elements, int64_t type, const void* x, const void* y, void* out) {
  using namespace hgrnx;
  return guarded([&] {
    with_type(type, [&](auto* of) {
      using S = std::remove_pointer_t<decltype(of)>;
      for_each_vector(elements, [&](int64_t at, int64_t count) {
        const Floats gate = load_floats(static_cast<const S*>(x) + at, count);
        const Floats up = load_floats(static_cast<const S*>(y) + at, count);
        store_floats(gate * sigmoids(gate).of_x * up, static_cast<S*>(out) + at, count);
      });
    });
  });
}

HGRNX_EXPORT int64_t hgrnx_gated_unit_backward(int64_t elements, int64_t type, const void* d_out, const void* x,
                                               const void* y, void* d_x, void* d_y) {
  using namespace hgrnx;
  return guarded([&] {
    with_type(type, [&](auto* of) {
      using S = std::remove_pointer_t<decltype(of)>;
      for_each_vector(elements, [&](int64_t at, int64_t count) {
        const Floats gate = load_floats(static_cast<const S*>(x) + at, count);
        const Floats up = load_floats(static_cast<const S*>(y) + at, count);
        const Floats d = load_floats(static_cast<const S*>(d_out) + at, count);
        const Sigmoids s = sigmoids(gate);
        const Floats slope = s.of_x * at::vec::fmadd(gate, s.of_minus_x, Floats(1));
        store_floats(d * up * slope, static_cast<S*>(d_x) + at, count);
        store_floats(d * gate * s.of_x, static_cast<S*>(d_y) + at, count);
      });
    });
  });
}
