#include "emulator.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "state.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace dmm::emulator {
namespace {

constexpr size_t kStackBytes = 64 * 1024;

Transactions read(const uint64_t* barrier) {
  Transactions t;
  std::memcpy(&t, barrier, sizeof t);
  return t;
}
void write(uint64_t* barrier, Transactions t) {
  if (!t.pending && t.bytes == 0) {
    t.pending = t.arrivals;
    ++t.phase;
  }
  std::memcpy(barrier, &t, sizeof t);
}

thread_local Cluster* cluster = nullptr;

// The address sanitizer has to be told which stack is in use.
void switch_stack(ucontext_t* from, ucontext_t* to, const void* stack, size_t bytes, bool ends = false) {
#if defined(__SANITIZE_ADDRESS__)
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(ends ? nullptr : &fake, stack, bytes);
  swapcontext(from, to);
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#else
  (void)stack, (void)bytes, (void)ends;
  swapcontext(from, to);
#endif
}

#if defined(__SANITIZE_ADDRESS__)
thread_local const void* scheduler_stack = nullptr;
thread_local size_t scheduler_bytes = 0;
#else
constexpr const void* scheduler_stack = nullptr;
constexpr size_t scheduler_bytes = 0;
#endif

void yield(bool ends = false) {
  switch_stack(&cluster->running->context, &cluster->scheduler, scheduler_stack, scheduler_bytes, ends);
}

// True if barriers are skipped at some point; a test then expects effects that are otherwise errors.
bool ignores_barriers() { return cluster->launch.options.max_barriers != INT32_MAX; }

// True if the thread waits at the barrier that it has reached.
bool waits() { return cluster->running->barriers++ < cluster->launch.options.max_barriers; }

void wait_for_all(Barrier& barrier) {
  const uint64_t token = barrier.arrive();
  if (barrier.passed(token)) return;
  cluster->running->waits_at = &barrier;
  cluster->running->token = token;
  yield();
}

// Waits at a barrier of the kernel.
void sync(Barrier& barrier) {
  if (waits()) wait_for_all(barrier);
  else barrier.arrive();
}

void thread_main() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_bytes);
#endif
  cluster->kernel();
  Thread& thread = *cluster->running;
  thread.ended = true;
  thread.block->barrier.leave();
  cluster->barrier.leave();
  yield(true);
}

// True if the phase with this parity has ended.
bool has_ended(const uint64_t* barrier, int parity) { return (read(barrier).phase & 1) != parity; }

bool can_run(const Thread& t) {
  return !t.ended && (t.waits_at == nullptr || t.waits_at->passed(t.token)) &&
         (t.waits_for == nullptr || t.timed_out || has_ended(t.waits_for, t.parity)) &&
         (t.words_seen < 0 || t.timed_out || cluster->words_visible > t.words_seen);
}

// The shared memory of a block that has exited no longer exists.
void deliver(const RemoteStore& store) {
  if (cluster->blocks[store.block].barrier.all_left() && !ignores_barriers()) {
    cluster->error = "a store comes to a block that has ended";
    return;
  }
  std::copy_n(store.values, store.count, store.to);
  Transactions t = read(store.barrier);
  t.bytes -= static_cast<int32_t>(sizeof(float)) * store.count;
  write(store.barrier, t);
}

void show(const WordStore& store) {
  std::copy_n(store.word, store.bytes, store.to);
  ++cluster->words_visible;
}

// Makes one pending word visible, such that words for the same address stay in order.
void show_any() {
  auto& words = cluster->words;
  cluster->random = cluster->random * 1664525u + 1013904223u;
  const auto chosen = words.begin() + static_cast<std::ptrdiff_t>((cluster->random >> 8) % words.size());
  const auto first = std::find_if(words.begin(), chosen, [&](const WordStore& w) { return w.to == chosen->to; });
  show(*first);
  words.erase(first);
}

void show_words() {
  if (cluster->launch.options.shuffled && !cluster->words.empty()) return show_any();
  for (const WordStore& word : cluster->words) show(word);
  cluster->words.clear();
}

