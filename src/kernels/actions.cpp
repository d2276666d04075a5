// What is taken over each row's available actions: the best one; log-sum-exp and log-softmax, forward and back
// (objectives/available.py). q (P, A), avail (P, A), 0 where an action is not available.
#include <limits>

#include "halves.h"
#include "vectors.h"

namespace {

template <class T>
struct Flags;
template <>
struct Flags<float> {
    typedef int32_t lane;
    typedef int32_t wide __attribute__((vector_size(BYTES)));
    typedef uint8_t narrow __attribute__((vector_size(BYTES / 4)));
};
template <>
struct Flags<double> {
    typedef int64_t lane;
    typedef int64_t wide __attribute__((vector_size(BYTES)));
    typedef uint8_t narrow __attribute__((vector_size(BYTES / 8)));
};

// The rows of q and of avail; a vector may be read, and written, beyond a row's end, but not beyond the last one's.
template <class T>
struct Rows {
    const T* q;
    const uint8_t* avail;
    int64_t P, A;
    typedef typename Flags<T>::lane Lane;
    typedef typename Flags<T>::wide Wide;
    Wide lanes;

    Rows(const T* q, const uint8_t* avail, int64_t P, int64_t A) : q(q), avail(avail), P(P), A(A) {
        for (int i = 0; i < LANES<T>; i++) lanes[i] = i;
    }

    bool has_room(int64_t at) const { return at + LANES<T> <= P * A; }

    // LANES values of row p from k on; what is not available, or behind the row's end, is -inf.
    Vec<T> operator()(int64_t p, int64_t k) const {
        int64_t at = p * A + k;
        if (!has_room(at)) {
            Vec<T> found = all(-std::numeric_limits<T>::infinity());
            for (int i = 0; k + i < A; i++)
                if (avail[at + i]) found[i] = q[at + i];
            return found;
        }
        typename Flags<T>::narrow flags;
        std::memcpy(&flags, avail + at, sizeof flags);
        Wide there = (__builtin_convertvector(flags, Wide) != 0) & (lanes < Lane(std::min<int64_t>(A - k, LANES<T>)));
        return there ? load(q + at) : all(-std::numeric_limits<T>::infinity());
    }

    // Write LANES values to row p from k on. What is written behind its end is the next row's, which is written later.
    void write(T* to, int64_t p, int64_t k, Vec<T> values) const {
        int64_t at = p * A + k;
        if (has_room(at))
            store(to + at, values);
        else
            for (int i = 0; k + i < A; i++) to[at + i] = values[i];
    }

    T maximum(int64_t p) const {
        Vec<T> most = (*this)(p, 0);
        for (int64_t k = LANES<T>; k < A; k += LANES<T>) {
            Vec<T> x = (*this)(p, k);
            most = x > most ? x : most;
        }
        return fold<T>(most, [](auto x, auto y) { return x > y ? x : y; });
    }

