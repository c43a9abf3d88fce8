// The kernels of one instruction set. A file kernels_<isa>.cpp sets the target and includes this once.
//
// DMM_ISA           name of the namespace
// DMM_VECTOR_BYTES  bytes of a vector register
// DMM_BLOCK_ROWS    rows of a register tile, which has two vectors per row

namespace dmm::cpu::DMM_ISA {

#include "math.h"

// Propagates NaN, as std::max would not.
template <class S>
inline S relu_(S x) {
  return x < S(0) ? S(0) : x;
}

#include "gemm.h"
#include "simd.h"
#include "ragged.h"
#include "input_projection.h"
#include "rnn_scan.h"
#include "combiner_slice.h"
#include "combiner_scan.h"
#include "clipped_adam.h"
#include "rowwise.h"
#include "flow_scan.h"
#include "log_prob.h"
#include "count_log_prob.h"
#include "categorical_log_prob.h"
#include "transition.h"
#include "transition_scan.h"
#include "combiner.h"
#include "emitter.h"
#include "nade.h"

template <class S>
const Kernels<S>& all_kernels() {
#define DMM_KERNEL(name, Params) name<S>,
  static const Kernels<S> kernels{DMM_FOR_EACH_OP(DMM_KERNEL)};
#undef DMM_KERNEL
  return kernels;
}

const Kernels<float>& float_kernels() { return all_kernels<float>(); }
const Kernels<double>& double_kernels() { return all_kernels<double>(); }

}  // namespace dmm::cpu::DMM_ISA
