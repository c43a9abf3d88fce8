// rnn_scan in bf16 under the emulator; in a file of its own, for it takes long to compile.
#pragma once

#include <string>

#include "../cuda/rnn_scan.h"
#include "emulator.h"

namespace dmm::emulator {

template <class Args>  // cuda::RnnScan or cuda::RnnScanBackward
void run_in_bf16(const std::string& call, const Args& a, const Options& options);

}  // namespace dmm::emulator
