// Elementwise log-densities and their derivatives, from the pre-activation of the scale; and the ops that only
// reduce them.
//
// Included once for each instruction set, inside its namespace.

inline double density_work(int64_t width) { return 2 * kFunction * static_cast<double>(width); }

template <class S>
constexpr S kHalfLogTwoPi = S(0.91893853320467274178);

template <class S>
constexpr S kTiny = sizeof(S) == 4 ? S(1.17549435e-38) : S(2.2250738585072014e-308);

// Softplus bounded away from zero, so that a zero residual over an underflowed scale is 0 and not NaN.
template <class S>
inline S positive_softplus_(S x) {
  return at_least_(softplus_(x), kTiny<S>);
}

template <class S>
inline S normal_log_density_(S value, S loc, S pre_scale) {
  const S residual = (value - loc) / positive_softplus_(pre_scale);
  return S(-0.5) * residual * residual - log_softplus_(pre_scale) - kHalfLogTwoPi<S>;
}

template <class S>
struct Slopes {
  S loc, pre_scale;
};

// d log N(value; loc, softplus(pre_scale)); the derivative with respect to value is minus that for loc.
template <class S>
inline Slopes<S> normal_slopes_(S value, S loc, S pre_scale) {
  const S scale = softplus_(pre_scale), bounded = at_least_(scale, kTiny<S>);
  const S residual = (value - loc) / bounded;
  // Where the bound of the scale applies, the residual does not depend on it.
  const S square = select_(scale < kTiny<S>, S(0), residual * residual);
  return {residual / bounded, (square - S(1)) * log_softplus_slope_(pre_scale)};
}

// KL(N(loc, softplus(pre_scale)) || N(loc_p, softplus(pre_scale_p))).
template <class S>
inline S normal_kl_(S loc, S pre_scale, S loc_p, S pre_scale_p) {
  const S log_ratio = log_softplus_(pre_scale) - log_softplus_(pre_scale_p);
  const S residual = (loc - loc_p) / positive_softplus_(pre_scale_p);
  return S(0.5) * (expm1_(S(2) * log_ratio) + residual * residual) - log_ratio;
}

template <class S>
struct KlSlopes {
  S loc, pre_scale, pre_scale_p;
};

// Its derivatives; that for loc_p is minus that for loc.
template <class S>
inline KlSlopes<S> normal_kl_slopes_(S loc, S pre_scale, S loc_p, S pre_scale_p) {
  const S excess = expm1_(S(2) * (log_softplus_(pre_scale) - log_softplus_(pre_scale_p)));
  const S scale = softplus_(pre_scale_p), bounded = at_least_(scale, kTiny<S>);
  const S residual = (loc - loc_p) / bounded;
  const S square = select_(scale < kTiny<S>, S(0), residual * residual);
  return {residual / bounded, excess * log_softplus_slope_(pre_scale),
          -(excess + square) * log_softplus_slope_(pre_scale_p)};
}

// log Bernoulli(x; sigmoid(logit)), without cancellation for x of 0 or 1.
template <class S>
inline S bernoulli_log_density_(S x, S logit) {
  return (x * logit - at_least_(logit, S(0))) - log1p_exp_minus_(logit);
}

// Its derivative with respect to the logit, x - sigmoid(logit), again without cancellation.
template <class S>
inline S bernoulli_slope_(S x, S logit) {
  const S q = sigmoid_(-std::fabs(logit));
  return select_(logit > S(0), (x - S(1)) + q, x - q);
}

struct Sequences {  // steps of some width, and the mask of their entries
  Steps steps;
  int64_t width;
  const uint8_t* mask;  // [batch, steps, width], 0 or 1; null: all that `steps` counts
};

// The valid entries of a step: its line of the mask, or null for all.
class Mask {
 public:
  explicit Mask(const Sequences& s) : s_(s) {}
  const uint8_t* at(const Place& place) const {
    if (!s_.mask) return nullptr;
    return s_.mask + ((place.row % s_.steps.batch) * s_.steps.steps + place.step) * s_.width;
  }

