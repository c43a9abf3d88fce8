// The floor of a scan on thread-block clusters: its exchanges and barriers, and no arithmetic. Nothing of CUDA here.
#pragma once

#include <cstdint>

#include "cuda/hang.h"

namespace dmm::cuda {

// Each cluster passes a ring of cluster_size * width floats along: in a step, block r gives its `width` floats to
// every block, waits for the whole ring, and takes what is one place further round the ring. After `steps` steps
// the ring has turned by as many places.
struct ExchangeFloor {
  const float* in;  // [clusters, cluster_size * width], contiguous
  float* out;       // the same; may not overlap `in`
  int steps, clusters, cluster_size;
  int width;         // a multiple of store
  int threads;       // a multiple of 32
  int store;         // numbers that a thread stores at once, by st.async: 1, 2 or 4
  int giving_warps;  // of a block, its first ones
  HangReport hang{};
};

inline int64_t shared_bytes(const ExchangeFloor& a) {
  return static_cast<int64_t>(sizeof(float)) * (4 + int64_t{2} * a.cluster_size * a.width);
}

// Null, or what went wrong: static text.
const char* exchange_floor(const ExchangeFloor& args, void* stream);

}  // namespace dmm::cuda
