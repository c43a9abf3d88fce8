// The record of a wait for other blocks that timed out. Nothing of CUDA here.
//
// The record lies in memory of the host that the device writes to, so that the host can look without waiting for the
// device, and the record outlives the kernel.
#pragma once

#include <cstdint>

namespace dmm::cuda {

enum HangState : unsigned { kNoHang = 0, kHangClaimed = 1, kHangComplete = 2 };

enum HangExchange : int { kByCluster, kByMemory };

struct HangRecord {
  unsigned state;  // a HangState; the other fields count where it is kHangComplete
  int call;        // what the host calls the launch
  int exchange;  // a HangExchange; the host sets it to the first, for instructions of a kernel are dear
  int block, rank, group, step, parity;
  int rows;  // that take part in the step, in the cluster and group
  int thread;
  uint64_t seen;  // a barrier's eight bytes, of which the hardware alone knows the layout, or the flag of a word
};

// Where a launch leaves its record, and the call that it writes there.
struct HangReport {
  HangRecord* record = nullptr;
  int call = 0;
};

// Makes a record for the current device, in a stream's capture too. Null, or what went wrong: static text.
const char* new_hang_record(HangRecord** record);

}  // namespace dmm::cuda
