// The sequential part of rnn_scan for CUDA tensors: x_proj, h, dh [P, B, T, H], w_hh [H, H], h_0 [P, B, H],
// lengths [B]. A plan says how the work is cut up: dmm_fast/cuda/plan.py makes it.
#include "checks.h"
#ifdef DMM_FAST_CUDA
#include "cuda/rnn_scan.h"
#include "cuda_args.h"
#include "exchange_launch.h"
#endif

namespace dmm {

STABLE_TORCH_LIBRARY_FRAGMENT(dmm_fast, m) {
  m.def(
      "rnn_scan_steps(Tensor x_proj, Tensor w_hh, Tensor h_0, Tensor lengths, str nonlinearity, int[] plan)"
      " -> Tensor");
  m.def(
      "rnn_scan_steps_backward(Tensor dh, Tensor h, Tensor w_hh, Tensor lengths, str nonlinearity, int[] plan)"
      " -> (Tensor dx_proj, Tensor dh_0)");
}

#ifdef DMM_FAST_CUDA
namespace {

using Plan = std::vector<int64_t>;

bool is_tanh(const std::string& nonlinearity) {
  STD_TORCH_CHECK(nonlinearity == "relu" || nonlinearity == "tanh", "nonlinearity: expected relu or tanh, got ",
                  nonlinearity);
  return nonlinearity == "tanh";
}

void check_tiling(const Plan& plan, int64_t H) {
  if (cuda::is_by_warps(plan)) {
    const char* fault = cuda::warp_fault(plan, H);
    STD_TORCH_CHECK(fault == nullptr, "plan: expected one for these sizes, got ", cuda::describe(plan), ": ",
                    fault ? fault : "");
    return;
  }
  check_plan(plan, 1, [&] { return cuda::shares_outputs(cuda::tiling_of(plan, 0), plan[2], H, H); });
}

Tensor rnn_scan_steps(const Tensor& x_proj, const Tensor& w_hh, const Tensor& h_0, const Tensor& lengths,
                      std::string nonlinearity, Plan plan) {
  const OnDevice common("x_proj", x_proj, 4);
  const int64_t P = x_proj.size(0), B = x_proj.size(1), T = x_proj.size(2), H = x_proj.size(3);
  common.check("w_hh", w_hh, {H, H});
  common.check("h_0", h_0, {P, B, H});
  common.check("lengths", lengths, {B}, ScalarType::Long);
  const bool tanh = is_tanh(nonlinearity);
  const Tensor h = torch::stable::new_empty(x_proj, {P, B, T, H});
  if (h.numel() == 0) return h;
  check_tiling(plan, H);
  const cuda::RnnScan args{on_device_ragged_of(x_proj, lengths, plan),
                           static_cast<int>(plan[2]),
                           cuda::rnn_tiling_of(plan),
                           static_cast<int>(H),
                           tanh,
                           matrix_of(w_hh),
                           sequences_of(x_proj),
                           sequences_of(h_0),
                           h.mutable_data_ptr<float>(),
                           {},
                           cuda::warp_tile_of(plan)};
  launch_exchange(x_proj, "rnn_scan with plan " + cuda::describe(plan), args, cuda::rnn_scan);
  return h;
}

std::tuple<Tensor, Tensor> rnn_scan_steps_backward(const Tensor& dh, const Tensor& h, const Tensor& w_hh,
                                                   const Tensor& lengths, std::string nonlinearity, Plan plan) {
  const OnDevice common("h", h, 4);
  const int64_t P = h.size(0), B = h.size(1), T = h.size(2), H = h.size(3);
  common.check("dh", dh, {P, B, T, H});
  common.check("w_hh", w_hh, {H, H});
  common.check("lengths", lengths, {B}, ScalarType::Long);
  const bool tanh = is_tanh(nonlinearity);
  const Tensor dx_proj = torch::stable::new_empty(h, {P, B, T, H}), dh_0 = torch::stable::new_empty(h, {P, B, H});
  if (dh_0.numel() == 0) return {dx_proj, dh_0};
  check_tiling(plan, H);
  const cuda::RnnScanBackward args{on_device_ragged_of(h, lengths, plan),
                                   static_cast<int>(plan[2]),
                                   cuda::rnn_tiling_of(plan),
                                   static_cast<int>(H),
                                   tanh,
                                   matrix_of(w_hh),
                                   sequences_of(dh),
                                   sequences_of(h),
                                   dx_proj.mutable_data_ptr<float>(),
                                   dh_0.mutable_data_ptr<float>(),
                                   {},
                           cuda::warp_tile_of(plan)};
  launch_exchange(h, "rnn_scan_backward with plan " + cuda::describe(plan), args, cuda::rnn_scan_backward);
  return {dx_proj, dh_0};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(dmm_fast, CUDA, m) {
  m.impl("rnn_scan_steps", TORCH_BOX(&rnn_scan_steps));
  m.impl("rnn_scan_steps_backward", TORCH_BOX(&rnn_scan_steps_backward));
}
#endif

}  // namespace dmm
