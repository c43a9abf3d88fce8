// The kernels of one instruction set. A file kernels_<isa>.cpp sets the target and includes this once.
//
// DMM_ISA           name of the namespace
// DMM_VECTOR_BYTES  bytes of a vector register
// DMM_BLOCK_ROWS    rows of a register tile: with two vectors a row, what the registers hold

namespace dmm::cpu::DMM_ISA {

#include "math.h"

// A NaN comes through.
template <class S>
inline S relu_(S x) {
  return x < S(0) ? S(0) : x;
}

#include "gemm.h"
#include "lanes.h"
#include "ragged.h"
#include "input_projection.h"
#include "rnn_scan.h"
#include "combiner_scan.h"
#include "clipped_adam.h"
#include "rowwise.h"
#include "log_prob.h"
#include "transition.h"
#include "combiner.h"
#include "emitter.h"

template <class S>
constexpr RowwiseKernels<S> rowwise_kernels() {
  return {transition_log_prob<S>, transition_log_prob_backward<S>,
          transition_kl<S>,       transition_kl_backward<S>,
          gated_transition<S>,    gated_transition_backward<S>,
          combiner_log_prob<S>,   combiner_log_prob_backward<S>,
          combiner<S>,            combiner_step_backward<S>,
          emission_log_prob<S>,   emission_log_prob_backward<S>,
          emitter<S>,             emitter_step_backward<S>,
          normal_log_prob<S>,     normal_log_prob_backward<S>,
          bernoulli_log_prob<S>,  bernoulli_log_prob_backward<S>,
          drawn_log_prob<S>,      drawn_log_prob_backward<S>};
}

template <class S>
const Kernels<S>& all_kernels() {
  static const Kernels<S> kernels{input_projection<S>, input_projection_backward<S>, rnn_scan<S>,
                                  rnn_scan_backward<S>, combiner_scan<S>, combiner_scan_backward<S>,
                                  clipped_adam<S>, rowwise_kernels<S>()};
  return kernels;
}

const Kernels<float>& float_kernels() { return all_kernels<float>(); }
const Kernels<double>& double_kernels() { return all_kernels<double>(); }

}  // namespace dmm::cpu::DMM_ISA
