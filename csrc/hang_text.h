// The text of a hang record, shared by the ops and the emulator, hence without torch.
#pragma once

#include <sstream>
#include <string>

#include "cuda/hang.h"

namespace dmm {

inline std::string hang_text(const cuda::HangRecord& r, const std::string& call) {
  std::ostringstream out;
  const bool by_cluster = r.exchange == cuda::kByCluster;
  out << call << ": block " << r.block << ", rank " << r.rank << " of its " << (by_cluster ? "cluster" : "team")
      << ", timed out waiting: group " << r.group << ", step " << r.step;
  if (by_cluster) out << ", parity " << r.parity;
  out << ", rows " << r.rows << ", thread " << r.thread << (by_cluster ? ", barrier 0x" : ", flag 0x") << std::hex << r.seen
      << (by_cluster ? ". Fewer or more bytes arrived than were expected" : ". A word of that step did not arrive")
      << ", and results since then are wrong; dmm_fast.use_backend(\"triton\") computes without this kernel.";
  return out.str();
}

}  // namespace dmm
