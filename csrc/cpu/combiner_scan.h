// Drawing the posterior chain, and its gradient. Each part owns a slice of the hidden units: it computes
// its slice of g from the whole z, multiplies it into partial sums of loc and pre_scale, and after the
// step's one barrier every part adds up the partials and finishes z for itself.
//
// Included once for each instruction set, inside its namespace.

// Partial sums [parts][rows][width], twice: a step writes one half while the other is still being read.
template <class S>
class Partials {
 public:
  Partials(int64_t parts, int64_t rows, int64_t width)
      : parts_(parts), size_(rows * width), width_(width), data_(2 * parts * rows * width, S(0)) {}
  S* at(int64_t step, int64_t part, int64_t i) {
    return data_.data() + ((step & 1) * parts_ + part) * size_ + i * width_;
  }
  // out = start + the sum over parts, in their order.
  void add_up(int64_t step, int64_t i, const S* start, S* out) {
    std::copy_n(start, width_, out);
    for (int64_t part = 0; part < parts_; ++part) {
      const S* from = at(step, part, i);
#pragma GCC ivdep
      for (int64_t j = 0; j < width_; ++j) out[j] += from[j];
    }
  }

 private:
  int64_t parts_, size_, width_;
  std::vector<S> data_;
};

// [W_loc; W_scale] as one weight [2 latents, units]; W_loc alone where there is no other.
template <class S>
inline std::vector<S> stacked(const S* loc, const S* scale, int64_t size) {
  std::vector<S> both(loc, loc + size);
  if (scale) both.insert(both.end(), scale, scale + size);
  return both;
}

template <class S>
inline int64_t combiner_parts(const Ragged& ragged, int64_t latents, int64_t units) {
  const double functions = static_cast<double>(units + latents);
  return scan_parts_for<S>(ragged, product_work(3 * latents, units) + kFunction * functions, units);
}