 private:
  const Sequences& s_;
};

// The entries from j on as ones and zeros.
template <class S, class N>
inline Lanes<S> kept(const uint8_t* keep, int64_t j, N n) {
  if (keep) return Lanes<S>(keep + j, n);
  Lanes<S> all;
  for (int64_t l = 0; l < kLanes<S>; ++l) all[l] = S(1);
  return all;
}

// A network's outputs for an entry of a step, one or two numbers, or a density's derivatives for them.
template <class S>
struct Pair {
  S first, second;
};

struct Normal {  // of loc and pre_scale
  static constexpr bool kTwo = true;
  template <class S>
  static S log_density(S value, Pair<S> given) {
    return normal_log_density_(value, given.first, given.second);
  }
  template <class S>
  static Pair<S> slopes(S value, Pair<S> given) {
    const Slopes<S> by = normal_slopes_(value, given.first, given.second);
    return {by.loc, by.pre_scale};
  }
  template <class S>
  static S slope_by_value(S value, Pair<S> given) {
    return -normal_slopes_(value, given.first, given.second).loc;
  }
};

struct Bernoulli {  // of the logit
  static constexpr bool kTwo = false;
  template <class S>
  static S log_density(S x, Pair<S> given) {
    return bernoulli_log_density_(x, given.first);
  }
  template <class S>
  static Pair<S> slopes(S x, Pair<S> given) {
    return {bernoulli_slope_(x, given.first), S(0)};
  }
  template <class S>
  static S slope_by_value(S, Pair<S> given) {
    return given.first;
  }
};

// A step's log-density from the network's outputs: the first of each entry and, from `width` on, the second.
// `terms` is scratch, which may alias the first outputs.
template <class Density, class S>
inline double density_forward(const S* value, const uint8_t* keep, int64_t width, const S* given, S* terms) {
  for_lanes<S>(width, [&](int64_t j, auto n) {
    const Lanes<S> v(value + j, n), k = kept<S>(keep, j, n), second(given + (Density::kTwo ? width : 0) + j, n);
    Lanes<S> to(given + j, n);
#pragma GCC ivdep
    for (int64_t l = 0; l < kLanes<S>; ++l) {
      const S term = Density::log_density(v[l], Pair<S>{to[l], second[l]});
      to[l] = select_(k[l] != S(0), term, S(0));
    }
    to.store(terms + j, n);
  });
  return sum_of(terms, width);
}

// Replaces the outputs by d times the derivatives; that for the value is written to dvalue unless null.
template <class Density, class S>
inline void density_backward(const S* value, const uint8_t* keep, S d, int64_t width, S* given, S* dvalue) {
  for_lanes<S>(width, [&](int64_t j, auto n) {
    S* const second = given + (Density::kTwo ? width : 0);
    const Lanes<S> v(value + j, n), k = kept<S>(keep, j, n);
    Lanes<S> to_first(given + j, n), to_second(second + j, n), to_value;
    if (dvalue) {
#pragma GCC ivdep
      for (int64_t l = 0; l < kLanes<S>; ++l) {
        const S slope = Density::slope_by_value(v[l], Pair<S>{to_first[l], to_second[l]});
        to_value[l] = select_(k[l] != S(0), d * slope, S(0));
      }
      to_value.store(dvalue + j, n);
    }
#pragma GCC ivdep
    for (int64_t l = 0; l < kLanes<S>; ++l) {
      const Pair<S> slopes = Density::slopes(v[l], Pair<S>{to_first[l], to_second[l]});
      to_first[l] = select_(k[l] != S(0), d * slopes.first, S(0));
      to_second[l] = select_(k[l] != S(0), d * slopes.second, S(0));
    }
    if (Density::kTwo) to_second.store(second + j, n);
    to_first.store(given + j, n);
  });
}

