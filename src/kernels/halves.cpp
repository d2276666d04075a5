// The thread that computes halves of kernels.
#include "halves.h"

#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

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

    void halves(void (*given)(void*, int), void* with) {
        bool idle = false;
        if (!taken.compare_exchange_strong(idle, true)) {  // it works for another caller
            given(with, 0), given(with, 1);
            return;
        }
        call = given;
        context = with;
        modes = get_modes();
        state = OFFERED;
        if (asleep) {
            { std::lock_guard<std::mutex> guard(lock); }
            wake.notify_one();
        }
        call(context, 0);
        int offered = OFFERED;
        if (state.compare_exchange_strong(offered, NONE))
            call(context, 1);
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
    void (*call)(void*, int) = nullptr;
    void* context = nullptr;
    unsigned modes = 0;

    void begin() {
        sigset_t all, before;
        sigfillset(&all);  // signals are for Python's thread
        pthread_sigmask(SIG_SETMASK, &all, &before);
        try {
            std::thread([this] { serve(); }).detach();
        } catch (const std::system_error&) {  // no thread may be added here: callers do all by themselves
        }
        pthread_sigmask(SIG_SETMASK, &before, nullptr);
    }

    void serve() {
        for (;;) {
            wait_for_work();
            int offered = OFFERED;
            if (!state.compare_exchange_strong(offered, BEGUN)) continue;
            set_modes(modes);
            call(context, 1);
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

}  // namespace

void halves(void (*call)(void*, int), void* context) { Helper::here().halves(call, context); }
