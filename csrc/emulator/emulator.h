// CUDA kernels on a CPU, for the tests, compiled from the sources of csrc/cuda and including thread-block clusters.
//
// A CUDA thread is a fiber; the fibers of one cluster run alternately, each until it waits at a barrier. Shared memory is a
// heap block of exactly the requested size, filled with NaN, so that the address sanitizer detects out-of-bounds accesses
// and reads of uninitialised memory show in the result. Words for other blocks in device memory become visible late, at
// once, or in any order. Fibers can run in reverse order, and barriers can be skipped, so that a test can show that it
// detects a missing barrier. Stores of a block can be dropped, so that a test can show that the kernel reports it.
//
// The emulator does not detect races in the memory model or divergence within a warp, and says nothing about speed.
#pragma once

#include <math.h>

#include <cstdint>
#include <cstring>
#include <functional>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __grid_constant__
#define __launch_bounds__(...)
#define DMM_SHARED(type, name) type* const name = reinterpret_cast<type*>(dmm::emulator::shared_memory())

namespace dmm::emulator {

struct Dim3 {
  unsigned x, y, z;
};

// A fault injected into each cluster: into the stores of the block of that rank, or into a wait.
struct Fault {
  enum Kind {
    kNone,
    kLost,          // one store of the block in a step of a group is dropped
    kDoubled,       // or delivered twice
    kSilent,        // all of the block's stores are dropped
    kEarlyTimeout,  // the first wait of any block times out, although what it waits for is on its way
    kTorn,          // words in device memory become visible in two halves, that with the flag first
    kOneBuffer,     // words of odd steps go where those of even steps are
    kOldWords,      // there are words of an earlier launch in device memory
  };
  Kind kind = kNone;
  int rank = 0, group = 0, step = 0;
};

struct Options {
  bool reversed = false;         // threads run last to first
  int max_barriers = INT32_MAX;  // each thread skips every barrier after its first max_barriers
  bool late = false;             // a warp runs only when those before it cannot continue without it
  bool shuffled = false;         // words in device memory become visible one by one, in random order
  Fault fault{};
};

struct Launch {
  int blocks, cluster_size, threads;
  int64_t shared_bytes;
  Options options{};
};

// Runs `kernel` once in every thread. Throws if threads wait at a barrier that others cannot reach any more.
void run(const Launch& launch, const std::function<void()>& kernel);

// The index of the running thread.
const Dim3& thread_index();
const Dim3& block_index();
const Dim3& block_size();
unsigned cluster_rank();
unsigned cluster_blocks();
unsigned char* shared_memory();
void block_sync();
void bundle_sync(int number, int threads);
void warp_sync();
void cluster_sync();
// An asynchronous copy is carried out when it is waited for, and not before.
void copy_async(void* to, const void* from, size_t bytes);
void copies_end();
void copies_done(int later_groups);
// The tensor cores of a warp, all of whose threads have to take part: mma.m16n8k8 in tf32.
float to_tf32(float x);
void multiply_tiles(float (&sums)[4], const float (&left)[4], const float (&right)[2]);
// Likewise mma.m16n8k16 of pairs in bf16, with the first number in the lower half.
uint32_t pack_bf16(float low, float high);
void multiply_tiles_bf16(float (&sums)[4], const uint32_t (&left)[4], const uint32_t (&right)[2]);
// Transaction barriers in shared memory. A store to another block is delivered when no thread can run any more, or
// immediately if threads run in reverse order or warps late. A wait gives up and returns false if no thread can run and no
// store is pending; the longest wait gives up first.
void transaction_init(uint64_t* barrier, int arrivals);
void transaction_arrive(uint64_t* barrier);
void transaction_expect(uint64_t* barrier, int bytes);
void transaction_store(int block, float* mine, const float* values, int count, uint64_t* barrier);
bool transaction_wait(const uint64_t* barrier, int parity);
// A word in device memory, which becomes visible as a whole when no thread can run any more, or immediately if threads run
// in reverse order or warps late; words for one address become visible in order. A polling thread waits until another word
// becomes visible; the wait returns false if no thread can run and no word is pending.
void word_store(void* to, const void* word, size_t bytes, int group, int step);
bool words_wait();
// The eight bytes that another lane of the warp passes to the shuffle, in which all lanes have to take part.
uint64_t shuffle(uint64_t shown, unsigned lane);
unsigned lane_index();

}  // namespace dmm::emulator

#define threadIdx (dmm::emulator::thread_index())
#define blockIdx (dmm::emulator::block_index())
#define blockDim (dmm::emulator::block_size())
#define __syncthreads() dmm::emulator::block_sync()
#define __syncwarp() dmm::emulator::warp_sync()
#define __threadfence()
#define __threadfence_system()
#define __pipeline_memcpy_async(to, from, bytes) dmm::emulator::copy_async(to, from, bytes)
#define __pipeline_commit() dmm::emulator::copies_end()
#define __pipeline_wait_prior(later) dmm::emulator::copies_done(later)

template <class T>
T __shfl_sync(unsigned, T value, int lane) {
  static_assert(sizeof(T) <= sizeof(uint64_t) && std::is_trivially_copyable_v<T>);
  uint64_t shown = 0;
  std::memcpy(&shown, &value, sizeof value);
  shown = dmm::emulator::shuffle(shown, static_cast<unsigned>(lane) % 32);
  std::memcpy(&value, &shown, sizeof value);
  return value;
}
template <class T>
T __shfl_xor_sync(unsigned lanes, T value, int mask) {
  return __shfl_sync(lanes, value, static_cast<int>(dmm::emulator::lane_index()) ^ mask);
}

inline float __uint_as_float(uint32_t bits) {
  float value = 0;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
inline unsigned atomicCAS(unsigned* at, unsigned expected, unsigned value) {
  const unsigned before = *at;
  if (before == expected) *at = value;
  return before;
}
inline int atomicAdd(int* at, int value) {
  const int before = *at;
  *at += value;
  return before;
}

struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};

struct alignas(8) uint2 {
  uint32_t x, y;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};

namespace cooperative_groups {

struct cluster_group {
  unsigned block_rank() const { return dmm::emulator::cluster_rank(); }
  unsigned num_blocks() const { return dmm::emulator::cluster_blocks(); }
  void sync() const { dmm::emulator::cluster_sync(); }
};

inline cluster_group this_cluster() { return {}; }

}  // namespace cooperative_groups