void deliver_all() {
  show_words();
  for (const RemoteStore& store : cluster->stores) deliver(store);
  cluster->stores.clear();
  if (cluster->error) throw std::runtime_error(cluster->error);
}

// Lets the longest wait for a barrier in shared memory or for a word give up, together with those for the same phase.
void time_out() {
  const Thread* first = nullptr;
  for (const Thread& thread : cluster->threads)
    if ((thread.waits_for || thread.words_seen >= 0) && (first == nullptr || thread.waits_since < first->waits_since))
      first = &thread;
  if (first == nullptr) throw std::runtime_error("threads wait at a barrier that others do not reach");
  const uint64_t* const barrier = first->waits_for;
  for (Thread& thread : cluster->threads) {
    if (barrier == nullptr ? &thread != first : thread.waits_for != barrier) continue;
    if (thread.has_given_up) throw std::runtime_error("a thread that has given up a wait waits for another");
    thread.timed_out = thread.has_given_up = true;
  }
}

void take_turns() {
  const size_t count = cluster->threads.size();
  const Options& options = cluster->launch.options;
  for (size_t left = count; left > 0;) {
    bool progress = false;
    for (size_t i = 0; i < count; ++i) {
      if (options.late && progress && i % 32 == 0) break;
      Thread& thread = cluster->threads[options.reversed ? count - 1 - i : i];
      if (!can_run(thread)) continue;
      progress = true;
      thread.waits_at = nullptr;
      thread.waits_for = nullptr;
      thread.words_seen = -1;
      cluster->running = &thread;
      switch_stack(&cluster->scheduler, &thread.context, thread.stack.get(), kStackBytes);
      left -= thread.ended;
      if (cluster->error) throw std::runtime_error(cluster->error);
    }
    if (progress) continue;
    const bool times_out_early = options.fault.kind == Fault::kEarlyTimeout && !cluster->is_faulty;
    cluster->is_faulty |= times_out_early;
    if ((cluster->stores.empty() && cluster->words.empty()) || times_out_early) time_out();
    else deliver_all();
  }
  deliver_all();
}

void prepare(Thread& thread, Block& block, int index) {
  thread.index = {static_cast<unsigned>(index), 0, 0};
  thread.block = &block;
  thread.stack.reset(new unsigned char[kStackBytes]);
  getcontext(&thread.context);
  thread.context.uc_stack.ss_sp = thread.stack.get();
  thread.context.uc_stack.ss_size = kStackBytes;
  thread.context.uc_link = nullptr;
  makecontext(&thread.context, thread_main, 0);
}

void run_cluster(const Launch& launch, const std::function<void()>& kernel, unsigned first_block) {
  Cluster self{launch, kernel, {static_cast<unsigned>(launch.threads), 1, 1}};
  cluster = &self;
  self.blocks.resize(launch.cluster_size);
  self.threads.resize(static_cast<size_t>(launch.cluster_size) * launch.threads);
  self.barrier.expect(static_cast<int>(self.threads.size()));
  for (int b = 0; b < launch.cluster_size; ++b) {
    Block& block = self.blocks[b];
    block.index = {first_block + b, 0, 0};
    block.rank = static_cast<unsigned>(b);
    block.barrier.expect(launch.threads);
    block.warps.resize((launch.threads + 31) / 32);
    for (Warp& warp : block.warps) warp.barrier.expect(32);
    block.shared.reset(new unsigned char[launch.shared_bytes]);
    std::fill_n(block.shared.get(), launch.shared_bytes, static_cast<unsigned char>(0xff));  // NaN
    for (int i = 0; i < launch.threads; ++i)
      prepare(self.threads[static_cast<size_t>(b) * launch.threads + i], block, i);
  }
  take_turns();
  cluster = nullptr;
}

}  // namespace

void run(const Launch& launch, const std::function<void()>& kernel) {
  for (int block = 0; block < launch.blocks; block += launch.cluster_size)
    run_cluster(launch, kernel, static_cast<unsigned>(block));
}

