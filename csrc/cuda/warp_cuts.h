// The cuts of rnn_scan by warps that there are kernels for; dmm_fast/cuda/rnn_plans.py has the same. Nothing of CUDA here.
#pragma once

#include "rnn_scan.h"

namespace dmm::cuda {

// At compile time: chunks of units, rows of a cluster, rows of a group, whether the block gives together.
template <int kChunks, int kRows, int kPerGroup, bool kGathered>
struct WarpCut {};

// `run` with the cut of these arguments, or with none: then false.
template <int kChunks, bool kGathered, class Args, class Run>
bool by_rows(const Args& a, Run run) {
  switch (10 * a.ragged.rows_per_cluster + a.ragged.rows_per_group) {
    case 11: return run(WarpCut<kChunks, 1, 1, kGathered>{}), true;
    case 22: return run(WarpCut<kChunks, 2, 2, kGathered>{}), true;
    case 32: return run(WarpCut<kChunks, 3, 2, kGathered>{}), true;
    case 42: return run(WarpCut<kChunks, 4, 2, kGathered>{}), true;
    default: break;
  }
  if constexpr (kChunks == 5) {
    switch (10 * a.ragged.rows_per_cluster + a.ragged.rows_per_group) {
      case 21: return run(WarpCut<kChunks, 2, 1, kGathered>{}), true;
      case 31: return run(WarpCut<kChunks, 3, 1, kGathered>{}), true;
      case 33: return run(WarpCut<kChunks, 3, 3, kGathered>{}), true;
      default: break;
    }
  }
  return false;
}

template <class Args, class Run>
bool by_warp_cut(const Args& a, Run run) {
  const int chunks = (a.units + kWarpChunk - 1) / kWarpChunk;
  switch (10 * chunks + a.gathered) {
    case 10: return by_rows<1, false>(a, run);
    case 20: return by_rows<2, false>(a, run);
    case 30: return by_rows<3, false>(a, run);
    case 40: return by_rows<4, false>(a, run);
    case 50: return by_rows<5, false>(a, run);
    case 51: return by_rows<5, true>(a, run);
    case 60: return by_rows<6, false>(a, run);
    default: return false;
  }
}

}  // namespace dmm::cuda
