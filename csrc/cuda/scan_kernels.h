// The kernels of the scans: one list of each kind, for launches, for the planner (dmm_fast/cuda/plan.py reads it from the
// library) and for the emulator, which has a few small ones. Nothing of CUDA here.
#pragma once

#include <string>

#include "bf16_tile.h"
#include "lane_tile.h"
#include "tiling.h"
#include "warp_tile.h"

// rnn_scan with outputs that belong to warps: chunks of inputs, outputs of a warp, chunks whose weights are in registers,
// rows of a group, and whether a cluster may have several groups. A thread has 4 x outputs x chunks weights in registers.
//
// Likewise where blocks exchange through device memory: those of up to three rows, which have a place in one word.
//
// rnn_scan for any sizes: quads of weights in registers, or on tensor cores tiles of 16 outputs and quads of 8 inputs.
//
// rnn_scan in bf16: warps of a block, parts of the inputs, tiles of 16 inputs of a part, those whose weights are in registers,
// tiles of 8 rows of a group.
//
// combiner_scan for any sizes: quads in registers, of the smaller matrix and of the larger.
//
// combiner_scan on tensor cores: blocks of a cluster, then for the block's units and for what comes of them the tiles of 16
// outputs of a warp and the inputs in eights. A thread has 4 x (tiles x eights) weights of each in registers.
//
// combiner_scan that takes one row or two at a time: blocks of a cluster, then for the block's units and for what comes of
// them the outputs of eight lanes and the inputs of a lane, and the rows. Forward, two rows of the largest tile would take
// more registers than there are.
//
// Likewise where blocks exchange through device memory, any number of them: the tiles and the rows alone.
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

constexpr const char* kNoScanKernel = "no kernel has such sizes";

// The sizes of the kernels of a kind, as in "5,5,5,3,0 5,5,5,4,1"; empty where there is no such kind.
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
// `run` with the kernel of a tile, for one group of rows or several; false where there is none. One for several will not
// do for one: where there is a kernel for one, it is faster.
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

// The tiles of a kernel of combiner_scan that takes one row or two.
template <int kUnits_, int kToInputs_, int kOutputs_, int kFromInputs_, int kRows_>
struct RowsKernel {
  static constexpr int kUnits = kUnits_, kToInputs = kToInputs_, kOutputs = kOutputs_, kFromInputs = kFromInputs_;
  static constexpr int kRows = kRows_;
};
// `run` with that of a team whose tiles are these; false where there is none.
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
// `run` with the kernel of a tile; false where there is none.
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
