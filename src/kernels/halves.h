// Two halves of a kernel's work at the same time: by the caller, and by a thread that waits for such work.
#pragma once
#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

// Whoever is done first does what the other has not begun. The thread looks for work all the time for as long as is usual
// between two kernels of an update, since to wake one that sleeps takes as long as a small kernel; then it sleeps.
class Helper {
   public:
    // That of this process: a fork has none of its parent's threads.
    static Helper& here() {
        static std::atomic<Helper*> current{nullptr};
        Helper* found = current.load();
        if (!found || found->process != getpid()) {
            Helper* fresh = new Helper;
            if (current.compare_exchange_strong(found, fresh)) {
                fresh->begin();
                return *fresh;
            }
            delete fresh;
        }
        return *current.load();
    }

    // f(0) and f(1), in any order or at the same time.
    template <class F>
    void halves(F& f) {
        bool idle = false;
        if (!taken.compare_exchange_strong(idle, true)) {  // it works for another caller
            f(0), f(1);
            return;
        }
        context = &f;
        call = [](void* f) { (*static_cast<F*>(f))(1); };
        modes = get_modes();
        state = OFFERED;
        if (asleep) {
            { std::lock_guard<std::mutex> guard(lock); }
            wake.notify_one();
        }
        f(0);
        int offered = OFFERED;
        if (state.compare_exchange_strong(offered, NONE))
            f(1);
        else
            for (int looks = 0; state != DONE; looks++) looks < LOOKS ? pause() : std::this_thread::yield();
        state = NONE;
        taken = false;
    }

   private:
    enum { NONE, OFFERED, BEGUN, DONE };
    static constexpr int LOOKS = 10000;  // before another thread may have this core

    const pid_t process = getpid();
    std::atomic<bool> taken{false}, asleep{false};
    std::atomic<int> state{NONE};
    std::mutex lock;
    std::condition_variable wake;
    void (*call)(void*) = nullptr;
    void* context = nullptr;
    unsigned modes = 0;

    void begin() {
        sigset_t all, before;
        sigfillset(&all);  // signals are for Python's thread
        pthread_sigmask(SIG_SETMASK, &all, &before);
        std::thread([this] { serve(); }).detach();
        pthread_sigmask(SIG_SETMASK, &before, nullptr);
    }

    void serve() {
        for (;;) {
            wait_for_work();
            int offered = OFFERED;
            if (!state.compare_exchange_strong(offered, BEGUN)) continue;
            set_modes(modes);
            call(context);
            state = DONE;
        }
    }

    void wait_for_work() {
        const auto until = std::chrono::steady_clock::now() + std::chrono::microseconds(SPIN);
        for (int looks = 1; state != OFFERED; looks++) {
            pause();
            if (looks % 64 == 0 && std::chrono::steady_clock::now() > until) {
                std::unique_lock<std::mutex> guard(lock);
                asleep = true;
                wake.wait(guard, [this] { return state == OFFERED; });
                asleep = false;
                return;
            }
        }
    }

    static constexpr int SPIN = 200;  // microseconds

    // How this thread rounds and whether it flushes denormals.
#if defined(__x86_64__)
    static void pause() { _mm_pause(); }
    static unsigned get_modes() { return _mm_getcsr(); }
    static void set_modes(unsigned modes) { _mm_setcsr(modes); }
#else
    static void pause() {}
    static unsigned get_modes() { return 0; }
    static void set_modes(unsigned) {}
#endif
};

// f(0) and f(1): at the same time if there are two cores for it.
template <class F>
inline void in_halves(int64_t cores, F&& f) {
    if (cores > 1)
        Helper::here().halves(f);
    else
        f(0), f(1);
}

// f(-1), which is all, or f(0) and f(1) at the same time.
template <class F>
inline void in_parts(int64_t cores, F&& f) {
    if (cores > 1)
        Helper::here().halves(f);
    else
        f(-1);
}

// f(first, last) of all n, in one part or in halves.
template <class F>
inline void for_range(int64_t cores, int64_t n, F&& f) {
    in_parts(cores, [&](int part) { f(part > 0 ? n / 2 : 0, part == 0 ? n / 2 : n); });
}
