// One step of Adam with clipped gradients: every element of every tensor is read and written once.
//
// Included once for each instruction set, inside its namespace.

template <class S>
void clipped_adam(const ClippedAdam<S>& a) {
  int64_t size = 0;
  for (const AdamTensor<S>& tensor : a.tensors) size += tensor.size;
  const int64_t parts = parts_for(2 * kFunction * static_cast<double>(size), size);  // limited by memory bandwidth
  const S clip = a.clip_norm, decay = a.weight_decay, beta1 = a.beta1, beta2 = a.beta2, eps = a.eps;
  const S one_minus_beta1 = a.one_minus_beta1, one_minus_beta2 = a.one_minus_beta2;
  parallel_for(parts, [&](int64_t begin, int64_t end) {
    for (const AdamTensor<S>& tensor : a.tensors) {
      // Each part has a share of every tensor instead of whole tensors, since one weight has half of all elements.
      const int64_t first = tensor.size * begin / parts, last = tensor.size * end / parts;
      const S step_size = tensor.step_size;
      S *p = tensor.param, *g = tensor.grad, *m = tensor.exp_avg, *v = tensor.exp_avg_sq;
#pragma GCC ivdep
      for (int64_t i = first; i < last; ++i) {
        const S clamped = g[i] < -clip ? -clip : (g[i] > clip ? clip : g[i]);
        g[i] = clamped;
        const S d = clamped + decay * p[i];
        m[i] = m[i] * beta1 + one_minus_beta1 * d;
        const S e = a.centered_variance ? d - m[i] : d;
        v[i] = v[i] * beta2 + one_minus_beta2 * (e * e);
        p[i] -= step_size * m[i] / (std::sqrt(v[i]) + eps);
      }
    }
  });
}
