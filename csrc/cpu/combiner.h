// The combiner q(z_t | z_{t-1}, x_{t:T}) at given z_{t-1}: the shared network, forward and backward, and its heads.
//
//   g = tanh(W_z z + b)   c = (g + h_t) / 2   loc, pre_scale = [W_loc; W_scale] c + b
//
// Included once for each instruction set, inside its namespace.

template <class S>
inline double combiner_work(const CombinerTensors<const S>& t, double pass) {
  const double functions = kFunction * static_cast<double>(t.H) + density_work(t.Z);
  return pass * product_work(3 * t.Z, t.H) + functions;
}

// The weights of the forward pass, packed once per call.
template <class S>
struct CombinerNet {
  using Tensors = CombinerTensors<const S>;
  const Tensors& t;
  std::vector<S> w_stack, b_stack;
  Packed<S> w_z, w_out;

  explicit CombinerNet(const Tensors& tensors)
      : t(tensors),
        w_stack(stacked(t.w_loc, t.w_scale, t.Z * t.H)),
        b_stack(stacked(t.b_loc, t.b_scale, t.Z)),
        w_z(t.w_z, t.H, t.Z, t.Z, 1),
        w_out(w_stack.data(), 2 * t.Z, t.H, t.H, 1) {}
};

// The activations of a block; in a backward pass, those of a whole chunk.
template <class S>
struct CombinerPlanes {
  Plane<S> c, out;  // out: loc, pre_scale
  CombinerPlanes(const CombinerNet<S>& net, int64_t rows)
      : c(rows, net.t.H), out(rows, 2 * net.t.Z) {}
};

// Computes rows [at, at + count) of the planes from z_{t-1} and h_t; and, if there is a plane for it, the
// derivative of c with respect to the pre-activation of g, (1 - g^2) / 2.
template <class S>
void combiner_block(const CombinerNet<S>& net, const S* const* before, const S* const* h, int64_t at,
                    int64_t count, CombinerPlanes<S>& planes, Plane<S>* slope) {
  // Reading h as whole rows first is faster than by panels during the product.
  for (int64_t i = 0; i < count; ++i) std::copy_n(h[i], net.t.H, planes.c[at + i]);
  const auto combine = [&](int64_t i, int64_t column, int64_t width, const S* sum) {
    S* c = planes.c[at + i] + column;  // contains h so far
    S* to = slope ? (*slope)[at + i] + column : nullptr;
    for_lanes<S>(width, [&](int64_t j, auto n) {
      const Lanes<S> b(net.t.b_z + column + j, n);
      Lanes<S> g;
#pragma GCC ivdep
      for (int64_t l = 0; l < kLanes<S>; ++l) {
        g[l] = tanh_(sum[j + l] + b[l]);
        c[j + l] = S(0.5) * (g[l] + c[j + l]);
      }
      if (!to) return;
#pragma GCC ivdep
      for (int64_t l = 0; l < kLanes<S>; ++l) to[j + l] = S(0.5) * (S(1) - g[l] * g[l]);
    });
  };
  multiply(before, count, net.w_z, combine);
  layer(planes.c.rows() + at, count, net.w_out, net.b_stack.data(), planes.out, at, [](S x) { return x; });
}

// before(place) returns z_{t-1}; head(i, out) receives loc and pre_scale of step i of the list.
template <class S, class Before, class Head>
void combiner_core_forward(const std::vector<Place>& places, const Rows<const S>& h,
                           const CombinerTensors<const S>& tensors, Before before, Head head) {
  const CombinerNet<S> net(tensors);
  for_blocks(static_cast<int64_t>(places.size()), combiner_work(tensors, kForward), [&] {
    return [&, planes = CombinerPlanes<S>(net, kBlockRows), inputs = std::vector<const S*>(kBlockRows),
            h_rows = std::vector<const S*>(kBlockRows)](int64_t first, int64_t count) mutable {
      for (int64_t i = 0; i < count; ++i) {
        inputs[i] = before(places[first + i]);
        h_rows[i] = h.at(places[first + i].row, places[first + i].step);
      }
      combiner_block<S>(net, inputs.data(), h_rows.data(), 0, count, planes, nullptr);
      for (int64_t i = 0; i < count; ++i) head(first + i, planes.out[i]);
    };
  });
}

