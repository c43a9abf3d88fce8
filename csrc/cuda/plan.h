// A plan as it comes from outside, in numbers; checked, so that no plan makes a kernel touch memory that is not its
// own. Nothing of CUDA here.
#pragma once

#include <cstddef>
#include <cstdint>
#include <sstream>
#include <string>
#include <vector>

#include "scan_kernels.h"
#include "tensor_tile.h"

namespace dmm::cuda {

// rows_per_cluster, rows_per_group, cluster_size, then eight numbers for each tiling, in the order of its fields.
using Plan = std::vector<int64_t>;

inline Tiling tiling_of(const Plan& plan, size_t which) {
  const auto number = [&](size_t i) { return static_cast<int>(plan[3 + 8 * which + i]); };
  return {number(0), number(1), number(2), number(3), number(4), number(5), number(6), number(7)};
}

constexpr int kMostClusterBlocks = 16, kMostTeamBlocks = 1024;

// Null, or what is wrong with what every plan begins with.
inline const char* fault_of_shape(const Plan& plan, int most_blocks = kMostClusterBlocks) {
  for (const int64_t number : plan)
    if (number < 0 || number > INT32_MAX / 64) return "a number out of range";
  if (plan[0] < 1 || plan[0] > kMostRows) return "rows_per_cluster out of range";
  if (plan[1] < 1) return "rows_per_group out of range";
  if (plan[2] < 1 || plan[2] > most_blocks) return "cluster_size out of range";
  return nullptr;
}

// rows_per_cluster, rows_per_group, cluster_size, then of outputs that belong to warps: chunks of inputs, outputs of a warp,
// chunks that are in registers; and 1 where the blocks are a team, which exchanges through device memory. No other plan of
// the scan has as many numbers.
inline bool is_by_words(const Plan& plan) { return plan.size() == 7; }
inline bool is_by_warps(const Plan& plan) { return plan.size() == 6 || is_by_words(plan); }
inline WarpTile warp_tile_of(const Plan& plan) {
  if (!is_by_warps(plan)) return {};
  const auto number = [&](size_t i) { return static_cast<int>(plan[i]); };
  return {number(3), number(4), number(5), number(1)};
}

// rows_per_cluster, rows_per_group, cluster_size, then the five numbers of a bf16 tile, in the order of its fields.
inline bool is_bf16(const Plan& plan) { return plan.size() == 8; }
inline Bf16Tile bf16_tile_of(const Plan& plan) {
  if (!is_bf16(plan)) return {};
  const auto number = [&](size_t i) { return static_cast<int>(plan[3 + i]); };
  return {number(0), number(1), number(2), number(3), number(4)};
}

inline Tiling rnn_tiling_of(const Plan& plan) {
  return is_by_warps(plan) || is_bf16(plan) ? Tiling{} : tiling_of(plan, 0);
}

// Null, or what is wrong with a plan by warps, whether or not there is a kernel for it.
inline const char* warp_fault(const Plan& plan) {
  if (const char* fault = fault_of_shape(plan, is_by_words(plan) ? kMostTeamBlocks : kMostClusterBlocks)) return fault;
  const int64_t chunks = plan[3], outputs = plan[4], kept = plan[5];
  if (is_by_words(plan) && plan[6] != 1) return "another exchange than that through device memory";
  if (is_by_words(plan) && plan[1] > 3) return "more rows than a word has room for";
  if (is_by_words(plan) && plan[2] == 1) return "a team of one block";  // nothing would hold its warps together
  if (outputs < 1 || plan[1] * outputs > 32) return "other sums than the lanes of a warp can have";
  if (kept < 1 || kept > chunks) return "other chunks in registers than there are";
  if (chunks > kMostChunks) return "chunks out of range";
  // One chunk has all inputs that a block can have outputs, and before sm_90 the kernels of more are empty.
  if (plan[2] == 1 && chunks > 1) return "a block alone with several chunks";
  return plan[2] * kWarpsOfBlock * outputs > kWarpChunk * chunks ? "more outputs than inputs" : nullptr;
}
// Likewise for so many units, by a kernel that there is.
inline const char* warp_fault(const Plan& plan, int64_t units) {
  if (const char* fault = warp_fault(plan)) return fault;
  const WarpTile tile = warp_tile_of(plan);
  const bool several = plan[0] > plan[1];
  const auto ignore = [](auto) {};
  if (!(is_by_words(plan) ? with_words_kernel(tile, several, ignore) : with_warp_kernel(tile, several, ignore)))
    return kNoScanKernel;
  return units > tile.units() || units > plan[2] * tile.block_outputs() ? "other sizes" : nullptr;
}

// Null, or what is wrong with a plan in bf16, whether or not there is a kernel for it.
inline const char* bf16_fault(const Plan& plan) {
  if (const char* fault = fault_of_shape(plan)) return fault;
  const int64_t warps = plan[3], parts = plan[4], depth = plan[5], kept = plan[6], row_tiles = plan[7];
  if (plan[2] < 2) return "a block alone";
  if (warps < 1 || warps > 32 || parts < 1 || warps % parts != 0) return "bundles that are not the warps'";
  // So many barriers a block has for them.
  if (warps / parts > 15) return "more bundles than barriers";
  if (kept < 1 || kept > depth || (depth - kept) % 2 != 0) return "other tiles in registers than there are";
  if (depth > 64 || row_tiles < 1 || row_tiles > 4) return "a tile that is out of range";
  return plan[1] > 8 * row_tiles ? "rows_per_group out of range" : nullptr;
}
// Likewise for so many units, by a kernel that there is. Every block has some: one without would hold up no other.
inline const char* bf16_fault(const Plan& plan, int64_t units) {
  if (const char* fault = bf16_fault(plan)) return fault;
  const Bf16Tile tile = bf16_tile_of(plan);
  if (!with_bf16_kernel(tile, [](auto) {})) return kNoScanKernel;
  if (units % 4 != 0) return "units that are not a multiple of four";
  const bool is_of = units <= tile.inputs() && units <= plan[2] * tile.block_outputs() &&
                     units > (plan[2] - 1) * tile.block_outputs();
  return is_of ? nullptr : "other sizes";
}

// A plan of lane tiles has four numbers for each of two, in the order of its fields; and 1 where the blocks are a team.
inline bool are_lanes_by_words(const Plan& plan) { return plan.size() == 3 + 4 * 2 + 1; }
inline bool has_lane_tiles(const Plan& plan) { return plan.size() == 3 + 4 * 2 || are_lanes_by_words(plan); }
inline LaneTile lane_tile_of(const Plan& plan, size_t which) {
  const auto number = [&](size_t i) { return static_cast<int>(plan[3 + 4 * which + i]); };
  return {number(0), number(1), number(2), number(3)};
}

// A plan of tensor tiles has inputs, units of a block, tiles of a warp and steps of the first product, and outputs,
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

// Null, or what is wrong with a plan of lane tiles.
inline const char* fault_of_lane_tiles(const Plan& plan) {
  const bool by_words = are_lanes_by_words(plan);
  if (const char* fault = fault_of_shape(plan, by_words ? kMostTeamBlocks : kMostClusterBlocks)) return fault;
  if (by_words && plan.back() != 1) return "another exchange than that through device memory";
  if (by_words && plan[2] == 1) return "a team of one block";
  if (plan[1] > 2) return "more than two rows at once";
  for (size_t i = 0; i < 2; ++i) {
    const LaneTile t = lane_tile_of(plan, i);
    if (t.inputs < 1 || t.outputs < 1 || t.lane_inputs < 1 || t.group_outputs < 1) return "a tile of nothing";
    if (!t.holds_all()) return "fewer weights in registers than there are";
  }
  return nullptr;
}

// Null, or what is wrong with a plan of tensor tiles.
inline const char* fault_of_tensor_tiles(const Plan& plan) {
  if (const char* fault = fault_of_shape(plan)) return fault;
  if (plan[1] > kTensorRows) return "more rows at once than a tile has columns";
  for (size_t i = 0; i < 2; ++i) {
    const TensorTile t = tensor_tile_of(plan, i);
    if (t.inputs < 1 || t.outputs < 1 || t.tiles < 1 || t.steps < 1) return "a tile of nothing";
    if (int64_t{t.tiles} * t.steps > kMostTensorWeights / 4) return "more weights than a thread has registers";
    if (!t.holds_all()) return "fewer weights in registers than there are";
  }
  return nullptr;
}

// Null, or what is wrong with a plan of so many tilings.
inline const char* fault(const Plan& plan, size_t tilings) {
  if (plan.size() != 3 + 8 * tilings) return "another count of numbers";
  if (const char* fault = fault_of_shape(plan)) return fault;
  for (size_t i = 0; i < tilings; ++i) {
    const Tiling t = tiling_of(plan, i);
    if (t.inputs < 1 || t.outputs < 1 || t.parts < 1 || t.quads < 1) return "a tiling of nothing";
    if (plan[1] > t.chunk()) return "rows_per_group out of range";
    if (int64_t{8} * t.parts * t.quads > INT32_MAX / 64 || int64_t{16} * t.groups > INT32_MAX / 64)
      return "a tiling that is out of range";
    if (t.width() < t.outputs || t.groups > t.outputs) return "groups that are not the outputs'";
    if (t.tensor_tiles) {
      if (int64_t{t.groups} * t.parts > kMostThreads || t.threads() > kMostThreads) return "more threads than a block has";
      if (int64_t{8} * t.parts * t.quads < t.inputs) return "fewer tiles than the inputs have";
      if (t.in_registers != t.quads || t.in_shared) return "tensor cores with weights elsewhere";
      continue;
    }
    if (int64_t{t.groups_at_once()} * t.parts > kMostThreads) return "more threads than a block has";
    if (int64_t{4} * t.parts * t.quads < t.inputs) return "fewer quads than the inputs have";
    if (t.in_registers + t.in_shared > t.quads) return "more weights on the chip than there are";
    if (t.groups > kMostThreads && t.in_registers + t.in_shared > 0) return "a turn's weights kept for another";
  }
  return nullptr;
}

// Null, or what is wrong with a plan of a combiner, of any kind.
inline const char* combiner_fault(const Plan& plan) {
  if (has_lane_tiles(plan)) return fault_of_lane_tiles(plan);
  return has_tensor_tiles(plan) ? fault_of_tensor_tiles(plan) : fault(plan, 2);
}

// Calls `with(to_units, from_units)`: the two tiles of a combiner's plan, of any kind.
template <class With>
void with_combiner_tiles(const Plan& plan, With with) {
  if (has_lane_tiles(plan)) with(lane_tile_of(plan, 0), lane_tile_of(plan, 1));
  else if (has_tensor_tiles(plan)) with(tensor_tile_of(plan, 0), tensor_tile_of(plan, 1));
  else with(tiling_of(plan, 0), tiling_of(plan, 1));
}

// Whether a tiling is of [inputs, outputs] when the blocks of a cluster share the outputs, or the inputs.
template <class Tile>
inline bool shares_outputs(const Tile& t, int64_t cluster_size, int64_t inputs, int64_t outputs) {
  return t.inputs == inputs && t.outputs * cluster_size >= outputs;
}
template <class Tile>
inline bool shares_inputs(const Tile& t, int64_t cluster_size, int64_t inputs, int64_t outputs) {
  return t.inputs * cluster_size >= inputs && t.outputs == outputs;
}

}  // namespace dmm::cuda
