// The cuts of rnn_scan by warps that there are kernels for; dmm_fast/cuda/rnn_plans.py has the same. Nothing of CUDA here.
#pragma once

#include "rnn_scan.h"

namespace dmm::cuda {

// At compile time: chunks of units, outputs of a warp, rows of a cluster, rows of a group.
template <int kChunks, int kOutputs, int kRows, int kPerGroup>
struct WarpCut {};

// `run` with the cut of these arguments, or with none: then false.
template <int kChunks, int kOutputs, class Args, class Run>
bool by_rows(const Args& a, Run run) {
  switch (10 * a.ragged.rows_per_cluster + a.ragged.rows_per_group) {
    case 11: return run(WarpCut<kChunks, kOutputs, 1, 1>{}), true;
    case 22: return run(WarpCut<kChunks, kOutputs, 2, 2>{}), true;
    case 32: return run(WarpCut<kChunks, kOutputs, 3, 2>{}), true;
    case 42: return run(WarpCut<kChunks, kOutputs, 4, 2>{}), true;
    default: break;
  }
  if constexpr (kChunks == 5) {
    switch (10 * a.ragged.rows_per_cluster + a.ragged.rows_per_group) {
      case 21: return run(WarpCut<kChunks, kOutputs, 2, 1>{}), true;
      case 31: return run(WarpCut<kChunks, kOutputs, 3, 1>{}), true;
      case 33: return run(WarpCut<kChunks, kOutputs, 3, 3>{}), true;
      default: break;
    }
  }
  return false;
}

template <class Args, class Run>
bool by_warp_cut(const Args& a, Run run) {
  const int chunks = (a.units + kWarpChunk - 1) / kWarpChunk;
  switch (10 * chunks + a.per_warp) {
    case 14: return by_rows<1, 4>(a, run);
    case 24: return by_rows<2, 4>(a, run);
    case 34: return by_rows<3, 4>(a, run);
    case 44: return by_rows<4, 4>(a, run);
    case 54: return by_rows<5, 4>(a, run);
    case 55: return by_rows<5, 5>(a, run);
    case 64: return by_rows<6, 4>(a, run);
    default: return false;
  }
}

}  // namespace dmm::cuda
