// Runs combiner_scan under the emulator, one row at a time.
#pragma once

#include <string>

#include "../cuda/combiner_scan.h"
#include "emulator.h"

namespace dmm::emulator {

void combiner_rows(const std::string& call, const cuda::CombinerRows& a, const Options& options);
void combiner_rows(const std::string& call, const cuda::CombinerRowsBackward& a, const Options& options);

}  // namespace dmm::emulator
