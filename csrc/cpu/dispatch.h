// The kernels by instruction set, and the choice of the set for this processor.
#pragma once

#include "params.h"

namespace dmm::cpu {

template <class S>
struct Kernels {
#define DMM_KERNEL(name, Params) void (*name)(const Params<S>&);
  DMM_FOR_EACH_OP(DMM_KERNEL)
#undef DMM_KERNEL
};

#define DMM_DECLARE_ISA(isa)                \
  namespace isa {                           \
  const Kernels<float>& float_kernels();    \
  const Kernels<double>& double_kernels();  \
  }
DMM_DECLARE_ISA(baseline)
#if defined(__x86_64__)
DMM_DECLARE_ISA(avx2)
DMM_DECLARE_ISA(avx512)
#endif
#undef DMM_DECLARE_ISA

template <class S>
const Kernels<S>& kernels();

}  // namespace dmm::cpu
