// The state of a cluster under the emulator: its blocks, threads and barriers, and the pending stores between them.
#pragma once

#include <ucontext.h>

#include <deque>
#include <memory>
#include <vector>

#include "emulator.h"

namespace dmm::emulator {

// An arriving thread receives the number of the current phase, and waits as long as it does not change.
class Barrier {
 public:
  void expect(int threads) { expected_ = threads; }
  uint64_t arrive() {
    const uint64_t token = phase_;
    ++arrived_;
    complete();
    return token;
  }
  void leave() {  // a thread that has ended no longer takes part
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

// The data that the lanes of a warp exchange.
struct Warp {
  Barrier barrier;
  float left[16][16], right[16][8];
  uint64_t shown[2][32];  // alternating buffers of consecutive shuffles
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

// The contents of a transaction barrier's eight bytes, as in an mbarrier.
struct Transactions {
  int32_t bytes;  // pending bytes; negative if they arrived before they were expected
  // Pending arrivals, arrivals per phase, one of which sets the expected bytes, and the phase.
  uint32_t pending : 6, arrivals : 6, phase : 20;
};
static_assert(sizeof(Transactions) == sizeof(uint64_t));

// A store by another block, whose bytes a barrier counts.
struct RemoteStore {
  int block;
  float* to;
  float values[4];
  int count;
  uint64_t* barrier;
};

// A word in device memory that is not visible to other threads yet.
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
  int64_t waits_since = 0;              // the sequence number of its wait within the cluster
  int64_t words_seen = -1;              // words visible when it began to wait for another one; -1: it does not wait
  bool timed_out = false, has_given_up = false;
  int parity = 0, barriers = 0;
  unsigned shuffles = 0;
  std::deque<std::vector<Copy>> copies{1};  // groups of copies; the last one is not committed
  bool ended = false;
};

// The running cluster. Only one cluster runs at a time.
struct Cluster {
  const Launch& launch;
  const std::function<void()>& kernel;
  Dim3 block_size{};
  Barrier barrier{};
  std::vector<Block> blocks{};
  std::vector<Thread> threads{};
  std::vector<RemoteStore> stores{};  // pending stores
  std::vector<WordStore> words{};
  int64_t words_visible = 0;
  uint32_t random = 1;
  int64_t waits = 0;
  bool is_faulty = false;       // the injected fault has occurred
  const char* error = nullptr;  // the error of a thread, which cannot throw out of its own stack
  Thread* running = nullptr;
  ucontext_t scheduler{};
};

}  // namespace dmm::emulator
