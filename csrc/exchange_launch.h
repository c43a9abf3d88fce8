// Launches of kernels whose blocks wait for one another.
#pragma once

#include "cuda/hang.h"
#include "cuda_stream.h"

namespace dmm {

// Raises if an earlier launch on the current device, of that index, left a record of a hang. Returns the record that
// the launch named `call` reports to. A captured launch keeps it: it stays valid for the life of the process.
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
