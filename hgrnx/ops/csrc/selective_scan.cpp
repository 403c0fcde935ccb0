// Mamba's selective scan h_t = exp(dt_t A) h_{t-1} + dt_t u_t b_t, y_t = sum over states of c_t h_t, and its
// gradients on a CPU.
//
// Shapes: B rows, T tokens, C channels, S states of a channel; N tokens of a chunk, M chunks, P parts of
// kPartChannels channels (kPart vectors).
//
// A task is one row and part. Lanes are channels, so that a token's states are sums of vectors; only the gradients of
// b and c are sums over lanes, once a token and part. The backward goes through the chunks from the last to the first,
// and through each forwards to have its states, then backwards.
#include <ATen/Parallel.h>

#include "calls.h"
#include "vectors.h"

namespace hgrnx {

struct Scan {
  int64_t B, T, C, S, N;
  const float *u, *dt;  // [B, T, C]
  const float* A;       // [S, C]
  const float *b, *c;   // [B, T, S]
};

struct ScanGradients {
  const float *dy, *d_last;  // [B, T, C], [B, S, C]
  float *du, *d_dt;          // [B, T, C]
  float* dA;                 // [B, S, C]: of every row
  float *db, *dc;            // [P, B, T, S]: of every part
  float* d_initial;          // [B, S, C]
};

namespace {

constexpr int64_t kPartChannels = 128, kPart = kPartChannels / kLanes;

// The channels of a vector, in one row.
struct Channels {
  const Scan& scan;
  int64_t row, first, count;

