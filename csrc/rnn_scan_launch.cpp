// The sequential part of rnn_scan for CUDA tensors. Its plan, made by dmm_fast/cuda/plan.py, distributes the work over
// blocks and threads.
#ifdef DMM_FAST_CUDA
#include "exchange_launch.h"
#include "scan_launches.h"

namespace dmm {
namespace {

const char* fault_of(const cuda::Plan& plan, int64_t H) {
  if (cuda::is_bf16(plan)) return cuda::bf16_fault(plan, H);
  if (cuda::is_by_warps(plan)) return cuda::warp_fault(plan, H);
  if (const char* fault = cuda::fault(plan, 1)) return fault;
  return cuda::shares_outputs(cuda::tiling_of(plan, 0), plan[2], H, H) ? nullptr : "other sizes";
}

template <class Launch, class Run>
void launch_rnn_scan(const char* name, const Launch& a, const Tensor& last_result, Run run) {
  if (last_result.numel() == 0) return;
  check_sizes(a.h);
  check_plan(a.plan, fault_of(a.plan, a.h.size(3)));
  auto scan = cuda::scan_of(a);
  std::optional<Tensor> words;  // their memory may be reused once this launch has been queued
  if (cuda::is_by_words(a.plan)) {
    const cuda::Mailbox mailbox = cuda::rnn_scan_mailbox(scan);
    words = zero_words(a.h, mailbox.team_bytes * scan.ragged.clusters());
    scan.mailbox = cuda::rnn_scan_mailbox(scan, words->mutable_data_ptr());
  }
  launch_exchange(a.h, name + (" with plan " + cuda::describe(a.plan)), scan, run);
}

}  // namespace

void launch(cuda::LaunchRnnScan<Tensor>& a) { launch_rnn_scan("rnn_scan", a, a.h, cuda::rnn_scan); }

void launch(cuda::LaunchRnnScanBackward<Tensor>& a) {
  launch_rnn_scan("rnn_scan_backward", a, a.dh_0, cuda::rnn_scan_backward);
}

}  // namespace dmm
#endif
