#include "clipped_adam.cuh"

#include "launch.cuh"

namespace dmm::cuda {

const char* clipped_adam(const AdamRule& rule, const std::vector<AdamTensor>& tensors, void* stream) {
  return in_launches(rule, tensors, [&](const AdamLaunch& args) {
    return launch_blocks(clipped_adam_kernel, args, args.blocks(), kAdamThreads, sizeof(AdamShared), stream);
  });
}

}  // namespace dmm::cuda
