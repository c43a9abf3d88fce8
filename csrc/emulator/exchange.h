// Runs of kernels whose blocks wait for one another, with a record of waits that give up.
#pragma once

#include <stdexcept>
#include <string>
#include <vector>

#include "../cuda/mailbox.h"
#include "../hang_text.h"
#include "emulator.h"

namespace dmm::emulator {

// Runs `kernel(args)` once in every thread. Throws if a wait gave up, with the op's error message.
template <class Args, class Kernel>
void run_exchange(const std::string& call, Args args, const Launch& launch, Kernel kernel) {
  cuda::HangRecord record{};
  args.hang = {&record, 0};
  run(launch, [&] { kernel(args); });
  if (record.state == cuda::kHangComplete) throw std::runtime_error(hang_text(record, call));
}

// Runs `kernel(args)` in every thread of the teams that the rows need. At most two teams are resident: further ones are
// launched later, as in launch_teams.
template <class Args, class Kernel>
void run_teams(const std::string& call, Args args, int threads, const Options& options, Kernel kernel) {
  constexpr int kAtOnce = 2;
  const int teams = args.ragged.clusters();
  for (int& first = args.ragged.first_cluster; first < teams; first += kAtOnce) {
    const int blocks = (teams - first < kAtOnce ? teams - first : kAtOnce) * args.cluster_size;
    run_exchange(call, args, {blocks, args.cluster_size, threads, shared_bytes(args), options}, kernel);
  }
}

// The words of all teams of a launch: zero, or those of an earlier launch, of any step.
class Words {
 public:
  Words(cuda::Mailbox like, int teams, int word_bytes, const Options& options)
      : memory_(static_cast<size_t>(like.team_bytes * teams / 16 + 1)), mailbox(like) {
    mailbox.bytes = reinterpret_cast<unsigned char*>(memory_.data());
    if (options.fault.kind == Fault::kOneBuffer) mailbox.odd_bytes = 0;
    if (options.fault.kind != Fault::kOldWords) return;
    for (int64_t at = 0; at < like.team_bytes * teams; at += word_bytes) {
      const unsigned flag = at / like.odd_bytes % 2 ? 2 : 1;  // the flag of the first step that uses this word
      std::memcpy(mailbox.bytes + at + word_bytes - 4, &flag, sizeof flag);
    }
  }

 private:
  struct alignas(16) Room {
    unsigned char bytes[16] = {};
  };
  std::vector<Room> memory_;

 public:
  cuda::Mailbox mailbox;
};

}  // namespace dmm::emulator
