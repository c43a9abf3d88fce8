// A plan as a list of integers, and its checks, which ensure that no plan can cause an out-of-bounds access. This header
// is plain C++, without CUDA.
#pragma once

#include <cstddef>
#include <cstdint>
#include <sstream>
#include <string>
#include <vector>

#include "scan_kernels.h"
#include "tensor_tile.h"

namespace dmm::cuda {

// rows_per_cluster, rows_per_group, cluster_size, then eight numbers for each tiling, its fields in order.
using Plan = std::vector<int64_t>;

inline Tiling tiling_of(const Plan& plan, size_t which) {
  const auto number = [&](size_t i) { return static_cast<int>(plan[3 + 8 * which + i]); };
  return {number(0), number(1), number(2), number(3), number(4), number(5), number(6), number(7)};
}

constexpr int kMostClusterBlocks = 16, kMostTeamBlocks = 1024;

// Returns null, or the fault in the first three numbers of any plan.
inline const char* fault_of_shape(const Plan& plan, int most_blocks = kMostClusterBlocks) {
  for (const int64_t number : plan)
    if (number < 0 || number > INT32_MAX / 64) return "a number out of range";
  if (plan[0] < 1 || plan[0] > kMostRows) return "rows_per_cluster out of range";
  if (plan[1] < 1) return "rows_per_group out of range";
  if (plan[2] < 1 || plan[2] > most_blocks) return "cluster_size out of range";
  return nullptr;
}

// A plan with outputs by warps: rows_per_cluster, rows_per_group, cluster_size, then chunks of inputs, outputs per warp and
// chunks in registers; followed by 1 if the blocks are a team, which exchanges through device memory. No other plan of the
// scan has this length.
inline bool is_by_words(const Plan& plan) { return plan.size() == 7; }
inline bool is_by_warps(const Plan& plan) { return plan.size() == 6 || is_by_words(plan); }
inline WarpTile warp_tile_of(const Plan& plan) {
  if (!is_by_warps(plan)) return {};
  const auto number = [&](size_t i) { return static_cast<int>(plan[i]); };
  return {number(3), number(4), number(5), number(1)};
}

// rows_per_cluster, rows_per_group, cluster_size, then the five fields of a bf16 tile, in order.
inline bool is_bf16(const Plan& plan) { return plan.size() == 8; }
inline Bf16Tile bf16_tile_of(const Plan& plan) {
  if (!is_bf16(plan)) return {};
  const auto number = [&](size_t i) { return static_cast<int>(plan[3 + i]); };
  return {number(0), number(1), number(2), number(3), number(4)};
}

inline Tiling rnn_tiling_of(const Plan& plan) {
  return is_by_warps(plan) || is_bf16(plan) ? Tiling{} : tiling_of(plan, 0);
}

// Returns null, or the fault of a plan by warps, without checking that a kernel for it exists.
inline const char* warp_fault(const Plan& plan) {
  if (const char* fault = fault_of_shape(plan, is_by_words(plan) ? kMostTeamBlocks : kMostClusterBlocks)) return fault;
  const int64_t chunks = plan[3], outputs = plan[4], kept = plan[5];
  if (is_by_words(plan) && plan[6] != 1) return "an exchange other than through device memory";
  if (is_by_words(plan) && plan[1] > 3) return "more rows per group than fit in a word";
  if (is_by_words(plan) && plan[2] == 1) return "a team of one block";  // its warps would not be synchronised
  if (outputs < 1 || plan[1] * outputs > 32) return "no sums, or more than the lanes of a warp";
  if (kept < 1 || kept > chunks) return "chunks in registers out of range";
  if (chunks > kMostChunks) return "chunks out of range";
  // A single block has at most as many outputs as one chunk has inputs, and before sm_90 kernels with more are empty.
  if (plan[2] == 1 && chunks > 1) return "a single block with several chunks";
  return plan[2] * kWarpsOfBlock * outputs > kWarpChunk * chunks ? "more outputs than inputs" : nullptr;
}
// Likewise for this many units, including the check that a kernel exists.
inline const char* warp_fault(const Plan& plan, int64_t units) {
  if (const char* fault = warp_fault(plan)) return fault;
  const WarpTile tile = warp_tile_of(plan);
  const bool several = plan[0] > plan[1];
  const auto ignore = [](auto) {};
  if (!(is_by_words(plan) ? with_words_kernel(tile, several, ignore) : with_warp_kernel(tile, several, ignore)))
    return kNoScanKernel;
  return units > tile.units() || units > plan[2] * tile.block_outputs() ? "other sizes" : nullptr;
}

// Returns null, or the fault of a bf16 plan, without checking that a kernel for it exists.
inline const char* bf16_fault(const Plan& plan) {
  if (const char* fault = fault_of_shape(plan)) return fault;
  const int64_t warps = plan[3], parts = plan[4], depth = plan[5], kept = plan[6], row_tiles = plan[7];
  if (plan[2] < 2) return "a single block";
  if (warps < 1 || warps > 32 || parts < 1 || warps % parts != 0) return "warps that are not a multiple of parts";
  // A block has 15 named barriers for its bundles.
  if (warps / parts > 15) return "more bundles than barriers";
  if (kept < 1 || kept > depth || (depth - kept) % 2 != 0) return "tiles in registers out of range";
  if (depth > 64 || row_tiles < 1 || row_tiles > 4) return "a tile out of range";
  return plan[1] > 8 * row_tiles ? "rows_per_group out of range" : nullptr;
}
// Likewise for this many units, including the check that a kernel exists. Every block must have units, since a block
// without any would not synchronise with the others.
inline const char* bf16_fault(const Plan& plan, int64_t units) {
  if (const char* fault = bf16_fault(plan)) return fault;
  const Bf16Tile tile = bf16_tile_of(plan);
  if (!with_bf16_kernel(tile, [](auto) {})) return kNoScanKernel;
  if (units % 4 != 0) return "units that are not a multiple of four";
  const bool is_of = units <= tile.inputs() && units <= plan[2] * tile.block_outputs() &&
                     units > (plan[2] - 1) * tile.block_outputs();
  return is_of ? nullptr : "other sizes";
}

// A plan with lane tiles has the four fields of each of two tiles, in order, followed by 1 if the blocks are a team.
inline bool are_lanes_by_words(const Plan& plan) { return plan.size() == 3 + 4 * 2 + 1; }
inline bool has_lane_tiles(const Plan& plan) { return plan.size() == 3 + 4 * 2 || are_lanes_by_words(plan); }
inline LaneTile lane_tile_of(const Plan& plan, size_t which) {
  const auto number = [&](size_t i) { return static_cast<int>(plan[3 + 4 * which + i]); };
  return {number(0), number(1), number(2), number(3)};
}

// A plan with tensor tiles has inputs, units per block, tiles per warp and steps of the first product, then outputs,
// tiles and steps of the second.
inline bool has_tensor_tiles(const Plan& plan) { return plan.size() == 10; }
inline TensorTile tensor_tile_of(const Plan& plan, size_t which) {
  const auto number = [&](size_t i) { return static_cast<int>(plan[i]); };
  if (which == 0) return {number(3), number(4), number(5), number(6)};
  return {number(4), number(7), number(8), number(9)};
}

inline std::string describe(const Plan& plan) {
  std::ostringstream out;
  out << "[";
  for (size_t i = 0; i < plan.size(); ++i) out << (i ? ", " : "") << plan[i];
  out << "]";
  return out.str();
}

// Returns null, or the fault of a plan with lane tiles.
inline const char* fault_of_lane_tiles(const Plan& plan) {
  const bool by_words = are_lanes_by_words(plan);
  if (const char* fault = fault_of_shape(plan, by_words ? kMostTeamBlocks : kMostClusterBlocks)) return fault;
  if (by_words && plan.back() != 1) return "an exchange other than through device memory";
  if (by_words && plan[2] == 1) return "a team of one block";
  if (plan[1] > 2) return "more than two rows at once";
  for (size_t i = 0; i < 2; ++i) {
    const LaneTile t = lane_tile_of(plan, i);
    if (t.inputs < 1 || t.outputs < 1 || t.lane_inputs < 1 || t.group_outputs < 1) return "an empty tile";
    if (!t.holds_all()) return "fewer weights in registers than the matrix has";
  }
  return nullptr;
}

// Returns null, or the fault of a plan with tensor tiles.
inline const char* fault_of_tensor_tiles(const Plan& plan) {
  if (const char* fault = fault_of_shape(plan)) return fault;
  if (plan[1] > kTensorRows) return "more rows at once than a tile has columns";
  for (size_t i = 0; i < 2; ++i) {
    const TensorTile t = tensor_tile_of(plan, i);
    if (t.inputs < 1 || t.outputs < 1 || t.tiles < 1 || t.steps < 1) return "an empty tile";
    if (int64_t{t.tiles} * t.steps > kMostTensorWeights / 4) return "more weights than a thread has registers";
    if (!t.holds_all()) return "fewer weights in registers than the matrix has";
  }
  return nullptr;
}

// Returns null, or the fault of a plan with this many tilings.
inline const char* fault(const Plan& plan, size_t tilings) {
  if (plan.size() != 3 + 8 * tilings) return "another length";
  if (const char* fault = fault_of_shape(plan)) return fault;
  for (size_t i = 0; i < tilings; ++i) {
    const Tiling t = tiling_of(plan, i);
    if (t.inputs < 1 || t.outputs < 1 || t.parts < 1 || t.quads < 1) return "an empty tiling";
    if (plan[1] > t.chunk()) return "rows_per_group out of range";
    if (int64_t{8} * t.parts * t.quads > INT32_MAX / 64 || int64_t{16} * t.groups > INT32_MAX / 64)
      return "a tiling out of range";
    if (t.width() < t.outputs || t.groups > t.outputs) return "groups that do not match the outputs";
    if (t.tensor_tiles) {
      if (int64_t{t.groups} * t.parts > kMostThreads || t.threads() > kMostThreads) return "more threads than a block has";
      if (int64_t{8} * t.parts * t.quads < t.inputs) return "fewer tiles than the inputs have";
      if (t.in_registers != t.quads || t.in_shared) return "tensor cores with weights outside of registers";
      continue;
    }
    if (int64_t{t.groups_at_once()} * t.parts > kMostThreads) return "more threads than a block has";
    if (int64_t{4} * t.parts * t.quads < t.inputs) return "fewer quads than the inputs have";
    if (t.in_registers + t.in_shared > t.quads) return "more weights on chip than the matrix has";
    if (t.groups > kMostThreads && t.in_registers + t.in_shared > 0)
      return "weights on chip although a thread has several groups of outputs";
  }
  return nullptr;
}

// Returns null, or the fault of a combiner's plan of any kind.
inline const char* combiner_fault(const Plan& plan) {
  if (has_lane_tiles(plan)) return fault_of_lane_tiles(plan);
  return has_tensor_tiles(plan) ? fault_of_tensor_tiles(plan) : fault(plan, 2);
}

// Calls `with(to_units, from_units)` with the two tiles of a combiner's plan of any kind.
template <class With>
void with_combiner_tiles(const Plan& plan, With with) {
  if (has_lane_tiles(plan)) with(lane_tile_of(plan, 0), lane_tile_of(plan, 1));
  else if (has_tensor_tiles(plan)) with(tensor_tile_of(plan, 0), tensor_tile_of(plan, 1));
  else with(tiling_of(plan, 0), tiling_of(plan, 1));
}

// True if a tiling covers [inputs, outputs] when the blocks of a cluster split the outputs, or the inputs.
template <class Tile>
inline bool shares_outputs(const Tile& t, int64_t cluster_size, int64_t inputs, int64_t outputs) {
  return t.inputs == inputs && t.outputs * cluster_size >= outputs;
}
template <class Tile>
inline bool shares_inputs(const Tile& t, int64_t cluster_size, int64_t inputs, int64_t outputs) {
  return t.inputs * cluster_size >= inputs && t.outputs == outputs;
}

}  // namespace dmm::cuda
