// CUDA kernels on a CPU, for the tests: the very sources of csrc/cuda, thread-block clusters and all.
//
// A CUDA thread is a fiber; the fibers of one cluster take turns, each running until it waits at a barrier. Shared
// memory is a heap block of exactly the size asked for, filled with NaN, so that the address sanitizer sees an access
// out of bounds and a read before a write shows in the result. Fibers can run in reverse, and barriers can be ignored:
// a test can show that it would see a missing one.
//
// What it does not see: races of the memory model, divergence within a warp, and anything about speed.
#pragma once

#include <cstdint>
#include <functional>

#define DMM_EMULATOR 1
#define __global__
#define __device__
#define __launch_bounds__(...)
#define __grid_constant__
#define DMM_SHARED(type, name) type* const name = reinterpret_cast<type*>(dmm::emulator::shared_memory())

namespace dmm::emulator {

struct Dim3 {
  unsigned x, y, z;
};

struct Launch {
  int blocks, cluster_size, threads;
  int64_t shared_bytes;
  bool reversed = false;         // threads run last to first
  bool ignore_barriers = false;  // no thread waits for another
};

// Runs `kernel` once as every thread. Throws when threads wait for a barrier that can no longer be reached.
void run(const Launch& launch, const std::function<void()>& kernel);

// For the thread that runs.
const Dim3& thread_index();
const Dim3& block_index();
const Dim3& block_size();
unsigned cluster_rank();
unsigned cluster_blocks();
unsigned char* shared_memory();
unsigned char* shared_memory_of(unsigned rank);
void block_sync();
void cluster_arrive();
void cluster_wait();

}  // namespace dmm::emulator

#define threadIdx (dmm::emulator::thread_index())
#define blockIdx (dmm::emulator::block_index())
#define blockDim (dmm::emulator::block_size())
#define __syncthreads() dmm::emulator::block_sync()

namespace cooperative_groups {

struct cluster_group {
  unsigned block_rank() const { return dmm::emulator::cluster_rank(); }
  unsigned num_blocks() const { return dmm::emulator::cluster_blocks(); }
  template <class S>
  S* map_shared_rank(S* mine, unsigned rank) const {
    const auto offset = reinterpret_cast<unsigned char*>(mine) - dmm::emulator::shared_memory();
    return reinterpret_cast<S*>(dmm::emulator::shared_memory_of(rank) + offset);
  }
  void barrier_arrive() const { dmm::emulator::cluster_arrive(); }
  void barrier_wait() const { dmm::emulator::cluster_wait(); }
  void sync() const { barrier_arrive(), barrier_wait(); }
};

inline cluster_group this_cluster() { return {}; }

}  // namespace cooperative_groups