// Replaces x by its gradient, given the gradient of softplus(x).
template <class S>
inline void softplus_backward(const S* gradient, int64_t width, S* x) {
  for_lanes<S>(width, [&](int64_t j, auto n) {
    const Lanes<S> from(gradient + j, n);
    Lanes<S> to(x + j, n);
#pragma GCC ivdep
    for (int64_t l = 0; l < kLanes<S>; ++l) to[l] = from[l] * sigmoid_(to[l]);
    to.store(x + j, n);
  });
}

// out [rows] = the sum over the valid steps of term(place, keep, scratch), where scratch is one row.
template <class S, class Term>
inline void reduce(const Sequences& sequences, S* out, Term term) {
  const std::vector<Place> places = places_of(sequences.steps);
  const Mask keep(sequences);
  std::vector<double> terms(places.size());
  for_blocks(static_cast<int64_t>(places.size()), density_work(sequences.width), [&] {
    return [&, scratch = std::vector<S>(sequences.width)](int64_t first, int64_t count) mutable {
      for (int64_t i = first; i < first + count; ++i)
        terms[i] = term(places[i], keep.at(places[i]), scratch.data());
    };
  });
  sum_steps(places, terms, sequences.steps.rows, out);
}

// slopes(place, keep, at) computes the gradients of a step, at element `at` of the outputs, all [width];
// the outputs, of which some may be null, are zero at dropped steps.
template <class S, class Slope>
inline void reduce_backward(const Sequences& sequences, std::initializer_list<S*> outputs, Slope slopes) {
  const Steps& steps = sequences.steps;
  const int64_t width = sequences.width, parts = row_parts_for(steps.rows * steps.steps, density_work(width));
  const Mask keep(sequences);
  parallel_for(parts, [&](int64_t begin, int64_t end) {
    const int64_t last = steps.rows * steps.steps * end / parts;
    for (int64_t i = steps.rows * steps.steps * begin / parts; i < last; ++i) {
      const Place place{i / steps.steps, i % steps.steps};
      if (steps.counts(place.row, place.step)) {
        slopes(place, keep.at(place), i * width);
        continue;
      }
      for (S* out : outputs)
        if (out) std::fill_n(out + i * width, width, S(0));
    }
  });
}

template <class S>
void normal_log_prob(const NormalLogProb<S>& a) {
  const int64_t width = a.D;
  const Sequences sequences{Steps::of(a, a.mask.steps), width, a.mask.entries};
  reduce(sequences, a.out, [&](const Place& p, const uint8_t* keep, S* scratch) {
    const S *v_row = a.value.at(p.row, p.step), *m_row = a.loc.at(p.row, p.step),
            *s_row = a.scale.at(p.row, p.step);
    for_lanes<S>(width, [&](int64_t j, auto n) {
      const Lanes<S> v(v_row + j, n), m(m_row + j, n), s(s_row + j, n), k = kept<S>(keep, j, n);
      Lanes<S> terms;
#pragma GCC ivdep
      for (int64_t l = 0; l < kLanes<S>; ++l) {
        const S residual = (v[l] - m[l]) / s[l];
        const S term = S(-0.5) * residual * residual - log_(s[l]) - kHalfLogTwoPi<S>;
        terms[l] = select_(k[l] != S(0), term, S(0));
      }
      terms.store(scratch + j, n);
    });
    return sum_of(scratch, width);
  });
}

template <class S>
void normal_log_prob_backward(const NormalLogProbBackward<S>& a) {
  const int64_t width = a.D;
  const Sequences sequences{Steps::of(a, a.mask.steps), width, a.mask.entries};
  const auto slopes = [&](const Place& p, const uint8_t* keep, int64_t at) {
    const S *v_row = a.value.at(p.row, p.step), *m_row = a.loc.at(p.row, p.step),
            *s_row = a.scale.at(p.row, p.step);
    const S d = a.dout[p.row];
    for_lanes<S>(width, [&](int64_t j, auto n) {
      const Lanes<S> v(v_row + j, n), m(m_row + j, n), s(s_row + j, n), k = kept<S>(keep, j, n);
      Lanes<S> to_value, to_loc, to_scale;
#pragma GCC ivdep
      for (int64_t l = 0; l < kLanes<S>; ++l) {
        const S residual = (v[l] - m[l]) / s[l];
        to_loc[l] = select_(k[l] != S(0), d * residual / s[l], S(0));
        to_value[l] = -to_loc[l];
        to_scale[l] = select_(k[l] != S(0), d * (residual * residual - S(1)) / s[l], S(0));
      }
      to_value.store(a.dvalue + at + j, n);
      to_loc.store(a.dloc + at + j, n);
      to_scale.store(a.dscale + at + j, n);
    });
  };
  reduce_backward<S>(sequences, {a.dvalue, a.dloc, a.dscale}, slopes);
}

