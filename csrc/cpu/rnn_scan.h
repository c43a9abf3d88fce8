// The inference network's recurrence. Each part owns a slice of the output units for the whole scan, so its
// share of W_hh stays in its core's cache. There is one barrier per time step.
//
// Included once for each instruction set, inside its namespace.

// The rows of a scan, which runs from each row's end back to step 0. Forward in time, rows are reversed: only the memory
// location of a step differs.
struct RnnRows : Ragged {
  const bool reversed;

  template <class Params>
  explicit RnnRows(const Params& a) : Ragged(a), reversed(a.direction == Direction::forward) {}
  // A row's step in a tensor.
  template <class Steps>
  auto at(const Steps& tensor, int64_t row, int64_t step) const {
    return tensor.at(row, reversed ? length(row) - 1 - step : step);
  }
  // The h that a row reads at a step: that of the next step, or h_0 at the row's end.
  template <class S, class Steps>
  const S* next_h(const Steps& h, const Rows<const S>& h_0, int64_t row, int64_t step) const {
    return step + 1 == length(row) ? h_0.at(row, 0) : at(h, row, step + 1);
  }
};

template <class S>
inline int64_t rnn_parts(const Ragged& ragged, int64_t units) {
  return scan_parts_for<S>(ragged, product_work(units, units), units);
}

template <class S>
void rnn_scan(const RnnScan<S>& a) {
  const RnnRows ragged(a);
  const Dense<S> out{a.h, a.T, a.H};
  const int64_t H = a.H, parts = rnn_parts<S>(ragged, H);
  Barrier barrier(parts);
  parallel_for(parts, [&](int64_t begin, int64_t end) {
    clear_past_end(ragged, out, ragged.rows * begin / parts, ragged.rows * end / parts);
    const Slice<S> mine(H, begin, end, parts);
    const Packed<S> w(a.w_hh + mine.begin * H, mine.count(), H, H, 1);
    std::vector<const S*> from(ragged.rows);
    // docs-begin: scan
    for (int64_t t = ragged.steps - 1; t >= 0; --t) {
      const int64_t active = ragged.active[t];
      for (int64_t i = 0; i < active; ++i)
        from[i] = ragged.next_h(out, a.h_0, ragged.order[i], t);
      multiply(from.data(), active, w, [&](int64_t i, int64_t column, int64_t width, const S* sum) {
        const int64_t row = ragged.order[i], unit = mine.begin + column;
        const S* x = ragged.at(a.x_proj, row, t) + unit;
        S* h = ragged.at(out, row, t) + unit;
        if (a.nonlinearity == Nonlinearity::relu)
#pragma GCC ivdep
          for (int64_t j = 0; j < width; ++j) h[j] = relu_(sum[j] + x[j]);
        else
#pragma GCC ivdep
          for (int64_t j = 0; j < width; ++j) h[j] = tanh_(sum[j] + x[j]);
      });
      barrier.arrive(end - begin);
    }
    // docs-end: scan
  });
}

// The pairs of rows that a weight gradient sums over: (a at step t, b at the preceding step of the scan).
template <class S>
struct RowPairs {
  std::vector<const S*> a, b;
};

template <class S>
void rnn_scan_backward(const RnnScanBackward<S>& a) {
  const RnnRows ragged(a);
  const Dense<S> dx_proj{a.dx_proj, a.T, a.H};
  const int64_t H = a.H, parts = rnn_parts<S>(ragged, H);
  RowPairs<S> pairs;
  for (int64_t row = 0; row < ragged.rows; ++row)
    for (int64_t t = 0; t < ragged.length(row); ++t) {
      pairs.a.push_back(ragged.at(dx_proj, row, t));
      pairs.b.push_back(ragged.next_h(a.h, a.h_0, row, t));
    }
  const std::vector<S> nothing(H, S(0));
  Barrier barrier(parts);
  parallel_for(parts, [&](int64_t begin, int64_t end) {
    clear_past_end(ragged, dx_proj, ragged.rows * begin / parts, ragged.rows * end / parts);
    const Slice<S> mine(H, begin, end, parts);
    // Transposed: the outputs are the inputs of W_hh.
    const Packed<S> w(a.w_hh + mine.begin, mine.count(), H, 1, H);
    std::vector<const S*> from(ragged.rows);
    for (int64_t t = 0; t < ragged.steps; ++t) {
      const int64_t active = ragged.active[t];
      const auto delta = [&](int64_t i, int64_t column, int64_t width, const S* carry) {
        const int64_t row = ragged.order[i], unit = mine.begin + column;
        const S *dh = ragged.at(a.dh, row, t) + unit, *h = ragged.at(a.h, row, t) + unit;
        S* out = ragged.at(dx_proj, row, t) + unit;
        if (a.nonlinearity == Nonlinearity::relu)
#pragma GCC ivdep
          for (int64_t j = 0; j < width; ++j) out[j] = h[j] > S(0) ? dh[j] + carry[j] : S(0);
        else
#pragma GCC ivdep
          for (int64_t j = 0; j < width; ++j) out[j] = (dh[j] + carry[j]) * (S(1) - h[j] * h[j]);
      };
      if (t == 0) {
        for (int64_t i = 0; i < active; ++i) delta(i, 0, mine.count(), nothing.data());
      } else {
        for (int64_t i = 0; i < active; ++i) from[i] = ragged.at(dx_proj, ragged.order[i], t - 1);
        multiply(from.data(), active, w, delta);
      }
      barrier.arrive(end - begin);
    }
    int64_t started = 0;  // rows with at least one step; those without are last in the order of activity
    for (; started < ragged.rows; ++started) {
      const int64_t row = ragged.order[started], length = ragged.length(row);
      if (length == 0) break;
      from[started] = ragged.at(dx_proj, row, length - 1);
    }
    const auto dh_0 = [&](int64_t i) { return a.dh_0 + ragged.order[i] * H + mine.begin; };
    multiply(from.data(), started, w, [&](int64_t i, int64_t column, int64_t width, const S* carry) {
      std::copy_n(carry, width, dh_0(i) + column);
    });
    for (int64_t i = started; i < ragged.rows; ++i) std::fill_n(dh_0(i), mine.count(), S(0));
    for (int64_t i = 0; i < H; ++i) std::fill_n(a.dw_hh + i * H + mine.begin, mine.count(), S(0));
    add_outer(pairs.a.data(), pairs.b.data(), static_cast<int64_t>(pairs.a.size()), H, mine.begin, mine.end,
              a.dw_hh, H);
  });
}