  int64_t at(int64_t t) const { return (row * scan.T + t) * scan.C + first; }
  int64_t state(int64_t s) const { return (row * scan.S + s) * scan.C + first; }
  const float* b(int64_t t) const { return scan.b + (row * scan.T + t) * scan.S; }
  const float* c(int64_t t) const { return scan.c + (row * scan.T + t) * scan.S; }
  Floats A(int64_t s) const { return load_floats(scan.A + s * scan.C + first, count); }
  Floats load(const float* x, int64_t t) const { return load_floats(x + at(t), count); }
};

template <typename F>
void for_each_part(const Scan& scan, const F& run) {
  const int64_t parts = at::divup(scan.C, kPartChannels);
  at::parallel_for(0, scan.B * parts, 1, [&](int64_t begin, int64_t end) {
    const FlushedDenormals flushed;
    for (int64_t task = begin; task < end; ++task) run(task / parts, task % parts);
  });
}

template <typename F>
void for_each_vector(const Scan& scan, int64_t row, int64_t part, const F& run) {
  for (int64_t v = 0; v < kPart; ++v) {
    const int64_t first = (part * kPart + v) * kLanes;
    if (first < scan.C) run(v, Channels{scan, row, first, std::min(kLanes, scan.C - first)});
  }
}

// One token: the states [S, lanes] after it from those before it.
inline void step(const Channels& at, const Floats* A, const Floats& dt, const Floats& x, const float* b,
                 const Floats* before, Floats* decay, Floats* after) {
  for (int64_t s = 0; s < at.scan.S; ++s) {
    decay[s] = (dt * A[s]).exp();
    after[s] = at::vec::fmadd(decay[s], before[s], x * Floats(b[s]));
  }
}

struct ScanBuffers {
  Buffer<float> A, decay, state, befores, db, dc, d_state, dA;
};

Floats* vectors(Buffer<float>& buffer, int64_t count) {
  return reinterpret_cast<Floats*>(buffer.get(count * kLanes));
}

void load_states(const Channels& at, const float* from, Floats* to) {
  for (int64_t s = 0; s < at.scan.S; ++s) to[s] = from ? load_floats(from + at.state(s), at.count) : Floats(0);
}

void store_states(const Channels& at, const Floats* from, float* to) {
  for (int64_t s = 0; s < at.scan.S; ++s) store_floats(from[s], to + at.state(s), at.count);
}

ScanBuffers& scan_buffers() {
  thread_local ScanBuffers buffers;
  return buffers;
}

void scan_forward(const Scan& scan, const float* initial, float* befores, float* y, float* last) {
  const int64_t S = scan.S;
  for_each_part(scan, [&](int64_t row, int64_t part) {
    ScanBuffers& buffers = scan_buffers();
    Floats *A = vectors(buffers.A, S), *decay = vectors(buffers.decay, S), *state = vectors(buffers.state, S);
    for_each_vector(scan, row, part, [&](int64_t, const Channels& at) {
      for (int64_t s = 0; s < S; ++s) A[s] = at.A(s);
      load_states(at, initial, state);
      for (int64_t t = 0; t < scan.T; ++t) {
        if (t % scan.N == 0) store_states(at, state, befores + t / scan.N * scan.B * S * scan.C);
        const Floats dt = at.load(scan.dt, t), x = dt * at.load(scan.u, t);
        step(at, A, dt, x, at.b(t), state, decay, state);
        const float* c = at.c(t);
        Floats sum(0);
        for (int64_t s = 0; s < S; ++s) sum = at::vec::fmadd(state[s], Floats(c[s]), sum);
        store_floats(sum, y + at.at(t), at.count);
      }
      store_states(at, state, last);
    });
  });
}

void scan_backward(const Scan& scan, const float* befores, const ScanGradients& grads) {
  const int64_t S = scan.S, N = scan.N;
  for_each_part(scan, [&](int64_t row, int64_t part) {
    ScanBuffers& buffers = scan_buffers();
    Floats *A = vectors(buffers.A, S), *decay = vectors(buffers.decay, N * S);
    Floats *state = vectors(buffers.state, (N + 1) * S);  // before the first token, then after each
    Floats *db = vectors(buffers.db, N * S), *dc = vectors(buffers.dc, N * S);
    Floats *d_state = vectors(buffers.d_state, kPart * S), *dA = vectors(buffers.dA, kPart * S);
    for_each_vector(scan, row, part, [&](int64_t v, const Channels& at) {
      load_states(at, grads.d_last, d_state + v * S);
      std::fill_n(dA + v * S, S, Floats(0));
    });
    for (int64_t begin = (scan.T - 1) / N * N; begin >= 0; begin -= N) {
      const int64_t count = std::min(N, scan.T - begin);
      std::fill_n(db, count * S, Floats(0));
      std::fill_n(dc, count * S, Floats(0));
      for_each_vector(scan, row, part, [&](int64_t v, const Channels& at) {
        for (int64_t s = 0; s < S; ++s) A[s] = at.A(s);
        load_states(at, befores + begin / N * scan.B * S * scan.C, state);
        for (int64_t n = 0; n < count; ++n) {
          const Floats dt = at.load(scan.dt, begin + n), x = dt * at.load(scan.u, begin + n);
          step(at, A, dt, x, at.b(begin + n), state + n * S, decay + n * S, state + (n + 1) * S);
        }
        Floats* g = d_state + v * S;  // of the state after the token; from here on of the one before it
        for (int64_t n = count - 1; n >= 0; --n) {
          const int64_t t = begin + n;
          const Floats dt = at.load(scan.dt, t), u = at.load(scan.u, t), x = dt * u, dy = at.load(grads.dy, t);
          const float *b = at.b(t), *c = at.c(t);
          Floats dx(0), d_dt(0);
          for (int64_t s = 0; s < S; ++s) {
            const Floats after = at::vec::fmadd(dy, Floats(c[s]), g[s]);
            dc[n * S + s] = at::vec::fmadd(dy, state[(n + 1) * S + s], dc[n * S + s]);
            db[n * S + s] = at::vec::fmadd(after, x, db[n * S + s]);
            dx = at::vec::fmadd(after, Floats(b[s]), dx);
            g[s] = after * decay[n * S + s];
            const Floats d_exponent = g[s] * state[n * S + s];
            dA[v * S + s] = at::vec::fmadd(d_exponent, dt, dA[v * S + s]);
            d_dt = at::vec::fmadd(d_exponent, A[s], d_dt);
          }
          store_floats(dx * dt, grads.du + at.at(t), at.count);
          store_floats(at::vec::fmadd(dx, u, d_dt), grads.d_dt + at.at(t), at.count);
        }
      });
      const int64_t to = ((part * scan.B + row) * scan.T + begin) * S;
      for (int64_t i = 0; i < count * S; ++i) {
        grads.db[to + i] = total(db[i]);
        grads.dc[to + i] = total(dc[i]);
      }
    }
    for_each_vector(scan, row, part, [&](int64_t v, const Channels& at) {
      store_states(at, d_state + v * S, grads.d_initial);
      store_states(at, dA + v * S, grads.dA);
    });
  });
}

}  // namespace
}  // namespace hgrnx

// `initial` [B, S, C] may be null; `befores` are the states before every chunk, [M, B, S, C].
HGRNX_EXPORT int64_t hgrnx_scan(const hgrnx::Scan* scan, const float* initial, float* befores, float* y, float* last) {
  return hgrnx::guarded([&] { hgrnx::scan_forward(*scan, initial, befores, y, last); });
}

HGRNX_EXPORT int64_t hgrnx_scan_backward(const hgrnx::Scan* scan, const float* befores,
                                         const hgrnx::ScanGradients* grads) {
  return hgrnx::guarded([&] { hgrnx::scan_backward(*scan, befores, *grads); });
}
