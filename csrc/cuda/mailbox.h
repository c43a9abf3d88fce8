// Words in device memory for the exchange between the blocks of a team (flagged_words.cuh). This header is plain C++,
// without CUDA.
#pragma once

#include <cstdint>

#include "tiling.h"

namespace dmm::cuda {

// The size of a word with this many numbers and its flag.
__host__ __device__ constexpr int word_bytes(int numbers) { return numbers == 1 ? 8 : 16; }

// A team's words begin at bytes + team * team_bytes; those of odd steps follow at odd_bytes after those of even steps.
struct Mailbox {
  unsigned char* bytes = nullptr;  // null if blocks do not exchange through device memory
  int64_t team_bytes = 0;
  int odd_bytes = 0;
};

}  // namespace dmm::cuda
