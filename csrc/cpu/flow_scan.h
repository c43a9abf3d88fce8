// Drawing the posterior chain through affine flows, and its gradient.
//
// Each part owns a slice of the combiner's hidden units, and at each step a share of the rows. A step has two
// barriers: after the first a part adds the partial sums of its rows and applies the flows to them, after the second
// all parts read the results. So no work is repeated.
//
// Included once for each instruction set, inside its namespace.

// y = e^s x + m with s clamped, from m and s side by side in `out`, where e^s replaces s. Returns the sum of s. y may
// alias x, or be null if only e^s is needed.
template <class S>
inline double apply_flow(const S* x, int64_t width, S* out, S* y) {
  Lanes<S> sums;
  for (int64_t l = 0; l < kLanes<S>; ++l) sums[l] = S(0);
  for_lanes<S>(width, [&](int64_t j, auto n) {
    const Lanes<S> given(out + width + j, n), m(out + j, n), from(x + j, n);
    Lanes<S> scale, to;
#pragma GCC ivdep
    for (int64_t l = 0; l < kLanes<S>; ++l) {
      const S s = at_most_(at_least_(given[l], S(-5)), S(3));
      sums[l] += s;
      scale[l] = exp_(s);
      to[l] = scale[l] * from[l] + m[l];
    }
    scale.store(out + width + j, n);
    if (y) to.store(y + j, n);
  });
  double sum = 0;
  for (int64_t l = 0; l < kLanes<S>; ++l) sum += static_cast<double>(sums[l]);
  return sum;
}

// The weights of flow k, packed once per call.
template <class S>
struct Flow {
  int64_t first;          // the first output that is computed, of m and s as one row of 2 Z
  Packed<S> w_in, w_out;  // [F, Z], [2 Z - first, F]
  const S* b_in;
  std::vector<S> b_out;

  Flow(const FlowsTensors<const S>& t, int64_t k, bool only_scale)
      : Flow(t, k, only_scale ? t.Z : 0, stacked(t.w_mean + k * t.Z * t.F, t.w_log_scale + k * t.Z * t.F, t.Z * t.F)) {}

  // Rows [at, at + count) of a = relu(W_in x + b_in), and of m and s.
  void run(const Plane<S>& x, int64_t at, int64_t count, Plane<S>& a, Plane<S>& out) const {
    layer(x.rows() + at, count, w_in, b_in, a, at, [](S sum) { return relu_(sum); });
    multiply(a.rows() + at, count, w_out, [&](int64_t i, int64_t column, int64_t width, const S* sum) {
      const int64_t output = first + column;
      S* to = out[at + i] + output;
#pragma GCC ivdep
      for (int64_t j = 0; j < width; ++j) to[j] = sum[j] + b_out[output + j];
    });
  }

 private:
  Flow(const FlowsTensors<const S>& t, int64_t k, int64_t first, const std::vector<S>& w_stack)
      : first(first), w_in(t.w_in + k * t.F * t.Z, t.F, t.Z, t.Z, 1),
        w_out(w_stack.data() + first * t.F, 2 * t.Z - first, t.F, t.F, 1), b_in(t.b_in + k * t.F),
        b_out(stacked(t.b_mean + k * t.Z, t.b_log_scale + k * t.Z, t.Z)) {}
};

template <class S>
inline int64_t flow_scan_parts(const Ragged& ragged, int64_t units, const FlowsTensors<const S>& t) {
  const double one = product_work(3 * t.Z, t.F) + kFunction * static_cast<double>(t.Z);
  const double work = combiner_slice_work(t.Z, units) + static_cast<double>(t.K) * one;
  return scan_parts_for<S>(ragged, work, units, 2);
}

