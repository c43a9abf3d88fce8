// The emitter p(x_t | z_t): the shared network, forward and backward, and its heads.
//
//   h_1 = relu(W_in z + b)   h_2 = relu(W_hidden h_1 + b)   out = W_out h_2 + b
// For a Bernoulli, out is the logits; for a Gaussian, loc followed by pre_scale, computed as one product. For
// counts it has pre-activations: of the rate of a Poisson, or of the mean followed by the total count of a
// negative binomial. For a NADE it is the logits and the initial state.
//
// Included once for each instruction set, inside its namespace.

// The weights of an emitter, or their gradients.
template <class S>
struct EmitterLayers {
  int64_t E, Z, D;
  S *w_in, *b_in, *w_hidden, *b_hidden;
  S *w_out, *b_out;          // the only or the first head
  S *w_second, *b_second;    // the second head, such as pre_scale or the state of a NADE; null if there is only one
  int64_t second_width = D;  // for a NADE U, the units of its state
  int64_t width() const { return w_second ? D + second_width : D; }
};
template <class S>
inline EmitterLayers<S> layers_of(const EmitterTensors<S>& t) {
  return {t.E, t.Z, t.D, t.w_in, t.b_in, t.w_hidden, t.b_hidden, t.w_out, t.b_out, nullptr, nullptr};
}
template <class S>
inline EmitterLayers<S> layers_of(const GaussianEmitterTensors<S>& t) {
  return {t.E, t.Z, t.D, t.w_in, t.b_in, t.w_hidden, t.b_hidden, t.w_loc, t.b_loc, t.w_scale, t.b_scale};
}

template <class S>
inline double emitter_work(const EmitterLayers<const S>& t, double pass) {
  return pass * product_work(t.E, t.Z + t.E + t.width()) + density_work(t.D);
}

// The weights of the forward pass, packed once per call.
template <class S>
struct EmitterNet {
  const EmitterLayers<const S>& t;
  int64_t width;  // of out
  std::vector<S> w_stack, b_stack;
  Packed<S> w_in, w_hidden, w_out;

  explicit EmitterNet(const EmitterLayers<const S>& tensors)
      : t(tensors),
        width(t.width()),
        w_stack(stacked(t.w_out, t.D * t.E, t.w_second, t.second_width * t.E)),
        b_stack(stacked(t.b_out, t.D, t.b_second, t.second_width)),
        w_in(t.w_in, t.E, t.Z, t.Z, 1),
        w_hidden(t.w_hidden, t.E, t.E, t.E, 1),
        w_out(w_stack.data(), width, t.E, t.E, 1) {}
};

// The activations of a block; in a backward pass, those of a whole chunk.
template <class S>
struct EmitterPlanes {
  Plane<S> h_1, h_2, out;
  EmitterPlanes(const EmitterNet<S>& net, int64_t rows)
      : h_1(rows, net.t.E), h_2(rows, net.t.E), out(rows, net.width) {}
};

// Computes rows [at, at + count) of the planes from z_t.
template <class S>
void emitter_block(const EmitterNet<S>& net, const S* const* z, int64_t at, int64_t count,
                   EmitterPlanes<S>& planes) {
  const auto relu = [](S x) { return relu_(x); };
  layer(z, count, net.w_in, net.t.b_in, planes.h_1, at, relu);
  layer(planes.h_1.rows() + at, count, net.w_hidden, net.t.b_hidden, planes.h_2, at, relu);
  layer(planes.h_2.rows() + at, count, net.w_out, net.b_stack.data(), planes.out, at, [](S x) { return x; });
}

// head(i, out) receives step i of the list. Each thread has a copy of it with its own scratch.
template <class S, class Head>
void emitter_core_forward(const std::vector<Place>& places, const Rows<const S>& z,
                          const EmitterLayers<const S>& tensors, Head head) {
  const EmitterNet<S> net(tensors);
  for_blocks(static_cast<int64_t>(places.size()), emitter_work(tensors, kForward), [&] {
    return [&, head, planes = EmitterPlanes<S>(net, kBlockRows), inputs = std::vector<const S*>(kBlockRows)](
               int64_t first, int64_t count) mutable {
      for (int64_t i = 0; i < count; ++i) inputs[i] = z.at(places[first + i].row, places[first + i].step);
      emitter_block(net, inputs.data(), 0, count, planes);
      for (int64_t i = 0; i < count; ++i) head(first + i, planes.out[i]);
    };
  });
}

// The head of an emitter whose weights are all in its layers.
template <class S>
struct NoFurtherSums {
  void operator()(Plane<S>&, Plane<S>&, int64_t, int64_t, int64_t, int64_t) const {}
};

