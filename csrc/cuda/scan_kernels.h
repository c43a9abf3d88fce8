// The kernels of the scans: one list of each kind, for launches, for the planner (dmm_fast/cuda/plan.py reads it from the
// library) and for the emulator, which has a few small ones. Nothing of CUDA here.
#pragma once

#include <string>

#include "lane_tile.h"
#include "tiling.h"
#include "warp_tile.h"

// rnn_scan with outputs that belong to warps: chunks of inputs, outputs of a warp, chunks whose weights are in registers,
// rows of a group, and whether a cluster may have several groups. A thread has 4 x outputs x chunks weights in registers.
//
// rnn_scan for any sizes: quads of weights in registers, or on tensor cores tiles of 16 outputs and quads of 8 inputs.
//
// combiner_scan for any sizes: quads in registers, of the smaller matrix and of the larger.
//
// combiner_scan that takes one row or two at a time: blocks of a cluster, then for the block's units and for what comes of
// them the outputs of eight lanes and the inputs of a lane, and the rows. Forward, two rows of the largest tile would take
// more registers than there are.
#ifdef DMM_EMULATOR
#define DMM_RNN_WARP_KERNELS(each) \
  each(1, 4, 1, 1, false) each(1, 4, 1, 3, false) each(1, 4, 1, 2, true) each(2, 5, 1, 3, false) each(2, 4, 1, 4, true) \
  each(3, 4, 2, 5, true)
#define DMM_RNN_KERNELS(each) each(0) each(2)
#define DMM_RNN_TENSOR_KERNELS(each) each(1, 4) each(2, 8)
#define DMM_COMBINER_KERNELS(each) each(0, 0) each(2, 2)
#define DMM_ROWS_FORWARD_KERNELS(each) \
  each(1, 4, 13, 8, 16, 2) each(5, 4, 13, 8, 15, 1) each(5, 4, 13, 8, 15, 2) each(8, 4, 16, 8, 16, 1)
#define DMM_ROWS_BACKWARD_KERNELS(each) \
  each(1, 4, 25, 4, 16, 2) each(5, 4, 25, 4, 15, 1) each(5, 4, 25, 4, 15, 2) each(8, 4, 32, 4, 16, 1)
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
#define DMM_RNN_KERNELS(each) each(0) each(8)
#define DMM_RNN_TENSOR_KERNELS(each) each(1, 4) each(2, 8) each(3, 10)
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
  if (kind == "rnn_scan") { DMM_RNN_KERNELS(DMM_ADD) }
  if (kind == "rnn_scan_tensor_cores") { DMM_RNN_TENSOR_KERNELS(DMM_ADD) }
  if (kind == "combiner_scan") { DMM_COMBINER_KERNELS(DMM_ADD) }
  if (kind == "combiner_rows") { DMM_ROWS_FORWARD_KERNELS(DMM_ADD) }
  if (kind == "combiner_rows_backward") { DMM_ROWS_BACKWARD_KERNELS(DMM_ADD) }
#undef DMM_ADD
  return all;
}

template <int kChunks_, int kOutputs_, int kKept_, int kRows_, bool kSeveral_>
struct WarpKernel {
  static constexpr int kChunks = kChunks_, kOutputs = kOutputs_, kKept = kKept_, kRows = kRows_;
  static constexpr bool kSeveral = kSeveral_;
};
// `run` with the kernel of a tile, for one group of rows or several; false where there is none. One for several will not
// do for one: where there is a kernel for one, it is faster.
template <class Run>
bool with_warp_kernel(const WarpTile& tile, bool several, Run run) {
#define DMM_TRY(chunks_, outputs_, kept_, rows_, several_)                                                          \
  if (tile.chunks == chunks_ && tile.outputs == outputs_ && tile.kept == kept_ && tile.rows == rows_ && several == several_) \
    return run(WarpKernel<chunks_, outputs_, kept_, rows_, several_>{}), true;
  DMM_RNN_WARP_KERNELS(DMM_TRY)
#undef DMM_TRY
  return false;
}

}  // namespace dmm::cuda
