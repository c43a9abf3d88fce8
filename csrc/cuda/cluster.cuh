// Thread-block clusters, transaction barriers (mbarrier) and asynchronous copies for the kernels. A kernel includes only
// this header and nothing of CUDA or torch, so that the emulator can compile the same source.
#pragma once

#include <cstdint>

#ifndef DMM_EMULATOR
#include <cooperative_groups.h>
#include <cuda_pipeline_primitives.h>
#include <cuda_runtime.h>

// The shared memory of a kernel, as one array whose size is set by the launch.
#define DMM_SHARED(type, name) extern __shared__ __align__(16) unsigned char dmm_shared_bytes[]; \
  type* const name = reinterpret_cast<type*>(dmm_shared_bytes)
#endif

#if defined(DMM_EMULATOR) || (defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900)
#define DMM_HAS_CLUSTERS 1
#endif

namespace dmm::cuda {

#ifdef DMM_HAS_CLUSTERS
constexpr bool kHasClusters = true;
#else
constexpr bool kHasClusters = false;
#endif

// Before sm_90 only clusters of one block can be launched.
struct Cluster {
#ifdef DMM_HAS_CLUSTERS
  cooperative_groups::cluster_group group = cooperative_groups::this_cluster();

  __device__ int rank() const { return static_cast<int>(group.block_rank()); }
  __device__ int blocks() const { return static_cast<int>(group.num_blocks()); }
  __device__ int index() const { return static_cast<int>(blockIdx.x) / blocks(); }
  __device__ void sync() const { group.sync(); }
#else
  __device__ int rank() const { return 0; }
  __device__ int blocks() const { return 1; }
  __device__ int index() const { return static_cast<int>(blockIdx.x); }
  __device__ void sync() const { __syncthreads(); }
#endif
};

// A barrier in shared memory, initially in phase 0. A phase ends when a thread has set the number of expected bytes, all of
// them have arrived and, if threads of the block are to arrive, all of these have; bytes and threads may arrive before the
// number is set.
//
// A wait returns true if the phase has ended: it gives up after 2^20 polls, which ask for 100 ns each, or after half a
// second. The duration of a poll is not documented, so the time is limited too; but only after some polls, since a process
// that shares the device is suspended for milliseconds. The first polls do not read the clock and have no time limit of
// their own, which would put the thread to sleep (NANOSLEEP).
constexpr int kMostPolls = 1 << 20, kLeastPolls = 1 << 10, kFirstPolls = 64;
constexpr int kPollNanoseconds = 100;
constexpr uint64_t kMostNanoseconds = 500'000'000;

#ifndef DMM_EMULATOR
__device__ inline uint64_t nanoseconds() {
  uint64_t now;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
  return now;
}
#endif

// An address in the shared memory of a block of the cluster, computed once for many stores.
#ifdef DMM_EMULATOR
struct Remote {
  int block;
  unsigned char* mine;  // the corresponding address in this block

  Remote operator+(int bytes) const { return {block, mine + bytes}; }
};
inline Remote remote(int block, void* mine) { return {block, static_cast<unsigned char*>(mine)}; }
#else
struct Remote {
  unsigned address;

  __device__ Remote operator+(int bytes) const { return {address + static_cast<unsigned>(bytes)}; }
};
#endif

// Forces a value into a register here. Otherwise the compiler may compute it at its use, after a wait.
#ifdef DMM_EMULATOR
inline void settle(int&) {}
inline void settle(float&) {}
inline void settle(Remote&) {}
#else
__device__ inline void settle(int& number) { asm volatile("" : "+r"(number)); }
__device__ inline void settle(float& number) { asm volatile("" : "+f"(number)); }
__device__ inline void settle(Remote& place) { asm volatile("" : "+r"(place.address)); }
#endif

// Loads from device memory through a pointer that the compiler cannot prove not to be in shared memory.
#ifdef DMM_EMULATOR
template <class T>
T load_global(const T* from) {
  return *from;
}
template <class T>
void store_global(T* to, T value) {
  *to = value;
}
inline void prefetch_global(const float*) {}
#else
template <class T>
__device__ T load_global(const T* from) {
  __builtin_assume(__isGlobal(from));
  return *from;
}
template <class T>
__device__ void store_global(T* to, T value) {
  __builtin_assume(__isGlobal(to));
  *to = value;
}
// Prefetches an address to the L2 cache.
__device__ inline void prefetch_global(const float* from) { asm volatile("prefetch.global.L2 [%0];" ::"l"(from)); }
#endif

// A named barrier of some warps of a block with `threads` threads in all; there are 15, from number 1 on.
#ifdef DMM_EMULATOR
inline void bundle_sync(int number, int threads) { emulator::bundle_sync(number, threads); }
#else
__device__ inline void bundle_sync(int number, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(number), "r"(threads) : "memory");
}
#endif

