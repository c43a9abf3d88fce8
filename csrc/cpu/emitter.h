// The emitter p(x_t | z_t): one core, forward and backward, and its heads.
//
//   h_1 = relu(W_in z + b)   h_2 = relu(W_hidden h_1 + b)   out = W_out h_2 + b
// A Bernoulli's out is the logits; a Gaussian's is loc and, after it, pre_scale, as one product.
//
// Included once for each instruction set, inside its namespace.

template <class S>
inline double emitter_work(const EmitterTensors<const S>& t, double pass) {
  const int64_t width = t.w_scale ? 2 * t.outputs : t.outputs;
  return pass * product_work(t.units, t.latents + t.units + width) + density_work(t.outputs);
}

// The weights of the forward pass, packed once a call.
template <class S>
struct EmitterNet {
  using Tensors = EmitterTensors<const S>;
  const Tensors& t;
  int64_t width;  // of out
  std::vector<S> w_stack, b_stack;
  Packed<S> w_in, w_hidden, w_out;

  explicit EmitterNet(const Tensors& tensors)
      : t(tensors),
        width(t.w_scale ? 2 * t.outputs : t.outputs),
        w_stack(stack(t.w_out, t.w_scale, t.outputs * t.units)),
        b_stack(stack(t.b_out, t.b_scale, t.outputs)),
        w_in(t.w_in, t.units, t.latents, t.latents, 1),
        w_hidden(t.w_hidden, t.units, t.units, t.units, 1),
        w_out(w_stack.data(), width, t.units, t.units, 1) {}

  static std::vector<S> stack(const S* out, const S* scale, int64_t size) {
    std::vector<S> both(out, out + size);
    if (scale) both.insert(both.end(), scale, scale + size);
    return both;
  }
};

// What a block computes; in a backward pass, what a whole chunk does.
template <class S>
struct EmitterPlanes {
  Plane<S> h_1, h_2, out;
  EmitterPlanes(const EmitterNet<S>& net, int64_t rows)
      : h_1(rows, net.t.units), h_2(rows, net.t.units), out(rows, net.width) {}
};

// Rows [at, at + count) of the planes from as many z_t.
template <class S>
void emitter_block(const EmitterNet<S>& net, const S* const* z, int64_t at, int64_t count,
                   EmitterPlanes<S>& planes) {
  const auto relu = [](S x) { return relu_(x); };
  layer(z, count, net.w_in, net.t.b_in, planes.h_1, at, relu);
  layer(planes.h_1.rows() + at, count, net.w_hidden, net.t.b_hidden, planes.h_2, at, relu);
  layer(planes.h_2.rows() + at, count, net.w_out, net.b_stack.data(), planes.out, at, [](S x) { return x; });
}

// head(i, out) gets step i of the list.
template <class S, class Head>
void emitter_forward(const std::vector<Place>& places, const Rows<const S>& z,
                     const EmitterTensors<const S>& tensors, Head head) {
  const EmitterNet<S> net(tensors);
  for_blocks(static_cast<int64_t>(places.size()), emitter_work(tensors, kForward), [&] {
    return [&, planes = EmitterPlanes<S>(net, kBlockRows), inputs = std::vector<const S*>(kBlockRows)](
               int64_t first, int64_t count) mutable {
      for (int64_t i = 0; i < count; ++i) inputs[i] = z.at(places[first + i].row, places[first + i].step);
      emitter_block(net, inputs.data(), 0, count, planes);
      for (int64_t i = 0; i < count; ++i) head(first + i, planes.out[i]);
    };
  });
}