const Dim3& thread_index() { return cluster->running->index; }
const Dim3& block_index() { return cluster->running->block->index; }
const Dim3& block_size() { return cluster->block_size; }
unsigned cluster_rank() { return cluster->running->block->rank; }
unsigned cluster_blocks() { return static_cast<unsigned>(cluster->blocks.size()); }
unsigned char* shared_memory() { return cluster->running->block->shared.get(); }

void block_sync() { sync(cluster->running->block->barrier); }
void bundle_sync(int number, int threads) {
  Barrier& barrier = cluster->running->block->bundles[number];
  barrier.expect(threads);
  sync(barrier);
}
void warp_sync() {
  Thread& thread = *cluster->running;
  wait_for_all(thread.block->warps[thread.index.x / 32].barrier);
}
void cluster_sync() { sync(cluster->barrier); }
unsigned lane_index() { return cluster->running->index.x % 32; }
// Double buffered: a lane that writes for the shuffle after the next has passed the next, which all readers have reached.
uint64_t shuffle(uint64_t shown, unsigned lane) {
  Thread& thread = *cluster->running;
  Warp& warp = thread.block->warps[thread.index.x / 32];
  uint64_t(&place)[32] = warp.shown[thread.shuffles++ % 2];
  place[lane_index()] = shown;
  wait_for_all(warp.barrier);
  return place[lane];
}

void copy_async(void* to, const void* from, size_t bytes) { cluster->running->copies.back().push_back({to, from, bytes}); }
void copies_end() { cluster->running->copies.emplace_back(); }
void copies_done(int later_groups) {
  auto& groups = cluster->running->copies;
  for (; static_cast<int>(groups.size()) - 1 > later_groups; groups.pop_front())
    for (const Copy& copy : groups.front()) std::memcpy(copy.to, copy.from, copy.bytes);
}

namespace {

template <class S>
S* in_block(int block, S* mine) {
  const auto offset = reinterpret_cast<unsigned char*>(mine) - shared_memory();
  return reinterpret_cast<S*>(cluster->blocks[block].shared.get() + offset);
}

// The number of deliveries of a block's store, which the injected fault may change. The two barriers of a group alternate,
// so a barrier and its phase determine the step.
int times(int block, const uint64_t* barrier) {
  const Fault& fault = cluster->launch.options.fault;
  if (fault.kind == Fault::kNone || fault.kind == Fault::kEarlyTimeout) return 1;
  if (fault.rank != static_cast<int>(cluster_rank())) return 1;
  if (fault.kind == Fault::kSilent) return 0;
  if (cluster->is_faulty) return 1;
  const auto& barriers = cluster->blocks[block].transaction_barriers;
  const int index = static_cast<int>(std::find(barriers.begin(), barriers.end(), barrier) - barriers.begin());
  const int step = 2 * static_cast<int>(read(barrier).phase) + index % 2;
  if (index / 2 != fault.group || step != fault.step) return 1;
  cluster->is_faulty = true;
  return fault.kind == Fault::kLost ? 0 : 2;
}

void send(const RemoteStore& store) {
  const Options& options = cluster->launch.options;
  for (int left = times(store.block, store.barrier); left > 0; --left) {
    if (options.reversed || options.late) deliver(store);
    else cluster->stores.push_back(store);
  }
}

}  // namespace

void word_store(void* to, const void* word, size_t bytes, int group, int step) {
  const Options& options = cluster->launch.options;
  const Fault& fault = options.fault;
  if (fault.rank == static_cast<int>(cluster_rank())) {
    if (fault.kind == Fault::kSilent) return;
    if (fault.kind == Fault::kLost && !cluster->is_faulty && fault.group == group && fault.step == step) {
      cluster->is_faulty = true;
      return;
    }
  }
  const auto send = [&](size_t from, size_t count) {
    WordStore store{static_cast<unsigned char*>(to) + from, {}, count};
    std::copy_n(static_cast<const unsigned char*>(word) + from, count, store.word);
    if (options.reversed || options.late) show(store);
    else cluster->words.push_back(store);
  };
  if (fault.kind != Fault::kTorn) return send(0, bytes);
  send(bytes / 2, bytes - bytes / 2);
  send(0, bytes / 2);
}