template <class S>
void bernoulli_log_prob(const BernoulliLogProb<S>& a) {
  const Sequences sequences{Steps::of(a, a.mask.steps), a.D, a.mask.entries};
  reduce(sequences, a.out, [&](const Place& p, const uint8_t* keep, S* scratch) {
    return density_forward<Bernoulli>(a.x.at(p.row, p.step), keep, a.D, a.logits.at(p.row, p.step), scratch);
  });
}

template <class S>
void bernoulli_log_prob_backward(const BernoulliLogProbBackward<S>& a) {
  const Sequences sequences{Steps::of(a, a.mask.steps), a.D, a.mask.entries};
  reduce_backward<S>(sequences, {a.dx, a.dlogits}, [&](const Place& p, const uint8_t* keep, int64_t at) {
    std::copy_n(a.logits.at(p.row, p.step), a.D, a.dlogits + at);
    density_backward<Bernoulli>(a.x.at(p.row, p.step), keep, a.dout[p.row], a.D, a.dlogits + at, a.dx + at);
  });
}

// out [rows]: the sum over the valid steps of the log-density of their draws.
template <class S, class Params>
void drawn_log_prob_of(const Params& a) {
  const int64_t width = a.Z;
  const Sequences sequences{Steps::of(a), width, nullptr};
  reduce(sequences, a.out, [&](const Place& p, const uint8_t*, S* scratch) {
    const S *e_row = a.eps.at(p.row, p.step), *s_row = a.pre_scale.at(p.row, p.step);
    for_lanes<S>(width, [&](int64_t j, auto n) {
      const Lanes<S> e(e_row + j, n), s(s_row + j, n);
      Lanes<S> terms;
#pragma GCC ivdep
      for (int64_t l = 0; l < kLanes<S>; ++l)
        terms[l] = S(-0.5) * e[l] * e[l] - log_softplus_(s[l]) - kHalfLogTwoPi<S>;
      terms.store(scratch + j, n);
    });
    return sum_of(scratch, width);
  });
}

template <class S>
void drawn_log_prob(const DrawnLogProb<S>& a) {
  drawn_log_prob_of<S>(a);
}

template <class S>
void drawn_log_prob_backward(const DrawnLogProbBackward<S>& a) {
  const int64_t width = a.Z;
  const Sequences sequences{Steps::of(a), width, nullptr};
  if (a.out) drawn_log_prob_of<S>(a);
  reduce_backward<S>(sequences, {a.deps, a.dpre_scale}, [&](const Place& p, const uint8_t*, int64_t at) {
    const S *e_row = a.eps.at(p.row, p.step), *s_row = a.pre_scale.at(p.row, p.step);
    const S d = a.dout[p.row];
    for_lanes<S>(width, [&](int64_t j, auto n) {
      const Lanes<S> e(e_row + j, n), s(s_row + j, n);
      Lanes<S> to_eps, to_pre_scale;
#pragma GCC ivdep
      for (int64_t l = 0; l < kLanes<S>; ++l) {
        to_eps[l] = -d * e[l];
        to_pre_scale[l] = -d * log_softplus_slope_(s[l]);
      }
      if (a.deps) to_eps.store(a.deps + at + j, n);
      to_pre_scale.store(a.dpre_scale + at + j, n);
    });
  });
}