template <class S>
void combiner_scan(const CombinerScan<S>& a) {
  const Ragged ragged(a);
  const CombinerTensors<const S>& w = a.weights;
  const int64_t Z = a.Z, H = a.H, parts = combiner_parts<S>(ragged, Z, H);
  const Dense<S> z_out{a.z, a.T, Z}, loc_out{a.loc, a.T, Z}, pre_scale_out{a.pre_scale, a.T, Z}, g_out{a.g, a.T, H};
  const std::vector<S> w_out = stacked(w.w_loc, w.w_scale, Z * H), b_out = stacked(w.b_loc, w.b_scale, Z);
  Partials<S> partials(parts, ragged.rows, 2 * Z);
  Barrier barrier(parts);
  parallel_for(parts, [&](int64_t begin, int64_t end) {
    const int64_t row_begin = ragged.rows * begin / parts, row_end = ragged.rows * end / parts;
    for (const Dense<S>& out : {z_out, loc_out, pre_scale_out}) clear_past_end(ragged, out, row_begin, row_end);
    if (a.g) clear_past_end(ragged, g_out, row_begin, row_end);
    std::vector<const S*> from(ragged.rows);
    const Slice<S> mine(H, begin, end, parts);
    const int64_t unit = mine.begin, units = mine.count();
    const Packed<S> w_z(w.w_z + unit * Z, units, Z, Z, 1), w_sums(w_out.data() + unit, 2 * Z, units, H, 1);
    std::vector<S> c(ragged.rows * units), sums(2 * Z);
    std::vector<S> z(ragged.rows * Z);  // this part's own copy of z_{t-1}, in the order of activity
    for (int64_t i = 0; i < ragged.rows; ++i) std::copy_n(a.z_q_0.at(ragged.order[i], 0), Z, z.data() + i * Z);
    for (int64_t t = 0; t < ragged.steps; ++t) {
      const int64_t active = ragged.active[t];
      for (int64_t i = 0; i < active; ++i) {
        from[i] = z.data() + i * Z;
        // From memory h comes fastest as whole rows, before the product asks for it a panel at a time.
        std::copy_n(a.h.at(ragged.order[i], t) + unit, units, c.data() + i * units);
      }
      multiply(from.data(), active, w_z, [&](int64_t i, int64_t column, int64_t width, const S* sum) {
        S* out = c.data() + i * units + column;
        S* kept = a.g ? g_out.at(ragged.order[i], t) + unit + column : nullptr;
        for_lanes<S>(width, [&](int64_t j, auto n) {
          const Lanes<S> b(w.b_z + unit + column + j, n), from(out + j, n);
          Lanes<S> g, to;
#pragma GCC ivdep
          for (int64_t l = 0; l < kLanes<S>; ++l) {
            g[l] = tanh_(sum[j + l] + b[l]);
            to[l] = S(0.5) * (g[l] + from[l]);
          }
          to.store(out + j, n);
          if (kept != nullptr) g.store(kept + j, n);
        });
      });
      for (int64_t i = 0; i < active; ++i) from[i] = c.data() + i * units;
      multiply(from.data(), active, w_sums, [&](int64_t i, int64_t column, int64_t width, const S* sum) {
        std::copy_n(sum, width, partials.at(t, begin, i) + column);
      });
      barrier.arrive(end - begin);
      for (int64_t i = 0; i < active; ++i) {
        const int64_t row = ragged.order[i];
        partials.add_up(t, i, b_out.data(), sums.data());
        const S *loc = sums.data(), *pre_scale = loc + Z, *eps = a.eps.at(row, t);
        S* z_t = z.data() + i * Z;
        for_lanes<S>(Z, [&](int64_t j, auto n) {
          const Lanes<S> m(loc + j, n), pre(pre_scale + j, n), e(eps + j, n);
          Lanes<S> to;
#pragma GCC ivdep
          for (int64_t l = 0; l < kLanes<S>; ++l) to[l] = m[l] + softplus_(pre[l]) * e[l];
          to.store(z_t + j, n);
        });
        if (row < row_begin || row >= row_end) continue;
        std::copy_n(z_t, Z, z_out.at(row, t));
        std::copy_n(loc, Z, loc_out.at(row, t));
        std::copy_n(pre_scale, Z, pre_scale_out.at(row, t));
      }
    }
  });
}

constexpr int64_t kChunkRows = 112;  // c, dg and dout of so many rows stay in the second cache

// One part's share of the backward. It goes back through time in chunks of a few steps: for a chunk,
// the chain step by step, and what the chunk adds to the weight gradients while its rows are still in the
// cache. Only the chain's partial sums pass between parts.
template <class S>
class CombinerScanBackwardPart {
 public:
  CombinerScanBackwardPart(const CombinerScanBackward<S>& a, const Ragged& ragged, const S* w_out,
                           Partials<S>& partials, int64_t begin, int64_t end, int64_t parts)
      : a_(a), ragged_(ragged), Z_(a.Z), H_(a.H), dh_{a.dh, a.T, H_}, deps_{a.deps, a.T, Z_},
        mine_(H_, begin, end, parts), own_(ragged.rows, begin, end, parts),
        units_(mine_.count()), part_(begin), partials_(partials),
        w_c_(w_out + mine_.begin, units_, 2 * Z_, 1, H_),
        w_before_(a.weights.w_z + mine_.begin * Z_, Z_, units_, 1, Z_), dw_out_(2 * Z_ * units_, S(0)), db_out_(2 * Z_, S(0)),
        dz_(Z_) {
    const int64_t capacity = std::max(kChunkRows, ragged.rows);
    for (std::vector<S>* rows : {&c_, &dg_}) rows->resize(capacity * units_);
    dout_.resize(capacity * 2 * Z_);
    z_before_.resize(capacity);
    for (int64_t k = 0; k < capacity; ++k) {
      c_rows_.push_back(c_.data() + k * units_);
      dg_rows_.push_back(dg_.data() + k * units_);
      dout_rows_.push_back(dout_.data() + k * 2 * Z_);
    }
    std::fill_n(a.dweights.w_z + mine_.begin * Z_, units_ * Z_, S(0));
    std::fill_n(a.dweights.b_z + mine_.begin, units_, S(0));
    clear_past_end(ragged, dh_, own_.begin, own_.end);
    clear_past_end(ragged, deps_, own_.begin, own_.end);
  }

