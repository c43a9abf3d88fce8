// Rows as whole vectors: what is left of a row at its end goes through a vector too, so that no costly
// function is computed an element at a time.
//
// Included once for each instruction set, inside its namespace.

// f(j, n) for each kLanes elements from j on; n, the number that are really there, is a constant for all
// but the last.
template <class S, class F>
inline void for_lanes(int64_t width, F f) {
  int64_t j = 0;
  for (; j + kLanes<S> <= width; j += kLanes<S>) f(j, std::integral_constant<int64_t, kLanes<S>>{});
  if (j < width) f(j, width - j);
}

// The width up to which planes and tiles may be written.
template <class S>
constexpr int64_t whole_lanes(int64_t width) {
  return panels_of(width, kLanes<S>) * kLanes<S>;
}

// A vector's worth of a row that ends somewhere; zero past the end.
template <class S>
class Lanes {
 public:
  Lanes() = default;
  template <class From, class N>
  Lanes(const From* from, N n) {
    // As one loop over all lanes this is a masked load, where there is such a thing.
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
