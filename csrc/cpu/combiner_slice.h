// A part's slice of the combiner's hidden units in a scan along the posterior chain, forward and backward, shared by
// combiner_scan and flow_scan. From the whole z_{t-1} a slice computes its units of g and c, and from these partial sums
// of loc and pre_scale, which are added over the slices; the backward pass has partial sums of dz_{t-1}.
//
// Included once for each instruction set, inside its namespace.

// Partial sums [parts][rows][width], double buffered: a step writes one half while the other may still be read.
template <class S>
class Partials {
 public:
  Partials(int64_t parts, int64_t rows, int64_t width)
      : parts_(parts), size_(rows * width), width_(width), data_(2 * parts * rows * width, S(0)) {}
  S* at(int64_t step, int64_t part, int64_t i) {
    return data_.data() + ((step & 1) * parts_ + part) * size_ + i * width_;
  }
  // out = start + the sum over parts, in order.
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

// [W_loc; W_scale] as one weight [2 latents, units]; only W_loc if there is no W_scale.
template <class S>
inline std::vector<S> stacked(const S* loc, int64_t size, const S* scale, int64_t scale_size) {
  std::vector<S> both(loc, loc + size);
  if (scale) both.insert(both.end(), scale, scale + scale_size);
  return both;
}
template <class S>
inline std::vector<S> stacked(const S* loc, const S* scale, int64_t size) {
  return stacked(loc, size, scale, size);
}

// The work of one row's step.
inline double combiner_slice_work(int64_t latents, int64_t units) {
  return product_work(3 * latents, units) + kFunction * static_cast<double>(units + latents);
}

// out = loc + softplus(pre_scale) eps.
template <class S>
inline void draw_normal(const S* loc, const S* pre_scale, const S* eps, int64_t width, S* out) {
  for_lanes<S>(width, [&](int64_t j, auto n) {
    const Lanes<S> m(loc + j, n), pre(pre_scale + j, n), e(eps + j, n);
    Lanes<S> to;
#pragma GCC ivdep
    for (int64_t l = 0; l < kLanes<S>; ++l) to[l] = m[l] + softplus_(pre[l]) * e[l];
    to.store(out + j, n);
  });
}

// The gradients of loc and pre_scale, side by side in `dout`: the given ones plus those by way of dz.
template <class S>
inline void draw_normal_backward(const S* dz, const S* dloc, const S* dpre_scale, const S* pre_scale, const S* eps,
                                 int64_t width, S* dout) {
#pragma GCC ivdep
  for (int64_t j = 0; j < width; ++j) dout[j] = dloc[j] + dz[j];
  for_lanes<S>(width, [&](int64_t j, auto n) {
    const Lanes<S> from(dpre_scale + j, n), by_z(dz + j, n), e(eps + j, n), pre(pre_scale + j, n);
    Lanes<S> to;
#pragma GCC ivdep
    for (int64_t l = 0; l < kLanes<S>; ++l) to[l] = from[l] + by_z[l] * e[l] * sigmoid_(pre[l]);
    to.store(dout + width + j, n);
  });
}

// The gradient of eps.
template <class S>
inline void draw_normal_backward_eps(const S* dz, const S* pre_scale, int64_t width, S* deps) {
  for_lanes<S>(width, [&](int64_t j, auto n) {
    const Lanes<S> by_z(dz + j, n), pre(pre_scale + j, n);
    Lanes<S> to;
#pragma GCC ivdep
    for (int64_t l = 0; l < kLanes<S>; ++l) to[l] = by_z[l] * softplus_(pre[l]);
    to.store(deps + j, n);
  });
}

template <class S, class Scan>
class CombinerSlice {
 public:
  CombinerSlice(const Scan& a, const Ragged& ragged, const std::vector<S>& w_out, Partials<S>& partials, int64_t begin,
                int64_t end, int64_t parts)
      : a_(a), ragged_(ragged), g_{a.g, a.T, a.H}, mine_(a.H, begin, end, parts), units_(mine_.count()), part_(begin),
        partials_(partials), w_z_(a.weights.w_z + mine_.begin * a.Z, units_, a.Z, a.Z, 1),
        w_sums_(w_out.data() + mine_.begin, 2 * a.Z, units_, a.H, 1), c_(ragged.rows * units_) {
    for (int64_t i = 0; i < ragged.rows; ++i) c_rows_.push_back(c_.data() + i * units_);
  }

