// The instantiated kernels of the scans: one list for each kind, used for launches, by the planner (dmm_fast/cuda/plan.py
// reads it from the library) and by the emulator, which has a few small ones. This header is plain C++, without CUDA.
#pragma once

#include <string>

#include "bf16_tile.h"
#include "lane_tile.h"
#include "tiling.h"
#include "warp_tile.h"

// rnn_scan with outputs by warps: chunks of inputs, outputs per warp, chunks with weights in registers, rows per group, and
// a flag for several groups per cluster. A thread has 4 x outputs x chunks weights in registers.
//
// Likewise with exchange through device memory: kernels with up to three rows, which fit in one word.
//
// rnn_scan for any sizes: quads of weights in registers, or on tensor cores tiles of 16 outputs and quads of 8 inputs.
//
// rnn_scan in bf16: warps per block, parts of the inputs, tiles of 16 inputs per part, tiles with weights in registers,
// tiles of 8 rows per group.
//
// combiner_scan for any sizes: quads in registers, of the smaller matrix and of the larger one.
//
// combiner_scan on tensor cores: blocks per cluster, then for the block's units and for its partial sums the tiles of 16
// outputs per warp and the steps of 8 inputs. A thread has 4 x tiles x steps weights of each matrix in registers.
//
// combiner_scan for one or two rows at a time: blocks per cluster, then for the block's units and for its partial sums the
// outputs per eight lanes and the inputs per lane, and the rows. In the forward pass, two rows of the largest tile would
// need too many registers.
//
// Likewise with exchange through device memory, for any number of blocks: only the tiles and the rows.
#ifdef DMM_EMULATOR
#define DMM_RNN_WARP_KERNELS(each) \
  each(1, 4, 1, 1, false) each(1, 4, 1, 3, false) each(1, 4, 1, 2, true) each(2, 5, 1, 3, false) each(2, 4, 1, 4, true) \
  each(3, 4, 2, 5, true)
#define DMM_RNN_WORDS_KERNELS(each) \
  each(1, 4, 1, 1, false) each(1, 4, 1, 3, false) each(1, 4, 1, 2, true) each(2, 5, 1, 3, false) each(3, 4, 2, 3, true)
#define DMM_RNN_KERNELS(each) each(0) each(2)
#define DMM_RNN_TENSOR_KERNELS(each) each(1, 4) each(2, 8)
#define DMM_RNN_BF16_KERNELS(each) each(1, 1, 6, 4, 1) each(4, 2, 3, 1, 1) each(2, 2, 2, 2, 2)
#define DMM_COMBINER_KERNELS(each) each(0, 0) each(2, 2)
#define DMM_ROWS_FORWARD_KERNELS(each) \
  each(1, 4, 13, 8, 16, 2) each(5, 4, 13, 8, 15, 1) each(5, 4, 13, 8, 15, 2) each(8, 4, 16, 8, 16, 1)
#define DMM_ROWS_BACKWARD_KERNELS(each) \
  each(1, 4, 25, 4, 16, 2) each(5, 4, 25, 4, 15, 1) each(5, 4, 25, 4, 15, 2) each(8, 4, 32, 4, 16, 1)
#define DMM_WORDS_FORWARD_KERNELS(each) each(4, 13, 8, 16, 1) each(4, 13, 8, 15, 2)
#define DMM_WORDS_BACKWARD_KERNELS(each) each(4, 25, 4, 16, 1) each(4, 25, 4, 15, 2)
#define DMM_TENSOR_FORWARD_KERNELS(each) each(5, 1, 3, 1, 2) each(3, 1, 9, 2, 2) each(2, 2, 1, 1, 18)
#define DMM_TENSOR_BACKWARD_KERNELS(each) each(5, 1, 6, 1, 2) each(3, 1, 18, 1, 2) each(2, 2, 1, 1, 18)
#else
#define DMM_RNN_WARP_KERNELS(each)                                                                            \
  each(1, 8, 1, 1, false) each(1, 8, 1, 4, false) each(1, 8, 1, 4, true)                                      \
  each(1, 16, 1, 1, false) each(1, 16, 1, 2, false) each(1, 16, 1, 2, true)                                   \
  each(2, 8, 2, 1, false) each(2, 8, 2, 2, false) each(2, 8, 2, 4, false) each(2, 8, 2, 4, true)               \
  each(3, 6, 3, 1, false) each(3, 6, 3, 2, false) each(3, 6, 3, 4, false) each(3, 6, 3, 4, true)               \
  each(4, 8, 4, 1, false) each(4, 8, 4, 2, false) each(4, 8, 4, 4, false) each(4, 8, 4, 4, true)               \
  each(5, 5, 5, 1, false) each(5, 5, 5, 2, false) each(5, 5, 5, 3, false) each(5, 5, 5, 4, false) each(5, 5, 5, 4, true) \
  each(5, 10, 4, 1, false) each(5, 10, 4, 2, false)                                                           \
  each(6, 6, 6, 1, false) each(6, 6, 6, 2, false) each(6, 6, 6, 3, false) each(6, 6, 6, 3, true)               \
  each(7, 7, 5, 1, false) each(7, 7, 5, 3, false) each(7, 7, 5, 3, true)                                      \
  each(8, 8, 4, 1, false) each(8, 8, 4, 3, false) each(8, 8, 4, 3, true)                                      \
  each(9, 9, 4, 1, false) each(9, 9, 4, 2, false) each(9, 9, 4, 2, true)
