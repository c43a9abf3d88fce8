// Kernels whose blocks wait for one another, with a record for a wait that gives up.
#pragma once

#include <stdexcept>
#include <string>

#include "../hang_text.h"
#include "emulator.h"

namespace dmm::emulator {

// Runs `kernel(args)` once as every thread. Throws where a wait gave up, with the words that the op has for it.
template <class Args, class Kernel>
void run_exchange(const std::string& call, Args args, const Launch& launch, Kernel kernel) {
  cuda::HangRecord record{};
  args.hang = {&record, 0};
  run(launch, [&] { kernel(args); });
  if (record.state == cuda::kHangComplete) throw std::runtime_error(hang_text(record, call));
}

}  // namespace dmm::emulator
