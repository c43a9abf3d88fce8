// The device side of the record of a wait that timed out.
#pragma once

#include "cluster.cuh"
#include "hang.h"

namespace dmm::cuda {

// Records the first wait that times out. `seen()` returns the last value that the thread read.
template <HangExchange kExchange, class Blocks, class Seen>
__device__ void record_hang(const HangReport& report, const Blocks& blocks, int group, int step, int rows, Seen seen) {
  HangRecord* const record = report.record;
  if (atomicCAS(&record->state, kNoHang, kHangClaimed) != kNoHang) return;
  record->call = report.call;
  if constexpr (kExchange != kByCluster) record->exchange = kExchange;
  record->block = static_cast<int>(blockIdx.x);
  if constexpr (kExchange == kByMemory) record->block = blocks.index() * blocks.blocks() + blocks.rank();  // of all launches
  record->rank = blocks.rank();
  record->group = group;
  record->step = step;
  record->parity = step >> 1 & 1;
  record->rows = rows;
  record->thread = static_cast<int>(threadIdx.x);
  record->seen = seen();
  __threadfence_system();  // the host may read the record as soon as it is marked complete
  *const_cast<volatile unsigned*>(&record->state) = kHangComplete;
}

}  // namespace dmm::cuda