#define DMM_RNN_WORDS_KERNELS(each)                                                                     \
  each(2, 8, 2, 3, false) each(2, 8, 2, 3, true) each(3, 6, 3, 3, false) each(3, 6, 3, 3, true)           \
  each(4, 8, 4, 2, false) each(4, 8, 4, 3, true)                                                        \
  each(5, 5, 5, 3, false) each(5, 5, 5, 3, true) each(5, 8, 5, 2, false) each(5, 8, 5, 3, false)          \
  each(5, 8, 5, 3, true) each(5, 10, 4, 1, false)                                                       \
  each(6, 6, 6, 2, false) each(6, 6, 6, 3, true) each(8, 4, 8, 3, false) each(8, 4, 8, 3, true)           \
  each(10, 4, 10, 3, false) each(10, 4, 10, 3, true) each(12, 3, 12, 3, false) each(12, 3, 12, 3, true)   \
  each(16, 4, 8, 1, false) each(16, 4, 8, 2, true) each(16, 2, 16, 2, false) each(16, 2, 16, 2, true)
#define DMM_RNN_KERNELS(each) each(0) each(8)
#define DMM_RNN_TENSOR_KERNELS(each) each(1, 4) each(2, 8) each(3, 10)
#define DMM_RNN_BF16_KERNELS(each) each(8, 2, 10, 10, 1) each(8, 2, 19, 19, 1) each(8, 2, 19, 17, 2) each(8, 2, 32, 18, 1)
#define DMM_COMBINER_KERNELS(each) each(0, 0) each(2, 2) each(2, 4)
#define DMM_ROWS_FORWARD_KERNELS(each)              \
  each(1, 4, 13, 8, 16, 1) each(1, 4, 13, 8, 16, 2) \
  each(5, 4, 13, 8, 15, 1) each(5, 4, 13, 8, 15, 2) \
  each(8, 4, 13, 8, 10, 1) each(8, 4, 13, 8, 10, 2) \
  each(8, 4, 16, 8, 16, 1)
#define DMM_ROWS_BACKWARD_KERNELS(each)             \
  each(1, 4, 25, 4, 16, 1) each(1, 4, 25, 4, 16, 2) \
  each(5, 4, 25, 4, 15, 1) each(5, 4, 25, 4, 15, 2) \
  each(8, 4, 25, 4, 10, 1) each(8, 4, 25, 4, 10, 2) \
  each(8, 4, 32, 4, 16, 1) each(8, 4, 32, 4, 16, 2)
#define DMM_WORDS_FORWARD_KERNELS(each) \
  each(4, 13, 8, 15, 1) each(4, 13, 8, 15, 2) each(4, 13, 8, 16, 1) each(4, 13, 8, 16, 2) each(4, 16, 8, 14, 1)
#define DMM_WORDS_BACKWARD_KERNELS(each) \
  each(4, 25, 4, 15, 1) each(4, 25, 4, 15, 2) each(4, 25, 4, 16, 1) each(4, 25, 4, 16, 2) each(4, 32, 4, 14, 1)
#define DMM_TENSOR_FORWARD_KERNELS(each) each(5, 1, 13, 2, 15)
#define DMM_TENSOR_BACKWARD_KERNELS(each) each(5, 1, 25, 1, 15)
#endif