bool words_wait() {
  Thread& thread = *cluster->running;
  thread.words_seen = cluster->words_visible;
  thread.waits_since = cluster->waits++;
  yield();
  const bool has_seen = !thread.timed_out;
  thread.timed_out = false;
  return has_seen;
}

float to_tf32(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof x);
  if ((bits & 0x7f800000u) != 0x7f800000u) bits += 0x1000u;  // to nearest, ties away from zero
  bits &= 0xffffe000u;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

void multiply_tiles(float (&sums)[4], const float (&left)[4], const float (&right)[2]) {
  const unsigned thread = cluster->running->index.x, lane = thread % 32, at = lane / 4, place = lane % 4;
  Warp& warp = cluster->running->block->warps[thread / 32];
  for (unsigned k = 0; k < 4; ++k) warp.left[at + 8 * (k % 2)][place + 4 * (k / 2)] = left[k];
  for (unsigned k = 0; k < 2; ++k) warp.right[place + 4 * k][at] = right[k];
  wait_for_all(warp.barrier);
  for (unsigned k = 0; k < 4; ++k)
    for (unsigned i = 0; i < 8; ++i)
      sums[k] += warp.left[at + 8 * (k / 2)][i] * warp.right[i][2 * place + k % 2];
  wait_for_all(warp.barrier);
}

uint32_t pack_bf16(float low, float high) {
  const auto round = [](float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof x);
    if (x != x) return uint32_t{0x7fff};
    return (bits + 0x7fffu + (bits >> 16 & 1)) >> 16;  // to nearest, ties to even
  };
  return round(low) | round(high) << 16;
}

void multiply_tiles_bf16(float (&sums)[4], const uint32_t (&left)[4], const uint32_t (&right)[2]) {
  const unsigned thread = cluster->running->index.x, lane = thread % 32, at = lane / 4, place = 2 * (lane % 4);
  Warp& warp = cluster->running->block->warps[thread / 32];
  const auto half = [](uint32_t pair, unsigned h) { return __uint_as_float(h ? pair & 0xffff0000u : pair << 16); };
  for (unsigned h = 0; h < 2; ++h) {
    for (unsigned k = 0; k < 4; ++k) warp.left[at + 8 * (k % 2)][place + h + 8 * (k / 2)] = half(left[k], h);
    for (unsigned k = 0; k < 2; ++k) warp.right[place + h + 8 * k][at] = half(right[k], h);
  }
  wait_for_all(warp.barrier);
  for (unsigned k = 0; k < 4; ++k)
    for (unsigned i = 0; i < 16; ++i) sums[k] += warp.left[at + 8 * (k / 2)][i] * warp.right[i][place + k % 2];
  wait_for_all(warp.barrier);
}

void transaction_init(uint64_t* barrier, int arrivals) {
  const uint32_t all = 1 + static_cast<uint32_t>(arrivals);
  write(barrier, {0, all, all, 0});
  cluster->running->block->transaction_barriers.push_back(barrier);
}
void transaction_expect(uint64_t* barrier, int bytes) {
  Transactions t = read(barrier);
  if (!t.pending) {
    if (!ignores_barriers()) cluster->error = "bytes of a phase are expected a second time";
    return;
  }
  --t.pending;
  t.bytes += bytes;
  write(barrier, t);
}
void transaction_arrive(uint64_t* barrier) {
  Transactions t = read(barrier);
  if (!t.pending) {
    if (!ignores_barriers()) cluster->error = "more threads arrive than a phase waits for";
    return;
  }
  --t.pending;
  write(barrier, t);
}
void transaction_store(int block, float* mine, const float* values, int count, uint64_t* barrier) {
  RemoteStore store{block, in_block(block, mine), {}, count, in_block(block, barrier)};
  std::copy_n(values, count, store.values);
  send(store);
}
bool transaction_wait(const uint64_t* barrier, int parity) {
  if (!waits() || has_ended(barrier, parity)) return true;
  Thread& thread = *cluster->running;
  thread.waits_for = barrier;
  thread.waits_since = cluster->waits++;
  thread.parity = parity;
  yield();
  const bool ended = !thread.timed_out;
  thread.timed_out = false;
  return ended;
}

}  // namespace dmm::emulator
