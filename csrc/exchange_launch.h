// Launches of kernels whose blocks wait for one another.
#pragma once

#include "cuda/hang.h"
#include "cuda_stream.h"

namespace dmm {

// Raises if an earlier launch on the current device, of that index, left a record of a hang; returns where one of
// `call` is to leave its own. A graph that captures the launch keeps it: it stays valid for the process's life.
cuda::HangReport hang_report(int32_t device, const std::string& call);

// Runs `launch(args, stream)` on the tensor's own device; an error of it becomes an exception that begins with `call`.
template <class Args, class Launch>
void launch_exchange(const Tensor& t, const std::string& call, Args args, Launch launch) {
  on_stream_of(t, call, [&](void* stream) {
    args.hang = hang_report(t.get_device_index(), call);
    return launch(args, stream);
  });
}

}  // namespace dmm
