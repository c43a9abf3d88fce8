// The extension module, whose loading registers the ops, and the choice of the CPU kernels' instruction set.
#include <Python.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/Exception.h>

#include <atomic>
#include <string>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/barrier.h"
#include "hangs.h"

namespace dmm {
namespace cpu {

namespace {

std::atomic<bool> small_work_is_shared{false};
thread_local int64_t last_parts = 0;  // the number of parts of the last op called by this thread

struct InstructionSet {
  const char* name;
  const Kernels<float>& (*float_kernels)();
  const Kernels<double>& (*double_kernels)();
};

// The instruction sets supported by this processor, widest first.
const std::vector<InstructionSet>& instruction_sets() {
  static const std::vector<InstructionSet> sets = [] {
    std::vector<InstructionSet> found;
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
      found.push_back({"avx512", avx512::float_kernels, avx512::double_kernels});
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
      found.push_back({"avx2", avx2::float_kernels, avx2::double_kernels});
#endif
    found.push_back({"baseline", baseline::float_kernels, baseline::double_kernels});
    return found;
  }();
  return sets;
}

std::atomic<const InstructionSet*>& in_use() {
  static std::atomic<const InstructionSet*> set{&instruction_sets().front()};
  return set;
}

}  // namespace

int64_t get_num_threads() { return torch::stable::get_num_threads(); }

// OpenMP's own wait at the end of a parallel region spins for milliseconds before it yields the core, which another
// thread of the region may need. So the threads first meet at a barrier that yields.
void parallel_for(int64_t parts, const std::function<void(int64_t, int64_t)>& run) {
  last_parts = parts;
  Barrier barrier(parts);
  torch::stable::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    const Arrival at_the_end{barrier, end - begin};  // when run throws, too
    run(begin, end);
  });
}

bool shares_small_work() { return small_work_is_shared; }

template <class S>
const Kernels<S>& kernels() {
  const InstructionSet& set = *in_use();
  if constexpr (std::is_same_v<S, float>) return set.float_kernels();
  else return set.double_kernels();
}

template const Kernels<float>& kernels<float>();
template const Kernels<double>& kernels<double>();

}  // namespace cpu

namespace {

std::string instruction_set() { return cpu::in_use().load()->name; }

// For tests: all instruction sets have to be correct, but by default only the widest one is used.
void set_instruction_set(std::string name) {
  std::string known;
  for (const cpu::InstructionSet& set : cpu::instruction_sets()) {
    if (name == set.name) {
      cpu::in_use() = &set;
      return;
    }
    known += known.empty() ? set.name : std::string(", ") + set.name;
  }
  STD_TORCH_CHECK(false, "name: expected one that this processor runs (", known, "), got ", name);
}

int64_t parts_of_last_op() { return cpu::last_parts; }

// For tests: multithreading has to be correct for the smallest shapes too.
void share_small_work(bool shared) { cpu::small_work_is_shared = shared; }

// The architectures that the CUDA kernels were compiled for, as nvcc names them; empty without CUDA kernels.
std::string cuda_architectures() {
#ifdef DMM_FAST_CUDA
  return DMM_FAST_CUDA;
#else
  return "";
#endif
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(dmm_fast, m) {
  m.def("_check_hangs() -> ()");
  m.def("_cuda_architectures() -> str");
  m.def("_instruction_set() -> str");
  m.def("_parts_of_last_op() -> int");
  m.def("_set_instruction_set(str name) -> ()");
  m.def("_share_small_work(bool shared) -> ()");
}

// The ops have no tensor arguments, so no device can select an implementation.
STABLE_TORCH_LIBRARY_IMPL(dmm_fast, CompositeExplicitAutograd, m) {
  m.impl("_check_hangs", TORCH_BOX(&check_hangs));
  m.impl("_cuda_architectures", TORCH_BOX(&cuda_architectures));
  m.impl("_instruction_set", TORCH_BOX(&instruction_set));
  m.impl("_parts_of_last_op", TORCH_BOX(&parts_of_last_op));
  m.impl("_set_instruction_set", TORCH_BOX(&set_instruction_set));
  m.impl("_share_small_work", TORCH_BOX(&share_small_work));
}

}  // namespace dmm

extern "C" PyObject* PyInit__C() {
  static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&module);
}
