// Runs combiner_scan under the emulator, on tensor cores.
#pragma once

#include <string>

#include "../cuda/combiner_scan.h"
#include "emulator.h"

namespace dmm::emulator {

template <class Args>  // cuda::CombinerTensor or cuda::CombinerTensorBackward
void combiner_tensor(const std::string& call, const Args& a, const Options& options);

}  // namespace dmm::emulator
