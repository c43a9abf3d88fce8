// clipped_adam for CPU tensors: four parallel lists, changed in place.
#include <cmath>

#include "checks.h"
#include "cpu/dispatch.h"

namespace dmm {
namespace {

using Tensors = std::vector<Tensor>;

// Whether the elements of `t` fill its memory without a gap, in whatever order of dimensions.
bool is_dense(const Tensor& t) {
  std::vector<std::pair<int64_t, int64_t>> dims;
  for (int64_t d = 0; d < t.dim(); ++d)
    if (t.size(d) != 1) dims.emplace_back(t.stride(d), t.size(d));
  std::sort(dims.begin(), dims.end());
  int64_t expected = 1;
  for (const auto& [stride, size] : dims) {
    if (stride != expected) return false;
    expected *= size;
  }
  return true;
}

bool same_layout(const Tensor& a, const Tensor& b) {
  bool same = a.dim() == b.dim();
  for (int64_t d = 0; same && d < a.dim(); ++d)
    same = a.size(d) == b.size(d) && (a.size(d) == 1 || a.stride(d) == b.stride(d));
  return same;
}

void check(const char* name, size_t index, const Tensor& t, const Tensor& param) {
  STD_TORCH_CHECK(t.is_cpu() && t.scalar_type() == param.scalar_type() && same_layout(t, param) &&
                      (t.numel() == 0 || is_dense(t)),
                  name, "[", index, "]: expected a dense ", torch::headeronly::toString(param.scalar_type()),
                  " laid out in memory as its parameter, on cpu, got ", describe(t));
}

void clipped_adam(Tensors params, Tensors grads, Tensors exp_avgs, Tensors exp_avg_sqs, int64_t step, double lr,
                  double beta1, double beta2, double eps, double weight_decay, double clip_norm,
                  bool centered_variance) {
  for (const auto& [name, list] : {std::pair<const char*, const Tensors&>{"grads", grads},
                                   {"exp_avgs", exp_avgs},
                                   {"exp_avg_sqs", exp_avg_sqs}}) {
    STD_TORCH_CHECK(list.size() == params.size(), name, ": expected ", params.size(), " tensors, got ", list.size());
    for (size_t i = 0; i < list.size(); ++i) check(name, i, list[i], params[i]);
  }
  if (params.empty()) return;
  const ScalarType dtype = params[0].scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double,
                  "params[0]: expected Float or Double, got ", describe(params[0]));
  for (size_t i = 0; i < params.size(); ++i) {
    STD_TORCH_CHECK(params[i].scalar_type() == dtype, "params[", i, "]: expected one dtype, got ", describe(params[i]));
    check("params", i, params[i], params[i]);
  }
  const double step_size = lr * std::sqrt(1 - std::pow(beta2, step)) / (1 - std::pow(beta1, step));
  by_dtype(dtype, [&](auto scalar) {
    using S = decltype(scalar);
    cpu::ClippedAdam<S> args{{}, S(beta1), S(1 - beta1), S(beta2), S(1 - beta2), S(eps), S(weight_decay),
                             S(clip_norm), S(step_size), centered_variance};
    for (size_t i = 0; i < params.size(); ++i)
      args.tensors.push_back({params[i].mutable_data_ptr<S>(), grads[i].mutable_data_ptr<S>(),
                              exp_avgs[i].mutable_data_ptr<S>(), exp_avg_sqs[i].mutable_data_ptr<S>(),
                              params[i].numel()});
    cpu::kernels<S>().clipped_adam(args);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(dmm_fast, m) {
  m.def(
      "clipped_adam(Tensor(a!)[] params, Tensor(b!)[] grads, Tensor(c!)[] exp_avgs, Tensor(d!)[] exp_avg_sqs,"
      " int step, float lr, float beta1, float beta2, float eps, float weight_decay, float clip_norm,"
      " bool centered_variance) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(dmm_fast, CPU, m) { m.impl("clipped_adam", TORCH_BOX(&clipped_adam)); }

}  // namespace dmm
