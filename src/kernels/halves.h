// Two halves of a kernel's work at the same time: by the caller, and by a thread that waits for such work (halves.cpp).
#pragma once
#include <cstdint>

// call(context, 0) and call(context, 1), in any order or at the same time.
void halves(void (*call)(void*, int), void* context);

template <class F>
inline void halves(F& f) {
    halves([](void* f, int half) { (*static_cast<F*>(f))(half); }, &f);
}

// f(0) and f(1): at the same time if there are two cores for it.
template <class F>
inline void in_halves(int64_t cores, F&& f) {
    if (cores > 1)
        halves(f);
    else
        f(0), f(1);
}

// f(-1), which is all, or f(0) and f(1) at the same time.
template <class F>
inline void in_parts(int64_t cores, F&& f) {
    if (cores > 1)
        halves(f);
    else
        f(-1);
}

// f(first, last) of all n, in one part or in halves.
template <class F>
inline void for_range(int64_t cores, int64_t n, F&& f) {
    in_parts(cores, [&](int part) { f(part > 0 ? n / 2 : 0, part == 0 ? n / 2 : n); });
}
