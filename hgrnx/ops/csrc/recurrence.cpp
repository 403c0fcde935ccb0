// The gated linear recurrence S_t = diag(f_t) S_{t-1} + k_t v_t^T, o_t = S_t^T q_t, and its gradients on a CPU.
//
// Shapes: N sequences, T time, H heads, K keys and V values per head, C tokens of a chunk, P of a block.
//
// A task is one sequence and head (or, where those are fewer than threads, some of its columns). It goes through
// time in chunks, whose rows it copies into buffers of its own, and in a chunk through slices of the state of L
// columns, which stay in the first-level cache: L values of all keys, [K, L], for the outputs and the gradients of
// v; L keys of all values, [V, L], for the gradients of q, k and log f. So sums over the other dimension are
// sums of rows, and none over the lanes of a vector. The backward goes through time twice: forwards to keep the
// state before every chunk, then backwards.
#include <ATen/Parallel.h>

#include <atomic>

#include "arrays.h"
#include "blocks.h"
#include "calls.h"

namespace hgrnx {

struct Problem {
  int64_t N, T, H, K, V;
  int64_t type;           // of the states and of the arithmetic: double or float
  const int64_t* bounds;  // offsets [N + 1] of sequences packed into row 0, or null: row n is sequence n
  Array q, k, v, log_f;
};

struct Gradients {
  Array d_o, dq, dk, dv, dlog_f;
};

namespace {

int64_t padded(int64_t n, int64_t multiple) { return at::divup(n, multiple) * multiple; }

// So that the states before all chunks take about as much memory as those inside one.
int64_t chunk_tokens(int64_t length) {
  int64_t C = 32;
  while (C * C < length) C *= 2;
  return C;
}

struct Task {
  int64_t n, head, part, parts;

  Span span(const Problem& problem, int64_t first, int64_t count) const {
    return problem.bounds ? Span{0, head, problem.bounds[n] + first, count} : Span{n, head, first, count};
  }
  int64_t length(const Problem& problem) const {
    return problem.bounds ? problem.bounds[n + 1] - problem.bounds[n] : problem.T;
  }
  template <typename T>
  T* state(const Problem& problem, void* states) const {
    return static_cast<T*>(states) + (n * problem.H + head) * problem.K * problem.V;
  }
  int64_t begin(int64_t slices) const { return slices * part / parts; }
  int64_t end(int64_t slices) const { return slices * (part + 1) / parts; }
};

// Slice `i` of a state [K, V] from or to [K, L].
template <typename T>
void load_values(const T* state, int64_t K, int64_t V, int64_t i, T* slice) {
  const int64_t width = std::min(L<T>, V - i * L<T>);
  for (int64_t k = 0; k < K; ++k) {
    std::fill(slice + k * L<T>, slice + (k + 1) * L<T>, T(0));
    if (state != nullptr) std::copy_n(state + k * V + i * L<T>, width, slice + k * L<T>);
  }
}

template <typename T>
void store_values(const T* slice, int64_t K, int64_t V, int64_t i, T* state) {
  const int64_t width = std::min(L<T>, V - i * L<T>);
  for (int64_t k = 0; k < K; ++k) std::copy_n(slice + k * L<T>, width, state + k * V + i * L<T>);
}

// Slice `i` of a state [K, V] to [V, L].
template <typename T>
void load_keys(const T* state, int64_t K, int64_t V, int64_t i, T* slice) {
  std::fill(slice, slice + V * L<T>, T(0));
  if (state == nullptr) return;
  for (int64_t k = i * L<T>; k < std::min(K, (i + 1) * L<T>); ++k)
    for (int64_t v = 0; v < V; ++v) slice[v * L<T> + k - i * L<T>] = state[k * V + v];
}

// A thread's buffers: rows of a chunk, [C, keys] or [C, values], scores [C / P, P, P], states.
template <typename T>
struct Workspace {
  Buffer<T> q, k, f, q_in, k_out, decay, carry, scores;
  Buffer<T> v, o, d_o, value_scores;
  Buffer<T> dq, dk, dlog_f, dv;
  Buffer<T> values_state, keys_state, chunk_states, block_states;
};

template <typename T>
Workspace<T>& workspace() {
  thread_local Workspace<T> buffers;
  return buffers;
}

// What is common to all passes of a task.
template <typename T>
struct Walk {
  Walk(const Problem& problem, const Task& task)
      : problem(problem),
        task(task),
        length(task.length(problem)),
        C(std::min(chunk_tokens(length), padded(length, P))),
        chunks(at::divup(length, C)),
        keys(padded(problem.K, L<T>)),
        values(padded(problem.V, L<T>)),
        value_slices(values / L<T>),
        key_slices(keys / L<T>),
        q(w.q.get(C * keys)),
        k(w.k.get(C * keys)),
        f(w.f.get(C * keys)),
        q_in(w.q_in.get(C * keys)),
        k_out(w.k_out.get(C * keys)),
        decay(w.decay.get(C / P * keys)),
        carry(w.carry.get(keys)),
        scores(w.scores.get(C * P)),
        v(w.v.get(C * values)) {
    std::fill(carry, carry + keys, T(0));
  }

