// Elementary functions that the compiler vectorizes: branch-free, accurate to a few units in the last place
// over the whole range. Double precision uses the standard library.
//
// Included once for each instruction set, inside its namespace.

// c ? a : b by bit operations, since a conditional may be compiled to a branch, which prevents vectorization.
inline float select_(bool c, float a, float b) {
  uint32_t x, y;
  std::memcpy(&x, &a, 4);
  std::memcpy(&y, &b, 4);
  const uint32_t mask = -static_cast<uint32_t>(c), z = (x & mask) | (y & ~mask);
  float out;
  std::memcpy(&out, &z, 4);
  return out;
}
inline double select_(bool c, double a, double b) { return c ? a : b; }

// Propagates NaN in x, unlike std::max and std::min.
template <class S>
inline S at_least_(S x, S bound) {
  return select_(x < bound, bound, x);
}
template <class S>
inline S at_most_(S x, S bound) {
  return select_(x > bound, bound, x);
}

inline float round_to_float_int(float x) {
  const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  return (x + magic) - magic;
}

inline float scale_by_power_of_two(float x, float n) {
  // In two factors, so that n may reach below the normal range.
  const int32_t half = static_cast<int32_t>(n) >> 1;
  const int32_t rest = static_cast<int32_t>(n) - half;
  const int32_t bits_a = (half + 127) << 23, bits_b = (rest + 127) << 23;
  float a, b;
  std::memcpy(&a, &bits_a, 4);
  std::memcpy(&b, &bits_b, 4);
  return x * a * b;
}

// exp on r in [-ln2/2, ln2/2] minus one minus r, over r^2: minimax, relative error of exp below 1 ulp.
inline float exp_tail(float r) {
  float p = 1.9841270e-4f;
  p = p * r + 1.3888889e-3f;
  p = p * r + 8.3333333e-3f;
  p = p * r + 4.1666667e-2f;
  p = p * r + 1.6666667e-1f;
  return p * r + 0.5f;
}

inline float exp_(float x) {
  // NaN is replaced by -104, since its conversion to an integer is undefined, and restored at the end.
  const float bounded = select_(x >= -104.0f, select_(x > 89.0f, 89.0f, x), -104.0f);
  const float n = round_to_float_int(bounded * 1.44269504f);
  const float r = (bounded - n * 0.693359375f) + n * 2.12194440e-4f;
  const float y = scale_by_power_of_two(1.0f + (r + r * r * exp_tail(r)), n);
  return select_(x != x, x, y);
}

// k ln2 + log(1 + f) for an integer k and 1 + f in [sqrt(1/2), sqrt(2)].
inline float log_of_parts(float k, float f) {
  // log(1 + f) = 2 atanh(s) = f - f^2/2 + s (f^2/2 + s^2 (2/3 + 2 s^2/5 + ...)), |s| <= 0.172: the
  // leading term is f itself and exact.
  const float s = f / (2.0f + f), s2 = s * s;
  float p = 2.2222222e-1f;
  p = p * s2 + 2.8571429e-1f;
  p = p * s2 + 0.4f;
  p = p * s2 + 6.6666667e-1f;
  const float half_square = 0.5f * f * f;
  const float tail = s * (half_square + s2 * p) - k * 2.12194440e-4f;
  return k * 0.693359375f + (f - (half_square - tail));
}

// log(1 + u) for u in [0, 1].
inline float log1p_unit_(float u) {
  const bool high = u > 0.41421356f;
  // 1 + u = 2^k (1 + f), without the rounding of 1 + u.
  return log_of_parts(select_(high, 1.0f, 0.0f), select_(high, 0.5f * (u - 1.0f), u));
}

// log(1 + e^{-|x|}).
inline float log1p_exp_minus_(float x) { return log1p_unit_(exp_(-std::fabs(x))); }

inline float softplus_(float x) {
  return at_least_(x, 0.0f) + log1p_exp_minus_(x);
}

inline float sigmoid_(float x) {
  const float e = exp_(-std::fabs(x));  // in (0, 1]
  return select_(x > 0.0f, 1.0f, e) / (1.0f + e);
}

