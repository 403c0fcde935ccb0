// Cross-entropy and KL of rows of logits, and their gradient, on a CPU: hgrnx/ops/chunk_losses.py says what is
// computed. A row stays in a core's cache while it is gone through.
//
// Shapes: V entries of the vocabulary, k entries of a top-k.
#include <ATen/Parallel.h>

#include <cmath>
#include <limits>

#include "calls.h"
#include "vectors.h"

namespace hgrnx {

struct Teacher {
  const void* logits;  // [tokens, at least V]
  int64_t type, row_stride;
  float mixing;
};

struct Losses {
  int64_t tokens, V, row_stride;
  int64_t type;
  void* logits;  // [tokens, row_stride], the gradient afterwards if it is wanted
  const int64_t* targets;
  int64_t ignore_index;
  float weight, temperature;
  int64_t reverse, wants_grad;
  int64_t teachers;
  const Teacher* teacher;
  int64_t k;  // 0 without a top-k
  const int64_t* ids;
  const float *top, *rest;  // logits [tokens, k]; log of what all others sum to at the temperature [tokens]
  double *cross_entropy, *kl;  // [tokens]
};

namespace {

constexpr float kImpossible = -1e30f;  // in place of -inf in logarithms: times a probability of 0 it is 0, not NaN

// Rows of a thread, padded with kImpossible or 0 to whole vectors.
struct Rows {
  Buffer<float> student, prob, soft, teacher, target, member;
};

Rows& rows_of_thread() {
  thread_local Rows rows;
  return rows;
}

template <typename F>
void for_each(int64_t V, const F& f) {
  for (int64_t i = 0; i < V; i += kLanes) f(i);
}

template <typename S>
void load_row(const S* from, int64_t V, float* to) {
  if constexpr (std::is_same_v<S, float>)
    std::copy_n(from, V, to);
  else
    for (int64_t i = 0; i < V; ++i) to[i] = static_cast<float>(from[i]);
  std::fill(to + V, to + at::divup(V, kLanes) * kLanes, kImpossible);
}

// A log-sum-exp, as the largest entry and the rest: their sum would round the rest away.
struct LogSum {
  float largest, rest;

  float minus(float x) const { return (largest - x) + rest; }
  float minus(const LogSum& other) const { return (largest - other.largest) + (rest - other.rest); }
};

// softmax(x * scale) into `prob`, which may be x.
LogSum softmax(const float* x, float scale, int64_t V, float* prob) {
  Floats largest(-std::numeric_limits<float>::infinity()), sums(0);
  for_each(V, [&](int64_t i) { largest = at::vec::maximum(largest, Floats::loadu(x + i)); });
  const float top =
      at::vec::vec_reduce_all<float>([](const Floats& a, const Floats& b) { return at::vec::maximum(a, b); }, largest);
  const Floats shift(top), factor(scale);
  for_each(V, [&](int64_t i) {
    const Floats e = ((Floats::loadu(x + i) - shift) * factor).exp();
    e.store(prob + i);
    sums = sums + e;
  });
  const float partition = hgrnx::total(sums);
  const Floats inverse(1 / partition);
  for_each(V, [&](int64_t i) { (Floats::loadu(prob + i) * inverse).store(prob + i); });
  return {top * scale, std::log(partition)};
}

// The teachers' distribution at the temperature into `target` and its logarithm, but for the log-sum-exp that is
// returned, into `log_target`: a single teacher's logits as they are, so that equal students have a KL of exactly 0.
LogSum soft_teacher(const Losses& p, int64_t row, float* log_target, float* target, float* member) {
  const float inverse = 1 / p.temperature;
  const auto load = [&](int64_t teacher, float* to) {
    const Teacher& t = p.teacher[teacher];
    with_type(t.type, [&](auto* of) {
      using S = std::remove_pointer_t<decltype(of)>;
      load_row(static_cast<const S*>(t.logits) + row * t.row_stride, p.V, to);
    });
  };
  if (p.teachers == 1) {
    load(0, log_target);
    const LogSum log_sum = softmax(log_target, inverse, p.V, target);
    for_each(p.V, [&](int64_t i) { (Floats::loadu(log_target + i) * Floats(inverse)).store(log_target + i); });
    return log_sum;
  }
  for_each(p.V, [&](int64_t i) { Floats(0).store(target + i); });
  for (int64_t t = 0; t < p.teachers; ++t) {
    load(t, member);
    softmax(member, inverse, p.V, member);
    const Floats mixing(p.teacher[t].mixing);
    for_each(p.V, [&](int64_t i) {
      at::vec::fmadd(Floats::loadu(member + i), mixing, Floats::loadu(target + i)).store(target + i);
    });
  }
  for_each(p.V, [&](int64_t i) { Floats::loadu(target + i).log().store(log_target + i); });
  return {0, 0};
}

template <typename S>
class Row {
 public:
  Row(const Losses& p, int64_t row) : p_(p), row_(row), logits_(static_cast<S*>(p.logits) + row * p.row_stride) {
    Rows& rows = rows_of_thread();
    const int64_t width = at::divup(p.V, kLanes) * kLanes;
    student_ = rows.student.get(width);
    prob_ = rows.prob.get(width);
    soft_ = prob_;
    if (p.weight == 0) return;
    teacher_ = rows.teacher.get(width);
    target_ = rows.target.get(width);
    member_ = rows.member.get(p.teachers > 1 ? width : 0);
    if (p.temperature != 1) soft_ = rows.soft.get(width);
  }