    // t log sum_k exp(q[p, k] / t)
    T logsumexp(int64_t p, T t) const {
        T most = maximum(p);
        Vec<T> total{};
        for (int64_t k = 0; k < A; k += LANES<T>) total += exponential(((*this)(p, k) - most) * (1 / t));
        return most + t * std::log(sum<T>(total));
    }
};

// The first of the best actions; 0 if none is comparable, as where all are NaN.
template <class T, class Lane = typename Rows<T>::Lane>
void best(Rows<T> rows, int64_t* out) {
    for (int64_t p = 0; p < rows.P; p++) {
        T most = rows.maximum(p);
        auto first = rows.lanes * 0 + Lane(rows.A);
        for (int64_t k = 0; k < rows.A; k += LANES<T>) {
            auto place = rows(p, k) == most ? rows.lanes + Lane(k) : Lane(rows.A) + rows.lanes * 0;
            first = place < first ? place : first;
        }
        Lane found = fold<Lane>(first, [](auto x, auto y) { return x < y ? x : y; });
        out[p] = found < rows.A ? found : 0;
    }
}

// out (P): t log sum_k exp(q[p, k] / t)
template <class T>
void sums(Rows<T> rows, T t, T* out) {
    for (int64_t p = 0; p < rows.P; p++) out[p] = rows.logsumexp(p, t);
}

// Their gradient: grad (P), d_q (P, A).
template <class T>
void sums_backward(Rows<T> rows, T t, const T* out, const T* grad, T* d_q) {
    for (int64_t p = 0; p < rows.P; p++)
        for (int64_t k = 0; k < rows.A; k += LANES<T>) {
            Vec<T> x = rows(p, k);
            Vec<T> d = grad[p] * exponential((x - out[p]) * (1 / t));
            rows.write(d_q, p, k, x == all(-std::numeric_limits<T>::infinity()) ? Vec<T>{} : d);
        }
}

// out[p, k] = (q[p, k] - logsumexp) / t, -inf where k is not available
template <class T>
void policies(Rows<T> rows, T t, T* out) {
    for (int64_t p = 0; p < rows.P; p++) {
        T total = rows.logsumexp(p, t);
        for (int64_t k = 0; k < rows.A; k += LANES<T>) rows.write(out, p, k, (rows(p, k) - total) * (1 / t));
    }
}

// Their gradient: of_out (P, A) are `out`, and grad, d_q (P, A).
template <class T>
void policies_backward(Rows<T> of_out, T t, const T* grad, T* d_q) {
    Rows<T> of_grad(grad, of_out.avail, of_out.P, of_out.A);
    const Vec<T> nothing = all(-std::numeric_limits<T>::infinity());
    for (int64_t p = 0; p < of_out.P; p++) {
        Vec<T> total{};
        for (int64_t k = 0; k < of_out.A; k += LANES<T>) {
            Vec<T> g = of_grad(p, k);
            total += g == nothing ? Vec<T>{} : g;
        }
        T whole = sum<T>(total);
        for (int64_t k = 0; k < of_out.A; k += LANES<T>) {
            Vec<T> g = of_grad(p, k), d = (g - whole * exponential(of_out(p, k))) * (1 / t);
            of_out.write(d_q, p, k, g == nothing ? Vec<T>{} : d);
        }
    }
}

}  // namespace

#define EXPORT(T, NAME)                                                                                              \
    extern "C" void best_action_##NAME(const T* q, const uint8_t* avail, int64_t P, int64_t A, int64_t cores,        \
                                       int64_t* out) {                                                               \
        for_range(cores, P, [&](int64_t p, int64_t last) {                                                           \
            best(Rows<T>(q + p * A, avail + p * A, last - p, A), out + p);                                           \
        });                                                                                                          \
    }                                                                                                                \
    extern "C" void logsumexp_forward_##NAME(const T* q, const uint8_t* avail, const T* t, int64_t P, int64_t A,     \
                                             int64_t cores, T* out) {                                                \
        for_range(cores, P, [&](int64_t p, int64_t last) {                                                           \
            sums(Rows<T>(q + p * A, avail + p * A, last - p, A), *t, out + p);                                       \
        });                                                                                                          \
    }                                                                                                                \
    extern "C" void logsumexp_backward_##NAME(const T* q, const uint8_t* avail, const T* t, const T* out,            \
                                              const T* grad, int64_t P, int64_t A, int64_t cores, T* d_q) {          \
        for_range(cores, P, [&](int64_t p, int64_t last) {                                                           \
            sums_backward(Rows<T>(q + p * A, avail + p * A, last - p, A), *t, out + p, grad + p, d_q + p * A);       \
        });                                                                                                          \
    }                                                                                                                \
    extern "C" void log_softmax_forward_##NAME(const T* q, const uint8_t* avail, const T* t, int64_t P, int64_t A,   \
                                               int64_t cores, T* out) {                                              \
        for_range(cores, P, [&](int64_t p, int64_t last) {                                                           \
            policies(Rows<T>(q + p * A, avail + p * A, last - p, A), *t, out + p * A);                               \
        });                                                                                                          \
    }                                                                                                                \
    extern "C" void log_softmax_backward_##NAME(const T* out, const uint8_t* avail, const T* t, const T* grad,       \
                                                int64_t P, int64_t A, int64_t cores, T* d_q) {                       \
        for_range(cores, P, [&](int64_t p, int64_t last) {                                                           \
            policies_backward(Rows<T>(out + p * A, avail + p * A, last - p, A), *t, grad + p * A, d_q + p * A);      \
        });                                                                                                          \
    }

EXPORT(float, float32)
EXPORT(double, float64)
