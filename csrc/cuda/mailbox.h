// Words in device memory by which the blocks of a team exchange numbers (flagged_words.cuh). Nothing of CUDA here.
#pragma once

#include <cstdint>

#include "tiling.h"

namespace dmm::cuda {

// Of a word of so many numbers, with its flag.
__host__ __device__ constexpr int word_bytes(int numbers) { return numbers == 1 ? 8 : 16; }

// A team's words begin at bytes + team * team_bytes, and those of odd steps odd_bytes after those of even steps.
struct Mailbox {
  unsigned char* bytes = nullptr;  // null where blocks do not exchange through device memory
  int64_t team_bytes = 0;
  int odd_bytes = 0;
};

}  // namespace dmm::cuda
