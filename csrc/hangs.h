// Reports of kernels whose waits for other blocks timed out. Each library that launches such kernels has its own.
#pragma once

#include <cstdint>
#include <string>

#include "cuda/hang.h"

namespace dmm {

// Raises if an earlier launch on the current device, of that index, left a record of a hang. Returns the record that
// the launch named `call` reports to. A captured launch keeps it: it stays valid for the life of the process.
cuda::HangReport hang_report(int32_t device, const std::string& call);

// Raises if a launch on any device left a record of a hang. Does not wait for the device, so that it finds what was
// recorded until now.
void check_hangs();

}  // namespace dmm
