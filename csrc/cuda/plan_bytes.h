// The shared memory that a block of a scan takes under a plan. Nothing of CUDA here.
#pragma once

#include "combiner_scan.h"
#include "plan.h"
#include "rnn_scan.h"

namespace dmm::cuda {

template <class Args>
int64_t rnn_plan_bytes(const Plan& plan) {
  Args a{};
  a.ragged.rows_per_cluster = static_cast<int>(plan[0]);
  a.ragged.rows_per_group = static_cast<int>(plan[1]);
  a.tiling = rnn_tiling_of(plan);
  a.warp_tile = warp_tile_of(plan);
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
  return shared_bytes(a);
}
template <template <class> class Args>
int64_t combiner_plan_bytes(const Plan& plan, int latents) {
  if (has_lane_tiles(plan))
    return combiner_plan_bytes<Args<LaneTile>>(plan, lane_tile_of(plan, 0), lane_tile_of(plan, 1), latents);
  return combiner_plan_bytes<Args<Tiling>>(plan, tiling_of(plan, 0), tiling_of(plan, 1), latents);
}

// 0 where there is no such scan, or the plan is none of its.
inline int64_t plan_bytes(const std::string& scan, const Plan& plan, int latents) {
  const bool is_rnn = is_by_warps(plan) || fault(plan, 1) == nullptr;
  if (scan == "rnn_scan" && is_rnn) return rnn_plan_bytes<RnnScan>(plan);
  if (scan == "rnn_scan_backward" && is_rnn) return rnn_plan_bytes<RnnScanBackward>(plan);
  if (!(has_lane_tiles(plan) ? fault_of_lane_tiles(plan) : fault(plan, 2))) {
    if (scan == "combiner_scan") return combiner_plan_bytes<CombinerScanBy>(plan, latents);
    if (scan == "combiner_scan_backward") return combiner_plan_bytes<CombinerScanBackwardBy>(plan, latents);
  }
  return 0;
}

}  // namespace dmm::cuda
