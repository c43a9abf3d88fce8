// The threads of one op, and the barrier between the steps of a scan.
//
// Work is cut into `parts`. A thread is handed a run of parts [begin, end) and calls `arrive` with their
// number; a step is over when all parts have arrived, however many threads there are. So the result never
// depends on how many threads the pool really gives, and one thread alone never waits.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <functional>
#include <thread>

namespace dmm::cpu {

// Torch's own pool and thread count: bound where torch is known.
int64_t get_num_threads();
void parallel_for(int64_t parts, const std::function<void(int64_t, int64_t)>& run);

// Whether even the smallest work is cut up for all threads, which is for tests alone.
bool shares_small_work();

// Work is counted in multiply-adds of a product, of which a core does up to 100 in a nanosecond. What is computed
// in a product is counted exactly, all else roughly; the time of an op is known within a factor of three.
constexpr double kFunction = 50;  // a tanh, a log or the like of one element

// The least work for which a thread is worth having, measured on 2 cores of an AMD EPYC with AVX-512 by timing
// every op in one thread and in two over its sizes. A team whose threads still wait for work, as they do for some
// milliseconds, starts and ends in 2 us; asleep they are woken in 20 us, and where other processes want the cores
// a team takes some milliseconds, however little it does. So an op has 50 us of work for each thread. A barrier
// takes 0.25 us: the time step of a scan has 1 us of work for each thread.
constexpr double kLeastWork = 5e6;
constexpr double kLeastStepWork = 1e5;

// Into how many parts an op is cut that has so much work, and can be cut into `most` parts; `barriers` are those
// that its parts meet at.
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

  void arrive(int64_t parts) {
    const uint64_t step = step_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(parts, std::memory_order_acq_rel) + parts == parts_) {
      arrived_.store(0, std::memory_order_relaxed);
      step_.store(step + 1, std::memory_order_release);
      return;
    }
    // A step takes tens of microseconds: spin through that, and give the core away only when a thread of the team
    // has lost its own. Sleep is worse: a thread that is woken may be put on the core of the one that woke it.
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

// Arrives when it goes out of scope.
struct Arrival {
  Barrier& barrier;
  int64_t parts;
  ~Arrival() { barrier.arrive(parts); }
};

// The run of `count` units that falls to `part`, or to the parts [part, part_end), of `parts`.
struct Share {
  int64_t begin, end;
  Share(int64_t count, int64_t part, int64_t part_end, int64_t parts)
      : begin(count * part / parts), end(count * part_end / parts) {}
  Share(int64_t count, int64_t part, int64_t parts) : Share(count, part, part + 1, parts) {}
};

}  // namespace dmm::cpu