  Span chunk(int64_t c) const { return task.span(problem, c * C, std::min(C, length - c * C)); }
  static int64_t blocks(const Span& at) { return at::divup(at.count, P); }

  void load_keys_and_values(const Span& at) {
    const int64_t tokens = blocks(at) * P;
    load(problem.k, at, problem.K, k, tokens, keys);
    load(problem.log_f, at, problem.K, f, tokens, keys);
    load(problem.v, at, problem.V, v, tokens, values);
  }
  void load_queries(const Span& at) { load(problem.q, at, problem.K, q, blocks(at) * P, keys); }

  void prepare_writes(int64_t b) {
    const int64_t row = b * P * keys;
    gates_and_writes<T>(f + row, k + row, k_out + row, decay + b * keys, carry, keys);
  }
  void prepare_reads(int64_t b) {
    const int64_t row = b * P * keys;
    reads_and_scores<T>(q + row, k + row, f + row, q_in + row, scores + b * P * P, keys);
  }

  Workspace<T>& w = workspace<T>();
  const Problem& problem;
  const Task& task;
  const int64_t length, C, chunks, keys, values, value_slices, key_slices;
  T *const q, *const k, *const f, *const q_in, *const k_out, *const decay, *const carry, *const scores, *const v;
};

// Goes through the tokens of the walk's task. `states` are slices [K, L]: those before the first token, and then those
// after the last one.
template <typename T>
void read_tokens(Walk<T>& walk, T* states, const Array& outputs) {
  const int64_t K = walk.problem.K, V = walk.problem.V, keys = walk.keys, values = walk.values;
  const int64_t begin = walk.task.begin(walk.value_slices), end = walk.task.end(walk.value_slices);
  T* const o = walk.w.o.get(walk.C * values);
  for (int64_t c = 0; c < walk.chunks; ++c) {
    const Span at = walk.chunk(c);
    const int64_t blocks = walk.blocks(at);
    walk.load_keys_and_values(at);
    walk.load_queries(at);
    for (int64_t b = 0; b < blocks; ++b) {
      walk.prepare_writes(b);
      walk.prepare_reads(b);
    }
    for (int64_t i = begin; i < end; ++i)
      for (int64_t b = 0; b < blocks; ++b) {
        const int64_t row = b * P * keys, column = b * P * values + i * L<T>;
        scan_block<T, false>(states + i * K * L<T>, K, walk.decay + b * keys, walk.q_in + row, walk.k_out + row, keys,
                             walk.scores + b * P * P, walk.v + column, o + column, values);
      }
    store(o, values, begin * L<T>, std::min(V, end * L<T>), outputs, at);
  }
}

template <typename T>
void forward_task(const Problem& problem, const Task& task, void* initial, const Array& outputs, void* final) {
  Walk<T> walk(problem, task);
  const int64_t K = problem.K, V = problem.V;
  const int64_t begin = task.begin(walk.value_slices), end = task.end(walk.value_slices);
  T* const states = walk.w.values_state.get(walk.value_slices * K * L<T>);
  const T* const first = initial == nullptr ? nullptr : task.state<T>(problem, initial);
  for (int64_t i = begin; i < end; ++i) load_values<T>(first, K, V, i, states + i * K * L<T>);
  read_tokens<T>(walk, states, outputs);
  for (int64_t i = begin; i < end; ++i)
    store_values<T>(states + i * K * L<T>, K, V, i, task.state<T>(problem, final));
}

// All sequences of one head, in preorder: sequence n goes on from the last one before it of a generation less. So a
// state per generation is enough.
template <typename T>
void forest_task(const Problem& problem, const Task& task, const int64_t* generations, const Array& outputs) {
  const int64_t slices = at::divup(problem.V, L<T>), slice = problem.K * L<T>;
  const int64_t begin = task.begin(slices) * slice, end = task.end(slices) * slice;
  const int64_t deepest = *std::max_element(generations, generations + problem.N);
  T* const stack = workspace<T>().values_state.get((deepest + 1) * slices * slice);
  for (int64_t n = 0; n < problem.N; ++n) {
    T* const states = stack + generations[n] * slices * slice;
    if (generations[n] == 0)
      std::fill(states + begin, states + end, T(0));
    else
      std::copy(states + begin - slices * slice, states + end - slices * slice, states + begin);
    const Task sequence{n, task.head, task.part, task.parts};
    Walk<T> walk(problem, sequence);
    read_tokens<T>(walk, states, outputs);
  }
}

template <typename T>
void backward_task(const Problem& problem, const Task& task, void* initial, const Gradients& grads, void* d_final,
                   void* d_initial) {
  Walk<T> walk(problem, task);
  Workspace<T>& w = walk.w;
  const int64_t K = problem.K, V = problem.V, C = walk.C, keys = walk.keys, values = walk.values;
  const int64_t first_values = task.begin(walk.value_slices), last_values = task.end(walk.value_slices);
  const int64_t first_keys = task.begin(walk.key_slices), last_keys = task.end(walk.key_slices);
  const int64_t slice = V * L<T>, all_slices = walk.key_slices * slice;

  // Transposed states before every chunk, [chunks, key slices, V, L].
  T* const chunk_states = w.chunk_states.get(walk.chunks * all_slices);
  const T* const first = initial == nullptr ? nullptr : task.state<T>(problem, initial);
  for (int64_t i = first_keys; i < last_keys; ++i) load_keys<T>(first, K, V, i, chunk_states + i * slice);
  for (int64_t c = 0; c + 1 < walk.chunks && first_keys < last_keys; ++c) {
    const Span at = walk.chunk(c);
    walk.load_keys_and_values(at);
    for (int64_t b = 0; b < walk.blocks(at); ++b) walk.prepare_writes(b);
    for (int64_t i = first_keys; i < last_keys; ++i) {
      const T* before = chunk_states + c * all_slices + i * slice;
      T* const after = chunk_states + (c + 1) * all_slices + i * slice;
      for (int64_t b = 0; b < walk.blocks(at); ++b) {
        const int64_t column = b * P * keys + i * L<T>;
        advance_block<T>(before, after, V, walk.decay + b * keys + i * L<T>, walk.k_out + column, keys,
                         walk.v + b * P * values, values);
        before = after;
      }
    }
  }

  // The gradient of the state, in both layouts.
  T* const d_values_state = w.values_state.get(walk.value_slices * K * L<T>);
  T* const d_keys_state = w.keys_state.get(all_slices);
  const T* const d_last = task.state<T>(problem, d_final);
  for (int64_t i = first_values; i < last_values; ++i) load_values<T>(d_last, K, V, i, d_values_state + i * K * L<T>);
  for (int64_t i = first_keys; i < last_keys; ++i) load_keys<T>(d_last, K, V, i, d_keys_state + i * slice);

  T* const d_o = w.d_o.get(C * values);
  T* const dv = w.dv.get(C * values);
  T* const dq = w.dq.get(C * keys);
  T* const dk = w.dk.get(C * keys);
  T* const dlog_f = w.dlog_f.get(C * keys);
  T* const value_products = w.value_scores.get(C * P);
  T* const block_states = w.block_states.get(C / P * slice);
  std::fill(walk.carry, walk.carry + keys, T(0));
  for (int64_t c = walk.chunks - 1; c >= 0; --c) {
    const Span at = walk.chunk(c);
    const int64_t blocks = walk.blocks(at);
    walk.load_keys_and_values(at);
    walk.load_queries(at);
    load(grads.d_o, at, V, d_o, blocks * P, values);
    for (int64_t b = blocks - 1; b >= 0; --b) {
      walk.prepare_writes(b);
      walk.prepare_reads(b);
      value_scores<T>(d_o + b * P * values, walk.v + b * P * values, value_products + b * P * P, values);
    }
    for (int64_t i = first_values; i < last_values; ++i)
      for (int64_t b = blocks - 1; b >= 0; --b) {
        const int64_t row = b * P * keys, column = b * P * values + i * L<T>;
        scan_block<T, true>(d_values_state + i * K * L<T>, K, walk.decay + b * keys, walk.k_out + row,
                            walk.q_in + row, keys, walk.scores + b * P * P, d_o + column, dv + column, values);
      }
    store(dv, values, first_values * L<T>, std::min(V, last_values * L<T>), grads.dv, at);

    for (int64_t i = first_keys; i < last_keys; ++i) {
      const T* before = chunk_states + c * all_slices + i * slice;
      for (int64_t b = 0; b + 1 < blocks; ++b) {
        const int64_t column = b * P * keys + i * L<T>;
        T* const after = block_states + (b + 1) * slice;
        advance_block<T>(before, after, V, walk.decay + b * keys + i * L<T>, walk.k_out + column, keys,
                         walk.v + b * P * values, values);
        before = after;
      }
      for (int64_t b = blocks - 1; b >= 0; --b) {
        const int64_t column = b * P * keys + i * L<T>;
        const T* const state = b > 0 ? block_states + b * slice : chunk_states + c * all_slices + i * slice;
        const KeyRows<T> rows{walk.q + column,    walk.k + column,
                              walk.f + column,    walk.q_in + column,
                              walk.decay + b * keys + i * L<T>, dq + column,
                              dk + column,        dlog_f + column,
                              keys};
        key_gradients<T>(state, d_keys_state + i * slice, V, rows, walk.v + b * P * values, d_o + b * P * values,
                         values, value_products + b * P * P);
      }
    }
    const int64_t begin = first_keys * L<T>, end = std::min(K, last_keys * L<T>);
    store(dq, keys, begin, end, grads.dq, at);
    store(dk, keys, begin, end, grads.dk, at);
    store(dlog_f, keys, begin, end, grads.dlog_f, at);
  }
  if (d_initial == nullptr) return;
  for (int64_t i = first_values; i < last_values; ++i)
    store_values<T>(d_values_state + i * K * L<T>, K, V, i, task.state<T>(problem, d_initial));
}

// Calls run(task) for all tasks of `sequences` sequences on torch's threads; the next free thread takes the next task.
template <typename F>
void for_each_task(const Problem& problem, int64_t sequences, const F& run) {
  const int64_t pairs = sequences * problem.H, threads = at::get_num_threads();
  const int64_t tokens = problem.bounds ? problem.bounds[problem.N] : problem.N * problem.T;
  const bool little = tokens * problem.H * problem.K * problem.V < (1 << 20);  // less than waking threads costs
  const int64_t parts = pairs < threads && !little ? at::divup(threads, pairs) : 1, tasks = pairs * parts;
  std::atomic<int64_t> next{0};
  at::parallel_for(0, little ? 1 : std::min(threads, tasks), 1, [&](int64_t, int64_t) {
    const FlushedDenormals flushed;
    for (int64_t i = next++; i < tasks; i = next++)
      run(Task{i / parts / problem.H, i / parts % problem.H, i % parts, parts});
  });
}

}  // namespace
}  // namespace hgrnx

