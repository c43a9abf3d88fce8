// rnn_scan under the emulator where outputs belong to warps; in a file of its own, for it takes long to compile.
#pragma once

#include <string>

#include "../cuda/rnn_scan.h"
#include "emulator.h"

namespace dmm::emulator {

void run_by_warps(const std::string& call, const cuda::RnnScan& args, const Options& options);
void run_by_warps(const std::string& call, const cuda::RnnScanBackward& args, const Options& options);

}  // namespace dmm::emulator
