// The record of a wait for other blocks that timed out. This header is plain C++, without CUDA.
//
// The record is in host memory that the device writes to, so that the host can read it without synchronising the device,
// and it outlives the kernel.
#pragma once

#include <cstdint>

namespace dmm::cuda {

enum HangState : unsigned { kNoHang = 0, kHangClaimed = 1, kHangComplete = 2 };

enum HangExchange : int { kByCluster, kByMemory };

struct HangRecord {
  unsigned state;  // a HangState; the other fields are valid if it is kHangComplete
  int call;        // the host's id of the launch
  int exchange;  // a HangExchange; the host initialises it to the first value, which saves the kernel instructions
  int block, rank, group, step, parity;
  int rows;  // active rows of the step, in the cluster and group
  int thread;
  uint64_t seen;  // the eight bytes of a barrier, whose layout is undocumented, or the flag of a word
};

// The record of a launch, and the id that it writes there.
struct HangReport {
  HangRecord* record = nullptr;
  int call = 0;
};

// Allocates a record for the current device, also during a stream capture. Returns null, or a static error message.
const char* new_hang_record(HangRecord** record);

}  // namespace dmm::cuda
