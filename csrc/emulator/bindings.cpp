// The kernels of csrc/cuda for the tests, on arrays of NumPy and tensors of torch.
#include "tensors.h"

#include <pybind11/numpy.h>

#include "../cuda/exchange_floor.cuh"

namespace dmm::emulator {

void bind_rnn_scan(py::module_& m);
void bind_combiner_scan(py::module_& m);
void bind_clipped_adam(py::module_& m);

namespace {

using Array = py::array_t<float, py::array::c_style>;

Array exchange_floor(const Array& rings, int steps, int cluster_size, int threads, bool reversed,
                     int heeded) {
  Array out({rings.shape(0), rings.shape(1)});
  const int clusters = static_cast<int>(rings.shape(0)), width = static_cast<int>(rings.shape(1)) / cluster_size;
  const cuda::ExchangeFloor args{rings.data(), out.mutable_data(), steps, clusters, cluster_size, width, threads};
  const Launch launch{clusters * cluster_size, cluster_size, threads, cuda::shared_bytes(args), reversed,
                      heeded};
  run(launch, [&] { cuda::exchange_floor_kernel(args); });
  return out;
}

}  // namespace

PYBIND11_MODULE(dmm_emulator, m) {
  py::class_<Options>(m, "Options")
      .def(py::init<bool, int, bool>(), py::kw_only(), py::arg("reversed") = false, py::arg("heeded") = INT32_MAX,
           py::arg("late") = false);
  m.def("exchange_floor", &exchange_floor, py::arg("rings"), py::arg("steps"), py::arg("cluster_size"),
        py::arg("threads"), py::kw_only(), py::arg("reversed") = false, py::arg("heeded") = INT32_MAX);
  bind_rnn_scan(m);
  bind_combiner_scan(m);
  bind_clipped_adam(m);
}

}  // namespace dmm::emulator
