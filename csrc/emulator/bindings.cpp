// Python bindings of the kernels of csrc/cuda for the tests, with NumPy arrays and tensors of torch.
#include "tensors.h"

#include <pybind11/numpy.h>

#include <map>

#include "../../benchmarks/csrc/exchange_floor.cuh"
#include "../cuda/scan_kernels.h"

namespace dmm::emulator {

void bind_rnn_scan(py::module_& m);
void bind_combiner_scan(py::module_& m);
void bind_clipped_adam(py::module_& m);

namespace {

using Array = py::array_t<float, py::array::c_style>;

Array exchange_floor(const Array& rings, int steps, int cluster_size, int threads, int store, int giving_warps,
                     const Options& options) {
  Array out({rings.shape(0), rings.shape(1)});
  const int clusters = static_cast<int>(rings.shape(0)), width = static_cast<int>(rings.shape(1)) / cluster_size;
  cuda::ExchangeFloor args{rings.data(), out.mutable_data(), steps, clusters, cluster_size, width,
                           threads,      store,              giving_warps};
  const Launch launch{clusters * cluster_size, cluster_size, threads, cuda::shared_bytes(args), options};
  const Words words(cuda::exchange_floor_mailbox(args), clusters, cuda::word_bytes(cuda::kWordStore), options);
  args.mailbox = words.mailbox;
  const auto kernel = store == 1                  ? cuda::exchange_floor_kernel<1>
                      : store == 2                ? cuda::exchange_floor_kernel<2>
                      : store == cuda::kWordStore ? cuda::word_floor_kernel
                                                  : cuda::exchange_floor_kernel<4>;
  run_exchange("exchange_floor", args, launch, kernel);
  return out;
}

Options options_of(bool reversed, int max_barriers, bool late, bool shuffled, const std::string& fault, int rank, int group,
                   int step) {
  const std::map<std::string, Fault::Kind> kinds{
      {"", Fault::kNone},
      {"lost", Fault::kLost},
      {"doubled", Fault::kDoubled},
      {"silent", Fault::kSilent},
      {"early_timeout", Fault::kEarlyTimeout},
      {"torn", Fault::kTorn},
      {"one_buffer", Fault::kOneBuffer},
      {"old_words", Fault::kOldWords}};
  return {reversed, max_barriers, late, shuffled, {kinds.at(fault), rank, group, step}};
}

}  // namespace

PYBIND11_MODULE(dmm_emulator, m) {
  py::class_<Options>(m, "Options")
      .def(py::init(&options_of), py::kw_only(), py::arg("reversed") = false, py::arg("max_barriers") = INT32_MAX,
           py::arg("late") = false, py::arg("shuffled") = false, py::arg("fault") = "", py::arg("rank") = 0, py::arg("group") = 0,
           py::arg("step") = 0);
  m.def("exchange_floor", &exchange_floor, py::arg("rings"), py::arg("steps"), py::arg("cluster_size"),
        py::arg("threads"), py::kw_only(), py::arg("store"), py::arg("giving_warps"), py::arg("options") = Options{});
  m.def("scan_kernels", &cuda::scan_kernels);
  bind_rnn_scan(m);
  bind_combiner_scan(m);
  bind_clipped_adam(m);
}

}  // namespace dmm::emulator
