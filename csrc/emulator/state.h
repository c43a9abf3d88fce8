// The state of a cluster under the emulator: its blocks, threads and barriers, and what is on its way between them.
#pragma once

#include <ucontext.h>

#include <deque>
#include <memory>
#include <vector>

#include "emulator.h"

namespace dmm::emulator {

// A thread that arrives gets the phase's number, and waits for as long as that is the phase.
class Barrier {
 public:
  void expect(int threads) { expected_ = threads; }
  uint64_t arrive() {
    const uint64_t token = phase_;
    ++arrived_;
    complete();
    return token;
  }
  void leave() {  // a thread that has ended is not waited for
    --expected_;
    complete();
  }
  bool all_left() const { return expected_ == 0; }
  bool passed(uint64_t token) const { return phase_ != token; }

 private:
  void complete() {
    if (arrived_ < expected_ || arrived_ == 0) return;
    arrived_ = 0;
    ++phase_;
  }
  int expected_ = 0, arrived_ = 0;
  uint64_t phase_ = 0;
};

// What the lanes of a warp lay open to one another.
struct Warp {
  Barrier barrier;
  float left[16][16], right[16][8];
  uint64_t shown[2][32];  // to a shuffle and to the next
};

struct Block {
  Dim3 index;
  unsigned rank;
  Barrier barrier, bundles[16];
  std::vector<Warp> warps;
  std::unique_ptr<unsigned char[]> shared;
  std::vector<uint64_t*> transaction_barriers;  // in the order in which they began
};

struct Copy {
  void* to;
  const void* from;
  size_t bytes;
};

// What is in a barrier's eight bytes, as in those of an mbarrier.
struct Transactions {
  int32_t bytes;  // still to come; below zero where they came before they were expected
  // Who is still to arrive, of so many in each phase: one of them says how many bytes the phase expects.
  uint32_t pending : 6, arrivals : 6, phase : 20;
};
static_assert(sizeof(Transactions) == sizeof(uint64_t));

// Numbers from a block, whose bytes a barrier counts.
struct RemoteStore {
  int block;
  float* to;
  float values[4];
  int count;
  uint64_t* barrier;
};

// A word in device memory that no other thread sees yet.
struct WordStore {
  unsigned char* to;
  unsigned char word[16];
  size_t bytes;
};

struct Thread {
  Dim3 index;
  Block* block;
  ucontext_t context;
  std::unique_ptr<unsigned char[]> stack;
  const Barrier* waits_at = nullptr;
  uint64_t token = 0;
  const uint64_t* waits_for = nullptr;  // a barrier in shared memory
  int64_t waits_since = 0;              // of the cluster's waits for such
  int64_t words_seen = -1;              // that were visible when it began to wait for another; -1: it does not
  bool timed_out = false, has_given_up = false;
  int parity = 0, barriers = 0;
  unsigned shuffles = 0;
  std::deque<std::vector<Copy>> copies{1};  // in groups; the last is not ended
  bool ended = false;
};

// The cluster that runs. Its threads leave it only for one another's turns, so one at a time is enough.
struct Cluster {
  const Launch& launch;
  const std::function<void()>& kernel;
  Dim3 block_size{};
  Barrier barrier{};
  std::vector<Block> blocks{};
  std::vector<Thread> threads{};
  std::vector<RemoteStore> stores{};  // on their way
  std::vector<WordStore> words{};
  int64_t words_visible = 0;
  uint32_t random = 1;
  int64_t waits = 0;
  bool is_faulty = false;       // the fault that was asked for has happened
  const char* error = nullptr;  // of a thread: none can throw out of its own stack
  Thread* running = nullptr;
  ucontext_t scheduler{};
};

}  // namespace dmm::emulator
