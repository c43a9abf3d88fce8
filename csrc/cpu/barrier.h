// The threads of one op, and the barrier between the steps of a scan.
//
// Work is divided into `parts`. A thread receives a range of parts [begin, end) and calls `arrive` with their
// number; a step ends when all parts have arrived. So the result does not depend on the number of threads that
// the pool provides, and a single thread never waits.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <functional>
#include <thread>

namespace dmm::cpu {

// Torch's thread pool and thread count; defined in the files that include torch.
int64_t get_num_threads();
void parallel_for(int64_t parts, const std::function<void(int64_t, int64_t)>& run);

// True if even the smallest work is divided among all threads, for tests only.
bool shares_small_work();

// Work is measured in multiply-adds of a GEMM, of which a core does up to 100 in a nanosecond. GEMMs are counted
// exactly, everything else roughly, so the time of an op is known within a factor of three.
constexpr double kFunction = 50;  // an elementary function, such as tanh or log, of one element

// The minimum work per thread, measured on 2 cores of an AMD EPYC with AVX-512 by timing every op in one and in two
// threads over its sizes. Threads that still wait actively, as they do for some milliseconds, start and end a
// parallel region in 2 us; sleeping threads are woken in 20 us, and if other processes use the cores a region takes
// some milliseconds, however little it does. So an op has at least 50 us of work per thread. A barrier takes
// 0.25 us, so a time step of a scan has at least 1 us of work per thread.
constexpr double kLeastWork = 5e6;
constexpr double kLeastStepWork = 1e5;

// The number of parts of an op with the given work, at most `most`; `barriers` is its number of barriers.
inline int64_t parts_for(double work, int64_t most, int64_t barriers = 0) {
  double parts = static_cast<double>(std::min(get_num_threads(), most));
  if (!shares_small_work()) {
    parts = std::min(parts, work / kLeastWork);
    if (barriers > 0) parts = std::min(parts, work / static_cast<double>(barriers) / kLeastStepWork);
  }
  return std::max<int64_t>(1, static_cast<int64_t>(parts));
}

class Barrier {
 public:
  explicit Barrier(int64_t parts) : parts_(parts) {}

  // docs-begin: barrier
  void arrive(int64_t parts) {
    const uint64_t step = step_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(parts, std::memory_order_acq_rel) + parts == parts_) {
      arrived_.store(0, std::memory_order_relaxed);
      step_.store(step + 1, std::memory_order_release);
      return;
    }
    // A step takes tens of microseconds: spin that long, and yield the core only if another thread has lost its own.
    // Sleeping is worse, since a woken thread may be scheduled on the core of the thread that woke it.
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
  // docs-end: barrier

 private:
  static constexpr int kSpins = 4096;
  const int64_t parts_;
  std::atomic<int64_t> arrived_{0};
  alignas(64) std::atomic<uint64_t> step_{0};
};

// Arrives when it goes out of scope.
struct Arrival {
  Barrier& barrier;
  int64_t parts;
  ~Arrival() { barrier.arrive(parts); }
};

// The range of `count` units that belongs to `part`, or to the parts [part, part_end), of `parts`.
struct Share {
  int64_t begin, end;
  Share(int64_t count, int64_t part, int64_t part_end, int64_t parts)
      : begin(count * part / parts), end(count * part_end / parts) {}
  Share(int64_t count, int64_t part, int64_t parts) : Share(count, part, part + 1, parts) {}
};

}  // namespace dmm::cpu
