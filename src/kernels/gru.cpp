// A GRU over packed sequences, forward and back. modules/agents/gru.py has the equations and the legend.
#include <vector>

#include "halves.h"
#include "vectors.h"

namespace {

// Weights (K, columns) in the order in which `multiply` reads them: groups of `width` vectors, where vector c of group g
// begins at column(g, c).
template <class T, class F>
std::vector<T> packed(const T* weights, int64_t K, int64_t columns, int width, F&& column) {
    std::vector<T> out(K * columns);
    T* to = out.data();
    for (int64_t g = 0; g < columns / (width * LANES<T>); g++)
        for (int64_t k = 0; k < K; k++)
            for (int c = 0; c < width; c++, to += LANES<T>)
                std::memcpy(to, weights + k * columns + column(g, c), BYTES);
    return out;
}

template <int N, class T>
void forward_rows(const T* given, const T* h, const T* weights, const T* bias, T* gates, T* next, int64_t H) {
    for (int64_t j = 0; j < H; j += LANES<T>) {
        Vec<T> sums[N][3];
        for (int i = 0; i < N; i++) {
            sums[i][0] = load(given + i * 3 * H + j);
            sums[i][1] = load(given + i * 3 * H + H + j);
            sums[i][2] = load(bias + j);
        }
        multiply(h, H, 1, weights + 3 * H * j, 3 * LANES<T>, H, sums);
        for (int i = 0; i < N; i++) {
            Vec<T> r = sigmoid(sums[i][0]), z = sigmoid(sums[i][1]), m = sums[i][2];
            Vec<T> n = 2 * sigmoid(2 * (load(given + i * 3 * H + 2 * H + j) + r * m)) - 1;  // tanh
            store(next + i * H + j, n + z * (load(h + i * H + j) - n));
            if (gates) {
                T* to = gates + i * 4 * H + j;
                store(to, r), store(to + H, z), store(to + 2 * H, m), store(to + 3 * H, n);
            }
        }
    }
}

// later: before, dL/dh of the step after, of the rows that `reached` it; afterwards, of this step.
template <int N, class T>
void backward_rows(const T* grad, const T* gates, const T* h, const T* weights, T* d_rzm, T* d_rzn, T* later,
                   int64_t reached, int64_t H) {
    for (int i = 0; i < N; i++)
        for (int64_t j = 0; j < H; j += LANES<T>) {
            const T* g = gates + i * 4 * H + j;
            Vec<T> r = load(g), z = load(g + H), m = load(g + 2 * H), n = load(g + 3 * H);
            Vec<T> d = load(grad + i * H + j);
            if (i < reached) d += load(later + i * H + j);
            Vec<T> rest = d * (1 - z);
            Vec<T> dn = rest * (1 - n * n), dz = rest * z * (load(h + i * H + j) - n);
            Vec<T> dm = dn * r, dr = dm * m * (1 - r);
            T *to = d_rzm + i * 3 * H + j, *other = d_rzn + i * 3 * H + j;
            store(to, dr), store(to + H, dz), store(to + 2 * H, dm);
            store(other, dr), store(other + H, dz), store(other + 2 * H, dn);
            store(later + i * H + j, d * z);
        }
    for (int64_t j = 0; j < H; j += 2 * LANES<T>) {
        Vec<T> sums[N][2];
        for (int i = 0; i < N; i++)
            for (int c = 0; c < 2; c++) sums[i][c] = load(later + i * H + j + c * LANES<T>);
        multiply(d_rzm, 3 * H, 1, weights + 3 * H * j, 2 * LANES<T>, 3 * H, sums);
        for (int i = 0; i < N; i++)
            for (int c = 0; c < 2; c++) store(later + i * H + j + c * LANES<T>, sums[i][c]);
    }
}

// given (P, 3H): what the inputs say of r, z and n, with all biases but that of m, which is `bias` (H). weights (H, 3H)
// multiply h. memories (R + P, H): the first R are given, the others are found. gates (P, 4H): r, z, m and n are
// written there, if it is not null. H is a multiple of 2 LANES.
template <class T>
void forward(const T* given, const T* weights, const T* bias, const int64_t* counts, int64_t steps, int64_t H,
             int64_t cores, T* memories, T* gates) {
    auto w = packed(weights, H, 3 * H, 3, [&](int64_t g, int c) { return c * H + g * LANES<T>; });
    in_parts(cores, [&](int part) {
        int64_t row = 0, before = 0, next = counts[0];
        for (int64_t t = 0; t < steps; t++) {
            for_rows(counts[t], part, [&](auto n, int64_t i) {
                const int64_t at = row + i;
                forward_rows<n()>(given + at * 3 * H, memories + (before + i) * H, w.data(), bias,
                                  gates ? gates + at * 4 * H : nullptr, memories + (next + i) * H, H);
            });
            row += counts[t];
            before = next;
            next += counts[t];
        }
    });
}

// grad (P, H): dL/dh. weights (3H, H). Found: d_rzn (P, 3H), d_rzm (R + P, 3H), whose rows are those of the memories that
// were multiplied, with zeros where a sequence ended, and `later` (R, H), dL/dh of the first memory.
template <class T>
void backward(const T* grad, const T* gates, const T* memories, const T* weights, const int64_t* counts, int64_t steps,
              int64_t H, int64_t cores, T* d_rzm, T* d_rzn, T* later) {
    auto w = packed(weights, 3 * H, H, 2, [&](int64_t g, int c) { return (2 * g + c) * LANES<T>; });
    in_parts(cores, [&](int part) {
        int64_t row = 0, reached = 0;
        for (int64_t t = 0; t < steps; t++) row += counts[t];
        auto nothing = [&](int64_t from, int64_t rows) {
            if (part <= 0) std::fill_n(d_rzm + from * 3 * H, rows * 3 * H, T(0));
        };
        nothing(counts[0] + row - counts[steps - 1], counts[steps - 1]);
        for (int64_t t = steps - 1; t >= 0; t--) {
            row -= counts[t];
            const int64_t before = t ? counts[0] + row - counts[t - 1] : 0;
            if (t) nothing(before + counts[t], counts[t - 1] - counts[t]);
            for_rows(counts[t], part, [&](auto n, int64_t i) {
                const int64_t at = row + i, from = before + i;
                backward_rows<n()>(grad + at * H, gates + at * 4 * H, memories + from * H, w.data(),
                                   d_rzm + from * 3 * H, d_rzn + at * 3 * H, later + i * H, reached - i, H);
            });
            reached = counts[t];
        }
    });
}

}  // namespace

#define EXPORT(T, NAME)                                                                                              \
    extern "C" void gru_forward_##NAME(const T* given, const T* weights, const T* bias, const int64_t* counts,      \
                                       int64_t steps, int64_t H, int64_t cores, T* memories, T* gates) {             \
        forward(given, weights, bias, counts, steps, H, cores, memories, gates);                                     \
    }                                                                                                                \
    extern "C" void gru_backward_##NAME(const T* grad, const T* gates, const T* memories, const T* weights,         \
                                        const int64_t* counts, int64_t steps, int64_t H, int64_t cores, T* d_rzm,    \
                                        T* d_rzn, T* later) {                                                        \
        backward(grad, gates, memories, weights, counts, steps, H, cores, d_rzm, d_rzn, later);                      \
    }

EXPORT(float, float32)
EXPORT(double, float64)
