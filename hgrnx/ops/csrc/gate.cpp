// The forget gate f = lb + (1 - lb) sigmoid(z), from z to log f and k = 1 - f, and its gradients on a CPU.
//
// Shapes: rows of z, D gates that the lower bound is given for.
#include <ATen/Parallel.h>

#include <vector>

#include "calls.h"
#include "vectors.h"

namespace hgrnx {

struct Gate {
  int64_t rows, D;
  int64_t type;      // of z and its gradient; all else is float
  const void* z;     // [rows, D]
  const float* bound;  // [D], or null for none
};

namespace {

constexpr int64_t kRowsOfBlock = 64;  // sums over rows are added up per block: the same for any number of threads

struct Bound {
  Floats low, open;

  Bound(const Gate& gate, int64_t i, int64_t count)
      : low(gate.bound ? load_floats(gate.bound + i, count) : Floats(0)), open(Floats(1) - low) {}

  // f is not taken to be smaller than 1e-36, so that its logarithm and its inverse stay finite.
  Floats gate(const Floats& sigmoid) const {
    return at::vec::clamp(at::vec::fmadd(sigmoid, open, low), Floats(1e-36f), Floats(1));
  }
};

template <typename F>
void for_each_block(int64_t rows, const F& run) {
  const int64_t blocks = at::divup(rows, kRowsOfBlock);
  at::parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) run(b, b * kRowsOfBlock, std::min(rows, (b + 1) * kRowsOfBlock));
  });
}

template <typename S>
void forward(const Gate& gate, float* log_f, float* k) {
  const S* z = static_cast<const S*>(gate.z);
  for_each_block(gate.rows, [&](int64_t, int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      for (int64_t i = 0; i < gate.D; i += kLanes) {
        const int64_t count = std::min(kLanes, gate.D - i), at = row * gate.D + i;
        const Bound bound(gate, i, count);
        const Sigmoids s = sigmoids(load_floats(z + at, count));
        const Floats closed = s.of_minus_x * bound.open, f = bound.gate(s.of_x);
        // f is rounded, and next to 1 that matters for its logarithm; (1 - f) - k is by how much.
        const Floats rounding = (Floats(1) - f) - closed;
        store_floats(at::vec::fmadd(rounding, f, f.log()), log_f + at, count);
        store_floats(closed, k + at, count);
      }
    }
  });
}

template <typename S>
void backward(const Gate& gate, const float* d_log_f, const float* d_k, void* d_z, float* d_bound) {
  const S* z = static_cast<const S*>(gate.z);
  const int64_t blocks = at::divup(gate.rows, kRowsOfBlock);
  std::vector<float> sums(d_bound ? blocks * gate.D : 0);
  for_each_block(gate.rows, [&](int64_t b, int64_t begin, int64_t end) {
    for (int64_t i = 0; i < gate.D; i += kLanes) {
      const int64_t count = std::min(kLanes, gate.D - i);
      const Bound bound(gate, i, count);
      Floats sum(0);
      for (int64_t row = begin; row < end; ++row) {
        const int64_t at = row * gate.D + i;
        const Sigmoids s = sigmoids(load_floats(z + at, count));
        const Floats dl = load_floats(d_log_f + at, count), dk = load_floats(d_k + at, count);
        Floats dz;
        if (gate.bound == nullptr) {  // d log f / dz = 1 - f, without a division by f
          dz = (dl - dk * s.of_x) * s.of_minus_x;
        } else {
          const Floats d_f = (dl / bound.gate(s.of_x) - dk) * s.of_minus_x;
          sum = sum + d_f;
          dz = d_f * s.of_x * bound.open;
        }
        store_floats(dz, static_cast<S*>(d_z) + at, count);
      }
      if (d_bound) store_floats(sum, sums.data() + b * gate.D + i, count);
    }
  });
  if (d_bound == nullptr) return;
  std::fill(d_bound, d_bound + gate.D, 0.0f);
  for (int64_t b = 0; b < blocks; ++b)
    for (int64_t i = 0; i < gate.D; ++i) d_bound[i] += sums[b * gate.D + i];
}

}  // namespace
}  // namespace hgrnx

HGRNX_EXPORT int64_t hgrnx_gate(const hgrnx::Gate* gate, float* log_f, float* k) {
  return hgrnx::guarded([&] {
    hgrnx::with_type(gate->type,
                     [&](auto* type) { hgrnx::forward<std::remove_pointer_t<decltype(type)>>(*gate, log_f, k); });
  });
}

// `d_bound` [D] may be null.
HGRNX_EXPORT int64_t hgrnx_gate_backward(const hgrnx::Gate* gate, const float* d_log_f, const float* d_k, void* d_z,
                                         float* d_bound) {
  return hgrnx::guarded([&] {
    hgrnx::with_type(gate->type, [&](auto* type) {
      hgrnx::backward<std::remove_pointer_t<decltype(type)>>(*gate, d_log_f, d_k, d_z, d_bound);
    });
  });
}
