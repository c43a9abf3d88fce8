// Log-densities of counts, and the required gamma functions: branch-free, for arguments from 1.
//
// Included once for each instruction set, inside its namespace.

inline float log1p_(float x) {
  return select_(x <= 1.0f, log1p_unit_(x), log_normal_(1.0f + x));
}
inline double log1p_(double x) { return std::log1p(x); }

// The terms of Stirling's series from 1/y on, the remainder of log G(y), for y from kFar.
template <class S>
constexpr S kFar = S(8.5);
template <class S>
inline S stirling_tail_(S y) {
  const S inverse = S(1) / y, square = inverse * inverse;
  if constexpr (sizeof(S) == 4) {
    return inverse * (S(8.3333333e-2) - square * S(2.7777778e-3));
  } else {
    S p = S(1.0 / 156);
    p = p * square - S(691.0 / 360360);
    p = p * square + S(1.0 / 1188);
    p = p * square - S(1.0 / 1680);
    p = p * square + S(1.0 / 1260);
    p = p * square - S(1.0 / 360);
    return inverse * (p * square + S(1.0 / 12));
  }
}

// log G(y) for y from kFar, given log(y).
template <class S>
inline S stirling_(S y, S log_y) {
  return (y - S(0.5)) * (log_y - S(1)) + (stirling_tail_(y) + (kHalfLogTwoPi<S> - S(0.5)));
}

// log G(y), by G(y) = p G(f) or G(f) / p with f in [1.5, 2.5], without cancellation near its zeros 1 and 2.
inline float log_gamma_(float y) {
  const bool low = y < 1.5f, far = y >= kFar<float>;
  float f = select_(low, y + 1.0f, y), p = select_(low, y, 1.0f);
#pragma GCC unroll 6
  for (int step = 0; step < 6; ++step) {
    const bool above = f > 2.5f;
    f = select_(above, f - 1.0f, f);
    p = select_(above, p * f, p);
  }
  const float t = f - 2.0f;
  float near = 5.63159199e-4f;  // log G(2 + t) / t: relative error below 3e-8
  near = near * t - 1.31256238e-3f;
  near = near * t + 2.88196556e-3f;
  near = near * t - 7.36642185e-3f;
  near = near * t + 2.05812394e-2f;
  near = near * t - 6.73532657e-2f;
  near = near * t + 3.22467030e-1f;
  near = near * t + 4.22784343e-1f;
  near *= t;
  const float logarithm = log_normal_(select_(far, y, p));
  return select_(far, stirling_(y, logarithm), near + select_(low, -logarithm, logarithm));
}
// In double precision its argument is shifted by 8.
inline double log_gamma_(double y) {
  double product = y;
  for (int k = 1; k < 8; ++k) product *= y + k;
  return stirling_(y + 8, std::log(y + 8)) - std::log(product);
}

// log(G(y + x) / G(y)) for x >= 0, for large y not computed as a difference of large numbers.
template <class S>
inline S log_gamma_ratio_(S y, S x) {
  const S sum = y + x;
  const S far = (y - S(0.5)) * log1p_(x / y) + x * (log_(sum) - S(1)) +
                (stirling_tail_(sum) - stirling_tail_(y));
  return select_(y >= kFar<S>, far, log_gamma_(sum) - log_gamma_(y));
}

// Number of steps by which the argument of digamma is shifted for its asymptotic series.
template <class S>
constexpr int kShift = sizeof(S) == 4 ? 4 : 8;

// log(y) - 1 / (2 y) - digamma(y) for y from kShift + 1.
template <class S>
inline S digamma_tail_(S y) {
  const S square = S(1) / (y * y);
  if constexpr (sizeof(S) == 4) {
    return square * (S(8.3333333e-2) - square * (S(8.3333333e-3) - square * S(3.9682540e-3)));
  } else {
    S p = S(1.0 / 12);
    p = p * square - S(691.0 / 32760);
    p = p * square + S(1.0 / 132);
    p = p * square - S(1.0 / 240);
    p = p * square + S(1.0 / 252);
    p = p * square - S(1.0 / 120);
    return square * (p * square + S(1.0 / 12));
  }
}

// digamma(y), the derivative of log G.
template <class S>
inline S digamma_(S y) {
  const S shifted = y + S(kShift<S>);
  S sum = S(0.5) / shifted + digamma_tail_(shifted);
#pragma GCC unroll 8
  for (int k = 0; k < kShift<S>; ++k) sum += S(1) / (y + S(k));
  return log_(shifted) - sum;
}

// digamma(y + x) - digamma(y) for x >= 0, a sum of positive terms.
template <class S>
inline S digamma_rise_(S y, S x) {
  const S shifted = y + S(kShift<S>);
  S sum = (digamma_tail_(shifted) - digamma_tail_(shifted + x)) + S(0.5) * x / (shifted * (shifted + x));
#pragma GCC unroll 8
  for (int k = 0; k < kShift<S>; ++k) sum += x / ((y + S(k)) * (y + S(k) + x));
  return log1p_(x / shifted) + sum;
}

struct Poisson {  // of the rate's pre-activation
  static constexpr bool kTwo = false;
  template <class S>
  static S log_density(S x, Pair<S> given) {
    return x * log_softplus_(given.first) - softplus_(given.first) - log_gamma_(x + S(1));
  }
  template <class S>
  static Pair<S> slopes(S x, Pair<S> given) {
    return {(x - softplus_(given.first)) * log_softplus_slope_(given.first), S(0)};
  }
  template <class S>
  static S slope_by_value(S x, Pair<S> given) {
    return log_softplus_(given.first) - digamma_(x + S(1));
  }
};

// log(sigmoid(x)).
template <class S>
inline S log_sigmoid_(S x) {
  return at_most_(x, S(0)) - log1p_exp_minus_(x);
}

// The mean m and the total count r are given by their pre-activations. Terms in 1 / r, which may overflow, are
// avoided by G(r) = G(1 + r) / r, since log(r) is finite.
struct NegativeBinomial {
  static constexpr bool kTwo = true;
  template <class S>
  static S log_density(S x, Pair<S> given) {
    const S r = positive_softplus_(given.second), log_r = log_softplus_(given.second);
    const S log_odds = log_softplus_(given.first) - log_r;
    const S log_ratio = select_(x == S(0), S(0), log_(x + r) - log_r);
    return log_gamma_ratio_(S(1) + r, x) - log_gamma_(x + S(1)) - log_ratio + r * log_sigmoid_(-log_odds) +
           x * log_sigmoid_(log_odds);
  }
  template <class S>
  static Pair<S> slopes(S x, Pair<S> given) {
    const S r = positive_softplus_(given.second), m = softplus_(given.first);
    const S log_odds = log_softplus_(given.first) - log_softplus_(given.second);
    const S by_log_m = (x - m) * sigmoid_(-log_odds);
    // r times the derivative of log G(x + r) - log G(r).
    const S of_gammas = r * digamma_rise_(S(1) + r, x) + x / (x + r);
    const S by_log_r = of_gammas + r * log_sigmoid_(-log_odds) - by_log_m;
    return {by_log_m * log_softplus_slope_(given.first), by_log_r * log_softplus_slope_(given.second)};
  }
  template <class S>
  static S slope_by_value(S x, Pair<S> given) {
    const S r = positive_softplus_(given.second);
    const S log_odds = log_softplus_(given.first) - log_softplus_(given.second);
    return digamma_rise_(x + S(1), r) - S(1) / (x + r) + log_sigmoid_(log_odds);
  }
};
