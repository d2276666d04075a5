// Several numbers at a time, in the vector extensions that GCC and Clang share.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__AVX512F__)
constexpr int BYTES = 64;
constexpr int ROWS = 6;  // of a matrix that are multiplied at a time: with 3 vectors each, their sums stay in registers
#else
constexpr int BYTES = 32;
constexpr int ROWS = 3;
#endif

template <class T>
struct Vector {
    typedef T type __attribute__((vector_size(BYTES)));
};
template <class T>
using Vec = typename Vector<T>::type;
template <class T>
constexpr int LANES = BYTES / int(sizeof(T));

template <class T>
static inline Vec<T> load(const T* from) {
    Vec<T> v;
    std::memcpy(&v, from, sizeof v);
    return v;
}

template <class V, class T>
static inline void store(T* to, V v) {
    std::memcpy(to, &v, sizeof v);
}

template <class T>
static inline Vec<T> all(T x) {
    return x - Vec<T>{};
}

// One number of a vector of N, by halves: f(x, y) is of two vectors.
template <class T, int N = LANES<T>, class V, class F>
static inline T fold(V v, F f) {
    if constexpr (N == 2) {
        return f(v[0], v[1]);
    } else {
        typedef T Half __attribute__((vector_size(N / 2 * sizeof(T))));
        Half low, high;
        std::memcpy(&low, &v, sizeof low);
        std::memcpy(&high, reinterpret_cast<const char*>(&v) + sizeof low, sizeof high);
        return fold<T, N / 2>(f(low, high), f);
    }
}

template <class T, class V>
static inline T sum(V v) {
    return fold<T>(v, [](auto x, auto y) { return x + y; });
}

// e^x within 2 units in the last place, from e^-87 to e^88 and no further; NaN of NaN.
// x = n ln 2 + r with |r| <= ln 2 / 2: a polynomial for e^r (that of Cephes' expf), and n into the exponent.
static inline Vec<float> exponential(Vec<float> x) {
    typedef int32_t Ints __attribute__((vector_size(BYTES)));
    x = x < -87.0f ? all(-87.0f) : x;
    x = x > 88.0f ? all(88.0f) : x;
    const float shift = 12582912.0f;  // 1.5 * 2^23: what is added to it is rounded to a whole number
    Vec<float> shifted = x * 1.44269504f + shift;
    Vec<float> n = shifted - shift;
    Vec<float> r = x - n * 0.693359375f + n * 2.12194440e-4f;
    Vec<float> p = all(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    Ints bits;
    std::memcpy(&bits, &shifted, sizeof bits);
    bits = (bits + 127) << 23;  // the whole number is in the lowest bits
    Vec<float> scale;
    std::memcpy(&scale, &bits, sizeof scale);
    return p * scale;
}

static inline Vec<double> exponential(Vec<double> x) {
    for (int i = 0; i < LANES<double>; i++) x[i] = std::exp(x[i]);
    return x;
}

template <class V>
static inline V sigmoid(V x) {
    return 1 / (1 + exponential(-x));
}

// sums[i][c] += sum_k x_ik w_kc, of numbers x_ik = x[i * by_row + k * by_k] and vectors w_kc at w + k * stride.
template <int N, int WIDTH, class T>
static inline void multiply(const T* x, int64_t by_row, int64_t by_k, const T* w, int64_t stride, int64_t K,
                            Vec<T> (&sums)[N][WIDTH]) {
    for (int64_t k = 0; k < K; k++) {
        Vec<T> vectors[WIDTH];
        for (int c = 0; c < WIDTH; c++) vectors[c] = load(w + k * stride + c * LANES<T>);
        for (int i = 0; i < N; i++) {
            Vec<T> value = all(x[i * by_row + k * by_k]);
            for (int c = 0; c < WIDTH; c++) sums[i][c] += value * vectors[c];
        }
    }
}

// f(count, first), where f is told the count, at most N, when it is compiled.
template <int N, class F>
static inline void with_constant(int64_t count, int64_t first, F&& f) {
    if constexpr (N > 0) {
        if (count == N)
            f(std::integral_constant<int, N>{}, first);
        else
            with_constant<N - 1>(count, first, f);
    }
}

// f(how many, the first of them) until `count` rows are done: those of every second block, from the first or second on,
// if `part` is 0 or 1, so that two threads do all; of every block, if it is -1.
template <class F>
static inline void for_rows(int64_t count, int64_t part, F&& f) {
    int64_t i = part > 0 ? ROWS : 0, step = part < 0 ? ROWS : 2 * ROWS;
    for (; i + ROWS <= count; i += step) f(std::integral_constant<int, ROWS>{}, i);
    with_constant<ROWS - 1>(count - i, i, f);
}