// head(i, out, scratch) replaces out by its gradient, with a row of scratch of the given width, which `sums` may
// read; each block of steps has a copy of it. dz [rows, steps, Z] is zero at dropped steps. After a chunk of `count`
// steps, sums(out, scratch, count, begin, end, parts) adds to the gradients of further weights of the head.
template <class S, class Clear, class Head, class Sums = NoFurtherSums<S>>
void emitter_core_backward(const Steps& steps, const std::vector<Place>& places, const Rows<const S>& z,
                           const EmitterLayers<const S>& tensors, S* dz, const EmitterLayers<S>& dw,
                           int64_t scratch_width, Clear clear, Head head, Sums sums = {}) {
  const EmitterNet<S> net(tensors);
  const int64_t Z = tensors.Z, E = tensors.E, D = tensors.D;
  const Packed<S> w_out(net.w_stack.data(), E, net.width, 1, E), w_hidden(tensors.w_hidden, E, E, 1, E),
      w_in(tensors.w_in, Z, E, 1, Z);
  const Chunks chunks(static_cast<int64_t>(places.size()), emitter_work(tensors, kBackward));
  EmitterPlanes<S> planes(net, chunks.rows);
  Plane<S> dh_1(chunks.rows, E), dh_2(chunks.rows, E), scratch(scratch_width ? chunks.rows : 0, scratch_width);
  std::vector<const S*> inputs(chunks.rows);
  const std::vector<const S*> dsecond = planes.out.rows_from(D);
  WeightGradients<S> gradients;
  gradients.add(dh_1.rows(), E, inputs.data(), Z, dw.w_in, dw.b_in);
  gradients.add(dh_2.rows(), E, planes.h_1.rows(), E, dw.w_hidden, dw.b_hidden);
  gradients.add(planes.out.rows(), D, planes.h_2.rows(), E, dw.w_out, dw.b_out);
  if (dw.w_second)
    gradients.add(dsecond.data(), dw.second_width, planes.h_2.rows(), E, dw.w_second, dw.b_second);
  gradients.also([&](int64_t count, int64_t begin, int64_t end, int64_t parts) {
    sums(planes.out, scratch, count, begin, end, parts);
  });
  const auto clear_all = [&](int64_t begin, int64_t end, int64_t parts) {
    clear_unlisted(steps, dz, Z, begin, end, parts);
    clear(begin, end, parts);
  };
  const auto run = [&](int64_t at, int64_t first, int64_t count) {
    for (int64_t i = 0; i < count; ++i) inputs[at + i] = z.at(places[first + i].row, places[first + i].step);
    emitter_block(net, inputs.data() + at, at, count, planes);
    auto own = head;
    for (int64_t i = 0; i < count; ++i) own(first + i, planes.out[at + i], scratch[at + i]);
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

// An elementwise head.
template <class Density>
struct Elementwise {
  template <class S>
  static double forward(const S* x, const uint8_t* keep, int64_t width, const S* out, S* terms) {
    return density_forward<Density, S>(x, keep, width, out, terms);
  }
  template <class S>
  static void backward(const S* x, const uint8_t* keep, S d, int64_t width, S* out, S* dx) {
    density_backward<Density, S>(x, keep, d, width, out, dx);
  }
};

// Head::forward returns a step's log-density; Head::backward replaces out by its gradients.
template <class Head, class S, class Params>
void emission_log_prob_of(const Params& a) {
  const EmitterLayers<const S> layers = layers_of(a.weights);
  const Sequences sequences{Steps::of(a, a.mask.steps), a.D, a.mask.entries};
  const std::vector<Place> places = places_of(sequences.steps);
  const Mask mask(sequences);
  std::vector<double> terms(places.size());
  const auto head = [&](int64_t i, S* out) {
    const S* x = a.x.at(places[i].row, places[i].step);
    terms[i] = Head::template forward<S>(x, mask.at(places[i]), layers.D, out, out);
  };
  emitter_core_forward<S>(places, a.z, layers, head);
  sum_steps(places, terms, sequences.steps.rows, a.out);
}

template <class Head, class S, class Params>
void emission_log_prob_backward_of(const Params& a) {
  const EmitterLayers<const S> layers = layers_of(a.weights);
  const Sequences sequences{Steps::of(a, a.mask.steps), a.D, a.mask.entries};
  const Steps& steps = sequences.steps;
  const std::vector<Place> places = places_of(steps);
  const Mask mask(sequences);
  std::vector<double> terms(a.out ? places.size() : 0);
  const int64_t D = a.D;
  const auto clear = [&](int64_t begin, int64_t end, int64_t parts) {
    if (a.dx) clear_unlisted(steps, a.dx, D, begin, end, parts);
  };
  const auto head = [&](int64_t i, S* out, S* scratch) {
    const Place& place = places[i];
    const S* x = a.x.at(place.row, place.step);
    const uint8_t* keep = mask.at(place);
    S* to = a.dx ? a.dx + (place.row * a.T + place.step) * D : nullptr;
    if (a.out) terms[i] = Head::template forward<S>(x, keep, D, out, scratch);
    Head::template backward<S>(x, keep, a.dout[place.row], D, out, to);
  };
  emitter_core_backward<S>(steps, places, a.z, layers, a.dz, layers_of(a.dweights), a.out ? D : 0, clear, head);
  if (a.out) sum_steps(places, terms, steps.rows, a.out);
}

template <class S>
void emission_log_prob(const EmissionLogProb<S>& a) {
  emission_log_prob_of<Elementwise<Bernoulli>, S>(a);
}
template <class S>
void emission_log_prob_backward(const EmissionLogProbBackward<S>& a) {
  emission_log_prob_backward_of<Elementwise<Bernoulli>, S>(a);
}
template <class S>
void gaussian_emission_log_prob(const GaussianEmissionLogProb<S>& a) {
  emission_log_prob_of<Elementwise<Normal>, S>(a);
}
template <class S>
void gaussian_emission_log_prob_backward(const GaussianEmissionLogProbBackward<S>& a) {
  emission_log_prob_backward_of<Elementwise<Normal>, S>(a);
}
template <class S>
void poisson_emission_log_prob(const PoissonEmissionLogProb<S>& a) {
  emission_log_prob_of<Elementwise<Poisson>, S>(a);
}
template <class S>
void poisson_emission_log_prob_backward(const PoissonEmissionLogProbBackward<S>& a) {
  emission_log_prob_backward_of<Elementwise<Poisson>, S>(a);
}
template <class S>
void negative_binomial_emission_log_prob(const NegativeBinomialEmissionLogProb<S>& a) {
  emission_log_prob_of<Elementwise<NegativeBinomial>, S>(a);
}
template <class S>
void negative_binomial_emission_log_prob_backward(const NegativeBinomialEmissionLogProbBackward<S>& a) {
  emission_log_prob_backward_of<Elementwise<NegativeBinomial>, S>(a);
}
template <class S>
void categorical_emission_log_prob(const CategoricalEmissionLogProb<S>& a) {
  emission_log_prob_of<Categorical, S>(a);
}
template <class S>
void categorical_emission_log_prob_backward(const CategoricalEmissionLogProbBackward<S>& a) {
  emission_log_prob_backward_of<Categorical, S>(a);
}

// Single steps: `out` is the logits or loc; pre_scale is null for a Bernoulli.
template <class S, class Params>
void emitter_steps(const Params& a, S* out, S* pre_scale) {
  const int64_t D = a.D;
  const auto head = [&](int64_t i, const S* from) {
    std::copy_n(from, D, out + i * D);
    if (pre_scale) std::copy_n(from + D, D, pre_scale + i * D);
  };
  emitter_core_forward<S>(places_of(Steps::single(a.N)), a.z, layers_of(a.weights), head);
}

template <class S, class Params>
void emitter_steps_backward(const Params& a, const Rows<const S>& dout, const Rows<const S>* dpre_scale) {
  const Steps steps = Steps::single(a.N);
  const int64_t D = a.D;
  const auto head = [&](int64_t i, S* out, S*) {
    std::copy_n(dout.at(0, i), D, out);
    if (dpre_scale) std::copy_n(dpre_scale->at(0, i), D, out + D);
  };
  const auto nothing = [](int64_t, int64_t, int64_t) {};
  emitter_core_backward<S>(steps, places_of(steps), a.z, layers_of(a.weights), a.dz, layers_of(a.dweights), 0,
                           nothing, head);
}

template <class S>
void emitter(const Emitter<S>& a) {
  emitter_steps<S>(a, a.logits, nullptr);
}
template <class S>
void emitter_backward(const EmitterBackward<S>& a) {
  emitter_steps_backward<S>(a, a.dlogits, nullptr);
}
template <class S>
void gaussian_emitter(const GaussianEmitter<S>& a) {
  emitter_steps<S>(a, a.loc, a.pre_scale);
}
template <class S>
void gaussian_emitter_backward(const GaussianEmitterBackward<S>& a) {
  emitter_steps_backward<S>(a, a.dloc, &a.dpre_scale);
}
