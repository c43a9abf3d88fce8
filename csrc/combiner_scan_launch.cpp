// The sequential part of combiner_scan for CUDA tensors. Its plan, made by dmm_fast/cuda/plan.py, distributes the work
// over blocks and threads.
#ifdef DMM_FAST_CUDA
#include "exchange_launch.h"
#include "scan_launches.h"

namespace dmm {
namespace {

// The plan's tiles are of [inputs, units] and [units, outputs]. Inputs and outputs have one or two elements per latent.
const char* fault_of(const cuda::Plan& plan, int64_t inputs, int64_t units, int64_t outputs) {
  if (const char* fault = cuda::combiner_fault(plan)) return fault;
  bool fits = false;
  cuda::with_combiner_tiles(plan, [&](const auto& to, const auto& from) {
    fits = cuda::shares_outputs(to, plan[2], inputs, units) && cuda::shares_inputs(from, plan[2], units, outputs) &&
           to.outputs == from.inputs;
  });
  if (!fits) return "other sizes";
  const int64_t latents = inputs < outputs ? inputs : outputs;
  const bool is_too_wide = cuda::has_tensor_tiles(plan) && latents > plan[2] * cuda::kMostSlice;
  return is_too_wide ? "more latents than a cluster has threads" : nullptr;
}

// Zeroed words for the scan if its blocks are a team. Their memory may be reused once this launch has been queued.
template <template <class> class ScanBy>
std::optional<Tensor> words_for(ScanBy<cuda::LaneTile>& scan, const cuda::Plan& plan, const Tensor& like) {
  if (!cuda::are_lanes_by_words(plan)) return {};
  check_plan(plan, cuda::with_words_kernel(scan, [](auto) {}) ? nullptr : cuda::kNoScanKernel);
  Tensor words = zero_words(like, cuda::combiner_mailbox(scan).team_bytes * scan.ragged.clusters());
  scan.mailbox = cuda::combiner_mailbox(scan, words.mutable_data_ptr());
  return words;
}
template <class Scan>
std::optional<Tensor> words_for(Scan&, const cuda::Plan&, const Tensor&) {
  return {};
}

template <class Launch, class Run>
void launch_combiner_scan(const char* name, const Launch& a, int64_t inputs, int64_t outputs, Run run) {
  check_sizes(a.eps);
  check_plan(a.plan, fault_of(a.plan, inputs, a.weights.w_z.size(0), outputs));
  cuda::with_combiner_tiles(a.plan, [&](const auto& to, const auto& from) {
    auto scan = cuda::scan_of(a, to, from);
    const auto words = words_for(scan, a.plan, a.eps);
    launch_exchange(a.eps, name + (" with plan " + cuda::describe(a.plan)), scan, run);
  });
}

}  // namespace

void launch(cuda::LaunchCombinerScan<Tensor>& a) {
  if (a.z.numel() == 0) {  // without latents there may still be units
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
