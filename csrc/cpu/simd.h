// Rows as whole vectors: the remainder at the end of a row is also processed as a vector, so that no expensive
// function is computed element by element.
//
// Included once for each instruction set, inside its namespace.

// Calls f(j, n) for each kLanes elements from j on; n, the number of valid elements, is a constant for all but the
// last call.
// docs-begin: lanes
template <class S, class F>
inline void for_lanes(int64_t width, F f) {
  int64_t j = 0;
  for (; j + kLanes<S> <= width; j += kLanes<S>) f(j, std::integral_constant<int64_t, kLanes<S>>{});
  if (j < width) f(j, width - j);
}
// docs-end: lanes

// The width up to which rows of planes and tiles may be written.
template <class S>
constexpr int64_t whole_lanes(int64_t width) {
  return panels_of(width, kLanes<S>) * kLanes<S>;
}

// A vector of a row, with zeros past the end.
template <class S>
class Lanes {
 public:
  Lanes() = default;
  template <class From, class N>
  Lanes(const From* from, N n) {
    // A single loop over all lanes is compiled to a masked load if the instruction set has one.
    for (int64_t l = 0; l < kLanes<S>; ++l) values_[l] = l < n ? static_cast<S>(from[l]) : S(0);
  }
  template <class N>
  void store(S* to, N n) const {
    for (int64_t l = 0; l < kLanes<S>; ++l)
      if (l < n) to[l] = values_[l];
  }
  S& operator[](int64_t l) { return values_[l]; }
  S operator[](int64_t l) const { return values_[l]; }

 private:
  alignas(64) S values_[kLanes<S>];
};