// head(i, out) puts the gradient by out in its place; dz [rows, steps, latents] is zero where a step does
// not count.
template <class S, class Clear, class Head>
void emitter_backward(const Steps& steps, const std::vector<Place>& places, const Rows<const S>& z,
                      const EmitterTensors<const S>& tensors, S* dz, const EmitterTensors<S>& dw, Clear clear,
                      Head head) {
  const EmitterNet<S> net(tensors);
  const int64_t Z = tensors.latents, E = tensors.units, D = tensors.outputs;
  const Packed<S> w_out(net.w_stack.data(), E, net.width, 1, E), w_hidden(tensors.w_hidden, E, E, 1, E),
      w_in(tensors.w_in, Z, E, 1, Z);
  const Chunks chunks(static_cast<int64_t>(places.size()), emitter_work(tensors, kBackward));
  EmitterPlanes<S> planes(net, chunks.rows);
  Plane<S> dh_1(chunks.rows, E), dh_2(chunks.rows, E);
  std::vector<const S*> inputs(chunks.rows);
  const std::vector<const S*> dscale = planes.out.rows_from(D);
  WeightGradients<S> gradients;
  gradients.add(dh_1.rows(), E, inputs.data(), Z, dw.w_in, dw.b_in);
  gradients.add(dh_2.rows(), E, planes.h_1.rows(), E, dw.w_hidden, dw.b_hidden);
  gradients.add(planes.out.rows(), D, planes.h_2.rows(), E, dw.w_out, dw.b_out);
  if (dw.w_scale) gradients.add(dscale.data(), D, planes.h_2.rows(), E, dw.w_scale, dw.b_scale);
  const auto clear_all = [&](int64_t begin, int64_t end, int64_t parts) {
    clear_unlisted(steps, dz, Z, begin, end, parts);
    clear(begin, end, parts);
  };
  const auto run = [&](int64_t at, int64_t first, int64_t count) {
    for (int64_t i = 0; i < count; ++i) inputs[at + i] = z.at(places[first + i].row, places[first + i].step);
    emitter_block(net, inputs.data() + at, at, count, planes);
    for (int64_t i = 0; i < count; ++i) head(first + i, planes.out[at + i]);
    layer_backward(planes.out.rows() + at, count, w_out, planes.h_2, dh_2, at, 0);
    layer_backward(dh_2.rows() + at, count, w_hidden, planes.h_1, dh_1, at, 0);
    const auto keep = [&](int64_t i, int64_t column, int64_t width, const S* sum) {
      const auto [row, step] = places[first + i];
      std::copy_n(sum, width, dz + (row * steps.steps + step) * Z + column);
    };
    multiply(dh_1.rows() + at, count, w_in, keep);
  };
  backward_blocks(chunks, gradients, clear_all, run, [](int64_t, int64_t, int64_t) {});
}

// A Gaussian's log-density where there is a scale, else a Bernoulli's.
template <class S>
void emission_log_prob(const Observations<S>& observed, const Rows<const S>& z,
                       const EmitterTensors<const S>& tensors, S* result) {
  const std::vector<Place> places = places_of(observed.sequences.steps);
  const Mask mask(observed.sequences);
  std::vector<double> terms(places.size());
  const int64_t D = observed.sequences.width;
  const auto head = [&](int64_t i, S* out) {
    const S* x = observed.x.at(places[i].row, places[i].step);
    const uint8_t* keep = mask.at(places[i]);
    terms[i] = tensors.w_scale ? normal_forward(x, keep, D, out) : bernoulli_forward(x, keep, D, out);
  };
  emitter_forward<S>(places, z, tensors, head);
  sum_steps(places, terms, observed.sequences.steps.rows, result);
}

// dx may be null.
template <class S>
void emission_log_prob_backward(const Observations<S>& observed, const Rows<const S>& z,
                                const EmitterTensors<const S>& tensors, const S* dresult, S* dx, S* dz,
                                const EmitterTensors<S>& dw) {
  const Steps& steps = observed.sequences.steps;
  const std::vector<Place> places = places_of(steps);
  const Mask mask(observed.sequences);
  const int64_t D = observed.sequences.width;
  const auto clear = [&](int64_t begin, int64_t end, int64_t parts) {
    if (dx) clear_unlisted(steps, dx, D, begin, end, parts);
  };
  const auto head = [&](int64_t i, S* out) {
    const Place& place = places[i];
    const S* x = observed.x.at(place.row, place.step);
    const uint8_t* keep = mask.at(place);
    S* to = dx ? dx + (place.row * steps.steps + place.step) * D : nullptr;
    if (tensors.w_scale)
      normal_backward(x, keep, dresult[place.row], D, out, to);
    else
      bernoulli_backward(x, keep, dresult[place.row], D, out, to);
  };
  emitter_backward<S>(steps, places, z, tensors, dz, dw, clear, head);
}

// Single steps: z [N, latents]. `out` is the logits or loc; pre_scale is null for a Bernoulli.
template <class S>
void emitter(int64_t count, const Rows<const S>& z, const EmitterTensors<const S>& tensors, S* out,
             S* pre_scale) {
  const int64_t D = tensors.outputs;
  const auto head = [&](int64_t i, const S* from) {
    std::copy_n(from, D, out + i * D);
    if (pre_scale) std::copy_n(from + D, D, pre_scale + i * D);
  };
  emitter_forward<S>(places_of({1, 1, count, nullptr, nullptr}), z, tensors, head);
}

// dpre_scale is not used for a Bernoulli.
template <class S>
void emitter_step_backward(int64_t count, const Rows<const S>& z, const EmitterTensors<const S>& tensors,
                           const Rows<const S>& dout, const Rows<const S>& dpre_scale, S* dz,
                           const EmitterTensors<S>& dw) {
  const Steps steps{1, 1, count, nullptr, nullptr};
  const int64_t D = tensors.outputs;
  const auto head = [&](int64_t i, S* out) {
    std::copy_n(dout.at(0, i), D, out);
    if (tensors.w_scale) std::copy_n(dpre_scale.at(0, i), D, out + D);
  };
  emitter_backward<S>(steps, places_of(steps), z, tensors, dz, dw, [](int64_t, int64_t, int64_t) {}, head);
}
