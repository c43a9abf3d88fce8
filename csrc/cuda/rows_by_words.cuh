// The exchange of combiner_scan's sums among the blocks of a team through device memory, in flagged words
// (flagged_words.cuh). A word has a latent's sums: two numbers in the forward pass, one in the backward pass, in which the
// sums of a lane are two words. A lane stores them once, for all blocks; the thread of a latent polls for the words of all
// blocks, including its own, and adds them in the order of the blocks. So all blocks have bitwise equal latents.
//
// The rule of flagged_words.cuh holds: a block stores the words of step k + 2 of a group after the barrier that follows the
// latents of k + 2, which its threads with latents reached after they had received all words of k + 1. Every block stored a
// word of k + 1 after the same barrier of k + 1, which its threads reached after they had read all words of k. The words of
// a group's last step are read in the step that computes only latents, and no others follow.
#pragma once

#include "flagged_words.cuh"
#include "ragged.cuh"
#include "rows_layout.cuh"

namespace dmm::cuda {

template <class K, int kSums, class Args>  // K: a RowsKernel; a latent has kSums
class RowsByWords {
  using From = FromUnits<K>;
  using Mine = LatentThread<K>;
  using Word = FlaggedWord<kSums>;
  static constexpr int kWordsOfRow = kLaneGroups * K::kOutputs / kSums, kWordsOfBlock = K::kRows * kWordsOfRow;
  static constexpr int kBytes = static_cast<int>(sizeof(Word)), kBlockBytes = kWordsOfBlock * kBytes;
  // The number of blocks whose words a thread loads concurrently; two rows in the forward pass leave fewer registers.
  static constexpr int kAtOnce = kSums == 1 || K::kRows == 1 ? 8 : 6;
  static_assert(kBytes == word_bytes(kSums) && kGivenAtOnce % kSums == 0);

 public:
  using Blocks = Team;
  __device__ static Team blocks_of(const Args& a) { return Team(a.cluster_size, a.ragged.first_cluster); }
  __device__ static int count(const Team& team) { return team.blocks(); }
  __device__ static constexpr int inboxes(int) { return 0; }

  __device__ RowsByWords(const Args& a, const Team& team, float*)
      : a_(a),
        team_(team),
        words_(a.mailbox.bytes + team.index() * a.mailbox.team_bytes),
        group_bytes_(2 * team.blocks() * kBlockBytes),
        received_((Mine::row() * kWordsOfRow + Mine::latent()) * kBytes),
        given_(team.rank() * kBlockBytes + (From::row() * kWordsOfRow + From::first_kept() / kSums) * kBytes),
        has_latent_(Mine::latent() < a.latents),
        has_words_(From::copy() == 0 && From::group() < a.from_units.groups()) {}

  __device__ void start(const ClusterRows&) const {
    __syncthreads();  // makes the initial contents of shared memory visible
  }

  // Offsets of a turn, computed before it begins.
  struct Turn {
    int received, given;  // byte offsets in the team's words of the first one that this thread adds, and that it stores
  };
  __device__ Turn turn_of(int group, int step) const {
    return {place(group, step + 1) + received_, place(group, step) + given_};
  }

  // Waits for the sums of the thread's latent from all blocks and adds them. The first step has none.
  __device__ void receive(const Turn& turn, int group, int step, float (&sums)[kSums]) {
#pragma unroll
    for (int i = 0; i < kSums; ++i) sums[i] = 0.0f;
    if (step == 0 || !has_latent_) return;
#pragma unroll 1
    for (int first = 0; first < team_.blocks() && !is_lost_; first += kAtOnce)
      add_up(at(turn.received + first * kBlockBytes), team_.blocks() - first, group, step - 1, sums);
  }
  __device__ void give(const Turn& turn, int group, int step, int, const float (&sums)[kGivenAtOnce]) const {
    if (!has_words_ || is_lost_) return;
#pragma unroll
    for (int i = 0; i < kGivenAtOnce / kSums; ++i) {
      float numbers[kSums];
#pragma unroll
      for (int sum = 0; sum < kSums; ++sum) numbers[sum] = sums[i * kSums + sum];
      store_word(at(turn.given) + i, numbers, flag_of(step), group);
    }
  }
  __device__ void finish(const ClusterRows&) const {}

 private:
  // Adds the words of a few of the `left` remaining blocks; `from` is the first block's word.
  __device__ void add_up(const Word* from, int left, int group, int step, float (&sums)[kSums]) {
    ReceivedWords<kAtOnce, Word> words;
    is_lost_ = !words.receive(
        a_.hang, team_, group, step, [&](int i) { return i < left; }, [&](int i) { return from + i * kWordsOfBlock; },
        [] { return K::kRows; });
    if (is_lost_) return;
    // Zeros are added in place of missing blocks.
#pragma unroll
    for (int sum = 0; sum < kSums; ++sum) {
      float terms[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) terms[i] = words.word[i].numbers[sum];
      sums[sum] += sum_of(terms);
    }
  }

  __device__ int place(int group, int step) const { return group * group_bytes_ + (step & 1) * a_.mailbox.odd_bytes; }
  __device__ Word* at(int bytes) const { return reinterpret_cast<Word*>(words_ + bytes); }

  const Args& a_;
  const Team& team_;
  unsigned char* const words_;
  const int group_bytes_, received_, given_;
  const bool has_latent_, has_words_;
  bool is_lost_ = false;
};

}  // namespace dmm::cuda
