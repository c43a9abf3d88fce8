#pragma once

#include "cuda/exchange.cuh"
#include "cuda/flagged_words.cuh"
#include "exchange_floor.h"

namespace dmm::cuda {

// One block of a cluster. Shared memory: the barriers of one group, and two rings, of which a step writes one while the
// other is still read.
template <int kCount>
__global__ void exchange_floor_kernel(const __grid_constant__ ExchangeFloor a) {
  DMM_SHARED(float, shared);
  const Cluster cluster{};
  const int ring = a.cluster_size * a.width, first = cluster.rank() * a.width, givers = 32 * a.giving_warps;
  const int bytes = static_cast<int>(sizeof(float)) * ring;
  const int64_t base = static_cast<int64_t>(blockIdx.x / a.cluster_size) * ring + first;
  const int thread = static_cast<int>(threadIdx.x);
  float* const rings = shared + 4;
  Exchange exchange(cluster, cluster.blocks(), reinterpret_cast<uint64_t*>(shared), a.hang);
  exchange.start(1, [&](int, int step) { return step < a.steps ? bytes : 0; });
  for (int t = 0; t <= a.steps; ++t) {
    if (t > 0) exchange.wait(0, t - 1, [] { return 1; });
    if (t > 0 && t + 1 < a.steps && thread == 0) exchange.expect(0, t + 1, bytes);
    const float* const before = rings + ((t + 1) & 1) * ring;
    if (thread < givers) {
      for (int i = kCount * thread; i < a.width; i += kCount * givers) {
        float values[kCount];
        for (int k = 0; k < kCount; ++k) {
          const int next = first + i + k + 1;
          values[k] = t == 0 ? a.in[base + i + k] : before[next < ring ? next : 0];
          if (t == a.steps) a.out[base + i + k] = values[k];
        }
        if (t < a.steps) exchange.give(0, t, rings + (t & 1) * ring + first + i, values);
      }
    }
    __syncthreads();  // as in a scan, whose blocks give when all their threads have read
  }
  exchange.finish(1, [&](int) { return a.steps; });
}

constexpr int kFloorWords = 8;  // that a thread polls for at once

// One block of a team, which exchanges through device memory. A word has three numbers, as in a scan of three rows.
static __global__ __launch_bounds__(1024) void word_floor_kernel(const __grid_constant__ ExchangeFloor a) {
  DMM_SHARED(float, shared);
  const Team team(a.cluster_size, 0);
  const int ring = a.cluster_size * a.width, first = team.rank() * a.width, threads = static_cast<int>(blockDim.x);
  const int own_words = a.width / kWordStore, all_words = ring / kWordStore, givers = 32 * a.giving_warps;
  const int64_t base = int64_t{team.index()} * ring + first;
  const int thread = static_cast<int>(threadIdx.x);
  float* const rings = shared + 4;
  bool is_lost = false;
  for (int t = 0; t <= a.steps; ++t) {
    float* const before = rings + ((t + 1) & 1) * ring;
    float* const after = rings + (t & 1) * ring;
    const auto words_of = [&](int step) {
      unsigned char* const words = a.mailbox.bytes + team.index() * a.mailbox.team_bytes;
      return reinterpret_cast<FlaggedWord<kWordStore>*>(words + (step & 1) * a.mailbox.odd_bytes);
    };
    for (int at = thread; t > 0 && at < all_words && !is_lost; at += kFloorWords * threads) {
      const auto place = [&](int i) { return at + i * threads; };
      const auto is_others = [&](int i) { return place(i) < all_words && place(i) / own_words != team.rank(); };
      ReceivedWords<kFloorWords, FlaggedWord<kWordStore>> received;
      is_lost = !received.receive(a.hang, team, 0, t - 1, is_others, [&](int i) { return words_of(t - 1) + place(i); },
                                  [] { return 1; });
#pragma unroll
      for (int i = 0; i < kFloorWords; ++i)
        if (is_others(i) && !is_lost)
          for (int k = 0; k < kWordStore; ++k) before[kWordStore * place(i) + k] = received.word[i].numbers[k];
    }
    __syncthreads();
    for (int word = thread; word < own_words && thread < givers; word += givers) {
      float values[kWordStore];
      for (int k = 0; k < kWordStore; ++k) {
        const int i = kWordStore * word + k, next = first + i + 1;
        values[k] = t == 0 ? a.in[base + i] : before[next < ring ? next : 0];
        if (t == a.steps) a.out[base + i] = values[k];
        else after[first + i] = values[k];
      }
      if (t < a.steps && !is_lost) store_word(words_of(t) + first / kWordStore + word, values, flag_of(t), 0);
    }
  }
}

}  // namespace dmm::cuda
