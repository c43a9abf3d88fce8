// The threads of one op, and the barrier between the steps of a scan.
//
// Work is cut into `parts`. A thread is handed a run of parts [begin, end) and calls `arrive` with their
// number; a step is over when all parts have arrived, however many threads there are. So the result never
// depends on how many threads the pool really gives, and one thread alone never waits.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>

namespace dmm::cpu {

class Barrier {
 public:
  explicit Barrier(int64_t parts) : parts_(parts) {}

  void arrive(int64_t parts) {
    const uint64_t step = step_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(parts, std::memory_order_acq_rel) + parts == parts_) {
      arrived_.store(0, std::memory_order_relaxed);
      step_.store(step + 1, std::memory_order_release);
      return;
    }
    // A step takes tens of microseconds: spin through that, and give the core away only when a thread
    // of the team has lost its own.
    for (int spins = 0; step_.load(std::memory_order_acquire) == step; ++spins) {
      if (spins < kSpins) {
#if defined(__x86_64__) || defined(__i386__)
        __builtin_ia32_pause();
#endif
      } else {
        std::this_thread::yield();
      }
    }
  }

 private:
  static constexpr int kSpins = 4096;
  const int64_t parts_;
  std::atomic<int64_t> arrived_{0};
  alignas(64) std::atomic<uint64_t> step_{0};
};

// The run of `count` units that falls to `part`, or to the parts [part, part_end), of `parts`.
struct Share {
  int64_t begin, end;
  Share(int64_t count, int64_t part, int64_t part_end, int64_t parts)
      : begin(count * part / parts), end(count * part_end / parts) {}
  Share(int64_t count, int64_t part, int64_t parts) : Share(count, part, part + 1, parts) {}
};

}  // namespace dmm::cpu
