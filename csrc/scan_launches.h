// The launches of scans on a GPU: results are written, or an exception is raised.
#pragma once

#include "checks.h"

namespace dmm {

// Tensors of torch as cuda/launches.h reads them.
inline int64_t dims_of(const Tensor& t) { return t.dim(); }
inline int64_t size_of(const Tensor& t, int64_t d) { return t.size(d); }
inline int64_t stride_of(const Tensor& t, int64_t d) { return t.stride(d); }
inline const float* floats_of(const Tensor& t) { return t.const_data_ptr<float>(); }
inline const int64_t* longs_of(const Tensor& t) { return t.const_data_ptr<int64_t>(); }
inline float* result_of(const Tensor& t) { return t.mutable_data_ptr<float>(); }

}  // namespace dmm

#include "cuda/launches.h"

namespace dmm {

void launch(cuda::LaunchRnnScan<Tensor>& a);
void launch(cuda::LaunchRnnScanBackward<Tensor>& a);
void launch(cuda::LaunchCombinerScan<Tensor>& a);
void launch(cuda::LaunchCombinerScanBackward<Tensor>& a);

// What a plan's fault is called in an error; null where a plan has none.
inline void check_plan(const cuda::Plan& plan, const char* fault) {
  STD_TORCH_CHECK(fault == nullptr, "plan: expected one for these sizes, got ", cuda::describe(plan), ": ",
                  fault ? fault : "");
}

// The kernels count rows and elements of a row in 32 bits.
inline void check_sizes(const Tensor& like) {
  constexpr int64_t most = INT32_MAX / 64;
  for (int64_t d = 0; d < 4; ++d)
    STD_TORCH_CHECK(like.size(d) <= most, "sizes: expected at most ", most, ", got ", like.size(d));
  STD_TORCH_CHECK(like.size(0) * like.size(1) <= most, "rows: expected at most ", most, ", got ",
                  like.size(0) * like.size(1));
}

}  // namespace dmm
