// Drawing the posterior chain, and its gradient. Each part owns a slice of the hidden units. After the step's single
// barrier it adds the partial sums of all slices and computes its own copy of z.
//
// Included once for each instruction set, inside its namespace.

template <class S>
inline int64_t combiner_parts(const Ragged& ragged, int64_t latents, int64_t units) {
  return scan_parts_for<S>(ragged, combiner_slice_work(latents, units), units);
}

template <class S>
void combiner_scan(const CombinerScan<S>& a) {
  const Ragged ragged(a);
  const int64_t Z = a.Z, parts = combiner_parts<S>(ragged, Z, a.H);
  const Dense<S> z_out{a.z, a.T, Z}, loc_out{a.loc, a.T, Z}, pre_scale_out{a.pre_scale, a.T, Z}, g_out{a.g, a.T, a.H};
  const std::vector<S> w_out = stacked(a.weights.w_loc, a.weights.w_scale, Z * a.H);
  const std::vector<S> b_out = stacked(a.weights.b_loc, a.weights.b_scale, Z);
  Partials<S> partials(parts, ragged.rows, 2 * Z);
  Barrier barrier(parts);
  parallel_for(parts, [&](int64_t begin, int64_t end) {
    const Share own(ragged.rows, begin, end, parts);
    for (const Dense<S>& out : {z_out, loc_out, pre_scale_out}) clear_past_end(ragged, out, own.begin, own.end);
    if (a.g) clear_past_end(ragged, g_out, own.begin, own.end);
    CombinerSlice<S, CombinerScan<S>> slice(a, ragged, w_out, partials, begin, end, parts);
    std::vector<S> sums(2 * Z), z(ragged.rows * Z);  // z: this part's own copy, in the order of activity
    std::vector<const S*> before(ragged.rows);
    for (int64_t i = 0; i < ragged.rows; ++i) {
      before[i] = z.data() + i * Z;
      std::copy_n(a.z_q_0.at(ragged.order[i], 0), Z, z.data() + i * Z);
    }
    for (int64_t t = 0; t < ragged.steps; ++t) {
      slice.step(t, before.data());
      barrier.arrive(end - begin);
      for (int64_t i = 0; i < ragged.active[t]; ++i) {
        const int64_t row = ragged.order[i];
        partials.add_up(t, i, b_out.data(), sums.data());
        const S *loc = sums.data(), *pre_scale = loc + Z;
        S* z_t = z.data() + i * Z;
        draw_normal(loc, pre_scale, a.eps.at(row, t), Z, z_t);
        if (row < own.begin || row >= own.end) continue;
        std::copy_n(z_t, Z, z_out.at(row, t));
        std::copy_n(loc, Z, loc_out.at(row, t));
        std::copy_n(pre_scale, Z, pre_scale_out.at(row, t));
      }
    }
  });
}

// A part's share of the backward pass. Only partial sums of the chain are exchanged between parts.
template <class S>
class CombinerScanBackwardPart {
 public:
  CombinerScanBackwardPart(const CombinerScanBackward<S>& a, const Ragged& ragged, const std::vector<S>& w_out,
                           Partials<S>& partials, int64_t begin, int64_t end, int64_t parts)
      : a_(a), ragged_(ragged), Z_(a.Z), own_(ragged.rows, begin, end, parts), partials_(partials),
        slice_(a, ragged, w_out, partials, begin, end, parts), dout_(Chunk::capacity(ragged) * 2 * Z_), dz_(Z_) {
    for (int64_t k = 0; k < Chunk::capacity(ragged); ++k) dout_rows_.push_back(dout_.data() + k * 2 * Z_);
  }

  // Runs all steps from last to first, and calls arrive() after each.
  template <class Arrive>
  void run(Arrive arrive) {
    for (int64_t stop = ragged_.steps; stop > 0;) {
      const Chunk chunk(ragged_, stop);
      slice_.read(chunk);
      int64_t first = chunk.count;  // the offset of a step's rows in the chunk
      for (int64_t t = stop - 1; t >= chunk.start; --t) {
        first -= ragged_.active[t];
        for (int64_t i = 0; i < ragged_.active[t]; ++i) output_gradient(t, i, dout_.data() + (first + i) * 2 * Z_);
        slice_.step(t, first, dout_rows_.data());
        arrive();
      }
      slice_.add_weights(chunk.count, dout_rows_.data());
      stop = chunk.start;
    }
    slice_.finish();
  }

 private:
  // dloc and dpre_scale at step t of the i-th row, including all paths; every part needs all of them.
  void output_gradient(int64_t t, int64_t i, S* dout) {
    const int64_t row = ragged_.order[i];
    const S *dz_given = a_.dz.at(row, t), *pre_scale = a_.pre_scale.at(row, t);
    if (t + 1 == ragged_.length(row)) std::copy_n(dz_given, Z_, dz_.data());
    else partials_.add_up(t + 1, i, dz_given, dz_.data());
    draw_normal_backward(dz_.data(), a_.dloc.at(row, t), a_.dpre_scale.at(row, t), pre_scale, a_.eps.at(row, t), Z_,
                         dout);
    if (row < own_.begin || row >= own_.end) return;
    draw_normal_backward_eps(dz_.data(), pre_scale, Z_, a_.deps + (row * a_.T + t) * Z_);
  }

  const CombinerScanBackward<S>& a_;
  const Ragged& ragged_;
  const int64_t Z_;
  const Share own_;  // a share of the rows, for results that only one part may write
  Partials<S>& partials_;
  CombinerSliceBackward<S, CombinerScanBackward<S>> slice_;
  std::vector<S> dout_, dz_;  // a chunk's rows of 2 Z; one row of Z
  std::vector<const S*> dout_rows_;
};

template <class S>
void combiner_scan_backward(const CombinerScanBackward<S>& a) {
  const Ragged ragged(a);
  const int64_t parts = combiner_parts<S>(ragged, a.Z, a.H);
  const std::vector<S> w_out = stacked(a.weights.w_loc, a.weights.w_scale, a.Z * a.H);
  Partials<S> partials(parts, ragged.rows, a.Z);
  Barrier barrier(parts);
  parallel_for(parts, [&](int64_t begin, int64_t end) {
    CombinerScanBackwardPart<S> part(a, ragged, w_out, partials, begin, end, parts);
    part.run([&] { barrier.arrive(end - begin); });
  });
}
