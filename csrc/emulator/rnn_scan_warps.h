// rnn_scan with outputs by warps under the emulator; in a separate file because it is slow to compile.
#pragma once

#include <string>

#include "../cuda/rnn_scan.h"
#include "emulator.h"

namespace dmm::emulator {

template <class Args>  // cuda::RnnScan or cuda::RnnScanBackward
void run_by_warps(const std::string& call, const Args& a, const Options& options);
template <class Args>
void run_by_words(const std::string& call, const Args& a, const Options& options);

}  // namespace dmm::emulator
