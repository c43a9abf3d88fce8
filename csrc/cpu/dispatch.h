// The kernels by instruction set, and the one this processor runs.
#pragma once

#include <cstdint>

#include "args.h"
#include "rowwise_args.h"

namespace dmm::cpu {

template <class S>
struct RowwiseKernels {
  using In = Rows<const S>;
  using TransitionIn = TransitionTensors<const S>;
  using CombinerIn = CombinerTensors<const S>;
  using EmitterIn = EmitterTensors<const S>;
  using Transition = TransitionTensors<S>;
  using Combiner = CombinerTensors<S>;
  using Emitter = EmitterTensors<S>;

  void (*transition_log_prob)(const Chain<S>&, const TransitionIn&, S* out);
  void (*transition_log_prob_backward)(const Chain<S>&, const TransitionIn&, const S* dout,
                                       const ChainGradients<S>&, const Transition& dw);
  void (*transition_kl)(const Chain<S>&, const Gaussians<S>& q, const TransitionIn&, S* out);
  void (*transition_kl_backward)(const Chain<S>&, const Gaussians<S>& q, const TransitionIn&, const S* dout,
                                 const ChainGradients<S>&, S* dloc, S* dpre_scale, const Transition& dw);
  void (*gated_transition)(int64_t count, const In& z_prev, const TransitionIn&, S* loc, S* scale);
  void (*gated_transition_backward)(int64_t count, const In& z_prev, const TransitionIn&, const In& dloc,
                                    const In& dscale, S* dz_prev, const Transition& dw);

  void (*combiner_log_prob)(const Chain<S>&, const In& h, const CombinerIn&, S* out);
  void (*combiner_log_prob_backward)(const Chain<S>&, const In& h, const CombinerIn&, const S* dout,
                                     const ChainGradients<S>&, S* dh, const Combiner& dw);
  void (*combiner)(int64_t count, const In& z_prev, const In& h, const CombinerIn&, S* loc, S* scale);
  void (*combiner_backward)(int64_t count, const In& z_prev, const In& h, const CombinerIn&, const In& dloc,
                            const In& dscale, S* dz_prev, S* dh, const Combiner& dw);

  void (*emission_log_prob)(const Observations<S>&, const In& z, const EmitterIn&, S* out);
  void (*emission_log_prob_backward)(const Observations<S>&, const In& z, const EmitterIn&, const S* dout,
                                     S* dx, S* dz, const Emitter& dw);
  void (*emitter)(int64_t count, const In& z, const EmitterIn&, S* out, S* pre_scale);
  void (*emitter_backward)(int64_t count, const In& z, const EmitterIn&, const In& dout, const In& dpre_scale,
                           S* dz, const Emitter& dw);

  void (*normal_log_prob)(const Sequences&, const In& value, const In& loc, const In& scale, S* out);
  void (*normal_log_prob_backward)(const Sequences&, const In& value, const In& loc, const In& scale,
                                   const S* dout, S* dvalue, S* dloc, S* dscale);
  void (*bernoulli_log_prob)(const Sequences&, const In& x, const In& logits, S* out);
  void (*bernoulli_log_prob_backward)(const Sequences&, const In& x, const In& logits, const S* dout, S* dx,
                                      S* dlogits);
  void (*drawn_log_prob)(const Sequences&, const In& eps, const In& pre_scale, S* out);
  void (*drawn_log_prob_backward)(const Sequences&, const In& eps, const In& pre_scale, const S* dout,
                                  S* deps, S* dpre_scale);
};

template <class S>
struct Kernels {
  void (*input_projection)(const InputProjection<S>&);
  void (*input_projection_backward)(const InputProjectionBackward<S>&);
  void (*rnn_scan)(const RnnScan<S>&);
  void (*rnn_scan_backward)(const RnnScanBackward<S>&);
  void (*combiner_scan)(const CombinerScan<S>&);
  void (*combiner_scan_backward)(const CombinerScanBackward<S>&);
  void (*clipped_adam)(const ClippedAdam<S>&);
  RowwiseKernels<S> rowwise;
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
