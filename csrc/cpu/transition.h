// The gated transition p(z_t | z_{t-1}, inputs_t): the shared network, forward and backward, and its heads.
//
//   hidden_g = relu(W_gi z + b)   gate = sigmoid(W_go hidden_g + b)
//   hidden_m = relu(W_mi z + b)   mean = W_mo hidden_m + b           with z = z_{t-1}
//   linear   = W_l z + b          loc  = (1 - gate) linear + gate mean
//                                 pre_scale = W_s relu(mean) + b
// The three layers of z are one GEMM, in which any further inputs follow z_{t-1}.
//
// Included once for each instruction set, inside its namespace.

// Converts the weights of a transition without further inputs to those of one that may have some.
template <class S>
inline DrivenTransitionTensors<S> driven(const TransitionTensors<S>& t) {
  return {t.G,         t.Z,         t.Z,          t.R,          t.w_gate_in, t.b_gate_in, t.w_gate_out, t.b_gate_out,
          t.w_mean_in, t.b_mean_in, t.w_mean_out, t.b_mean_out, t.w_scale,   t.b_scale,   t.w_loc,      t.b_loc};
}

template <class S>
inline double transition_work(const DrivenTransitionTensors<const S>& t, double pass) {
  const int64_t Z = t.Z, hidden = t.G + t.R;
  const double products = product_work(t.I, hidden + Z) + product_work(Z, hidden + Z);
  return pass * products + kFunction * static_cast<double>(Z) + density_work(Z);
}

// The weights of the forward pass, packed once per call.
template <class S>
struct TransitionNet {
  using Tensors = DrivenTransitionTensors<const S>;
  const Tensors t;
  int64_t hidden, width;  // of both ReLU layers, and with the linear one
  std::vector<S> w_stack, b_stack;
  Packed<S> w_in, w_gate, w_mean, w_scale;

  explicit TransitionNet(const Tensors& tensors)
      : t(tensors),
        hidden(t.G + t.R),
        width(hidden + t.Z),
        w_stack(stack(t.w_gate_in, t.w_mean_in, t.w_loc, t.I)),
        b_stack(stack(t.b_gate_in, t.b_mean_in, t.b_loc, 1)),
        w_in(w_stack.data(), width, t.I, t.I, 1),
        w_gate(t.w_gate_out, t.Z, t.G, t.G, 1),
        w_mean(t.w_mean_out, t.Z, t.R, t.R, 1),
        w_scale(t.w_scale, t.Z, t.Z, t.Z, 1) {}

  std::vector<S> stack(const S* gate, const S* mean, const S* linear, int64_t inputs) const {
    std::vector<S> out(gate, gate + t.G * inputs);
    out.insert(out.end(), mean, mean + t.R * inputs);
    out.insert(out.end(), linear, linear + t.Z * inputs);
    return out;
  }
};

// The activations of a block; in a backward pass, those of a whole chunk.
template <class S>
struct TransitionPlanes {
  Plane<S> first;  // hidden_g, hidden_m, linear
  Plane<S> gate, mean, open_mean, pre_scale;
  std::vector<const S*> hidden_m;
  TransitionPlanes(const TransitionNet<S>& net, int64_t rows)
      : first(rows, net.hidden + whole_lanes<S>(net.t.Z)),
        gate(rows, net.t.Z),
        mean(rows, net.t.Z),
        open_mean(rows, net.t.Z),
        pre_scale(rows, net.t.Z),
        hidden_m(first.rows_from(net.t.G)) {}
};

// One step's results.
template <class S>
struct TransitionRow {
  const S *gate, *linear, *mean;
  S* pre_scale;
  S loc(int64_t j) const { return (S(1) - gate[j]) * linear[j] + gate[j] * mean[j]; }
};

template <class S>
inline TransitionRow<S> row_at(const TransitionNet<S>& net, TransitionPlanes<S>& planes, int64_t i) {
  return {planes.gate[i], planes.first[i] + net.hidden, planes.mean[i], planes.pre_scale[i]};
}

