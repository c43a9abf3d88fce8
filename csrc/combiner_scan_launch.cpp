// The sequential part of combiner_scan for CUDA tensors. A plan says how the work is cut up: dmm_fast/cuda/plan.py
// makes it.
#ifdef DMM_FAST_CUDA
#include "exchange_launch.h"
#include "scan_launches.h"

namespace dmm {
namespace {

// The plan's tiles are of [inputs, units] and [units, outputs].
const char* fault_of(const cuda::Plan& plan, int64_t inputs, int64_t units, int64_t outputs) {
  const char* fault = cuda::has_lane_tiles(plan) ? cuda::fault_of_lane_tiles(plan) : cuda::fault(plan, 2);
  if (fault) return fault;
  bool fits = false;
  cuda::with_combiner_tiles(plan, [&](const auto& to, const auto& from) {
    fits = cuda::shares_outputs(to, plan[2], inputs, units) && cuda::shares_inputs(from, plan[2], units, outputs) &&
           to.outputs == from.inputs;
  });
  return fits ? nullptr : "other sizes";
}

template <class Launch, class Run>
void launch_combiner_scan(const char* name, const Launch& a, int64_t inputs, int64_t outputs, Run run) {
  check_sizes(a.eps);
  check_plan(a.plan, fault_of(a.plan, inputs, a.weights.w_z.size(0), outputs));
  cuda::with_combiner_tiles(a.plan, [&](const auto& to, const auto& from) {
    launch_exchange(a.eps, name + (" with plan " + cuda::describe(a.plan)), cuda::scan_of(a, to, from), run);
  });
}

}  // namespace

void launch(cuda::LaunchCombinerScan<Tensor>& a) {
  if (a.z.numel() == 0) {  // without latents there are still units
    torch::stable::fill_(a.g, 0);
    return;
  }
  a.base = torch::stable::contiguous(a.base);
  a.weights.b_z = torch::stable::contiguous(a.weights.b_z);
  const int64_t Z = a.eps.size(3);
  launch_combiner_scan("combiner_scan", a, Z, 2 * Z,
                       [](const auto& scan, void* stream) { return cuda::combiner_scan(scan, stream); });
}

void launch(cuda::LaunchCombinerScanBackward<Tensor>& a) {
  if (a.dz_q_0.numel() == 0) {
    for (Tensor* const gradient : {&a.dh, &a.da}) torch::stable::fill_(*gradient, 0);
    return;
  }
  a.g = torch::stable::contiguous(a.g);
  const int64_t Z = a.eps.size(3);
  launch_combiner_scan("combiner_scan_backward", a, 2 * Z, Z,
                       [](const auto& scan, void* stream) { return cuda::combiner_scan_backward(scan, stream); });
}

}  // namespace dmm
#endif
