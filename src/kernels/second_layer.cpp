// The second layer of QMIX's mixer for every action of every agent, forward and back (modules/mixers/qmix.py).
#include "halves.h"
#include "vectors.h"

namespace {

// out[p, i, k] = sum_e w2[p, e] ELU(others[p, i, e] + q[p, i, k] w1[p, i, e]): q and out (P, N, A), others and w1
// (P, N, E), w2 (P, E). E is a multiple of LANES.
template <class T>
void forward(const T* q, const T* others, const T* w1, const T* w2, int64_t P, int64_t N, int64_t A, int64_t E, T* out) {
    for (int64_t p = 0; p < P; p++, w2 += E)
        for (int64_t i = 0; i < N; i++, q += A, out += A, others += E, w1 += E)
            for (int64_t k = 0; k < A; k++) {
                Vec<T> total{};
                for (int64_t e = 0; e < E; e += LANES<T>) {
                    Vec<T> x = load(others + e) + q[k] * load(w1 + e);
                    total += load(w2 + e) * (x > 0 ? x : exponential(x) - 1);
                }
                out[k] = sum<T>(total);
            }
}

// From grad (P, N, A), the gradients of all inputs.
template <class T>
void backward(const T* q, const T* others, const T* w1, const T* w2, const T* grad, int64_t P, int64_t N, int64_t A,
              int64_t E, T* d_q, T* d_others, T* d_w1, T* d_w2) {
    std::memset(d_q, 0, P * N * A * sizeof(T));
    std::memset(d_w2, 0, P * E * sizeof(T));
    for (int64_t p = 0; p < P; p++, w2 += E, d_w2 += E)
        for (int64_t i = 0; i < N; i++, q += A, grad += A, d_q += A, others += E, w1 += E, d_others += E, d_w1 += E)
            for (int64_t e = 0; e < E; e += LANES<T>) {
                Vec<T> other = load(others + e), slope = load(w1 + e), weight = load(w2 + e), of_w2 = load(d_w2 + e);
                Vec<T> of_others{}, of_w1{};
                for (int64_t k = 0; k < A; k++) {
                    Vec<T> x = other + q[k] * slope;
                    Vec<T> d = exponential(x > 0 ? Vec<T>{} : x);  // ELU's derivative
                    of_w2 += grad[k] * ((x > 0 ? x : Vec<T>{}) + d - 1);
                    of_others += grad[k] * d;
                    of_w1 += grad[k] * q[k] * d;
                    d_q[k] += grad[k] * sum<T>(weight * slope * d);
                }
                store(d_w2 + e, of_w2);
                store(d_others + e, weight * of_others);
                store(d_w1 + e, weight * of_w1);
            }
}

}  // namespace

#define EXPORT(T, NAME)                                                                                              \
    extern "C" void second_layer_forward_##NAME(const T* q, const T* others, const T* w1, const T* w2, int64_t P,    \
                                                int64_t N, int64_t A, int64_t E, int64_t cores, T* out) {            \
        for_range(cores, P, [&](int64_t p, int64_t last) {                                                           \
            const int64_t a = p * N * A, e = p * N * E;                                                              \
            forward(q + a, others + e, w1 + e, w2 + p * E, last - p, N, A, E, out + a);                              \
        });                                                                                                          \
    }                                                                                                                \
    extern "C" void second_layer_backward_##NAME(const T* q, const T* others, const T* w1, const T* w2,              \
                                                 const T* grad, int64_t P, int64_t N, int64_t A, int64_t E,          \
                                                 int64_t cores, T* d_q, T* d_others, T* d_w1, T* d_w2) {             \
        for_range(cores, P, [&](int64_t p, int64_t last) {                                                           \
            const int64_t a = p * N * A, e = p * N * E;                                                              \
            backward(q + a, others + e, w1 + e, w2 + p * E, grad + a, last - p, N, A, E, d_q + a, d_others + e,      \
                     d_w1 + e, d_w2 + p * E);                                                                        \
        });                                                                                                          \
    }

EXPORT(float, float32)
EXPORT(double, float64)