  // All steps, last to first; arrive() is called after each.
  template <class Arrive>
  void run(Arrive arrive) {
    for (int64_t stop = ragged_.steps; stop > 0;) {
      int64_t start = stop, count = 0;
      while (start > 0 && (count == 0 || count + ragged_.active[start - 1] <= kChunkRows))
        count += ragged_.active[--start];
      read(start, stop);
      int64_t first = count;  // where a step's rows begin in the chunk
      for (int64_t t = stop - 1; t >= start; --t) {
        first -= ragged_.active[t];
        step(t, first);
        arrive();
      }
      add_weights(count);
      stop = start;
    }
    finish();
  }

 private:
  // c, and in place of dg half of 1 - g^2, the slope from c to the pre-activation of g.
  void read(int64_t start, int64_t stop) {
    int64_t k = 0;
    for (int64_t t = start; t < stop; ++t)
      for (int64_t i = 0; i < ragged_.active[t]; ++i, ++k) {
        const int64_t row = ragged_.order[i];
        z_before_[k] = t == 0 ? a_.z_q_0.at(row, 0) : a_.z.at(row, t - 1);
        const S *g = a_.g.at(row, t) + mine_.begin, *h = a_.h.at(row, t) + mine_.begin;
        S *c = c_.data() + k * units_, *slope = dg_.data() + k * units_;
#pragma GCC ivdep
        for (int64_t j = 0; j < units_; ++j) {
          c[j] = S(0.5) * (g[j] + h[j]);
          slope[j] = S(0.5) * (S(1) - g[j] * g[j]);
        }
      }
  }

  // From the partial sums that step t + 1 left to those for t - 1; the step's rows lie at `first`.
  void step(int64_t t, int64_t first) {
    const int64_t active = ragged_.active[t];
    for (int64_t i = 0; i < active; ++i) output_gradient(t, i, dout_.data() + (first + i) * 2 * Z_);
    multiply(dout_rows_.data() + first, active, w_c_, [&](int64_t i, int64_t column, int64_t width, const S* dc) {
      S* dh = dh_.at(ragged_.order[i], t) + mine_.begin + column;
      S* dg = dg_.data() + (first + i) * units_ + column;
#pragma GCC ivdep
      for (int64_t j = 0; j < width; ++j) {
        dh[j] = S(0.5) * dc[j];
        dg[j] *= dc[j];
      }
    });
    multiply(dg_rows_.data() + first, active, w_before_, [&](int64_t i, int64_t column, int64_t width, const S* sum) {
      std::copy_n(sum, width, partials_.at(t, part_, i) + column);
    });
  }

