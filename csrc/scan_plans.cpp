// Queries of the scans' kernels for the planner (dmm_fast/cuda/plan.py). They are in every build, since plans can be made
// on machines without a GPU.
#include <torch/csrc/stable/library.h>
#include <torch/headeronly/util/Exception.h>

#include <string>
#include <type_traits>

#include "cuda/combiner_scan.h"
#include "cuda/plan.h"
#include "cuda/rnn_scan.h"

namespace dmm::cuda {
namespace {

template <class Args>
int64_t rnn_plan_bytes(const Plan& plan) {
  Args a{};
  a.ragged.rows_per_cluster = static_cast<int>(plan[0]);
  a.ragged.rows_per_group = static_cast<int>(plan[1]);
  a.tiling = rnn_tiling_of(plan);
  a.warp_tile = warp_tile_of(plan);
  a.bf16_tile = bf16_tile_of(plan);
  return shared_bytes(a);
}

template <class Args, class Tile>
int64_t combiner_plan_bytes(const Plan& plan, const Tile& to_units, const Tile& from_units, int latents) {
  Args a{};
  a.ragged.rows_per_cluster = static_cast<int>(plan[0]);
  a.ragged.rows_per_group = static_cast<int>(plan[1]);
  a.cluster_size = static_cast<int>(plan[2]);
  a.to_units = to_units;
  a.from_units = from_units;
  a.latents = latents;
  if constexpr (std::is_same_v<Tile, LaneTile>)
    if (are_lanes_by_words(plan)) a.mailbox = combiner_mailbox(a);
  return shared_bytes(a);
}
template <template <class> class Args>
int64_t combiner_plan_bytes(const Plan& plan, int latents) {
  int64_t bytes = 0;
  with_combiner_tiles(plan, [&](const auto& to, const auto& from) {
    bytes = combiner_plan_bytes<Args<std::decay_t<decltype(to)>>>(plan, to, from, latents);
  });
  return bytes;
}

// The shared memory of a block; 0 if the scan is unknown or the plan is invalid for it.
int64_t plan_bytes(const std::string& scan, const Plan& plan, int latents) {
  const char* const rnn_fault = is_bf16(plan) ? bf16_fault(plan) : is_by_warps(plan) ? warp_fault(plan) : fault(plan, 1);
  const bool is_rnn = rnn_fault == nullptr;
  if (scan == "rnn_scan" && is_rnn) return rnn_plan_bytes<RnnScan>(plan);
  if (scan == "rnn_scan_backward" && is_rnn) return rnn_plan_bytes<RnnScanBackward>(plan);
  if (combiner_fault(plan) == nullptr) {
    if (scan == "combiner_scan") return combiner_plan_bytes<CombinerScanBy>(plan, latents);
    if (scan == "combiner_scan_backward") return combiner_plan_bytes<CombinerScanBackwardBy>(plan, latents);
  }
  return 0;
}

}  // namespace
}  // namespace dmm::cuda

namespace dmm {
namespace {

std::string scan_kernels(std::string kind) {
  const std::string found = cuda::scan_kernels(kind);
  STD_TORCH_CHECK(!found.empty(), "kind: expected one of the scans' kernels, got ", kind);
  return found;
}

int64_t scan_shared_bytes(std::string scan, cuda::Plan plan, int64_t latents) {
  STD_TORCH_CHECK(latents >= 0 && latents <= INT32_MAX / 64, "latents: expected 0 to ", INT32_MAX / 64, ", got ", latents);
  const int64_t bytes = cuda::plan_bytes(scan, plan, static_cast<int>(latents));
  STD_TORCH_CHECK(bytes > 0, "plan: expected one of ", scan, ", got ", cuda::describe(plan));
  return bytes;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(dmm_fast, m) {
  m.def("_scan_kernels(str kind) -> str");
  m.def("_scan_shared_bytes(str scan, int[] plan, int latents) -> int");
}

// The ops have no tensor arguments, so no device can select an implementation.
STABLE_TORCH_LIBRARY_IMPL(dmm_fast, CompositeExplicitAutograd, m) {
  m.impl("_scan_kernels", TORCH_BOX(&scan_kernels));
  m.impl("_scan_shared_bytes", TORCH_BOX(&scan_shared_bytes));
}

}  // namespace dmm
