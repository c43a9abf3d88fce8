// What the kernels on ragged rows share.
//
// Included once for each instruction set, inside its namespace.

// Zero past the end of the rows [begin, end).
template <class S>
inline void clear_past_end(const Ragged& ragged, const Rows<S>& out, int64_t width, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row)
    for (int64_t t = ragged.length(row); t < ragged.steps; ++t) std::fill_n(out.at(row, t), width, S(0));
}

// The steps of all rows.
inline double steps_of(const Ragged& ragged) {
  double steps = 0;
  for (const int64_t active : ragged.active) steps += static_cast<double>(active);
  return steps;
}

// The parts of a scan whose step takes a row so much work: each owns some vectors of the units.
template <class S>
inline int64_t scan_parts_for(const Ragged& ragged, double row_work, int64_t units) {
  return parts_for(steps_of(ragged) * row_work, panels_of(units, kLanes<S>), ragged.steps);
}
