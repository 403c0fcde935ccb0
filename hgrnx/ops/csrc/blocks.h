// Arithmetic on a block of P tokens, in ATen's portable vectors of W lanes.
//
// f_t are the gates, S the state before the block, dS the gradient of the state after it. With
//   q_in_t = q_t f_1 .. f_t      (read the state before the block)
//   k_out_t = k_t f_t+1 .. f_P   (as written into the state after the block)
//   decay = f_1 .. f_P           A_tj = sum over keys of q_t f_j+1 .. f_t k_j    B_tj = do_t . v_j    (j <= t)
// the block is
//   o_t = S^T q_in_t + sum_j A_tj v_j                      S'  = decay S + sum_t k_out_t v_t^T
//   dv_j = dS^T k_out_j + sum_t A_tj do_t                  dS' = decay dS + sum_t q_in_t do_t^T
// Every factor is a product of gates, at most 1, so gates of 0 are as good as any. P is small: the products within
// a block cost P^2, while the state is read and written once for P tokens.
//
// Rows of keys are `keys` elements apart, rows of values `values`; both are multiples of W and padded with zeros
// (gates with ones).
#pragma once

#include <cstdint>
#include <type_traits>

#include "vectors.h"

namespace hgrnx {

constexpr int P = 4;

// Vectors side by side in the inner loops: as many as the registers hold (32 here, 16 elsewhere).
#if defined(CPU_CAPABILITY_AVX512) || defined(__aarch64__)
constexpr int U = 2;
#else
constexpr int U = 1;
#endif

#define HGRNX_UNROLL _Pragma("GCC unroll 8")

template <typename T>
using Vec = at::vec::Vectorized<T>;
template <typename T>
constexpr int64_t W = Vec<T>::size();
// Columns of the state that are walked together.
template <typename T>
constexpr int64_t L = U * W<T>;

// The product of the block's gates. Next to 1 its rounding error is handed on to the next block in `carry`: it is
// the same in every block when the gates are, and would add up over a long sequence.
template <typename T>
Vec<T> block_decay(const Vec<T>& log_decay, const Vec<T>& product, Vec<T>& carry) {
  if constexpr (std::is_same_v<T, float>) {
    Vec<T> series(T(1) / 40320);
    for (const T c : {T(1) / 5040, T(1) / 720, T(1) / 120, T(1) / 24, T(1) / 6, T(1) / 2, T(1)})
      series = at::vec::fmadd(series, log_decay, Vec<T>(c));
    const Vec<T> one(1), exact = at::vec::fmadd(series, log_decay, carry), rounded = one + exact;
    const Vec<T> near_one = log_decay.abs() < Vec<T>(T(0.5));
    carry = Vec<T>::blendv(Vec<T>(0), exact - (rounded - one), near_one);
    return Vec<T>::blendv(product, rounded, near_one);
  } else {
    return product;
  }
}

// Turns rows of log f into f; writes k_out and decay.
template <typename T>
void gates_and_writes(T* f, const T* k, T* k_out, T* decay, T* carry, int64_t keys) {
  for (int64_t i = 0; i < keys; i += W<T>) {
    Vec<T> gate[P], log_decay(0);
    HGRNX_UNROLL
    for (int t = 0; t < P; ++t) {
      const Vec<T> log_gate = Vec<T>::loadu(f + t * keys + i);
      log_decay = log_decay + log_gate;
      gate[t] = log_gate.exp();
      gate[t].store(f + t * keys + i);
    }
    Vec<T> suffix(1);
    HGRNX_UNROLL
    for (int t = P - 1; t >= 0; --t) {
      (Vec<T>::loadu(k + t * keys + i) * suffix).store(k_out + t * keys + i);
      suffix = suffix * gate[t];
    }
    Vec<T> rest = Vec<T>::loadu(carry + i);
    block_decay<T>(log_decay, suffix, rest).store(decay + i);
    rest.store(carry + i);
  }
}

// Writes q_in and the scores A [P, P], whose upper triangle is left alone.
template <typename T>
void reads_and_scores(const T* q, const T* k, const T* f, T* q_in, T* scores, int64_t keys) {
  Vec<T> sums[P][P];
  for (int t = 0; t < P; ++t)
    for (int j = 0; j <= t; ++j) sums[t][j] = Vec<T>(0);
  for (int64_t i = 0; i < keys; i += W<T>) {
    Vec<T> gate[P], key[P], prefix(1);
    HGRNX_UNROLL
    for (int t = 0; t < P; ++t) {
      gate[t] = Vec<T>::loadu(f + t * keys + i);
      key[t] = Vec<T>::loadu(k + t * keys + i);
      Vec<T> decayed = Vec<T>::loadu(q + t * keys + i);
      prefix = prefix * gate[t];
      (decayed * prefix).store(q_in + t * keys + i);
      HGRNX_UNROLL
      for (int j = t; j >= 0; --j) {
        sums[t][j] = at::vec::fmadd(decayed, key[j], sums[t][j]);
        decayed = decayed * gate[j];
      }
    }
  }
  for (int t = 0; t < P; ++t)
    for (int j = 0; j <= t; ++j) scores[t * P + j] = total(sums[t][j]);
}

// Writes the scores B [P, P].
template <typename T>
void value_scores(const T* d_o, const T* v, T* scores, int64_t values) {
  Vec<T> sums[P][P];
  for (int t = 0; t < P; ++t)
    for (int j = 0; j <= t; ++j) sums[t][j] = Vec<T>(0);
  for (int64_t i = 0; i < values; i += W<T>) {
    HGRNX_UNROLL
    for (int t = 0; t < P; ++t) {
      const Vec<T> row = Vec<T>::loadu(d_o + t * values + i);
      HGRNX_UNROLL
      for (int j = 0; j <= t; ++j) sums[t][j] = at::vec::fmadd(row, Vec<T>::loadu(v + j * values + i), sums[t][j]);
    }
  }
  for (int t = 0; t < P; ++t)
    for (int j = 0; j <= t; ++j) scores[t * P + j] = total(sums[t][j]);
}

// L values of all keys, state [K, L]. Forwards in time in = v, out = o, read = q_in, write = k_out; backwards
// in = do, out = dv, read = k_out, write = q_in, and the state is its gradient.
template <typename T, bool backwards>
void scan_block(T* state, int64_t K, const T* decay, const T* read, const T* write, int64_t keys, const T* scores,
                const T* in, T* out, int64_t values) {
  Vec<T> x[P][U], y[P][U];
  HGRNX_UNROLL
  for (int t = 0; t < P; ++t) {
    HGRNX_UNROLL
    for (int u = 0; u < U; ++u) {
      x[t][u] = Vec<T>::loadu(in + t * values + u * W<T>);
      y[t][u] = Vec<T>(0);
    }
  }
  HGRNX_UNROLL
  for (int t = 0; t < P; ++t) {
    HGRNX_UNROLL
    for (int j = 0; j <= t; ++j) {
      const Vec<T> score(scores[t * P + j]);
      HGRNX_UNROLL
      for (int u = 0; u < U; ++u) {
        Vec<T>& sum = backwards ? y[j][u] : y[t][u];
        sum = at::vec::fmadd(score, backwards ? x[t][u] : x[j][u], sum);
      }
    }
  }
  for (int64_t k = 0; k < K; ++k, state += L<T>) {
    Vec<T> before[U], after[U];
    HGRNX_UNROLL
    for (int u = 0; u < U; ++u) {
      before[u] = Vec<T>::loadu(state + u * W<T>);
      after[u] = before[u] * Vec<T>(decay[k]);
    }
    HGRNX_UNROLL
    for (int t = 0; t < P; ++t) {
      const Vec<T> r(read[t * keys + k]), w(write[t * keys + k]);
      HGRNX_UNROLL
      for (int u = 0; u < U; ++u) {
        y[t][u] = at::vec::fmadd(r, before[u], y[t][u]);
        after[u] = at::vec::fmadd(w, x[t][u], after[u]);
      }
    }
    HGRNX_UNROLL
    for (int u = 0; u < U; ++u) after[u].store(state + u * W<T>);
  }
  HGRNX_UNROLL
  for (int t = 0; t < P; ++t) {
    HGRNX_UNROLL
    for (int u = 0; u < U; ++u) y[t][u].store(out + t * values + u * W<T>);
  }
}

// L keys of all values, state transposed, [V, L]: the state after the block from that before it.
template <typename T>
void advance_block(const T* from, T* to, int64_t V, const T* decay, const T* k_out, int64_t keys, const T* v,
                   int64_t values) {
  Vec<T> d[U], w[P][U];
  HGRNX_UNROLL
  for (int u = 0; u < U; ++u) {
    d[u] = Vec<T>::loadu(decay + u * W<T>);
    HGRNX_UNROLL
    for (int t = 0; t < P; ++t) w[t][u] = Vec<T>::loadu(k_out + t * keys + u * W<T>);
  }
  for (int64_t i = 0; i < V; ++i, from += L<T>, to += L<T>) {
    Vec<T> state[U];
    HGRNX_UNROLL
    for (int u = 0; u < U; ++u) state[u] = Vec<T>::loadu(from + u * W<T>) * d[u];
    HGRNX_UNROLL
    for (int t = 0; t < P; ++t) {
      const Vec<T> x(v[t * values + i]);
      HGRNX_UNROLL
      for (int u = 0; u < U; ++u) state[u] = at::vec::fmadd(x, w[t][u], state[u]);
    }
    HGRNX_UNROLL
    for (int u = 0; u < U; ++u) state[u].store(to + u * W<T>);
  }
}

// Rows of keys of one block; all pointers at the first of L keys.
template <typename T>
struct KeyRows {
  const T *q, *k, *f, *q_in, *decay;
  T *dq, *dk, *dlog_f;
  int64_t stride;
};

// Gradients of L keys' q, k and log f. `state` is S, `d_state` dS, which becomes dS'; both transposed, [V, L].
//
// The gradient of log f_s is the sum over all paths through gate s: from the state before the block or from a key
// j < s, to the state after the block or to a query t >= s. It is added up as just that. (The usual reversed
// cumulative sum of q dq - k dk is a difference of larger numbers, which cancels at small gates.)
template <typename T>
void key_gradients(const T* state, T* d_state, int64_t V, const KeyRows<T>& rows, const T* v, const T* d_o,
                   int64_t values, const T* scores) {
  // dq, dk before the decays within the block: S do_t and dS v_t; and the sum over values of S dS.
  Vec<T> read[P][U], written[P][U], kept[U], decay[U];
  HGRNX_UNROLL
  for (int u = 0; u < U; ++u) {
    decay[u] = Vec<T>::loadu(rows.decay + u * W<T>);
    kept[u] = Vec<T>(0);
    HGRNX_UNROLL
    for (int t = 0; t < P; ++t) read[t][u] = written[t][u] = Vec<T>(0);
  }
  const T* const q_in = rows.q_in;
  const int64_t stride = rows.stride;
  for (int64_t i = 0; i < V; ++i, state += L<T>, d_state += L<T>) {
    Vec<T> s[U], d[U], before[U];
    HGRNX_UNROLL
    for (int u = 0; u < U; ++u) {
      s[u] = Vec<T>::loadu(state + u * W<T>);
      d[u] = Vec<T>::loadu(d_state + u * W<T>);
      kept[u] = at::vec::fmadd(s[u], d[u], kept[u]);
      before[u] = d[u] * decay[u];
    }
    HGRNX_UNROLL
    for (int t = 0; t < P; ++t) {
      const Vec<T> x(v[t * values + i]), y(d_o[t * values + i]);
      HGRNX_UNROLL
      for (int u = 0; u < U; ++u) {
        written[t][u] = at::vec::fmadd(x, d[u], written[t][u]);
        read[t][u] = at::vec::fmadd(y, s[u], read[t][u]);
        before[u] = at::vec::fmadd(y, Vec<T>::loadu(q_in + t * stride + u * W<T>), before[u]);
      }
    }
    HGRNX_UNROLL
    for (int u = 0; u < U; ++u) before[u].store(d_state + u * W<T>);
  }

  for (int u = 0; u < U; ++u) {
    const auto row = [&](const T* x, int t) { return Vec<T>::loadu(x + t * rows.stride + u * W<T>); };
    Vec<T> q[P], k[P], f[P], dq[P], dk[P], dlog_f[P];
    Vec<T> prefix(1), suffix(1);
    HGRNX_UNROLL
    for (int t = 0; t < P; ++t) {
      q[t] = row(rows.q, t);
      k[t] = row(rows.k, t);
      f[t] = row(rows.f, t);
      prefix = prefix * f[t];
      dq[t] = read[t][u] * prefix;
    }
    HGRNX_UNROLL
    for (int t = P - 1; t >= 0; --t) {
      dk[t] = written[t][u] * suffix;
      suffix = suffix * f[t];
    }
    // To the state after the block: from the one before it and, on the way, from the keys.
    Vec<T> paths = kept[u] * decay[u];
    HGRNX_UNROLL
    for (int s = 0; s < P; ++s) {
      dlog_f[s] = paths;
      paths = at::vec::fmadd(k[s], dk[s], paths);
    }
    // To query t, likewise.
    HGRNX_UNROLL
    for (int t = 0; t < P; ++t) {
      Vec<T> from_key[P], between(scores[t * P + t]);
      paths = q[t] * dq[t];
      dq[t] = at::vec::fmadd(between, k[t], dq[t]);
      dk[t] = at::vec::fmadd(between, q[t], dk[t]);
      between = Vec<T>(1);
      HGRNX_UNROLL
      for (int j = t - 1; j >= 0; --j) {
        between = between * f[j + 1];
        const Vec<T> weight = between * Vec<T>(scores[t * P + j]), to_query = weight * k[j];
        from_key[j] = to_query * q[t];
        dq[t] = dq[t] + to_query;
        dk[j] = at::vec::fmadd(weight, q[t], dk[j]);
      }
      HGRNX_UNROLL
      for (int s = 0; s <= t; ++s) {
        dlog_f[s] = dlog_f[s] + paths;
        if (s < t) paths = paths + from_key[s];
      }
    }
    HGRNX_UNROLL
    for (int t = 0; t < P; ++t) {
      dq[t].store(rows.dq + t * rows.stride + u * W<T>);
      dk[t].store(rows.dk + t * rows.stride + u * W<T>);
      dlog_f[t].store(rows.dlog_f + t * rows.stride + u * W<T>);
    }
  }
}

}  // namespace hgrnx
