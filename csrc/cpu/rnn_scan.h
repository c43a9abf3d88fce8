// The inference network's recurrence. Each part owns some panels of output units for the whole scan, so
// its share of W_hh stays in its core's cache; one barrier a time step.
//
// Included once for each instruction set, inside its namespace.

// The h that row r reads at step t: the next step's, or h_0 at its own end.
template <class S, class Out>
inline const S* next_h(const Ragged& ragged, const Out& h, const Rows<const S>& h_0, int64_t row, int64_t t) {
  return t + 1 == ragged.length(row) ? h_0.at(row, 0) : h.at(row, t + 1);
}

template <class S>
inline void clear_past_end(const Ragged& ragged, const Rows<S>& out, int64_t width, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row)
    for (int64_t t = ragged.length(row); t < ragged.steps; ++t) std::fill_n(out.at(row, t), width, S(0));
}

// out [width] = the sum of the rows.
template <class S>
inline void sum_rows(const std::vector<const S*>& rows, int64_t width, S* out) {
  std::fill_n(out, width, S(0));
  for (const S* row : rows)
#pragma GCC ivdep
    for (int64_t j = 0; j < width; ++j) out[j] += row[j];
}

template <class S>
void rnn_scan(const RnnScan<S>& a) {
  const Packed<S> w(a.w_hh, a.units, a.units, a.units, 1);
  const int64_t parts = get_num_threads();
  Barrier barrier(parts);
  parallel_for(parts, [&](int64_t begin, int64_t end) {
    clear_past_end(a.ragged, a.h, a.units, a.ragged.rows * begin / parts, a.ragged.rows * end / parts);
    const int64_t first = w.panels() * begin / parts, last = w.panels() * end / parts;
    std::vector<const S*> from(a.ragged.rows);
    for (int64_t t = a.ragged.steps - 1; t >= 0; --t) {
      const int64_t active = a.ragged.active[t];
      for (int64_t i = 0; i < active; ++i)
        from[i] = next_h(a.ragged, a.h, a.h_0, a.ragged.order[i], t);
      multiply(from.data(), active, w, first, last, [&](int64_t i, int64_t column, int64_t width, const S* sum) {
        const int64_t row = a.ragged.order[i];
        const S* x = a.x_proj.at(row, t) + column;
        S* h = a.h.at(row, t) + column;
        if (a.nonlinearity == Nonlinearity::relu)
#pragma GCC ivdep
          for (int64_t j = 0; j < width; ++j) h[j] = relu_(sum[j] + x[j]);
        else
#pragma GCC ivdep
          for (int64_t j = 0; j < width; ++j) h[j] = tanh_(sum[j] + x[j]);
      });
      barrier.arrive(end - begin);
    }
  });
}

// The rows that a weight gradient sums over: (a at step t, b at the step before it in the scan).
template <class S>
struct RowPairs {
  std::vector<const S*> a, b;
};

template <class S>
void rnn_scan_backward(const RnnScanBackward<S>& a) {
  const Packed<S> w(a.w_hh, a.units, a.units, 1, a.units);  // the transpose: outputs are inputs of W_hh
  const int64_t parts = get_num_threads();
  RowPairs<S> pairs;
  for (int64_t row = 0; row < a.ragged.rows; ++row)
    for (int64_t t = 0; t < a.ragged.length(row); ++t) {
      pairs.a.push_back(a.dx_proj.at(row, t));
      pairs.b.push_back(next_h(a.ragged, a.h, a.h_0, row, t));
    }
  Barrier barrier(parts);
  parallel_for(parts, [&](int64_t begin, int64_t end) {
    clear_past_end(a.ragged, a.dx_proj, a.units, a.ragged.rows * begin / parts, a.ragged.rows * end / parts);
    const int64_t first = w.panels() * begin / parts, last = w.panels() * end / parts;
    const int64_t unit = std::min(first * kPanel<S>, a.units), unit_end = std::min(last * kPanel<S>, a.units);
    std::vector<const S*> from(a.ragged.rows);
    for (int64_t t = 0; t < a.ragged.steps; ++t) {
      const int64_t active = a.ragged.active[t];
      const auto delta = [&](int64_t i, int64_t column, int64_t width, const S* carry) {
        const int64_t row = a.ragged.order[i];
        const S *dh = a.dh.at(row, t) + column, *h = a.h.at(row, t) + column;
        S* out = a.dx_proj.at(row, t) + column;
        if (a.nonlinearity == Nonlinearity::relu)
#pragma GCC ivdep
          for (int64_t j = 0; j < width; ++j) out[j] = h[j] > S(0) ? dh[j] + carry[j] : S(0);
        else
#pragma GCC ivdep
          for (int64_t j = 0; j < width; ++j) out[j] = (dh[j] + carry[j]) * (S(1) - h[j] * h[j]);
      };
      if (t == 0) {
        const std::vector<S> nothing(unit_end - unit, S(0));
        for (int64_t i = 0; i < active; ++i) delta(i, unit, unit_end - unit, nothing.data());
      } else {
        for (int64_t i = 0; i < active; ++i) from[i] = a.dx_proj.at(a.ragged.order[i], t - 1);
        multiply(from.data(), active, w, first, last, delta);
      }
      barrier.arrive(end - begin);
    }
    for (int64_t row = 0; row < a.ragged.rows; ++row) {
      const int64_t length = a.ragged.length(row);
      S* out = a.dh_0 + row * a.units;
      if (length == 0) {
        std::fill(out + unit, out + unit_end, S(0));
        continue;
      }
      const S* last_delta = a.dx_proj.at(row, length - 1);
      multiply(&last_delta, 1, w, first, last, [&](int64_t, int64_t column, int64_t width, const S* carry) {
        std::copy_n(carry, width, out + column);
      });
    }
    outer_sum(pairs.a.data(), pairs.b.data(), static_cast<int64_t>(pairs.a.size()), a.units, a.units, first,
              last, a.dw_hh);
  });
}
