// The active rows of a scan at each step, and its results.
//
// Included once for each instruction set, inside its namespace.

struct Ragged {
  int64_t rows, batch, steps;
  const int64_t* lengths;       // [batch]
  std::vector<int64_t> order;   // [rows], longest first
  std::vector<int64_t> active;  // [steps]: the number of rows that have the step, the first ones of `order`

  // From the parameters of an op on sequences.
  template <class Params>
  explicit Ragged(const Params& a)
      : rows(a.P * a.B), batch(a.B), steps(a.T), lengths(a.lengths), order(rows), active(steps, 0) {
    std::iota(order.begin(), order.end(), int64_t{0});
    std::stable_sort(order.begin(), order.end(), [this](int64_t i, int64_t j) { return length(i) > length(j); });
    for (int64_t b = 0; b < batch; ++b)
      for (int64_t t = 0; t < lengths[b]; ++t) active[t] += a.P;
  }
  int64_t length(int64_t row) const { return lengths[row % batch]; }
};

// A result [rows, steps, width].
template <class S>
struct Dense {
  S* data;
  int64_t steps, width;
  S* at(int64_t row, int64_t step) const { return data + (row * steps + step) * width; }
};

// Writes zeros past the end of the rows [begin, end).
template <class S>
inline void clear_past_end(const Ragged& ragged, const Dense<S>& out, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row)
    for (int64_t t = ragged.length(row); t < ragged.steps; ++t) std::fill_n(out.at(row, t), out.width, S(0));
}

// The total number of steps of all rows.
inline double steps_of(const Ragged& ragged) {
  double steps = 0;
  for (const int64_t active : ragged.active) steps += static_cast<double>(active);
  return steps;
}

// The number of parts of a scan with the given work per row and barriers per step; each part owns some vectors of the
// units.
template <class S>
inline int64_t scan_parts_for(const Ragged& ragged, double row_work, int64_t units, int64_t barriers = 1) {
  return parts_for(steps_of(ragged) * row_work, panels_of(units, kLanes<S>), barriers * ragged.steps);
}
