// The floor of a scan on clusters or teams of blocks: its exchanges and barriers, and no arithmetic. Nothing of CUDA here.
#pragma once

#include <cstdint>

#include "cuda/hang.h"
#include "cuda/mailbox.h"

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
  int store;         // numbers that a thread stores at once: 1, 2 or 4 by st.async; 3 in a word of device memory
  int giving_warps;  // of a block, its first ones
  HangReport hang{};
  Mailbox mailbox{};  // where numbers go through device memory
};

constexpr int kWordStore = 3;

// As rnn_scan_mailbox.
inline Mailbox exchange_floor_mailbox(const ExchangeFloor& a, void* words = nullptr) {
  const int64_t of_step = int64_t{a.cluster_size} * a.width / kWordStore * word_bytes(kWordStore);
  return {static_cast<unsigned char*>(words), 2 * of_step, static_cast<int>(of_step)};
}

inline int64_t shared_bytes(const ExchangeFloor& a) {
  return static_cast<int64_t>(sizeof(float)) * (4 + int64_t{2} * a.cluster_size * a.width);
}

// Null, or what went wrong, valid until the thread's next launch.
const char* exchange_floor(const ExchangeFloor& args, void* stream);

}  // namespace dmm::cuda
