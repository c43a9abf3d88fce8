// Numbers that blocks exchange through device memory, for GPUs without clusters and for more blocks than a cluster has.
//
// With up to three numbers goes a flag that tells their step, in one word of 8 or 16 bytes. A word is written and read
// whole, so whoever finds the flag that it polls for has the numbers too: no fence, no atomic operation and no second round
// trip is on the way. Accesses of 64 bits are whole by PTX's memory model. Of 128 bits there are relaxed ones since PTX 8.3,
// on which libcu++ builds atomics of 16 bytes; the text of the model does not speak of them, so benchmarks/csrc's exchange
// floor checks on a GPU that these are whole too. All accesses go to the L2 cache,
// which the multiprocessors share. Words are zero when a kernel begins, and a flag is the number of its step from 1.
//
// The words of even and odd steps take turns. That is enough where a block stores the words of step k + 2 when it has all
// words of step k + 1: each block stored those after all its threads had read what they need of step k. Every store
// depends on the numbers that were read before it, so the accesses cannot change places, although they are relaxed. And
// a word of step k cannot be taken for one of step k + 2: the flag is another.
//
// All blocks of a launch have to be resident, for a block waits for others (launch.cuh: a cooperative launch).
#pragma once

#include "cluster.cuh"
#include "hang.cuh"
#include "mailbox.h"

namespace dmm::cuda {

// Blocks that exchange with one another; they lie side by side in the grid.
class Team {
 public:
  // `first` teams were launched before.
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
// The group is for the emulator alone, which can lose a word.
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
// Tells how long a thread polls: the emulator lets others run until another word can be seen, or gives up.
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
    const unsigned third = kCount > 2 ? __float_as_uint(numbers[kCount - 1]) : 0u;
    asm volatile(
        "{\n.reg .b64 low, high;\n.reg .b128 word;\nmov.b64 low, {%1, %2};\nmov.b64 high, {%3, %4};\n"
        "mov.b128 word, {low, high};\nst.relaxed.gpu.global.b128 [%0], word;\n}" ::"l"(__cvta_generic_to_global(to)),
        "r"(__float_as_uint(numbers[0])), "r"(__float_as_uint(numbers[1])), "r"(third), "r"(flag)
        : "memory");
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
// Tells how long a thread polls: half a second, but at least some polls, for a process that shares the device is stopped
// for milliseconds. The first polls read no clock. For the first step it polls longer: other blocks may wait for a
// multiprocessor that another kernel still holds.
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

// Words of a step of a group, of kWords places or fewer.
template <int kWords, class Word>
struct ReceivedWords {
  Word word[kWords];

  // Polls for those that are `wanted(i)`; word i lies at `place(i)`, and `rows` take part in the step. False where one has
  // not come in time, which is recorded.
  template <class Wanted, class Place, class Rows>
  __device__ bool receive(const HangReport& hang, const Team& team, int group, int step, Wanted wanted, Place place,
                          Rows rows) {
    const unsigned flag = flag_of(step);
#pragma unroll
    for (int i = 0; i < kWords; ++i) word[i] = {{}, wanted(i) ? 0 : flag};
    Patience patience;
    while (true) {
      // Only what has not come is read again, for all blocks' polls share the L2 cache's bandwidth.
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
  }
};

}  // namespace dmm::cuda
