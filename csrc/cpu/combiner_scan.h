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

// [W_loc; W_scale] as one weight [2 latents, units].
template <class S>
inline std::vector<S> stacked(const S* loc, const S* scale, int64_t size) {
  std::vector<S> both(2 * size);
  std::copy_n(loc, size, both.begin());
  std::copy_n(scale, size, both.begin() + size);
  return both;
}

template <class S>
void combiner_scan(const CombinerScan<S>& a) {
  const int64_t Z = a.latents, H = a.units, parts = get_num_threads();
  const int64_t slices = panels_of(H, kPanel<S>);
  const std::vector<S> w_out = stacked(a.w_loc, a.w_scale, Z * H), b_out = stacked(a.b_loc, a.b_scale, Z);
  const Packed<S> w_z(a.w_z, H, Z, Z, 1);
  Partials<S> partials(parts, a.ragged.rows, 2 * Z);
  Barrier barrier(parts);
  parallel_for(parts, [&](int64_t begin, int64_t end) {
    const int64_t row_begin = a.ragged.rows * begin / parts, row_end = a.ragged.rows * end / parts;
    for (const Rows<S>* out : {&a.z, &a.loc, &a.pre_scale})
      clear_past_end(a.ragged, *out, Z, row_begin, row_end);
    std::vector<const S*> from(a.ragged.rows);
    const int64_t first = slices * begin / parts, last = slices * end / parts;
    const int64_t unit = std::min(first * kPanel<S>, H), units = std::min(last * kPanel<S>, H) - unit;
    const Packed<S> w_slice(w_out.data() + unit, 2 * Z, units, H, 1);
    std::vector<S> c(a.ragged.rows * units), sums(2 * Z);
    std::vector<S> z(a.ragged.rows * Z);  // this part's own copy of z_{t-1}, in the order of activity
    for (int64_t i = 0; i < a.ragged.rows; ++i) std::copy_n(a.z_q_0.at(a.ragged.order[i], 0), Z, z.data() + i * Z);
    for (int64_t t = 0; t < a.ragged.steps; ++t) {
      const int64_t active = a.ragged.active[t];
      for (int64_t i = 0; i < active; ++i) {
        from[i] = z.data() + i * Z;
        // From memory h comes fastest as whole rows, before the product asks for it a panel at a time.
        std::copy_n(a.h.at(a.ragged.order[i], t) + unit, units, c.data() + i * units);
      }
      multiply(from.data(), active, w_z, first, last, [&](int64_t i, int64_t column, int64_t width, const S* sum) {
        S* out = c.data() + i * units + column - unit;
        for_lanes<S>(width, [&](int64_t j, auto n) {
          const Lanes<S> b(a.b_z + column + j, n), from(out + j, n);
          Lanes<S> to;
#pragma GCC ivdep
          for (int64_t l = 0; l < kLanes<S>; ++l) to[l] = S(0.5) * (tanh_(sum[j + l] + b[l]) + from[l]);
          to.store(out + j, n);
        });
      });
      for (int64_t i = 0; i < active; ++i) from[i] = c.data() + i * units;
      multiply(from.data(), active, w_slice, 0, w_slice.panels(), [&](int64_t i, int64_t column, int64_t width, const S* sum) {
        std::copy_n(sum, width, partials.at(t, begin, i) + column);
      });
      barrier.arrive(end - begin);
      for (int64_t i = 0; i < active; ++i) {
        const int64_t row = a.ragged.order[i];
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
        std::copy_n(z_t, Z, a.z.at(row, t));
        std::copy_n(loc, Z, a.loc.at(row, t));
        std::copy_n(pre_scale, Z, a.pre_scale.at(row, t));
      }
    }
  });
}

