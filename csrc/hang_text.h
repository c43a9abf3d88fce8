// What a record of a hang says, in words: for the ops and for the emulator, so without torch.
#pragma once

#include <sstream>
#include <string>

#include "cuda/hang.h"

namespace dmm {

inline std::string hang_text(const cuda::HangRecord& r, const std::string& call) {
  std::ostringstream out;
  out << call << ": block " << r.block << ", rank " << r.rank << " of its cluster, gave up a wait: group " << r.group
      << ", step " << r.step << ", parity " << r.parity << ", rows " << r.rows << ", thread " << r.thread
      << ", barrier 0x" << std::hex << r.barrier
      << ". The numbers that a block waits for did not all come, or more came than were expected; results since then"
         " are wrong.";
  return out.str();
}

}  // namespace dmm