template <class S>
void flow_scan(const FlowScan<S>& a) {
  const Ragged ragged(a);
  const FlowsTensors<const S>& w = a.flow_weights;
  const int64_t Z = a.Z, parts = flow_scan_parts<S>(ragged, a.H, w);
  const Dense<S> z_out{a.z, a.T, Z}, loc_out{a.loc, a.T, Z}, pre_scale_out{a.pre_scale, a.T, Z}, g_out{a.g, a.T, a.H};
  const std::vector<S> w_out = stacked(a.weights.w_loc, a.weights.w_scale, Z * a.H);
  const std::vector<S> b_out = stacked(a.weights.b_loc, a.weights.b_scale, Z);
  std::vector<Flow<S>> flows;
  for (int64_t k = 0; k < w.K; ++k) flows.emplace_back(w, k, false);
  Plane<S> x(ragged.rows, Z), hidden(ragged.rows, w.F), out(ragged.rows, 2 * Z);  // in the order of activity
  std::vector<double> log_det(ragged.rows, 0.0);
  Partials<S> partials(parts, ragged.rows, 2 * Z);
  Barrier barrier(parts);
  parallel_for(parts, [&](int64_t begin, int64_t end) {
    const Share own(ragged.rows, begin, end, parts);
    for (const Dense<S>& result : {z_out, loc_out, pre_scale_out})
      clear_past_end(ragged, result, own.begin, own.end);
    if (a.g) clear_past_end(ragged, g_out, own.begin, own.end);
    CombinerSlice<S, FlowScan<S>> slice(a, ragged, w_out, partials, begin, end, parts);
    std::vector<const S*> before(ragged.rows);
    for (int64_t i = 0; i < ragged.rows; ++i) before[i] = a.z_q_0.at(ragged.order[i], 0);
    for (int64_t t = 0; t < ragged.steps; ++t) {
      slice.step(t, before.data());
      barrier.arrive(end - begin);
      const Share mine(ragged.active[t], begin, end, parts);
      for (int64_t i = mine.begin; i < mine.end; ++i) {
        const int64_t row = ragged.order[i];
        S *sums = out[i], *loc = sums, *pre_scale = sums + Z;
        partials.add_up(t, i, b_out.data(), sums);
        draw_normal(loc, pre_scale, a.eps.at(row, t), Z, x[i]);
        std::copy_n(loc, Z, loc_out.at(row, t));
        std::copy_n(pre_scale, Z, pre_scale_out.at(row, t));
      }
      for (const Flow<S>& flow : flows) {
        flow.run(x, mine.begin, mine.end - mine.begin, hidden, out);
        for (int64_t i = mine.begin; i < mine.end; ++i) log_det[i] += apply_flow(x[i], Z, out[i], x[i]);
      }
      for (int64_t i = mine.begin; i < mine.end; ++i) std::copy_n(x[i], Z, z_out.at(ragged.order[i], t));
      barrier.arrive(end - begin);
      for (int64_t i = 0; i < ragged.active[t]; ++i) before[i] = z_out.at(ragged.order[i], t);
    }
  });
  for (int64_t i = 0; i < ragged.rows; ++i) a.log_det[ragged.order[i]] = static_cast<S>(log_det[i]);
}

// A flow in the backward pass, with its activations for the rows of a chunk. They do not depend on gradients, so they are
// recomputed for a whole chunk at once.
template <class S>
struct FlowBackward {
  int64_t Z;
  Flow<S> flow;
  Packed<S> w_out, w_in;   // transposed: from dm and ds to da, from da to dx
  Plane<S> x, a, da, out;  // out: m and e^s, then dm and ds
  std::vector<const S*> ds;

  FlowBackward(const FlowsTensors<const S>& t, int64_t k, int64_t rows)
      : FlowBackward(t, k, rows, stacked(t.w_mean + k * t.Z * t.F, t.w_log_scale + k * t.Z * t.F, t.Z * t.F)) {}

  void add_to(WeightGradients<S>& gradients, int64_t k, const FlowsTensors<S>& dw) const {
    const int64_t F = dw.F;
    gradients.add(da.rows(), F, x.rows(), Z, dw.w_in + k * F * Z, dw.b_in + k * F);
    gradients.add(out.rows(), Z, a.rows(), F, dw.w_mean + k * Z * F, dw.b_mean + k * Z);
    gradients.add(ds.data(), Z, a.rows(), F, dw.w_log_scale + k * Z * F, dw.b_log_scale + k * Z);
  }

  // Computes a and e^s, and y if there is a plane for it, from x in rows [at, at + count).
  void recompute(int64_t at, int64_t count, Plane<S>* y) {
    flow.run(x, at, count, a, out);
    for (int64_t i = at; i < at + count; ++i) apply_flow(x[i], Z, out[i], y ? (*y)[i] : nullptr);
  }

  // Replaces dy, `count` rows from `from` on, by dx; in the chunk the rows are at `at`.
  void step(int64_t at, int64_t count, const S* dlog_det, Plane<S>& dy, int64_t from) {
    for (int64_t i = 0; i < count; ++i) {
      S *dm = out[at + i], *scale = dm + Z, *d = dy[from + i];
      const S *x_i = x[at + i], by_s = dlog_det[i];
#pragma GCC ivdep
      for (int64_t j = 0; j < Z; ++j) {
        const S scaled = d[j] * scale[j];
        dm[j] = d[j];
        scale[j] = scaled * x_i[j] + by_s;  // ds
        d[j] = scaled;
      }
    }
    layer_backward(out.rows() + at, count, w_out, a, da, at, 0);
    multiply(da.rows() + at, count, w_in, [&](int64_t i, int64_t column, int64_t width, const S* sum) {
      S* d = dy[from + i] + column;
#pragma GCC ivdep
      for (int64_t j = 0; j < width; ++j) d[j] += sum[j];
    });
  }

 private:
  FlowBackward(const FlowsTensors<const S>& t, int64_t k, int64_t rows, const std::vector<S>& w_stack)
      : Z(t.Z), flow(t, k, k + 1 == t.K), w_out(w_stack.data(), t.F, 2 * Z, 1, t.F),
        w_in(t.w_in + k * t.F * Z, Z, t.F, 1, Z), x(rows, Z), a(rows, t.F), da(rows, t.F), out(rows, 2 * Z),
        ds(out.rows_from(Z)) {}
};