inline float tanh_(float x) {
  const float a = std::fabs(x);
  const float x2 = x * x;
  // Near zero an odd polynomial, elsewhere 1 - 2 / (e^{2a} + 1).
  float p = -5.70498872745e-3f;
  p = p * x2 + 2.06390887954e-2f;
  p = p * x2 + -5.37397155531e-2f;
  p = p * x2 + 1.33314422036e-1f;
  p = p * x2 + -3.33332819422e-1f;
  const float near = x + x * x2 * p;
  const float far = 1.0f - 2.0f / (exp_(2.0f * a) + 1.0f);
  return select_(a < 0.625f, near, std::copysign(far, x));
}

// log of a positive number that is neither subnormal nor infinite.
inline float log_normal_(float x) {
  int32_t bits;
  std::memcpy(&bits, &x, 4);
  // x = 2^k m with m in [sqrt(1/2), sqrt(2)). Other arguments give an unspecified result.
  const uint32_t offset = static_cast<uint32_t>(bits) - 0x3f3504f3u;
  const int32_t k = static_cast<int32_t>(offset) >> 23;
  const uint32_t mantissa = (offset & 0x7fffffu) + 0x3f3504f3u;
  float m;
  std::memcpy(&m, &mantissa, 4);
  return log_of_parts(static_cast<float>(k), m - 1.0f);
}

// log of any x: -inf at zero, NaN below.
inline float log_(float x) {
  const float raised = x * 33554432.0f;  // 2^25, out of the subnormal range
  const bool tiny = x < 1.17549435e-38f;
  const float y = log_normal_(select_(tiny, raised, x)), finite = y - select_(tiny, 17.3286795f, 0.0f);
  const float special = select_(x == 0.0f, -INFINITY, NAN);
  return select_(x > 0.0f, select_(x < INFINITY, finite, x), special);
}

inline float expm1_(float x) {
  const float bounded = select_(x >= -30.0f, select_(x > 89.0f, 89.0f, x), -30.0f);
  const float n = round_to_float_int(bounded * 1.44269504f);
  const float r = (bounded - n * 0.693359375f) + n * 2.12194440e-4f;
  const float m = r + r * r * exp_tail(r);  // e^r - 1
  // 2^n m + 2^n - 1, halved so that n = 128 stays in range.
  const int32_t bits = (static_cast<int32_t>(n) + 126) << 23;
  float half;
  std::memcpy(&half, &bits, 4);
  const float y = 2.0f * (m * half + (half - 0.5f));
  return select_(x != x, x, y);
}

inline double exp_(double x) { return std::exp(x); }
inline double log1p_exp_minus_(double x) { return std::log1p(std::exp(x > 0 ? -x : x)); }
inline double softplus_(double x) { return (x < 0 ? 0 : x) + log1p_exp_minus_(x); }
inline double sigmoid_(double x) {
  const double e = std::exp(x > 0 ? -x : x);
  return x > 0 ? 1 / (1 + e) : e / (1 + e);
}
inline double tanh_(double x) { return std::tanh(x); }
inline double log_(double x) { return std::log(x); }
inline double log_normal_(double x) { return std::log(x); }
inline double expm1_(double x) { return std::expm1(x); }

// Below the cut, log(1 + e^x) = e^x (1 - e^x / 2) to within rounding, and e^x may underflow.
template <class S>
inline bool below_cut(S x) {
  return x < (sizeof(S) == 4 ? S(-15.942385152878742) : S(-36.04365338911715));
}

// log(softplus(x)): finite for any finite x.
template <class S>
inline S log_softplus_(S x) {
  const S inner = select_(x < S(INFINITY), log_normal_(softplus_(x)), x);
  return select_(below_cut(x), x, inner);
}

// Its derivative, sigmoid(x) / softplus(x).
template <class S>
inline S log_softplus_slope_(S x) {
  return select_(below_cut(x), S(1), sigmoid_(x) / softplus_(x));
}