#ifdef DMM_EMULATOR
inline void transaction_init(uint64_t* barrier, int arrivals) { emulator::transaction_init(barrier, arrivals); }
inline void transaction_arrive(uint64_t* barrier) { emulator::transaction_arrive(barrier); }
inline void transaction_expect(uint64_t* barrier, int bytes) { emulator::transaction_expect(barrier, bytes); }
template <int kCount>
void transaction_store(bool is_wanted, Remote to, const float (&values)[kCount], Remote barrier) {
  if (is_wanted) emulator::transaction_store(to.block, reinterpret_cast<float*>(to.mine), values, kCount,
                              reinterpret_cast<uint64_t*>(barrier.mine));
}
inline bool transaction_wait(uint64_t* barrier, int parity) { return emulator::transaction_wait(barrier, parity); }
#elif defined(DMM_HAS_CLUSTERS)
__device__ inline unsigned shared_address(const void* p) {
  return static_cast<unsigned>(__cvta_generic_to_shared(p));
}
__device__ inline unsigned shared_address_in(int block, const void* mine) {
  unsigned there;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(shared_address(mine)), "r"(block));
  return there;
}
__device__ inline Remote remote(int block, const void* mine) { return {shared_address_in(block, mine)}; }
__device__ inline void transaction_init(uint64_t* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(1 + arrivals) : "memory");
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ inline void transaction_expect(uint64_t* barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}
// An arrival with release semantics: waiting threads see this thread's earlier writes.
__device__ inline void transaction_arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.release.cta.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}
// Stores one, two or four numbers if `is_wanted`; they are counted by the barrier in the destination block. A predicate
// takes fewer instructions than a branch around the store.
__device__ inline void transaction_store(bool is_wanted, Remote to, const float (&values)[1], Remote barrier) {
  asm volatile(
      "{\n.reg .pred is_wanted;\nsetp.ne.u32 is_wanted, %3, 0;\n"
      "@is_wanted st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];\n}" ::"r"(to.address),
      "r"(__float_as_uint(values[0])), "r"(barrier.address), "r"(static_cast<unsigned>(is_wanted))
      : "memory");
}
__device__ inline void transaction_store(bool is_wanted, Remote to, const float (&values)[2], Remote barrier) {
  asm volatile(
      "{\n.reg .pred is_wanted;\nsetp.ne.u32 is_wanted, %4, 0;\n"
      "@is_wanted st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.b32 [%0], {%1, %2}, [%3];\n}" ::"r"(
          to.address),
      "r"(__float_as_uint(values[0])), "r"(__float_as_uint(values[1])), "r"(barrier.address),
      "r"(static_cast<unsigned>(is_wanted))
      : "memory");
}
// docs-begin: remote store
__device__ inline void transaction_store(bool is_wanted, Remote to, const float (&values)[4], Remote barrier) {
  asm volatile(
      "{\n.reg .pred is_wanted;\nsetp.ne.u32 is_wanted, %6, 0;\n"
      "@is_wanted st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, [%5];\n}" ::"r"(
          to.address),
      "r"(__float_as_uint(values[0])), "r"(__float_as_uint(values[1])), "r"(__float_as_uint(values[2])),
      "r"(__float_as_uint(values[3])), "r"(barrier.address), "r"(static_cast<unsigned>(is_wanted))
      : "memory");
}
// docs-end: remote store
// Polls for the end of a phase with a time limit; returns false if it has not ended.
__device__ inline bool has_ended_in_time(unsigned barrier, int parity) {
  const uint64_t start = nanoseconds();
#pragma unroll 1
  for (int polls = 0; polls < kMostPolls; ++polls) {
    unsigned done;
    asm volatile(
        "{\n.reg .pred done;\n"
        "mbarrier.try_wait.parity.relaxed.cluster.shared::cta.b64 done, [%1], %2, %3;\n"
        "selp.u32 %0, 1, 0, done;\n}"
        : "=r"(done)
        : "r"(barrier), "r"(parity), "r"(kPollNanoseconds)
        : "memory");
    if (done) return true;
    if (polls >= kLeastPolls && nanoseconds() - start > kMostNanoseconds) return false;
  }
  return false;
}
// Waits for the end of a phase and acquires the data that arrived in it. The acquire is restricted to shared memory, which
// has all the data, since an acquire of all memory would invalidate the L1 cache at every step (CCTL.IVALL).
__device__ inline bool transaction_wait(uint64_t* barrier, int parity) {
  const unsigned address = shared_address(barrier);
  unsigned done = 0;
#pragma unroll 1
  for (int polls = 0; !done && polls < kFirstPolls; ++polls)
    asm volatile(
        "{\n.reg .pred done;\n"
        "mbarrier.try_wait.parity.relaxed.cluster.shared::cta.b64 done, [%1], %2;\n"
        "selp.u32 %0, 1, 0, done;\n}"
        : "=r"(done)
        : "r"(address), "r"(parity)
        : "memory");
  if (!done && !has_ended_in_time(address, parity)) return false;
  asm volatile("fence.acquire.sync_restrict::shared::cluster.cluster;" ::: "memory");
  return true;
}
#else  // never reached in a cluster of one
__device__ inline Remote remote(int, const void*) { return {}; }
__device__ inline void transaction_init(uint64_t*, int) {}
__device__ inline void transaction_arrive(uint64_t*) {}
__device__ inline void transaction_expect(uint64_t*, int) {}
template <int kCount>
__device__ void transaction_store(bool, Remote, const float (&)[kCount], Remote) {}
__device__ inline bool transaction_wait(uint64_t*, int) { return true; }
#endif

// Stores to the location of `mine` in another block, or in this one.
template <int kCount>
__device__ inline void transaction_store(int block, float* mine, const float (&values)[kCount], uint64_t* barrier) {
  transaction_store(true, remote(block, mine), values, remote(block, barrier));
}

// Copies a float from device memory to shared memory asynchronously. Other threads must not access it before the issuing
// thread has returned from `copies_done`.
__device__ inline void copy_async(float* shared, const float* from) { __pipeline_memcpy_async(shared, from, 4); }
// Commits a group of copies.
__device__ inline void copies_end() { __pipeline_commit(); }
// Waits for all groups of this thread except the latest kLater.
template <int kLater>
__device__ inline void copies_done() {
  __pipeline_wait_prior(kLater);
}

}  // namespace dmm::cuda