// The backward pass of all parts, with their shared state.
template <class S>
class FlowScanBackwardRun {
 public:
  explicit FlowScanBackwardRun(const FlowScanBackward<S>& a)
      : a_(a), Z_(a.Z), ragged_(a), parts_(flow_scan_parts<S>(ragged_, a.H, a.flow_weights)),
        partials_(parts_, ragged_.rows, Z_), barrier_(parts_),
        w_out_(stacked(a.weights.w_loc, a.weights.w_scale, Z_ * a.H)), dlog_det_(ragged_.rows),
        dy_(ragged_.rows, Z_), dout_(Chunk::capacity(ragged_), 2 * Z_) {
    for (int64_t i = 0; i < ragged_.rows; ++i) dlog_det_[i] = a.dlog_det[ragged_.order[i]];
    const int64_t K = a.flow_weights.K;
    flows_.reserve(K);
    for (int64_t k = 0; k < K; ++k) {
      flows_.emplace_back(a.flow_weights, k, Chunk::capacity(ragged_));
      flows_[k].add_to(gradients_, k, a.dflow_weights);
    }
  }

  void run() {
    parallel_for(parts_, [&](int64_t begin, int64_t end) { run_parts(begin, end); });
  }

 private:
  void run_parts(int64_t begin, int64_t end) {
    CombinerSliceBackward<S, FlowScanBackward<S>> slice(a_, ragged_, w_out_, partials_, begin, end, parts_);
    gradients_.clear(begin, end, parts_);
    for (int64_t stop = ragged_.steps; stop > 0;) {
      const Chunk chunk(ragged_, stop);
      slice.read(chunk);
      recompute(chunk, Share(chunk.count, begin, end, parts_));
      barrier_.arrive(end - begin);
      int64_t first = chunk.count;  // the offset of a step's rows in the chunk
      for (int64_t t = stop - 1; t >= chunk.start; --t) {
        const int64_t active = ragged_.active[t];
        first -= active;
        output_gradients(t, first, Share(active, begin, end, parts_));
        barrier_.arrive(end - begin);
        slice.step(t, first, dout_.rows());
        barrier_.arrive(end - begin);
      }
      slice.add_weights(chunk.count, dout_.rows());
      gradients_.sum(chunk.count, begin, end, parts_);
      barrier_.arrive(end - begin);
      stop = chunk.start;
    }
    slice.finish();
  }

  // Recomputes the activations of the flows for rows [mine.begin, mine.end) of the chunk.
  void recompute(const Chunk& chunk, const Share& mine) {
    if (flows_.empty()) return;
    int64_t k = 0;
    for (int64_t t = chunk.start; t < chunk.stop; ++t)
      for (int64_t i = 0; i < ragged_.active[t]; ++i, ++k) {
        if (k < mine.begin || k >= mine.end) continue;
        const int64_t row = ragged_.order[i];
        draw_normal(a_.loc.at(row, t), a_.pre_scale.at(row, t), a_.eps.at(row, t), Z_, flows_[0].x[k]);
      }
    for (size_t f = 0; f < flows_.size(); ++f)
      flows_[f].recompute(mine.begin, mine.end - mine.begin, f + 1 < flows_.size() ? &flows_[f + 1].x : nullptr);
  }

  // dloc and dpre_scale at step t of some rows, including all paths; the step's rows are at `first` in the chunk.
  void output_gradients(int64_t t, int64_t first, const Share& mine) {
    const int64_t at = first + mine.begin, count = mine.end - mine.begin;
    for (int64_t i = mine.begin; i < mine.end; ++i) {
      const int64_t row = ragged_.order[i];
      const S* given = a_.dz.at(row, t);
      if (t + 1 == ragged_.length(row)) std::copy_n(given, Z_, dy_[i]);
      else partials_.add_up(t + 1, i, given, dy_[i]);
    }
    for (size_t f = flows_.size(); f-- > 0;)
      flows_[f].step(at, count, dlog_det_.data() + mine.begin, dy_, mine.begin);
    for (int64_t i = mine.begin; i < mine.end; ++i) {
      const int64_t row = ragged_.order[i];
      const S* pre_scale = a_.pre_scale.at(row, t);
      draw_normal_backward(dy_[i], a_.dloc.at(row, t), a_.dpre_scale.at(row, t), pre_scale, a_.eps.at(row, t), Z_,
                           dout_[first + i]);
      draw_normal_backward_eps(dy_[i], pre_scale, Z_, a_.deps + (row * a_.T + t) * Z_);
    }
  }

  const FlowScanBackward<S>& a_;
  const int64_t Z_;
  const Ragged ragged_;
  const int64_t parts_;
  Partials<S> partials_;
  Barrier barrier_;
  const std::vector<S> w_out_;
  std::vector<S> dlog_det_;  // in the order of activity
  Plane<S> dy_, dout_;       // a step's rows of Z, a chunk's of 2 Z
  std::vector<FlowBackward<S>> flows_;
  WeightGradients<S> gradients_;
};

template <class S>
void flow_scan_backward(const FlowScanBackward<S>& a) {
  FlowScanBackwardRun<S>(a).run();
}