  // Computes the partial sums of step t from z_{t-1} of the active rows, in their order.
  void step(int64_t t, const S* const* before) {
    const int64_t active = ragged_.active[t], unit = mine_.begin;
    // Reading h as whole rows first is faster than by panels during the product.
    for (int64_t i = 0; i < active; ++i)
      std::copy_n(a_.h.at(ragged_.order[i], t) + unit, units_, c_.data() + i * units_);
    multiply(before, active, w_z_, [&](int64_t i, int64_t column, int64_t width, const S* sum) {
      S* out = c_.data() + i * units_ + column;
      S* kept = a_.g ? g_.at(ragged_.order[i], t) + unit + column : nullptr;
      for_lanes<S>(width, [&](int64_t j, auto n) {
        const Lanes<S> b(a_.weights.b_z + unit + column + j, n), from(out + j, n);
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
    multiply(c_rows_.data(), active, w_sums_, [&](int64_t i, int64_t column, int64_t width, const S* sum) {
      std::copy_n(sum, width, partials_.at(t, part_, i) + column);
    });
  }

 private:
  const Scan& a_;
  const Ragged& ragged_;
  const Dense<S> g_;
  const Slice<S> mine_;
  const int64_t units_, part_;
  Partials<S>& partials_;
  const Packed<S> w_z_, w_sums_;
  std::vector<S> c_;
  std::vector<const S*> c_rows_;
};

constexpr int64_t kChunkRows = 112;  // c, dg and dout of this many rows fit in the L2 cache

// The steps [start, stop) of all rows, `count` rows together: a backward scan processes such a chunk step by step and
// then adds its contribution to the weight gradients while its rows are still in the cache.
struct Chunk {
  int64_t start, stop, count = 0;

  static int64_t capacity(const Ragged& ragged) { return std::max(kChunkRows, ragged.rows); }

  // The last chunk, which ends at `stop`.
  Chunk(const Ragged& ragged, int64_t stop) : start(stop), stop(stop) {
    while (start > 0 && (count == 0 || count + ragged.active[start - 1] <= kChunkRows))
      count += ragged.active[--start];
  }
};

// `dout` has a chunk's gradients of loc and pre_scale, including all paths, as rows of 2 Z.
template <class S, class Scan>
class CombinerSliceBackward {
 public:
  CombinerSliceBackward(const Scan& a, const Ragged& ragged, const std::vector<S>& w_out, Partials<S>& partials,
                        int64_t begin, int64_t end, int64_t parts)
      : a_(a), ragged_(ragged), Z_(a.Z), H_(a.H), dh_{a.dh, a.T, H_}, mine_(H_, begin, end, parts),
        own_(ragged.rows, begin, end, parts), units_(mine_.count()), part_(begin), partials_(partials),
        w_c_(w_out.data() + mine_.begin, units_, 2 * Z_, 1, H_),
        w_before_(a.weights.w_z + mine_.begin * Z_, Z_, units_, 1, Z_), dw_out_(2 * Z_ * units_, S(0)),
        db_out_(2 * Z_, S(0)) {
    const int64_t capacity = Chunk::capacity(ragged);
    for (std::vector<S>* rows : {&c_, &dg_}) rows->resize(capacity * units_);
    z_before_.resize(capacity);
    for (int64_t k = 0; k < capacity; ++k) {
      c_rows_.push_back(c_.data() + k * units_);
      dg_rows_.push_back(dg_.data() + k * units_);
    }
    std::fill_n(a.dweights.w_z + mine_.begin * Z_, units_ * Z_, S(0));
    std::fill_n(a.dweights.b_z + mine_.begin, units_, S(0));
    clear_past_end(ragged, dh_, own_.begin, own_.end);
    clear_past_end(ragged, Dense<S>{a.deps, a.T, Z_}, own_.begin, own_.end);
  }

  // Computes c and, stored in dg, (1 - g^2) / 2, the derivative of c with respect to the pre-activation of g.
  void read(const Chunk& chunk) {
    int64_t k = 0;
    for (int64_t t = chunk.start; t < chunk.stop; ++t)
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

  // Computes the partial sums of dz_{t-1} of step t, whose rows are at `first` in the chunk.
  void step(int64_t t, int64_t first, const S* const* dout) {
    const int64_t active = ragged_.active[t];
    multiply(dout + first, active, w_c_, [&](int64_t i, int64_t column, int64_t width, const S* dc) {
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

  void add_weights(int64_t count, const S* const* dout) {
    add_outer(dout, c_rows_.data(), count, 2 * Z_, 0, units_, dw_out_.data(), units_);
    add_outer(dg_rows_.data(), z_before_.data(), count, units_, 0, Z_, a_.dweights.w_z + mine_.begin * Z_, Z_);
    add_rows(dg_rows_.data(), count, 0, units_, a_.dweights.b_z + mine_.begin);
    if (part_ == 0) add_rows(dout, count, 0, 2 * Z_, db_out_.data());
  }

  // Computes dz_q_0 and the weight gradients.
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

 private:
  const Scan& a_;
  const Ragged& ragged_;
  const int64_t Z_, H_;
  const Dense<S> dh_;
  const Slice<S> mine_;  // the slice of hidden units
  const Share own_;      // a share of the rows, for results that only one part may write
  const int64_t units_, part_;
  Partials<S>& partials_;
  const Packed<S> w_c_, w_before_;  // from dout to dc, from dg to dz_{t-1}
  std::vector<S> dw_out_, db_out_;  // [2 Z, units], [2 Z]
  std::vector<S> c_, dg_;           // a chunk's rows of `units`
  std::vector<const S*> c_rows_, dg_rows_, z_before_;
};