  void run() const {
    const int64_t target = p_.targets[row_];
    p_.cross_entropy[row_] = p_.kl[row_] = 0;
    if (target == p_.ignore_index) {
      if (p_.wants_grad) std::fill(logits_, logits_ + p_.row_stride, S(0));
      return;
    }
    load_row(logits_, p_.V, student_);
    const LogSum log_sum = softmax(student_, 1, p_.V, prob_);
    p_.cross_entropy[row_] = log_sum.minus(student_[target]);
    if (p_.weight != 0) distil(log_sum);
    if (!p_.wants_grad) return;
    prob_[target] -= 1 - p_.weight;
    for_each(p_.V, [&](int64_t i) { store_floats(Floats::loadu(prob_ + i), logits_ + i, p_.V - i); });
    std::fill(logits_ + p_.V, logits_ + p_.row_stride, S(0));
  }

 private:
  // Writes the gradient into prob_ but for the part of the cross-entropy's target.
  void distil(LogSum log_sum) const {
    const float inverse = 1 / p_.temperature;
    if (p_.temperature != 1) log_sum = softmax(student_, inverse, p_.V, soft_);
    const Floats factor(inverse);
    if (p_.k > 0) return distil_top_k(log_sum, inverse);
    const LogSum of_teacher = soft_teacher(p_, row_, teacher_, target_, member_);
    Floats kl(0);
    const auto difference = [&](int64_t i) {
      const Floats raw = Floats::loadu(teacher_ + i) - Floats::loadu(student_ + i) * factor;
      return at::vec::maximum(raw, Floats(kImpossible));
    };
    if (!p_.reverse) {
      for_each(p_.V, [&](int64_t i) { kl = at::vec::fmadd(difference(i), Floats::loadu(target_ + i), kl); });
      p_.kl[row_] = total(kl) + log_sum.minus(of_teacher);
      add_slope([&](int64_t i) { return Floats::loadu(soft_ + i) - Floats::loadu(target_ + i); });
      return;
    }
    const Floats constant(of_teacher.minus(log_sum));
    for_each(p_.V, [&](int64_t i) {
      const Floats log_ratio = constant - difference(i);
      log_ratio.store(teacher_ + i);
      kl = at::vec::fmadd(log_ratio, Floats::loadu(soft_ + i), kl);
    });
    const Floats mean(total(kl));
    p_.kl[row_] = total(kl);
    add_slope([&](int64_t i) { return (Floats::loadu(teacher_ + i) - mean) * Floats::loadu(soft_ + i); });
  }

  void distil_top_k(const LogSum& log_sum, float inverse) const {
    const int64_t* ids = p_.ids + row_ * p_.k;
    const float* logits = p_.top + row_ * p_.k;
    const float rest = p_.rest[row_];
    const float top = std::max(*std::max_element(logits, logits + p_.k) * inverse, rest);
    float partition = std::exp(rest - top), kl = 0;
    for (int64_t i = 0; i < p_.k; ++i) partition += std::exp(logits[i] * inverse - top);
    const float log_teacher = std::log(partition);
    // The student's rest is summed by itself: what is left of 1 would be rounding where the student is sure.
    std::copy_n(student_, at::divup(p_.V, kLanes) * kLanes, teacher_);
    for (int64_t i = 0; i < p_.k; ++i) teacher_[ids[i]] = kImpossible;
    const LogSum student_rest = softmax(teacher_, inverse, p_.V, target_);
    const float log_rest = (rest - top) - log_teacher, of_rest = std::exp(log_rest);
    kl += of_rest * std::max(log_rest - student_rest.minus(0), kImpossible);
    const Floats spread(of_rest);
    for (int64_t i = 0; i < p_.k; ++i) target_[ids[i]] = 0;
    add_slope([&](int64_t i) { return Floats::loadu(soft_ + i) - Floats::loadu(target_ + i) * spread; });
    for (int64_t i = 0; i < p_.k; ++i) {
      const float log_target = (logits[i] * inverse - top) - log_teacher, target = std::exp(log_target);
      kl += target * std::max(log_target - student_[ids[i]] * inverse, kImpossible);
      prob_[ids[i]] -= p_.weight * p_.temperature * target;
    }
    p_.kl[row_] = kl + log_sum.minus(0);
  }

  template <typename F>
  void add_slope(const F& slope) const {
    const Floats hard(1 - p_.weight), soft(p_.weight * p_.temperature);
    for_each(p_.V, [&](int64_t i) {
      at::vec::fmadd(slope(i), soft, Floats::loadu(prob_ + i) * hard).store(prob_ + i);
    });
  }

  const Losses& p_;
  int64_t row_;
  S* logits_;
  float *student_, *prob_, *soft_, *teacher_ = nullptr, *target_ = nullptr, *member_ = nullptr;
};

}  // namespace
}  // namespace hgrnx

HGRNX_EXPORT int64_t hgrnx_chunk_losses(const hgrnx::Losses* losses) {
  using namespace hgrnx;
  return guarded([&] {
    with_type(losses->type, [&](auto* type) {
      at::parallel_for(0, losses->tokens, 4, [&](int64_t begin, int64_t end) {
        const FlushedDenormals flushed;  // small probabilities
        for (int64_t row = begin; row < end; ++row) Row<std::remove_pointer_t<decltype(type)>>(*losses, row).run();
      });
    });
  });
}