// Computes rows [at, at + count) of the planes from the inputs, with z_{t-1} first.
template <class S>
void transition_block(const TransitionNet<S>& net, const S* const* before, int64_t at, int64_t count,
                      TransitionPlanes<S>& planes) {
  multiply(before, count, net.w_in,
           [&](int64_t i, int64_t column, int64_t width, const S* sum) {
             S* to = planes.first[at + i] + column;
             const S* b = net.b_stack.data() + column;
             const int64_t open = std::min(std::max<int64_t>(net.hidden - column, 0), width);
#pragma GCC ivdep
             for (int64_t j = 0; j < open; ++j) to[j] = relu_(sum[j] + b[j]);
#pragma GCC ivdep
             for (int64_t j = open; j < width; ++j) to[j] = sum[j] + b[j];
           });
  layer(planes.first.rows() + at, count, net.w_gate, net.t.b_gate_out, planes.gate, at,
        [](S x) { return sigmoid_(x); });
  layer(planes.hidden_m.data() + at, count, net.w_mean, net.t.b_mean_out, planes.mean, at,
        [](S x) { return x; });
  for (int64_t i = at; i < at + count; ++i) {
    const S* mean = planes.mean[i];
    S* to = planes.open_mean[i];
#pragma GCC ivdep
    for (int64_t j = 0; j < net.t.Z; ++j) to[j] = relu_(mean[j]);
  }
  layer(planes.open_mean.rows() + at, count, net.w_scale, net.t.b_scale, planes.pre_scale, at,
        [](S x) { return x; });
}

// before(place) returns z_{t-1}; head(i, row) receives step i of the list.
template <class S, class Before, class Head>
void transition_forward(const std::vector<Place>& places, const DrivenTransitionTensors<const S>& tensors,
                        Before before, Head head) {
  const TransitionNet<S> net(tensors);
  for_blocks(static_cast<int64_t>(places.size()), transition_work(tensors, kForward), [&] {
    return [&, planes = TransitionPlanes<S>(net, kBlockRows), inputs = std::vector<const S*>(kBlockRows)](
               int64_t first, int64_t count) mutable {
      for (int64_t i = 0; i < count; ++i) inputs[i] = before(places[first + i]);
      transition_block(net, inputs.data(), 0, count, planes);
      for (int64_t i = 0; i < count; ++i) head(first + i, row_at(net, planes, i));
    };
  });
}

// The gradient of the network, chunk by chunk.
template <class S>
class TransitionBackward {
 public:
  TransitionBackward(const DrivenTransitionTensors<const S>& tensors, const DrivenTransitionTensors<S>& dw,
                     int64_t rows)
      : net_(tensors),
        Z_(tensors.Z),
        I_(tensors.I),
        w_scale_(tensors.w_scale, Z_, Z_, 1, Z_),
        w_gate_(tensors.w_gate_out, tensors.G, Z_, 1, tensors.G),
        w_mean_(tensors.w_mean_out, tensors.R, Z_, 1, tensors.R),
        w_in_(net_.w_stack.data(), I_, net_.width, 1, I_),
        planes_(net_, rows),
        dfirst_(rows, net_.width),
        dbefore_(rows, I_),
        dhidden_m_(dfirst_.rows_from(tensors.G)),
        dlinear_(dfirst_.rows_from(net_.hidden)),
        inputs_(rows) {
    const int64_t G = tensors.G, R = tensors.R;
    gradients_.add(dfirst_.rows(), G, inputs_.data(), I_, dw.w_gate_in, dw.b_gate_in);
    gradients_.add(dhidden_m_.data(), R, inputs_.data(), I_, dw.w_mean_in, dw.b_mean_in);
    gradients_.add(dlinear_.data(), Z_, inputs_.data(), I_, dw.w_loc, dw.b_loc);
    // By the time of the summation, the planes contain the gradients in place of the block's results.
    gradients_.add(planes_.gate.rows(), Z_, planes_.first.rows(), G, dw.w_gate_out, dw.b_gate_out);
    gradients_.add(planes_.mean.rows(), Z_, planes_.hidden_m.data(), R, dw.w_mean_out, dw.b_mean_out);
    gradients_.add(planes_.pre_scale.rows(), Z_, planes_.open_mean.rows(), Z_, dw.w_scale, dw.b_scale);
  }

  const WeightGradients<S>& gradients() const { return gradients_; }
  const S* dbefore(int64_t i) { return dbefore_[i]; }

