// The kernels of csrc/cuda for the tests, on arrays of NumPy.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include "emulator.h"

#include "../cuda/exchange_floor.cuh"

namespace py = pybind11;

void bind_clipped_adam(py::module_& m);

using Array = py::array_t<float, py::array::c_style>;

namespace {

Array exchange_floor(const Array& rings, int64_t steps, int cluster_size, int threads, bool reversed,
                     bool ignore_barriers) {
  Array out({rings.shape(0), rings.shape(1)});
  const int clusters = static_cast<int>(rings.shape(0)), width = static_cast<int>(rings.shape(1)) / cluster_size;
  const dmm::cuda::ExchangeFloor args{
      rings.data(), out.mutable_data(), steps, clusters, cluster_size, width, threads};
  const dmm::emulator::Launch launch{clusters * cluster_size, cluster_size, threads, dmm::cuda::shared_bytes(args),
                                     reversed, ignore_barriers};
  dmm::emulator::run(launch, [&] { dmm::cuda::exchange_floor_kernel(args); });
  return out;
}

}  // namespace

PYBIND11_MODULE(dmm_emulator, m) {
  m.def("exchange_floor", &exchange_floor, py::arg("rings"), py::arg("steps"), py::arg("cluster_size"),
        py::arg("threads"), py::kw_only(), py::arg("reversed") = false, py::arg("ignore_barriers") = false);
  bind_clipped_adam(m);
}
