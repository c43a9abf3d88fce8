// Runs combiner_scan under the emulator with the kernels for one or two rows, on clusters or on teams.
#pragma once

#include <string>

#include "../cuda/combiner_scan.h"
#include "emulator.h"

namespace dmm::emulator {

template <class Args>  // cuda::CombinerRows or cuda::CombinerRowsBackward
void combiner_rows(const std::string& call, const Args& a, const Options& options);
template <class Args>
void combiner_words(const std::string& call, const Args& a, const Options& options);

}  // namespace dmm::emulator