  // head(i, row, dloc) replaces pre_scale by its gradient and writes that of loc.
  template <class Before, class Head>
  void run(const std::vector<Place>& places, int64_t at, int64_t first, int64_t count, Before before,
           Head head) {
    for (int64_t i = 0; i < count; ++i) inputs_[at + i] = before(places[first + i]);
    transition_block(net_, inputs_.data() + at, at, count, planes_);
    for (int64_t i = 0; i < count; ++i)
      head(first + i, row_at(net_, planes_, at + i), dfirst_[at + i] + net_.hidden);
    multiply(
        planes_.pre_scale.rows() + at, count, w_scale_,
        [&](int64_t i, int64_t column, int64_t width, const S* sum) { mix(at + i, column, width, sum); });
    layer_backward(planes_.gate.rows() + at, count, w_gate_, planes_.first, dfirst_, at, 0);
    layer_backward(planes_.mean.rows() + at, count, w_mean_, planes_.first, dfirst_, at, net_.t.G);
    multiply(dfirst_.rows() + at, count, w_in_,
             [&](int64_t i, int64_t column, int64_t width, const S* sum) {
               std::copy_n(sum, width, dbefore_[at + i] + column);
             });
  }

 private:
  // Computes the gradients of the pre-activations of gate, mean and linear from dloc and the path by pre_scale.
  void mix(int64_t i, int64_t column, int64_t width, const S* through_scale) {
    S *gate = planes_.gate[i] + column, *mean = planes_.mean[i] + column;
    S* dlinear = dfirst_[i] + net_.hidden + column;  // contains dloc so far
    const S* linear = planes_.first[i] + net_.hidden + column;
#pragma GCC ivdep
    for (int64_t j = 0; j < width; ++j) {
      const S g = gate[j], m = mean[j], dloc = dlinear[j];
      gate[j] = dloc * (m - linear[j]) * g * (S(1) - g);
      mean[j] = dloc * g + (m > S(0) ? through_scale[j] : S(0));
      dlinear[j] = dloc * (S(1) - g);
    }
  }

  TransitionNet<S> net_;
  int64_t Z_, I_;
  Packed<S> w_scale_, w_gate_, w_mean_, w_in_;
  TransitionPlanes<S> planes_;
  Plane<S> dfirst_, dbefore_;
  std::vector<const S*> dhidden_m_, dlinear_, inputs_;
  WeightGradients<S> gradients_;
};

// Over a whole chain: head(i, at, row, dloc) also writes the gradient of z_t into dz, at element `at`; that of
// z_{t-1} is added when its whole chunk is complete.
template <class S, class Head>
void transition_chain_backward(const Chain<S>& chain, const std::vector<Place>& places,
                               const TransitionTensors<const S>& tensors, const ChainGradients<S>& out,
                               const TransitionTensors<S>& dw,
                               std::initializer_list<std::pair<S*, int64_t>> outputs, Head head) {
  const DrivenTransitionTensors<const S> weights = driven(tensors);
  const Chunks chunks(static_cast<int64_t>(places.size()), transition_work(weights, kBackward));
  const int64_t Z = tensors.Z, steps = chain.steps.steps;
  TransitionBackward<S> core(weights, driven(dw), chunks.rows);
  const auto clear = [&](int64_t begin, int64_t end, int64_t parts) {
    clear_chain(chain.steps, out.dz_0, Z, outputs, begin, end, parts);
  };
  const auto before = [&](const Place& p) { return chain.before(p); };
  const auto head_at = [&](int64_t i, const TransitionRow<S>& row, S* dloc) {
    head(i, (places[i].row * steps + places[i].step) * Z, row, dloc);
  };
  const auto run = [&](int64_t at, int64_t first, int64_t count) {
    core.run(places, at, first, count, before, head_at);
  };
  const auto after = [&](int64_t at, int64_t first, int64_t count) {
    for (int64_t i = 0; i < count; ++i) add_before(places[first + i], steps, Z, core.dbefore(at + i), out);
  };
  backward_blocks(chunks, core.gradients(), clear, run, after);
}

