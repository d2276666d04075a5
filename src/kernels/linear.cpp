// Linear layers of many rows, and the gradients of their weights (utils/linear.py).
#include <vector>

#include "halves.h"
#include "vectors.h"

namespace {

// Vectors of a row that are computed at a time: with them, the sums of ROWS rows stay in registers.
constexpr int WIDTH = BYTES == 64 ? 4 : 3;

constexpr int64_t CHUNK = 64;  // rows whose columns stay in the fastest cache while they are multiplied by all others

// f(how many vectors, the first of them) until `count` are done, in groups that are as equal as can be.
template <class F>
inline void for_vectors(int64_t count, F&& f) {
    for (int64_t groups = (count + WIDTH - 1) / WIDTH, first = 0; groups > 0; groups--) {
        const int64_t width = (count - first + groups - 1) / groups;
        with_constant<WIDTH>(width, first, f);
        first += width;
    }
}

template <class T>
inline int64_t vectors(int64_t columns) {
    return (columns + LANES<T> - 1) / LANES<T>;
}

// y (P, O) = x (P, I) w + bias (O), with w_io = weights[i * by_input + o * by_output]; bias may be null.
template <class T>
void forward(const T* x, const T* weights, int64_t by_input, int64_t by_output, const T* bias, int64_t P, int64_t I,
             int64_t O, int64_t cores, T* y) {
    const int64_t V = vectors<T>(O);
    std::vector<T> packed(V * LANES<T> * I), padded(V * LANES<T>);  // groups of vectors, in the order of their use
    if (bias) std::copy_n(bias, O, padded.data());
    for_vectors(V, [&](auto width, int64_t v) {
        T* to = packed.data() + v * LANES<T> * I;
        const int64_t first = v * LANES<T>, columns = std::min<int64_t>(width * LANES<T>, O - first);
        for (int64_t i = 0; i < I; i++, to += width * LANES<T>)
            for (int64_t o = 0; o < columns; o++) to[o] = weights[i * by_input + (first + o) * by_output];
    });
    auto some = [&](auto rows, int64_t p) {
        for_vectors(V, [&](auto width, int64_t v) {
            Vec<T> sums[rows()][width()];
            for (int c = 0; c < width; c++) {
                Vec<T> b = load(padded.data() + (v + c) * LANES<T>);
                for (int r = 0; r < rows; r++) sums[r][c] = b;
            }
            multiply(x + p * I, I, 1, packed.data() + v * LANES<T> * I, width * LANES<T>, I, sums);
            for (int r = 0; r < rows; r++)
                for (int c = 0; c < width; c++) {
                    T* to = y + (p + r) * O + (v + c) * LANES<T>;
                    const int64_t left = O - (v + c) * LANES<T>;
                    if (left >= LANES<T>)
                        store(to, sums[r][c]);
                    else
                        std::memcpy(to, &sums[r][c], left * sizeof(T));
                }
        });
    };
    for_range(cores, P, [&](int64_t first, int64_t last) {
        for_rows(last - first, -1, [&](auto rows, int64_t p) { some(rows, first + p); });
    });
}

// Of rows y (P, O) and x (P, I): y^T x is added to found (O, V LANES), and y's sum to totals (O).
template <class T>
void add_gradients(const T* y, const T* x, int64_t P, int64_t O, int64_t I, T* found, T* totals) {
    const int64_t V = vectors<T>(I), whole = I / LANES<T>;
    std::vector<T> tail(CHUNK * LANES<T>);
    for (int64_t first = 0; first < P; first += CHUNK, y += CHUNK * O, x += CHUNK * I) {
        const int64_t rows = std::min(CHUNK, P - first);
        for (int64_t r = 0; r < rows; r++)
            for (int64_t o = 0; o < O; o++) totals[o] += y[r * O + o];
        auto add = [&](auto width, int64_t v, const T* from, int64_t stride) {
            for_rows(O, -1, [&](auto n, int64_t o) {
                Vec<T> sums[n()][width()];
                T* to = found + o * V * LANES<T> + v * LANES<T>;
                for (int i = 0; i < n; i++)
                    for (int c = 0; c < width; c++) sums[i][c] = load(to + i * V * LANES<T> + c * LANES<T>);
                multiply(y + o, 1, O, from, stride, rows, sums);
                for (int i = 0; i < n; i++)
                    for (int c = 0; c < width; c++) store(to + i * V * LANES<T> + c * LANES<T>, sums[i][c]);
            });
        };
        for_vectors(whole, [&](auto width, int64_t v) { add(width, v, x + v * LANES<T>, I); });
        if (whole < V) {  // a vector more would be read from beyond the end
            for (int64_t r = 0; r < rows; r++)
                std::copy_n(x + r * I + whole * LANES<T>, I - whole * LANES<T>, tail.data() + r * LANES<T>);
            add(std::integral_constant<int, 1>{}, whole, tail.data(), LANES<T>);
        }
    }
}

// products (O, I) = y^T x and totals (O), y's sum: of two halves of the rows, so that they are the same on every machine.
template <class T>
void gradients(const T* y, const T* x, int64_t P, int64_t O, int64_t I, int64_t cores, T* products, T* totals) {
    const int64_t stride = vectors<T>(I) * LANES<T>, half = P / 2;
    std::vector<T> found(2 * O * stride), sums(2 * O);
    in_halves(cores, [&](int part) {
        const int64_t first = part ? half : 0, rows = part ? P - half : half;
        add_gradients(y + first * O, x + first * I, rows, O, I, found.data() + part * O * stride, sums.data() + part * O);
    });
    for (int64_t o = 0; o < O; o++) {
        totals[o] = sums[o] + sums[O + o];
        for (int64_t i = 0; i < I; i++) products[o * I + i] = found[o * stride + i] + found[(O + o) * stride + i];
    }
}

}  // namespace

extern "C" void linear_float32(const float* x, const float* weights, int64_t by_input, int64_t by_output,
                               const float* bias, int64_t P, int64_t I, int64_t O, int64_t cores, float* y) {
    forward(x, weights, by_input, by_output, bias, P, I, O, cores, y);
}

extern "C" void linear_gradients_float32(const float* y, const float* x, int64_t P, int64_t O, int64_t I, int64_t cores,
                                         float* products, float* totals) {
    gradients(y, x, P, O, I, cores, products, totals);
}
