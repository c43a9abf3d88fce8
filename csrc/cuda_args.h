// Arguments on a GPU: checked, and turned into what the kernels take.
#pragma once

#include "checks.h"
#include "cuda/plan.h"
#include "cuda/ragged.h"

namespace dmm {

// What the tensors of one call on a GPU have in common: the device of the first, and Float.
class OnDevice {
 public:
  OnDevice(const char* name, const Tensor& first, int64_t dims) : device_(first.get_device_index()) {
    STD_TORCH_CHECK(first.is_cuda() && first.scalar_type() == ScalarType::Float && first.dim() == dims, name,
                    ": expected Float of ", dims, " dimensions on a CUDA device, got ", describe(first));
  }
  void check(const char* name, const Tensor& t, const std::vector<int64_t>& shape,
             ScalarType dtype = ScalarType::Float) const {
    bool fits = t.is_cuda() && t.get_device_index() == device_ && t.scalar_type() == dtype &&
                t.dim() == static_cast<int64_t>(shape.size());
    for (size_t d = 0; fits && d < shape.size(); ++d) fits = t.size(static_cast<int64_t>(d)) == shape[d];
    STD_TORCH_CHECK(fits, name, ": expected ", torch::headeronly::toString(dtype), " of shape ", shape_string(shape),
                    " on CUDA device ", device_, ", got ", describe(t));
  }

 private:
  int32_t device_;
};

// [P, B, T, W] or [P, B, W]; may be strided in every dimension.
inline cuda::Sequences<const float> sequences_of(const Tensor& t) {
  const bool steps = t.dim() == 4;
  return {t.const_data_ptr<float>(), t.stride(0), t.stride(1), steps ? t.stride(2) : 0, t.stride(t.dim() - 1)};
}

inline cuda::Matrix matrix_of(const Tensor& t) { return {t.const_data_ptr<float>(), t.stride(0), t.stride(1)}; }

// Of `like` [P, B, T, W].
inline cuda::Ragged on_device_ragged_of(const Tensor& like, const Tensor& lengths, const cuda::Plan& plan) {
  for (int64_t d = 0; d < 4; ++d)
    STD_TORCH_CHECK(like.size(d) <= INT32_MAX / 64, "sizes: expected at most ", INT32_MAX / 64, ", got ", like.size(d));
  STD_TORCH_CHECK(like.size(0) * like.size(1) <= INT32_MAX / 64, "rows: expected at most ", INT32_MAX / 64, ", got ",
                  like.size(0) * like.size(1));
  return {lengths.const_data_ptr<int64_t>(), lengths.stride(0),
          static_cast<int>(like.size(0)),    static_cast<int>(like.size(1)),
          static_cast<int>(like.size(2)),    static_cast<int>(plan[0]), static_cast<int>(plan[1])};
}

// A plan that has no fault, and that `fits` what the call needs.
template <class Fits>
void check_plan(const cuda::Plan& plan, const char* fault, Fits fits) {
  if (fault == nullptr && !fits()) fault = "other sizes";
  STD_TORCH_CHECK(fault == nullptr, "plan: expected one for these sizes, got ", cuda::describe(plan), ": ",
                  fault ? fault : "");
}
// Of so many tilings.
template <class Fits>
void check_plan(const cuda::Plan& plan, size_t tilings, Fits fits) {
  check_plan(plan, cuda::fault(plan, tilings), fits);
}

}  // namespace dmm