// A step's log-density at z; `terms` is scratch, which may alias pre_scale. Compiled once, so that the forward and
// the backward pass return the same bits.
template <class S>
[[gnu::noinline]] double transition_term(const S* z, const TransitionRow<S>& row, int64_t Z, S* terms) {
  for_lanes<S>(Z, [&](int64_t j, auto n) {
    const Lanes<S> value(z + j, n);
    Lanes<S> to;
#pragma GCC ivdep
    for (int64_t l = 0; l < kLanes<S>; ++l)
      to[l] = normal_log_density_(value[l], row.loc(j + l), row.pre_scale[j + l]);
    to.store(terms + j, n);
  });
  return sum_of(terms, Z);
}

// A step's divergence from the Gaussian (loc, pre_scale); `terms` as above.
template <class S>
[[gnu::noinline]] double transition_kl_term(const S* loc, const S* pre_scale, const TransitionRow<S>& row,
                                            int64_t Z, S* terms) {
  for_lanes<S>(Z, [&](int64_t j, auto n) {
    const Lanes<S> loc_q(loc + j, n), pre_scale_q(pre_scale + j, n);
    Lanes<S> to;
#pragma GCC ivdep
    for (int64_t l = 0; l < kLanes<S>; ++l)
      to[l] = normal_kl_(loc_q[l], pre_scale_q[l], row.loc(j + l), row.pre_scale[j + l]);
    to.store(terms + j, n);
  });
  return sum_of(terms, Z);
}

template <class S>
void transition_log_prob(const TransitionLogProb<S>& a) {
  const Chain<S> chain{Steps::of(a), a.z, a.z_0};
  const std::vector<Place> places = places_of(chain.steps);
  std::vector<double> terms(places.size());
  const int64_t Z = a.Z;
  const auto before = [&](const Place& p) { return chain.before(p); };
  const auto head = [&](int64_t i, const TransitionRow<S>& row) {
    terms[i] = transition_term(chain.z.at(places[i].row, places[i].step), row, Z, row.pre_scale);
  };
  transition_forward<S>(places, driven(a.weights), before, head);
  sum_steps(places, terms, chain.steps.rows, a.out);
}

template <class S>
void transition_log_prob_backward(const TransitionLogProbBackward<S>& a) {
  const Chain<S> chain{Steps::of(a), a.z, a.z_0};
  const std::vector<Place> places = places_of(chain.steps);
  std::vector<double> terms(a.out ? places.size() : 0);
  const int64_t Z = a.Z;
  const auto head = [&](int64_t i, int64_t at, const TransitionRow<S>& row, S* dloc) {
    const S* z = chain.z.at(places[i].row, places[i].step);
    const S d = a.dout[places[i].row];
    if (a.out) terms[i] = transition_term(z, row, Z, dloc);
    for_lanes<S>(Z, [&](int64_t j, auto n) {
      const Lanes<S> value(z + j, n);
      Lanes<S> dz, to_loc;
      S* to_pre_scale = row.pre_scale + j;
#pragma GCC ivdep
      for (int64_t l = 0; l < kLanes<S>; ++l) {
        const Slopes<S> slope = normal_slopes_(value[l], row.loc(j + l), to_pre_scale[l]);
        to_loc[l] = d * slope.loc;
        dz[l] = -d * slope.loc;
        to_pre_scale[l] = d * slope.pre_scale;
      }
      to_loc.store(dloc + j, n);
      dz.store(a.dz + at + j, n);
    });
  };
  transition_chain_backward<S>(chain, places, a.weights, {a.dz, a.dz_0}, a.dweights, {{a.dz, Z}}, head);
  if (a.out) sum_steps(places, terms, chain.steps.rows, a.out);
}

template <class S>
void transition_kl(const TransitionKl<S>& a) {
  const Chain<S> chain{Steps::of(a), a.z, a.z_0};
  const std::vector<Place> places = places_of(chain.steps);
  std::vector<double> terms(places.size());
  const int64_t Z = a.Z;
  const auto before = [&](const Place& p) { return chain.before(p); };
  const auto head = [&](int64_t i, const TransitionRow<S>& row) {
    const auto [p, t] = places[i];
    terms[i] = transition_kl_term(a.loc.at(p, t), a.pre_scale.at(p, t), row, Z, row.pre_scale);
  };
  transition_forward<S>(places, driven(a.weights), before, head);
  sum_steps(places, terms, chain.steps.rows, a.out);
}

