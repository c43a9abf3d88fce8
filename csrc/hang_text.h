// The text of a hang record, shared by the ops and the emulator, hence without torch.
#pragma once

#include <sstream>
#include <string>

#include "cuda/hang.h"

namespace dmm {

inline std::string hang_text(const cuda::HangRecord& r, const std::string& call) {
  std::ostringstream out;
  out << call << ": block " << r.block << ", rank " << r.rank << " of its cluster, timed out waiting: group " << r.group
      << ", step " << r.step << ", parity " << r.parity << ", rows " << r.rows << ", thread " << r.thread
      << ", barrier 0x" << std::hex << r.barrier
      << ". Fewer or more bytes arrived than were expected, and results since then are wrong;"
         " dmm_fast.use_backend(\"triton\") computes without this kernel.";
  return out.str();
}

}  // namespace dmm