// head(i, out) replaces loc and pre_scale by their gradients; after(i, from) receives the gradient of z_{t-1}
// when its whole chunk is complete. dh is contiguous, [rows, steps, units].
template <class S, class Clear, class Before, class Head, class After>
void combiner_core_backward(const Steps& steps, const std::vector<Place>& places, const Rows<const S>& h,
                            const CombinerTensors<const S>& tensors, S* dh, const CombinerTensors<S>& dw,
                            Clear clear, Before before, Head head, After after) {
  const CombinerNet<S> net(tensors);
  const int64_t Z = tensors.Z, H = tensors.H;
  const Packed<S> w_out(net.w_stack.data(), H, 2 * Z, 1, H), w_z(tensors.w_z, Z, H, 1, Z);
  const Chunks chunks(static_cast<int64_t>(places.size()), combiner_work(tensors, kBackward));
  CombinerPlanes<S> planes(net, chunks.rows);
  Plane<S> dg(chunks.rows, H), dbefore(chunks.rows, Z);
  std::vector<const S*> inputs(chunks.rows), h_rows(chunks.rows);
  const std::vector<const S*> dpre_scale = planes.out.rows_from(Z);
  WeightGradients<S> gradients;
  gradients.add(dg.rows(), H, inputs.data(), Z, dw.w_z, dw.b_z);
  gradients.add(planes.out.rows(), Z, planes.c.rows(), H, dw.w_loc, dw.b_loc);
  gradients.add(dpre_scale.data(), Z, planes.c.rows(), H, dw.w_scale, dw.b_scale);
  const auto run = [&](int64_t at, int64_t first, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      inputs[at + i] = before(places[first + i]);
      h_rows[at + i] = h.at(places[first + i].row, places[first + i].step);
    }
    combiner_block(net, inputs.data() + at, h_rows.data() + at, at, count, planes, &dg);
    for (int64_t i = 0; i < count; ++i) head(first + i, planes.out[at + i]);
    const auto split = [&](int64_t i, int64_t column, int64_t width, const S* dc) {
      const Place& place = places[first + i];
      S* to_h = dh + (place.row * steps.steps + place.step) * H + column;
      S* to_g = dg[at + i] + column;  // contains the derivative so far
#pragma GCC ivdep
      for (int64_t j = 0; j < width; ++j) {
        to_h[j] = S(0.5) * dc[j];
        to_g[j] *= dc[j];
      }
    };
    multiply(planes.out.rows() + at, count, w_out, split);
    const auto keep = [&](int64_t i, int64_t column, int64_t width, const S* sum) {
      std::copy_n(sum, width, dbefore[at + i] + column);
    };
    multiply(dg.rows() + at, count, w_z, keep);
  };
  const auto after_each = [&](int64_t at, int64_t first, int64_t count) {
    for (int64_t i = 0; i < count; ++i) after(first + i, dbefore[at + i]);
  };
  backward_blocks(chunks, gradients, clear, run, after_each);
}

template <class S>
void combiner_log_prob(const CombinerLogProb<S>& a) {
  const Chain<S> chain{Steps::of(a), a.z, a.z_q_0};
  const std::vector<Place> places = places_of(chain.steps);
  std::vector<double> terms(places.size());
  const auto before = [&](const Place& p) { return chain.before(p); };
  const auto head = [&](int64_t i, S* loc) {
    const S* z = a.z.at(places[i].row, places[i].step);
    terms[i] = density_forward<Normal, S>(z, nullptr, a.Z, loc, loc);
  };
  combiner_core_forward<S>(places, a.h, a.weights, before, head);
  sum_steps(places, terms, chain.steps.rows, a.out);
}

template <class S>
void combiner_log_prob_backward(const CombinerLogProbBackward<S>& a) {
  const Chain<S> chain{Steps::of(a), a.z, a.z_q_0};
  const ChainGradients<S> out{a.dz, a.dz_q_0};
  const std::vector<Place> places = places_of(chain.steps);
  const int64_t Z = a.Z;
  const auto clear = [&](int64_t begin, int64_t end, int64_t parts) {
    clear_chain(chain.steps, out.dz_0, Z, {{out.dz, Z}, {a.dh, a.H}}, begin, end, parts);
  };
  const auto before = [&](const Place& p) { return chain.before(p); };
  const auto head = [&](int64_t i, S* loc) {
    const auto [row, step] = places[i];
    density_backward<Normal, S>(a.z.at(row, step), nullptr, a.dout[row], Z, loc, out.dz + (row * a.T + step) * Z);
  };
  const auto after = [&](int64_t i, const S* from) { add_before(places[i], a.T, Z, from, out); };
  combiner_core_backward<S>(chain.steps, places, a.h, a.weights, a.dh, a.dweights, clear, before, head, after);
}

template <class S>
void combiner(const Combiner<S>& a) {
  const int64_t Z = a.Z;
  const auto before = [&](const Place& p) { return a.z_prev.at(0, p.step); };
  const auto head = [&](int64_t i, const S* out) {
    std::copy_n(out, Z, a.loc + i * Z);
    for_lanes<S>(Z, [&](int64_t j, auto n) {
      Lanes<S> to(out + Z + j, n);
#pragma GCC ivdep
      for (int64_t l = 0; l < kLanes<S>; ++l) to[l] = softplus_(to[l]);
      to.store(a.scale + i * Z + j, n);
    });
  };
  combiner_core_forward<S>(places_of(Steps::single(a.N)), a.h, a.weights, before, head);
}

template <class S>
void combiner_backward(const CombinerBackward<S>& a) {
  const Steps steps = Steps::single(a.N);
  const int64_t Z = a.Z;
  const auto before = [&](const Place& p) { return a.z_prev.at(0, p.step); };
  const auto head = [&](int64_t i, S* out) {
    std::copy_n(a.dloc.at(0, i), Z, out);
    softplus_backward(a.dscale.at(0, i), Z, out + Z);
  };
  const auto after = [&](int64_t i, const S* from) { std::copy_n(from, Z, a.dz_prev + i * Z); };
  const auto nothing = [](int64_t, int64_t, int64_t) {};
  combiner_core_backward<S>(steps, places_of(steps), a.h, a.weights, a.dh, a.dweights, nothing, before, head,
                            after);
}