template <class S>
void transition_kl_backward(const TransitionKlBackward<S>& a) {
  const Chain<S> chain{Steps::of(a), a.z, a.z_0};
  const std::vector<Place> places = places_of(chain.steps);
  std::vector<double> terms(a.out ? places.size() : 0);
  const int64_t Z = a.Z;
  const auto head = [&](int64_t i, int64_t at, const TransitionRow<S>& row, S* dloc) {
    const S* loc = a.loc.at(places[i].row, places[i].step);
    const S* pre_scale = a.pre_scale.at(places[i].row, places[i].step);
    const S d = a.dout[places[i].row];
    if (a.out) terms[i] = transition_kl_term(loc, pre_scale, row, Z, dloc);
    std::fill_n(a.dz + at, Z, S(0));
    for_lanes<S>(Z, [&](int64_t j, auto n) {
      const Lanes<S> loc_q(loc + j, n), pre_scale_q(pre_scale + j, n);
      Lanes<S> to_loc, to_loc_p, to_pre_scale;
      S* to_pre_scale_p = row.pre_scale + j;
#pragma GCC ivdep
      for (int64_t l = 0; l < kLanes<S>; ++l) {
        const KlSlopes<S> slope =
            normal_kl_slopes_(loc_q[l], pre_scale_q[l], row.loc(j + l), to_pre_scale_p[l]);
        to_loc[l] = d * slope.loc;
        to_loc_p[l] = -d * slope.loc;
        to_pre_scale[l] = d * slope.pre_scale;
        to_pre_scale_p[l] = d * slope.pre_scale_p;
      }
      to_loc.store(a.dloc + at + j, n);
      to_loc_p.store(dloc + j, n);
      to_pre_scale.store(a.dpre_scale + at + j, n);
    });
  };
  transition_chain_backward<S>(chain, places, a.weights, {a.dz, a.dz_0}, a.dweights,
                               {{a.dz, Z}, {a.dloc, Z}, {a.dpre_scale, Z}}, head);
  if (a.out) sum_steps(places, terms, chain.steps.rows, a.out);
}

template <class S>
void gated_transition(const GatedTransition<S>& a) {
  const int64_t Z = a.Z;
  const auto before = [&](const Place& p) { return a.z_prev.at(0, p.step); };
  const auto head = [&](int64_t i, const TransitionRow<S>& row) {
    for_lanes<S>(Z, [&](int64_t j, auto n) {
      Lanes<S> to_loc, to_scale;
#pragma GCC ivdep
      for (int64_t l = 0; l < kLanes<S>; ++l) {
        to_loc[l] = row.loc(j + l);
        to_scale[l] = softplus_(row.pre_scale[j + l]);
      }
      to_loc.store(a.loc + i * Z + j, n);
      to_scale.store(a.scale + i * Z + j, n);
    });
  };
  transition_forward<S>(places_of(Steps::single(a.N)), a.weights, before, head);
}

template <class S>
void gated_transition_backward(const GatedTransitionBackward<S>& a) {
  const std::vector<Place> places = places_of(Steps::single(a.N));
  const Chunks chunks(a.N, transition_work(a.weights, kBackward));
  const int64_t Z = a.Z;
  TransitionBackward<S> core(a.weights, a.dweights, chunks.rows);
  const auto before = [&](const Place& p) { return a.z_prev.at(0, p.step); };
  const auto head = [&](int64_t i, const TransitionRow<S>& row, S* to_loc) {
    softplus_backward(a.dscale.at(0, i), Z, row.pre_scale);
    std::copy_n(a.dloc.at(0, i), Z, to_loc);
  };
  const auto run = [&](int64_t at, int64_t first, int64_t rows) {
    core.run(places, at, first, rows, before, head);
    for (int64_t i = 0; i < rows; ++i) std::copy_n(core.dbefore(at + i), a.I, a.dz_prev + (first + i) * a.I);
  };
  const auto nothing = [](int64_t, int64_t, int64_t) {};
  backward_blocks(chunks, core.gradients(), nothing, run, nothing);
}
