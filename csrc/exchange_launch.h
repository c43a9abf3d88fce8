// Launches of kernels whose blocks wait for one another.
#pragma once

#include "cuda_stream.h"
#include "hangs.h"

namespace dmm {

// Runs `launch(args, stream)` on the tensor's own device; an error of it becomes an exception that begins with `call`.
template <class Args, class Launch>
void launch_exchange(const Tensor& t, const std::string& call, Args args, Launch launch) {
  on_stream_of(t, call, [&](void* stream) {
    args.hang = hang_report(t.get_device_index(), call);
    return launch(args, stream);
  });
}

}  // namespace dmm