  // dloc and dpre_scale at step t of the i-th row, all paths included; every part needs them all.
  void output_gradient(int64_t t, int64_t i, S* dout) {
    const int64_t row = ragged_.order[i];
    const S *dz_given = a_.dz.at(row, t), *dloc = a_.dloc.at(row, t), *dpre = a_.dpre_scale.at(row, t);
    const S *eps = a_.eps.at(row, t), *pre_scale = a_.pre_scale.at(row, t);
    if (t + 1 == ragged_.length(row)) std::copy_n(dz_given, Z_, dz_.data());
    else partials_.add_up(t + 1, i, dz_given, dz_.data());
#pragma GCC ivdep
    for (int64_t j = 0; j < Z_; ++j) dout[j] = dloc[j] + dz_[j];
    for_lanes<S>(Z_, [&](int64_t j, auto n) {
      const Lanes<S> from(dpre + j, n), dz(dz_.data() + j, n), e(eps + j, n), pre(pre_scale + j, n);
      Lanes<S> to;
#pragma GCC ivdep
      for (int64_t l = 0; l < kLanes<S>; ++l) to[l] = from[l] + dz[l] * e[l] * sigmoid_(pre[l]);
      to.store(dout + Z_ + j, n);
    });
    if (row < own_.begin || row >= own_.end) return;
    for_lanes<S>(Z_, [&](int64_t j, auto n) {
      const Lanes<S> dz(dz_.data() + j, n), pre(pre_scale + j, n);
      Lanes<S> to;
#pragma GCC ivdep
      for (int64_t l = 0; l < kLanes<S>; ++l) to[l] = dz[l] * softplus_(pre[l]);
      to.store(deps_.at(row, t) + j, n);
    });
  }

  void add_weights(int64_t count) {
    add_outer(dout_rows_.data(), c_rows_.data(), count, 2 * Z_, 0, units_, dw_out_.data(), units_);
    add_outer(dg_rows_.data(), z_before_.data(), count, units_, 0, Z_, a_.dweights.w_z + mine_.begin * Z_, Z_);
    add_rows(dg_rows_.data(), count, 0, units_, a_.dweights.b_z + mine_.begin);
    if (part_ == 0) add_rows(dout_rows_.data(), count, 0, 2 * Z_, db_out_.data());
  }

  void finish() {
    const std::vector<S> zeros(Z_, S(0));
    for (int64_t i = 0; i < ragged_.rows; ++i) {
      const int64_t row = ragged_.order[i];
      if (row < own_.begin || row >= own_.end) continue;
      S* out = a_.dz_q_0 + row * Z_;
      if (ragged_.length(row) == 0) std::fill_n(out, Z_, S(0));
      else partials_.add_up(0, i, zeros.data(), out);
    }
    for (int64_t j = 0; j < Z_; ++j) {
      std::copy_n(dw_out_.data() + j * units_, units_, a_.dweights.w_loc + j * H_ + mine_.begin);
      std::copy_n(dw_out_.data() + (Z_ + j) * units_, units_, a_.dweights.w_scale + j * H_ + mine_.begin);
    }
    if (part_ != 0) return;
    std::copy_n(db_out_.data(), Z_, a_.dweights.b_loc);
    std::copy_n(db_out_.data() + Z_, Z_, a_.dweights.b_scale);
  }

  const CombinerScanBackward<S>& a_;
  const Ragged& ragged_;
  const int64_t Z_, H_;
  const Dense<S> dh_, deps_;
  const Slice<S> mine_;  // of the hidden units
  const Share own_;      // of the rows, for what only one part may write
  const int64_t units_, part_;
  Partials<S>& partials_;
  const Packed<S> w_c_, w_before_;     // from dout to dc, from dg to dz_{t-1}
  std::vector<S> dw_out_, db_out_;     // [2 Z, units], [2 Z]
  std::vector<S> c_, dg_, dout_, dz_;  // a chunk's rows: of `units`, `units` and 2 Z; and one of Z
  std::vector<const S*> c_rows_, dg_rows_, dout_rows_, z_before_;
};

template <class S>
void combiner_scan_backward(const CombinerScanBackward<S>& a) {
  const Ragged ragged(a);
  const int64_t parts = combiner_parts<S>(ragged, a.Z, a.H);
  const std::vector<S> w_out = stacked(a.weights.w_loc, a.weights.w_scale, a.Z * a.H);
  Partials<S> partials(parts, ragged.rows, a.Z);
  Barrier barrier(parts);
  parallel_for(parts, [&](int64_t begin, int64_t end) {
    CombinerScanBackwardPart<S> part(a, ragged, w_out.data(), partials, begin, end, parts);
    part.run([&] { barrier.arrive(end - begin); });
  });
}
