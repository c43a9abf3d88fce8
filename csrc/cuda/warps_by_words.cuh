// The exchange of rnn_scan's state among the blocks of a team through device memory, in flagged words
// (flagged_words.cuh), with outputs by warps.
//
// A word has a unit's values for all rows of a group. A lane stores the words of its warp's outputs as soon as the warp has
// computed them, without a barrier of the block before. In the next turn of the group the threads poll for the words of the
// other blocks' units and write them to the block's own state, followed by one barrier of the block. So the rule of
// flagged_words.cuh holds: a warp stores words of a step after that barrier, before which all threads have read the words
// of the step before.
//
// The state of step k is written in the turn of k (own units) and before the barrier of k + 1 (other units), and read after
// that barrier. It is next overwritten in the turn of k + 2, after the barrier of k + 2, which all its readers have reached.
#pragma once

#include "flagged_words.cuh"
#include "ragged.cuh"
#include "warp_product.cuh"

namespace dmm::cuda {

template <class K, class Args>
class WarpsByWords {
  static constexpr int kRows = K::kRows, kOutputs = K::kOutputs, kSums = kRows * kOutputs;
  static constexpr int kUnits = K::tile().units(), kState = K::tile().state(), kOwn = K::tile().block_outputs();
  // The maximum number of words that a thread polls for, and the number of rounds of up to four words.
  static constexpr int kLoads = (kUnits - kOwn + kWarpThreads - 1) / kWarpThreads, kRounds = (kLoads + 3) / 4;
  static constexpr int kAtOnce = (kLoads + kRounds - 1) / kRounds;
  using Word = FlaggedWord<kRows>;
  static_assert(sizeof(Word) == word_bytes(kRows));

 public:
  using Blocks = Team;
  __device__ static Team blocks_of(const Args& a) { return Team(a.cluster_size, a.ragged.first_cluster); }

  __device__ WarpsByWords(const Args& a, const Team& team, const ClusterRows&, const WarpLayout& layout,
                          unsigned char* shared)
      : a_(a),
        team_(team),
        states_(reinterpret_cast<float*>(shared + layout.states)),
        words_(a.mailbox.bytes + team.index() * a.mailbox.team_bytes),
        own_(team.rank() * kOwn + warp() * kOutputs + lane()) {}

  template <class Steps>
  __device__ void start(Steps) const {
    __syncthreads();  // makes the initial states visible
  }
  // Finds the lanes that have the sums of this lane's word.
  __device__ void find_peers() {
    const Summed sum = summed<kSums>(lane());
    for (int from = 0; from < 32; ++from) {
      const int number = __shfl_sync(kAllLanes, sum.is_first ? sum.number : -1, from);
#pragma unroll
      for (int row = 0; row < kRows; ++row)
        if (number == row * kOutputs + lane()) lanes_ |= from << 8 * row;
    }
  }
  template <class Rows>
  __device__ void wait(int group, int step, Rows rows) {
#pragma unroll 1
    for (int first = 0; first < kLoads && !is_lost_; first += kAtOnce) receive(group, step, first, rows);
    __syncthreads();
  }
  // Sends the warp's values, of which each lane has one.
  template <class Turn>
  __device__ void give(const Turn& turn, const float*, float value) const {
    float numbers[kRows];
#pragma unroll
    for (int row = 0; row < kRows; ++row) numbers[row] = __shfl_sync(kAllLanes, value, lanes_ >> 8 * row);
    if (lane() < kOutputs && !is_lost_) store_word(words(turn.group, turn.step) + own_, numbers, flag_of(turn.step), turn.group);
  }
  template <class Steps>
  __device__ void finish(Steps) const {}

 private:
  // Reads the thread's words from index `first` on.
  template <class Rows>
  __device__ void receive(int group, int step, int first, Rows rows) {
    const Word* const from = words(group, step);
    float* const state = states_ + (2 * group + (step & 1)) * kState;
    ReceivedWords<kAtOnce, Word> words;
    is_lost_ = !words.receive(
        a_.hang, team_, group, step, [&](int i) { return is_mine(first + i); },
        [&](int i) { return from + unit(first + i); }, rows);
    if (is_lost_) return;
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i)
      if (is_mine(first + i))
#pragma unroll
        for (int row = 0; row < kRows; ++row) state[row * kUnits + unit(first + i)] = words.word[i].numbers[row];
  }

  // The i-th unit that the thread polls for. Each block starts with the one after it, so that not all read the same first.
  __device__ bool is_mine(int i) const { return static_cast<int>(threadIdx.x) + i * kWarpThreads < units() - kOwn; }
  __device__ int unit(int i) const {
    const int at = (team_.rank() + 1) * kOwn + static_cast<int>(threadIdx.x) + i * kWarpThreads;
    return at < units() ? at : at - units();
  }
  __device__ Word* words(int group, int step) const {
    const int64_t of_step = int64_t{units()} * static_cast<int>(sizeof(Word));
    return reinterpret_cast<Word*>(words_ + 2 * group * of_step + (step & 1) * a_.mailbox.odd_bytes);
  }
  __device__ int units() const { return a_.cluster_size * kOwn; }  // of all blocks
  __device__ static int lane() { return static_cast<int>(threadIdx.x) % 32; }
  __device__ static int warp() { return static_cast<int>(threadIdx.x) / 32; }

  const Args& a_;
  const Team& team_;
  float* const states_;
  unsigned char* const words_;
  const int own_;  // the index of the word that the lane stores
  int lanes_ = 0;  // the lanes that have its values, eight bits for each row
  bool is_lost_ = false;
};

}  // namespace dmm::cuda
