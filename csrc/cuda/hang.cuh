// The device's side of the record of a wait that timed out.
#pragma once

#include "cluster.cuh"
#include "hang.h"

namespace dmm::cuda {

// Of all waits that time out the first is recorded. `seen()` is what the thread saw last.
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
  __threadfence_system();  // the host may look as soon as it is complete
  *const_cast<volatile unsigned*>(&record->state) = kHangComplete;
}

}  // namespace dmm::cuda