// All return 0, or 1 where memory is short. States are [N, H, K, V]; `initial` and `d_initial` may be null.
HGRNX_EXPORT int64_t hgrnx_forward(const hgrnx::Problem* problem, void* initial, const hgrnx::Array* o, void* final) {
  return hgrnx::guarded([&] {
    hgrnx::for_each_task(*problem, problem->N, [&](const hgrnx::Task& task) {
      if (problem->type == hgrnx::kDouble)
        hgrnx::forward_task<double>(*problem, task, initial, *o, final);
      else
        hgrnx::forward_task<float>(*problem, task, initial, *o, final);
    });
  });
}

// The outputs of a forest: `generations` [N] are the numbers of ancestors of its sequences, which lie in preorder.
HGRNX_EXPORT int64_t hgrnx_forest_forward(const hgrnx::Problem* problem, const int64_t* generations,
                                          const hgrnx::Array* o) {
  return hgrnx::guarded([&] {
    hgrnx::for_each_task(*problem, 1, [&](const hgrnx::Task& task) {
      if (problem->type == hgrnx::kDouble)
        hgrnx::forest_task<double>(*problem, task, generations, *o);
      else
        hgrnx::forest_task<float>(*problem, task, generations, *o);
    });
  });
}

HGRNX_EXPORT int64_t hgrnx_backward(const hgrnx::Problem* problem, void* initial, const hgrnx::Gradients* grads,
                                    void* d_final, void* d_initial) {
  return hgrnx::guarded([&] {
    hgrnx::for_each_task(*problem, problem->N, [&](const hgrnx::Task& task) {
      if (problem->type == hgrnx::kDouble)
        hgrnx::backward_task<double>(*problem, task, initial, *grads, d_final, d_initial);
      else
        hgrnx::backward_task<float>(*problem, task, initial, *grads, d_final, d_initial);
    });
  });
}
