// clipped_adam: four parallel lists, changed in place.
#include <cmath>

#include "checks.h"
#include "cpu/dispatch.h"
#ifdef DMM_FAST_CUDA
#include "cuda/clipped_adam.h"
#include "cuda_stream.h"
#endif

namespace dmm {
namespace {

// True if the elements of `t` fill its memory without gaps, in any order of dimensions.
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

bool same_device(const Tensor& a, const Tensor& b) {
  return a.is_cpu() == b.is_cpu() && a.is_cuda() == b.is_cuda() && a.get_device_index() == b.get_device_index();
}

// The lists of a step. `steps` and `lrs` have a tensor for each parameter; if one is empty, a number is used, except in
// a step that is to `advance` them.
struct Lists {
  Tensors params, grads, exp_avgs, exp_avg_sqs, steps, lrs;
  bool advance;
};

void check_dense(const char* name, size_t index, const Tensor& t, const Tensor& param) {
  STD_TORCH_CHECK(same_device(t, param) && t.scalar_type() == param.scalar_type() && same_layout(t, param) &&
                      (t.numel() == 0 || is_dense(t)),
                  name, "[", index, "]: expected a dense ", torch::headeronly::toString(param.scalar_type()),
                  " laid out in memory as its parameter and on its device, got ", describe(t));
}

void check_number(const char* name, size_t index, const Tensor& t, const Tensor& param, ScalarType dtype) {
  STD_TORCH_CHECK(same_device(t, param) && t.scalar_type() == dtype && t.dim() == 0, name, "[", index,
                  "]: expected ", torch::headeronly::toString(dtype),
                  " of shape () on the device of its parameter, got ", describe(t));
}

void check(const Lists& a) {
  const auto check_size = [&](const char* name, const Tensors& list) {
    STD_TORCH_CHECK(list.size() == a.params.size(), name, ": expected ", a.params.size(), " tensors, got ",
                    list.size());
  };
  for (const auto& [name, list] : {std::pair<const char*, const Tensors&>{"params", a.params},
                                   {"grads", a.grads},
                                   {"exp_avgs", a.exp_avgs},
                                   {"exp_avg_sqs", a.exp_avg_sqs}}) {
    check_size(name, list);
    for (size_t i = 0; i < list.size(); ++i) check_dense(name, i, list[i], a.params[i]);
  }
  for (const auto& [name, list, dtype] :
       {std::tuple<const char*, const Tensors&, ScalarType>{"steps", a.steps, ScalarType::Long},
        {"lrs", a.lrs, ScalarType::Double}}) {
    if (a.advance || !list.empty()) check_size(name, list);
    for (size_t i = 0; i < list.size(); ++i) check_number(name, i, list[i], a.params[i], dtype);
  }
  for (size_t i = 0; i < a.params.size(); ++i)
    STD_TORCH_CHECK(a.params[i].scalar_type() == a.params[0].scalar_type() && same_device(a.params[i], a.params[0]),
                    "params[", i, "]: expected one dtype and one device, got ", describe(a.params[i]));
}

void clipped_adam(Tensors params, Tensors grads, Tensors exp_avgs, Tensors exp_avg_sqs, int64_t step, double lr,
                  double beta1, double beta2, double eps, double weight_decay, double clip_norm,
                  bool centered_variance, Tensors steps, Tensors lrs, double lrd, bool advance, std::string backend) {
  check_backend(backend);
  const Lists lists{params, grads, exp_avgs, exp_avg_sqs, steps, lrs, advance};
  check(lists);
  if (params.empty()) return;
  // All counts are read before any is written, since several parameters may share one.
  std::vector<int64_t> counts(params.size(), step);
  std::vector<double> rates(params.size(), lr);
  for (size_t i = 0; i < steps.size(); ++i) counts[i] = *steps[i].const_data_ptr<int64_t>() + (advance ? 1 : 0);
  for (size_t i = 0; i < lrs.size(); ++i) rates[i] = *lrs[i].const_data_ptr<double>() * (advance ? lrd : 1);
  const ScalarType dtype = params[0].scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double,
                  "params[0]: expected Float or Double, got ", describe(params[0]));
  by_dtype(dtype, [&](auto scalar) {
    using S = decltype(scalar);
    cpu::ClippedAdam<S> args{{}, S(beta1), S(1 - beta1), S(beta2), S(1 - beta2), S(eps), S(weight_decay),
                             S(clip_norm), centered_variance};
    for (size_t i = 0; i < params.size(); ++i) {
      const double count = static_cast<double>(counts[i]);
      const double step_size = rates[i] * std::sqrt(1 - std::pow(beta2, count)) / (1 - std::pow(beta1, count));
      args.tensors.push_back({params[i].mutable_data_ptr<S>(), grads[i].mutable_data_ptr<S>(),
                              exp_avgs[i].mutable_data_ptr<S>(), exp_avg_sqs[i].mutable_data_ptr<S>(),
                              params[i].numel(), S(step_size)});
    }
    cpu::kernels<S>().clipped_adam(args);
  });
  for (size_t i = 0; advance && i < params.size(); ++i) {
    *steps[i].mutable_data_ptr<int64_t>() = counts[i];
    *lrs[i].mutable_data_ptr<double>() = rates[i];
  }
}

#ifdef DMM_FAST_CUDA
void launch_clipped_adam(Tensors params, Tensors grads, Tensors exp_avgs, Tensors exp_avg_sqs, int64_t step,
                         double lr, double beta1, double beta2, double eps, double weight_decay, double clip_norm,
                         bool centered_variance, Tensors steps, Tensors lrs, double lrd, bool advance,
                         Tensors tickets) {
  check({params, grads, exp_avgs, exp_avg_sqs, steps, lrs, advance});
  STD_TORCH_CHECK(tickets.size() == (advance ? 1 : 0), "tickets: expected one to advance with and else none, got ",
                  tickets.size());
  if (params.empty()) return;
  if (advance) check_number("tickets", 0, tickets[0], params[0], ScalarType::Int);
  STD_TORCH_CHECK(params[0].scalar_type() == ScalarType::Float, "params[0]: expected Float, got ",
                  describe(params[0]));
  const cuda::AdamRule rule{step,
                            lr,
                            beta1,
                            beta2,
                            static_cast<float>(eps),
                            static_cast<float>(weight_decay),
                            static_cast<float>(clip_norm),
                            centered_variance,
                            lrd,
                            advance ? tickets[0].mutable_data_ptr<int32_t>() : nullptr};
  std::vector<cuda::AdamTensor> tensors;
  for (size_t i = 0; i < params.size(); ++i)
    tensors.push_back({params[i].mutable_data_ptr<float>(), grads[i].mutable_data_ptr<float>(),
                       exp_avgs[i].mutable_data_ptr<float>(), exp_avg_sqs[i].mutable_data_ptr<float>(),
                       params[i].numel(), steps.empty() ? nullptr : steps[i].mutable_data_ptr<int64_t>(),
                       lrs.empty() ? nullptr : lrs[i].mutable_data_ptr<double>()});
  std::ostringstream plan;
  plan << "clipped_adam on " << tensors.size() << " tensors, " << cuda::kAdamTensors << " at most in a launch, in "
       << "blocks of " << cuda::kAdamThreads << " threads for " << cuda::kAdamChunk << " elements";
  on_stream_of(params[0], plan.str(), [&](void* stream) { return cuda::clipped_adam(rule, tensors, stream); });
}
#endif

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(dmm_fast, CPU, m) { m.impl("clipped_adam", TORCH_BOX(&clipped_adam)); }
#ifdef DMM_FAST_CUDA
STABLE_TORCH_LIBRARY_IMPL(dmm_fast, CUDA, m) { m.impl("_launch_clipped_adam", TORCH_BOX(&launch_clipped_adam)); }
#endif

}  // namespace dmm
