// What the kernels on ragged rows share.
//
// Included once for each instruction set, inside its namespace.

// Zero past the end of the rows [begin, end).
template <class S>
inline void clear_past_end(const Ragged& ragged, const Rows<S>& out, int64_t width, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row)
    for (int64_t t = ragged.length(row); t < ragged.steps; ++t) std::fill_n(out.at(row, t), width, S(0));
}
