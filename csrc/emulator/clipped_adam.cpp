// clipped_adam for the tests, on NumPy arrays that it changes in place.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "emulator.h"

#include "../cuda/clipped_adam.cuh"

namespace dmm::emulator {

namespace py = pybind11;

namespace {

using Floats = std::vector<py::array_t<float>>;

// Returns the number of launches. `steps` and `lrs` have an array of one element for each parameter, or are empty;
// `tickets` has one element if the step is to `advance` them.
int clipped_adam(Floats params, Floats grads, Floats exp_avgs, Floats exp_avg_sqs, int64_t step, double lr,
                 double beta1, double beta2, float eps, float weight_decay, float clip_norm, bool centered_variance,
                 std::vector<py::array_t<int64_t>> steps, std::vector<py::array_t<double>> lrs, double lrd,
                 bool advance, std::vector<py::array_t<int32_t>> tickets, bool reversed, int max_barriers) {
  const cuda::AdamRule rule{step, lr, beta1, beta2, eps, weight_decay, clip_norm, centered_variance,
                            lrd,  advance ? tickets.at(0).mutable_data() : nullptr};
  std::vector<cuda::AdamTensor> tensors;
  for (size_t i = 0; i < params.size(); ++i)
    tensors.push_back({params[i].mutable_data(), grads[i].mutable_data(), exp_avgs[i].mutable_data(),
                       exp_avg_sqs[i].mutable_data(), params[i].size(),
                       steps.empty() ? nullptr : steps[i].mutable_data(),
                       lrs.empty() ? nullptr : lrs[i].mutable_data()});
  int launches = 0;
  cuda::in_launches(rule, tensors, [&](const cuda::AdamLaunch& args) -> const char* {
    const Launch launch{args.blocks(), 1, cuda::kAdamThreads, sizeof(cuda::AdamShared), {reversed, max_barriers}};
    run(launch, [&] { cuda::clipped_adam_kernel(args); });
    ++launches;
    return nullptr;
  });
  return launches;
}

}  // namespace

void bind_clipped_adam(py::module_& m) {
  const auto in_place = [](const char* name) { return py::arg(name).noconvert(); };
  m.def("clipped_adam", &clipped_adam, in_place("params"), in_place("grads"), in_place("exp_avgs"),
        in_place("exp_avg_sqs"), py::kw_only(), py::arg("step"), py::arg("lr"), py::arg("beta1"), py::arg("beta2"),
        py::arg("eps"), py::arg("weight_decay"), py::arg("clip_norm"), py::arg("centered_variance") = false,
        in_place("steps") = py::list(), in_place("lrs") = py::list(), py::arg("lrd") = 1.0,
        py::arg("advance") = false, in_place("tickets") = py::list(), py::arg("reversed") = false,
        py::arg("max_barriers") = INT32_MAX);
  m.attr("ADAM_TENSORS") = cuda::kAdamTensors;
}

}  // namespace dmm::emulator
