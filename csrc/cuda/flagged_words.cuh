// The exchange of data between blocks through device memory, for GPUs without clusters and for more blocks than a cluster
// can have.
//
// A word of 8 or 16 bytes has up to three numbers and a flag with their step. It is written and read by single accesses,
// so a thread that polls and finds the expected flag also has the numbers, without a fence, an atomic operation or a
// second round trip. 64-bit accesses are single-copy atomic in PTX's memory model. For 128 bits there are relaxed accesses
// since PTX 8.3, on which libcu++ builds 16-byte atomics; the memory model does not mention them, so the exchange floor in
// benchmarks/csrc checks on a GPU that they do not tear. All accesses go to the L2 cache, which the multiprocessors share.
// Words are zero when a kernel starts, and a flag is the number of its step, from 1.
//
// Words of even and odd steps are double buffered. That is enough if a block stores the words of step k + 2 after it has
// received all words of step k + 1: each block stored those after all its threads had read the words of step k that they
// need. Every store depends on values that were read before it, so the accesses cannot be reordered although they are
// relaxed. And a word of step k cannot be mistaken for one of step k + 2, since their flags differ.
//
// All blocks of a launch have to be resident, since they wait for each other (launch.cuh: a cooperative launch).
#pragma once

#include "cluster.cuh"
#include "hang.cuh"
#include "mailbox.h"

namespace dmm::cuda {

// Blocks that exchange data with one another; they are adjacent in the grid.
class Team {
 public:
  // `first` is the number of teams in earlier launches.
  __device__ Team(int blocks, int first)
      : blocks_(blocks),
        rank_(static_cast<int>(blockIdx.x) % blocks),
        index_(first + static_cast<int>(blockIdx.x) / blocks) {}
  __device__ int rank() const { return rank_; }
  __device__ int blocks() const { return blocks_; }
  __device__ int index() const { return index_; }  // among all teams

 private:
  int blocks_, rank_, index_;
};

constexpr uint64_t kStartNanoseconds = 30 * kMostNanoseconds;

// kCount numbers, one to three, and the flag.
template <int kCount>
struct alignas(word_bytes(kCount)) FlaggedWord {
  static_assert(kCount >= 1 && kCount <= 3);
  float numbers[word_bytes(kCount) / 4 - 1];
  unsigned flag;
};

#ifdef DMM_EMULATOR
// The group is used only by the emulator, which can inject the loss of a word.
template <int kCount>
void store_word(FlaggedWord<kCount>* to, const float (&numbers)[kCount], unsigned flag, int group) {
  FlaggedWord<kCount> word{};
  for (int i = 0; i < kCount; ++i) word.numbers[i] = numbers[i];
  word.flag = flag;
  emulator::word_store(to, &word, sizeof word, group, static_cast<int>(flag) - 1);
}
template <int kCount>
FlaggedWord<kCount> load_word(const FlaggedWord<kCount>* from) {
  return *from;
}
// The duration of polling: the emulator runs other threads until another word becomes visible, or gives up.
class Patience {
 public:
  bool lasts(int) { return emulator::words_wait(); }
};
#else
template <int kCount>
__device__ inline void store_word(FlaggedWord<kCount>* to, const float (&numbers)[kCount], unsigned flag, int) {
  if constexpr (kCount == 1) {
    asm volatile("{\n.reg .b64 word;\nmov.b64 word, {%1, %2};\nst.relaxed.gpu.global.b64 [%0], word;\n}" ::"l"(
                     __cvta_generic_to_global(to)),
                 "r"(__float_as_uint(numbers[0])), "r"(flag)
                 : "memory");
  } else {
    // docs-begin: word store
    const unsigned third = kCount > 2 ? __float_as_uint(numbers[kCount - 1]) : 0u;
    asm volatile(
        "{\n.reg .b64 low, high;\n.reg .b128 word;\nmov.b64 low, {%1, %2};\nmov.b64 high, {%3, %4};\n"
        "mov.b128 word, {low, high};\nst.relaxed.gpu.global.b128 [%0], word;\n}" ::"l"(__cvta_generic_to_global(to)),
        "r"(__float_as_uint(numbers[0])), "r"(__float_as_uint(numbers[1])), "r"(third), "r"(flag)
        : "memory");
    // docs-end: word store
  }
}
template <int kCount>
__device__ inline FlaggedWord<kCount> load_word(const FlaggedWord<kCount>* from) {
  FlaggedWord<kCount> word;
  if constexpr (kCount == 1) {
    asm volatile("{\n.reg .b64 word;\nld.relaxed.gpu.global.b64 word, [%2];\nmov.b64 {%0, %1}, word;\n}"
                 : "=f"(word.numbers[0]), "=r"(word.flag)
                 : "l"(__cvta_generic_to_global(from))
                 : "memory");
  } else {
    asm volatile(
        "{\n.reg .b64 low, high;\n.reg .b128 word;\nld.relaxed.gpu.global.b128 word, [%4];\nmov.b128 {low, high}, word;\n"
        "mov.b64 {%0, %1}, low;\nmov.b64 {%2, %3}, high;\n}"
        : "=f"(word.numbers[0]), "=f"(word.numbers[1]), "=f"(word.numbers[2]), "=r"(word.flag)
        : "l"(__cvta_generic_to_global(from))
        : "memory");
  }
  return word;
}
// The duration of polling: half a second, but at least some polls, since a process that shares the device is suspended for
// milliseconds. The first polls do not read the clock. The limit of the first step is longer, since other blocks may wait
// for a multiprocessor that is still occupied by another kernel.
class Patience {
 public:
  __device__ bool lasts(int step) {
    ++polls_;
    if (polls_ < kFirstPolls) return true;
    if (polls_ == kFirstPolls) start_ = nanoseconds();
    return polls_ < kLeastPolls || nanoseconds() - start_ < (step == 0 ? kStartNanoseconds : kMostNanoseconds);
  }

 private:
  int polls_ = 0;
  uint64_t start_ = 0;
};
#endif

__device__ inline unsigned flag_of(int step) { return static_cast<unsigned>(step) + 1; }

// Up to kWords words of a step of a group.
template <int kWords, class Word>
struct ReceivedWords {
  Word word[kWords];

  // Polls for the words with `wanted(i)`, at `place(i)`; `rows` is the number of active rows of the step. Returns false if
  // a word has not arrived in time, which is recorded.
  template <class Wanted, class Place, class Rows>
  __device__ bool receive(const HangReport& hang, const Team& team, int group, int step, Wanted wanted, Place place,
                          Rows rows) {
    // docs-begin: poll
    const unsigned flag = flag_of(step);
#pragma unroll
    for (int i = 0; i < kWords; ++i) word[i] = {{}, wanted(i) ? 0 : flag};
    Patience patience;
    while (true) {
      // Only missing words are read again, since the polls of all blocks share the L2 cache's bandwidth.
#pragma unroll
      for (int i = 0; i < kWords; ++i)
        if (word[i].flag != flag) word[i] = load_word(place(i));
      bool is_missing = false;
#pragma unroll
      for (int i = 0; i < kWords; ++i) is_missing |= word[i].flag != flag;
      if (!is_missing) return true;
      if (patience.lasts(step)) continue;
      record_hang<kByMemory>(hang, team, group, step, rows(), [&] {
        unsigned seen = 0;
#pragma unroll
        for (int i = 0; i < kWords; ++i) seen = word[i].flag != flag ? word[i].flag : seen;
        return seen;
      });
      return false;
    }
    // docs-end: poll
  }
};

}  // namespace dmm::cuda
