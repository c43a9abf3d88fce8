// Launches of kernels whose blocks wait for one another.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <optional>

#include "cuda_stream.h"
#include "hangs.h"

namespace dmm {

// Device memory for the words of a launch's teams, initialised to zero.
inline Tensor zero_words(const Tensor& like, int64_t bytes) {
  return torch::stable::new_zeros(like, {bytes / static_cast<int64_t>(sizeof(float))});
}

// Runs `launch(args, stream)` on the tensor's device; an error becomes an exception that begins with `call`.
template <class Args, class Launch>
void launch_exchange(const Tensor& t, const std::string& call, Args args, Launch launch) {
  on_stream_of(t, call, [&](void* stream) {
    args.hang = hang_report(t.get_device_index(), call);
    return launch(args, stream);
  });
}

}  // namespace dmm
