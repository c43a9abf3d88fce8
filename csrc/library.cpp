// The extension module: loading it registers the ops. What it is built for lies in the other files.
#include <Python.h>
#include <torch/csrc/stable/ops.h>

#include "cpu/dispatch.h"

namespace dmm::cpu {

int64_t get_num_threads() { return torch::stable::get_num_threads(); }

void parallel_for(int64_t parts, const std::function<void(int64_t, int64_t)>& run) {
  torch::stable::parallel_for(0, parts, 1, run);
}

namespace {

template <class S>
const Kernels<S>& of(const Kernels<float>& (*f)(), const Kernels<double>& (*d)()) {
  if constexpr (std::is_same_v<S, float>) return f();
  else return d();
}

}  // namespace

template <class S>
const Kernels<S>& kernels() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    return of<S>(avx512::float_kernels, avx512::double_kernels);
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    return of<S>(avx2::float_kernels, avx2::double_kernels);
#endif
  return of<S>(baseline::float_kernels, baseline::double_kernels);
}

template const Kernels<float>& kernels<float>();
template const Kernels<double>& kernels<double>();

}  // namespace dmm::cpu

extern "C" PyObject* PyInit__C() {
  static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&module);
}