template <class S>
void combiner_scan_backward(const CombinerScanBackward<S>& a) {
  const int64_t Z = a.latents, H = a.units, parts = get_num_threads();
  const int64_t rows = a.ragged.rows, steps = a.ragged.steps, slices = panels_of(H, kPanel<S>);
  const std::vector<S> w_out = stacked(a.w_loc, a.w_scale, Z * H);
  const Packed<S> w_z(a.w_z, H, Z, Z, 1);
  const Packed<S> w_c(w_out.data(), H, 2 * Z, 1, H);  // from dloc, dpre_scale to dc
  std::vector<S> c(rows * steps * H);      // (g + h) / 2
  std::vector<S> dg(rows * steps * H);     // at the pre-activation of g
  std::vector<S> dout(rows * steps * 2 * Z);  // dloc and dpre_scale, all paths included
  Partials<S> partials(parts, rows, Z);
  const std::vector<S> zeros(Z, S(0));
  std::vector<const S*> c_rows, dg_rows, dout_rows, z_rows;
  const auto z_before = [&](int64_t row, int64_t t) { return t == 0 ? a.z_q_0.at(row, 0) : a.z.at(row, t - 1); };
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t t = 0; t < a.ragged.length(row); ++t) {
      c_rows.push_back(c.data() + (row * steps + t) * H);
      dg_rows.push_back(dg.data() + (row * steps + t) * H);
      dout_rows.push_back(dout.data() + (row * steps + t) * 2 * Z);
      z_rows.push_back(z_before(row, t));
    }
  const int64_t valid = static_cast<int64_t>(c_rows.size());
  std::vector<S> dw_out(2 * Z * H);
  Barrier barrier(parts);
  parallel_for(parts, [&](int64_t begin, int64_t end) {
    const int64_t first = slices * begin / parts, last = slices * end / parts;
    const int64_t unit = std::min(first * kPanel<S>, H), units = std::min(last * kPanel<S>, H) - unit;
    const int64_t row_begin = rows * begin / parts, row_end = rows * end / parts;
    clear_past_end(a.ragged, a.dh, H, row_begin, row_end);
    clear_past_end(a.ragged, a.deps, Z, row_begin, row_end);
    // g again, for the slice of units that this part needs: all steps in one product.
    std::vector<const S*> from(std::max(rows, steps));
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t length = a.ragged.length(row);
      for (int64_t t = 0; t < length; ++t) {
        from[t] = z_before(row, t);
        std::copy_n(a.h.at(row, t) + unit, units, c.data() + (row * steps + t) * H + unit);
      }
      multiply(from.data(), length, w_z, first, last, [&](int64_t t, int64_t column, int64_t width, const S* sum) {
        // Until the scan comes by, dg holds 1 - g^2 over two, the slope from c to the pre-activation.
        S *out = c.data() + (row * steps + t) * H + column, *slope = dg.data() + (row * steps + t) * H + column;
        for_lanes<S>(width, [&](int64_t j, auto n) {
          const Lanes<S> b(a.b_z + column + j, n), from(out + j, n);
          Lanes<S> c_t, slope_t;
#pragma GCC ivdep
          for (int64_t l = 0; l < kLanes<S>; ++l) {
            const S g = tanh_(sum[j + l] + b[l]);
            c_t[l] = S(0.5) * (g + from[l]);
            slope_t[l] = S(0.5) * (S(1) - g * g);
          }
          c_t.store(out + j, n);
          slope_t.store(slope + j, n);
        });
      });
    }
    const Packed<S> w_slice(a.w_z + unit * Z, Z, units, 1, Z);  // from this slice of dg to dz_{t-1}
    std::vector<S> d(rows * 2 * Z), dz(Z);
    for (int64_t t = steps - 1; t >= 0; --t) {
      const int64_t active = a.ragged.active[t];
      for (int64_t i = 0; i < active; ++i) {
        const int64_t row = a.ragged.order[i];
        const bool end_of_row = t + 1 == a.ragged.length(row);
        const S *dz_given = a.dz.at(row, t), *dloc = a.dloc.at(row, t), *dpre = a.dpre_scale.at(row, t);
        const S *eps = a.eps.at(row, t), *pre_scale = a.pre_scale.at(row, t);
        if (end_of_row) std::copy_n(dz_given, Z, dz.data());
        else partials.add_up(t + 1, i, dz_given, dz.data());
        S *d_loc = d.data() + i * 2 * Z, *d_pre = d_loc + Z;
        for_lanes<S>(Z, [&](int64_t j, auto n) {
          const Lanes<S> from(dpre + j, n), slope(dz.data() + j, n), e(eps + j, n), pre(pre_scale + j, n);
          Lanes<S> to;
#pragma GCC ivdep
          for (int64_t l = 0; l < kLanes<S>; ++l) to[l] = from[l] + slope[l] * e[l] * sigmoid_(pre[l]);
          to.store(d_pre + j, n);
        });
#pragma GCC ivdep
        for (int64_t j = 0; j < Z; ++j) d_loc[j] = dloc[j] + dz[j];
        from[i] = d_loc;
        if (row < row_begin || row >= row_end) continue;
        std::copy_n(d_loc, 2 * Z, dout.data() + (row * steps + t) * 2 * Z);
        for_lanes<S>(Z, [&](int64_t j, auto n) {
          const Lanes<S> slope(dz.data() + j, n), pre(pre_scale + j, n);
          Lanes<S> to;
#pragma GCC ivdep
          for (int64_t l = 0; l < kLanes<S>; ++l) to[l] = slope[l] * softplus_(pre[l]);
          to.store(a.deps.at(row, t) + j, n);
        });
      }
      multiply(from.data(), active, w_c, first, last, [&](int64_t i, int64_t column, int64_t width, const S* dc) {
        const int64_t row = a.ragged.order[i];
        S *dh = a.dh.at(row, t) + column, *out = dg.data() + (row * steps + t) * H + column;
#pragma GCC ivdep
        for (int64_t j = 0; j < width; ++j) {
          dh[j] = S(0.5) * dc[j];
          out[j] *= dc[j];
        }
      });
      for (int64_t i = 0; i < active; ++i) from[i] = dg.data() + (a.ragged.order[i] * steps + t) * H + unit;
      multiply(from.data(), active, w_slice, 0, w_slice.panels(), [&](int64_t i, int64_t column, int64_t width, const S* sum) {
        std::copy_n(sum, width, partials.at(t, begin, i) + column);
      });
      barrier.arrive(end - begin);
    }
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t row = a.ragged.order[i];
      if (row < row_begin || row >= row_end) continue;
      S* out = a.dz_q_0 + row * Z;
      if (a.ragged.length(row) == 0) std::fill_n(out, Z, S(0));
      else partials.add_up(0, i, zeros.data(), out);
    }
    outer_sum(dout_rows.data(), c_rows.data(), valid, 2 * Z, H, first, last, dw_out.data());
    const int64_t z_panels = panels_of(Z, kPanel<S>);
    outer_sum(dg_rows.data(), z_rows.data(), valid, H, Z, z_panels * begin / parts, z_panels * end / parts, a.dw_z);
  });
  std::copy_n(dw_out.data(), Z * H, a.dw_loc);
  std::copy_n(dw_out.data() + Z * H, Z * H, a.dw_scale);
  sum_rows(dg_rows, H, a.db_z);
  std::vector<S> db_out(2 * Z);
  sum_rows(dout_rows, 2 * Z, db_out.data());
  std::copy_n(db_out.data(), Z, a.db_loc);
  std::copy_n(db_out.data() + Z, Z, a.db_scale);
}