namespace dmm::cuda {

constexpr const char* kNoScanKernel = "no kernel has these sizes";

// The template sizes of the kernels of a kind, as in "5,5,5,3,0 5,5,5,4,1"; empty if the kind is unknown.
inline std::string scan_kernels(const std::string& kind) {
  std::string all;
  const auto add = [&all](auto... sizes) {
    std::string one;
    ((one += (one.empty() ? "" : ",") + std::to_string(int{sizes})), ...);
    all += (all.empty() ? "" : " ") + one;
  };
#define DMM_ADD(...) add(__VA_ARGS__);
  if (kind == "rnn_scan_warps") { DMM_RNN_WARP_KERNELS(DMM_ADD) }
  if (kind == "rnn_scan_words") { DMM_RNN_WORDS_KERNELS(DMM_ADD) }
  if (kind == "rnn_scan") { DMM_RNN_KERNELS(DMM_ADD) }
  if (kind == "rnn_scan_tensor_cores") { DMM_RNN_TENSOR_KERNELS(DMM_ADD) }
  if (kind == "rnn_scan_bf16") { DMM_RNN_BF16_KERNELS(DMM_ADD) }
  if (kind == "combiner_scan") { DMM_COMBINER_KERNELS(DMM_ADD) }
  if (kind == "combiner_rows") { DMM_ROWS_FORWARD_KERNELS(DMM_ADD) }
  if (kind == "combiner_rows_backward") { DMM_ROWS_BACKWARD_KERNELS(DMM_ADD) }
  if (kind == "combiner_words") { DMM_WORDS_FORWARD_KERNELS(DMM_ADD) }
  if (kind == "combiner_words_backward") { DMM_WORDS_BACKWARD_KERNELS(DMM_ADD) }
  if (kind == "combiner_tensor") { DMM_TENSOR_FORWARD_KERNELS(DMM_ADD) }
  if (kind == "combiner_tensor_backward") { DMM_TENSOR_BACKWARD_KERNELS(DMM_ADD) }
#undef DMM_ADD
  return all;
}

template <int kChunks_, int kOutputs_, int kKept_, int kRows_, bool kSeveral_>
struct WarpKernel {
  static constexpr int kChunks = kChunks_, kOutputs = kOutputs_, kKept = kKept_, kRows = kRows_;
  static constexpr bool kSeveral = kSeveral_;
  __host__ __device__ static constexpr WarpTile tile() { return {kChunks, kOutputs, kKept, kRows}; }
};
// Calls `run` with the kernel for a tile, for one group of rows or several; returns false if there is none. A kernel for
// several groups is not used for one group, since the kernel for one group is faster.
#define DMM_TRY(chunks_, outputs_, kept_, rows_, several_)                                                          \
  if (tile.chunks == chunks_ && tile.outputs == outputs_ && tile.kept == kept_ && tile.rows == rows_ && several == several_) \
    return run(WarpKernel<chunks_, outputs_, kept_, rows_, several_>{}), true;
template <class Run>
bool with_warp_kernel(const WarpTile& tile, bool several, Run run) {
  DMM_RNN_WARP_KERNELS(DMM_TRY)
  return false;
}
template <class Run>
bool with_words_kernel(const WarpTile& tile, bool several, Run run) {
  DMM_RNN_WORDS_KERNELS(DMM_TRY)
  return false;
}
#undef DMM_TRY

// The tiles of a kernel of combiner_scan for one or two rows.
template <int kUnits_, int kToInputs_, int kOutputs_, int kFromInputs_, int kRows_>
struct RowsKernel {
  static constexpr int kUnits = kUnits_, kToInputs = kToInputs_, kOutputs = kOutputs_, kFromInputs = kFromInputs_;
  static constexpr int kRows = kRows_;
};
// Calls `run` with the kernel for a team with these tiles; returns false if there is none.
#define DMM_TRY(units, to_inputs, outputs, from_inputs, rows_)                                               \
  if (to.group_outputs == units && to.lane_inputs == to_inputs && from.group_outputs == outputs &&            \
      from.lane_inputs == from_inputs && rows == rows_)                                                       \
    return run(RowsKernel<units, to_inputs, outputs, from_inputs, rows_>{}), true;
template <class Run>
bool with_words_forward(const LaneTile& to, const LaneTile& from, int rows, Run run) {
  DMM_WORDS_FORWARD_KERNELS(DMM_TRY)
  return false;
}
template <class Run>
bool with_words_backward(const LaneTile& to, const LaneTile& from, int rows, Run run) {
  DMM_WORDS_BACKWARD_KERNELS(DMM_TRY)
  return false;
}
#undef DMM_TRY

template <int kWarps, int kParts, int kDepth, int kKept, int kRowTiles>
struct Bf16Kernel {
  __host__ __device__ static constexpr Bf16Tile tile() { return {kWarps, kParts, kDepth, kKept, kRowTiles}; }
};
// Calls `run` with the kernel for a tile; returns false if there is none.
template <class Run>
bool with_bf16_kernel(const Bf16Tile& tile, Run run) {
#define DMM_TRY(warps_, parts_, depth_, kept_, row_tiles_)                                                         \
  if (tile.warps == warps_ && tile.parts == parts_ && tile.depth == depth_ && tile.kept == kept_ &&                \
      tile.row_tiles == row_tiles_)                                                                                \
    return run(Bf16Kernel<warps_, parts_, depth_, kept_, row_tiles_>{}), true;
  DMM_RNN_BF16_KERNELS(DMM_TRY)
#undef DMM_TRY
  return false;
}

}  // namespace dmm::cuda
