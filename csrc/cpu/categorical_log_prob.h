// Log-probabilities of one-hot categories; missing entries are summed over.
//
// Included once for each instruction set, inside its namespace.

// Quantities shared by the derivatives of a step.
template <class S>
struct CategoryTotals {
  S all, missing;  // log-sum-exp of all logits, and of the missing ones (of all if none is missing)
  S misses;        // missing mass of x: 0 if the one is observed
  S factor;        // of the probabilities in the derivatives: observed mass of x, or 1 if entries are missing
  double term;     // the log-probability
};

template <class S>
inline CategoryTotals<S> category_totals(const S* x, const uint8_t* keep, int64_t width, const S* logits) {
  Lanes<S> high, high_missing, sum, sum_missing, hits, score, observed;
  for (int64_t l = 0; l < kLanes<S>; ++l) {
    high[l] = high_missing[l] = -INFINITY;
    sum[l] = sum_missing[l] = hits[l] = score[l] = observed[l] = S(0);
  }
  for_lanes<S>(width, [&](int64_t j, auto n) {
    const Lanes<S> from(logits + j, n), k = kept<S>(keep, j, n);
#pragma GCC ivdep
    for (int64_t l = 0; l < kLanes<S>; ++l) {
      const S logit = select_(l < n, from[l], S(-INFINITY));
      high[l] = at_least_(high[l], logit);
      high_missing[l] = at_least_(high_missing[l], select_(k[l] != S(0), S(-INFINITY), logit));
    }
  });
  S top = high[0], top_missing = high_missing[0];
  for (int64_t l = 1; l < kLanes<S>; ++l) {
    top = at_least_(top, high[l]);
    top_missing = at_least_(top_missing, high_missing[l]);
  }
  const bool any_missing = top_missing > S(-INFINITY);
  const S from_missing = any_missing ? top_missing : S(0);
  for_lanes<S>(width, [&](int64_t j, auto n) {
    const Lanes<S> from(logits + j, n), value(x + j, n), k = kept<S>(keep, j, n);
#pragma GCC ivdep
    for (int64_t l = 0; l < kLanes<S>; ++l) {
      const S hit = select_(k[l] != S(0), value[l], S(0));
      hits[l] += hit;
      observed[l] += k[l];
      score[l] += hit * (from[l] - top);
      sum[l] += select_(l < n, exp_(from[l] - top), S(0));
      sum_missing[l] += select_(l < n, select_(k[l] != S(0), S(0), exp_(from[l] - from_missing)), S(0));
    }
  });
  const auto total = [](const Lanes<S>& lanes) {
    double of_lanes = 0;
    for (int64_t l = 0; l < kLanes<S>; ++l) of_lanes += static_cast<double>(lanes[l]);
    return of_lanes;
  };
  const double log_sum = std::log(total(sum)), hit = total(hits);
  const double missing = any_missing ? top_missing + std::log(total(sum_missing)) : top + log_sum;
  CategoryTotals<S> out{static_cast<S>(top + log_sum), static_cast<S>(missing), S(0), S(0), 0.0};
  if (total(observed) == 0) return out;  // no term
  out.misses = static_cast<S>(1 - hit);
  out.factor = any_missing ? S(1) : static_cast<S>(hit);
  out.term = total(score) - hit * log_sum + (1 - hit) * (missing - (top + log_sum));
  return out;
}

struct Categorical {  // a head of an emission
  template <class S>
  static double forward(const S* x, const uint8_t* keep, int64_t width, const S* logits, S*) {
    return category_totals(x, keep, width, logits).term;
  }
  template <class S>
  static void backward(const S* x, const uint8_t* keep, S d, int64_t width, S* logits, S* dx) {
    const CategoryTotals<S> totals = category_totals(x, keep, width, logits);
    for_lanes<S>(width, [&](int64_t j, auto n) {
      const Lanes<S> value(x + j, n), k = kept<S>(keep, j, n);
      Lanes<S> to(logits + j, n), to_x;
#pragma GCC ivdep
      for (int64_t l = 0; l < kLanes<S>; ++l) {
        const S of_missing = to[l] - totals.missing;
        const S share = select_(k[l] != S(0), value[l], totals.misses * exp_(of_missing));
        to_x[l] = select_(k[l] != S(0), d * of_missing, S(0));
        to[l] = d * (share - totals.factor * exp_(to[l] - totals.all));
      }
      to.store(logits + j, n);
      if (dx) to_x.store(dx + j, n);
    });
  }
};
