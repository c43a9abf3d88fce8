// A NADE on top of the emitter's hidden layers: its log-density, forward and backward, and its draws.
//
//   logit_d = b_d + w_read_d . sigmoid(a_d)   a_{d+1} = a_d + x_d w_write_d   b and a_1 from the emitter
// Features that are 0 or missing leave the state unchanged, so its sigmoid is recomputed only after the few other
// features, the writes, between which all features read the same state.
//
// In the backward pass the recursion is independent for each unit. First, panels of units are processed for each
// step to obtain the gradients of the logits, the initial state and x. Then each thread processes a share of the
// units over all steps of a chunk for the gradients of w_read and w_write, whose sums thus have an order that does
// not depend on the number of threads.
//
// Included once for each instruction set, inside its namespace.

template <class S>
inline EmitterLayers<S> layers_of(const NadeEmitterTensors<S>& t) {
  return {t.E, t.Z, t.D, t.w_in, t.b_in, t.w_hidden, t.b_hidden, t.w_out, t.b_out, t.w_state, t.b_state, t.U};
}

// A vector of units.
template <class S>
struct alignas(DMM_VECTOR_BYTES) Units {
  Vector<S> v = {};
  Units() = default;
  // The first n elements; zero in the others.
  Units(const S* from, int64_t n) { *this = of(Lanes<S>(from, n)); }
  Units sigmoid() const {
    Lanes<S> lanes = this->lanes();
#pragma GCC ivdep
    for (int64_t l = 0; l < kLanes<S>; ++l) lanes[l] = sigmoid_(lanes[l]);
    return of(lanes);
  }
  void store(S* to, int64_t n) const { lanes().store(to, n); }

 private:
  static Units of(const Lanes<S>& lanes) {
    Units units;
    for (int64_t l = 0; l < kLanes<S>; ++l) units.v[l] = lanes[l];
    return units;
  }
  Lanes<S> lanes() const {
    Lanes<S> lanes;
    for (int64_t l = 0; l < kLanes<S>; ++l) lanes[l] = v[l];
    return lanes;
  }
};

template <class S>
inline S sum_of_lanes(const Vector<S>& vector) {
  alignas(64) S lanes[kLanes<S>];
  vector_at(lanes, 0) = vector;
  for (int64_t half = kLanes<S> / 2; half > 0; half /= 2)
    for (int64_t l = 0; l < half; ++l) lanes[l] += lanes[l + half];
  return lanes[0];
}

// Weights [D, U] in rows of whole vectors, zero past the last unit.
template <class S>
class NadeWeights {
 public:
  NadeWeights(int64_t features, int64_t units)
      : features_(features), units_(units), plane_(features, whole_lanes<S>(units)) {
    for (int64_t d = 0; d < features; ++d) std::fill_n(plane_[d], plane_.stride(), S(0));
  }
  NadeWeights(const S* from, int64_t features, int64_t units) : NadeWeights(features, units) {
    for (int64_t d = 0; d < features; ++d) std::copy_n(from + d * units, units, plane_[d]);
  }
  void copy_to(S* to) {
    for (int64_t d = 0; d < features_; ++d) std::copy_n(plane_[d], units_, to + d * units_);
  }
  // Row d from the given vector on; the rows are a stride apart.
  S* at(int64_t d, int64_t vector) { return plane_[d] + vector * kLanes<S>; }
  const S* at(int64_t d, int64_t vector) const { return plane_.rows()[d] + vector * kLanes<S>; }
  int64_t stride() const { return plane_.stride(); }
  int64_t features() const { return features_; }
  int64_t units() const { return units_; }
  int64_t vectors() const { return panels_of(units_, kLanes<S>); }

 private:
  int64_t features_, units_;
  Plane<S> plane_;
};

// The weights; w_read also transposed, so that a vector of features can read at a time.
template <class S>
struct Nade {
  NadeWeights<S> read, write;
  Plane<S> read_by_unit;  // with a further row that the last vector may read
  Nade(const S* w_read, const S* w_write, int64_t features, int64_t units)
      : read(w_read, features, units), write(w_write, features, units), read_by_unit(units + 1, features) {
    for (int64_t u = 0; u < units; ++u)
      for (int64_t d = 0; d < features; ++d) *(read_by_unit[u] + d) = w_read[d * units + u];
    std::fill_n(read_by_unit[units], read_by_unit.stride(), S(0));
  }
};

// The state of a NADE, to which features are added.
template <class S>
class NadeState {
 public:
  explicit NadeState(const Nade<S>& nade) : nade_(&nade), a_(nade.read.vectors()), open_(a_.size()) {}
  void begin(const S* first) {
    for (int64_t v = 0; v < vectors(); ++v) {
      a_[v] = Units<S>(first + v * kLanes<S>, nade_->read.units() - v * kLanes<S>);
      open_[v] = a_[v].sigmoid();
    }
  }
  // to_k += w_read_{d+k} . sigmoid(a) for `count` features from d on.
  void read(int64_t d, int64_t count, S* to) const {
    using Loose = typename Simd<S>::Loose;
    const int64_t stride = nade_->read_by_unit.stride(), units = nade_->read.units();
    const S* open = reinterpret_cast<const S*>(open_.data());
    for (int64_t k = 0; k < count; k += kLanes<S>) {
      const S* w = nade_->read_by_unit.rows()[0] + d + k;
      Vector<S> sum[4] = {};  // independent sums hide the latency of the additions
      int64_t u = 0;
      for (; u + 4 <= units; u += 4)
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) sum[i] += open[u + i] * *reinterpret_cast<const Loose*>(w + (u + i) * stride);
      for (; u < units; ++u) sum[0] += open[u] * *reinterpret_cast<const Loose*>(w + u * stride);
      const Vector<S> total = (sum[0] + sum[1]) + (sum[2] + sum[3]);
      const int64_t have = std::min(kLanes<S>, count - k);
      for (int64_t l = 0; l < have; ++l) to[k + l] += total[l];
    }
  }
  void enter(int64_t d, S x) {
    for (int64_t v = 0; v < vectors(); ++v) {
      a_[v].v += x * vector_at(nade_->write.at(d, v), 0);
      open_[v] = a_[v].sigmoid();
    }
  }

 private:
  int64_t vectors() const { return static_cast<int64_t>(a_.size()); }
  const Nade<S>* nade_;
  std::vector<Units<S>> a_, open_;
};

// A step's features, and the list of those that change the state: observed and not 0.
template <class S>
struct Features {
  const S* x;
  std::vector<int64_t> writes;

  void assign(const S* from, const uint8_t* keep, int64_t width) {
    x = from;
    writes.clear();
    for (int64_t d = 0; d < width; ++d)
      if ((!keep || keep[d]) && from[d] != S(0)) writes.push_back(d);
  }
};

// Adds each feature's read-out of the state to logits.
template <class S>
inline void add_reads(NadeState<S>& state, const Features<S>& features, const S* first_state, int64_t width,
                      S* logits) {
  state.begin(first_state);
  int64_t d = 0;
  for (const int64_t write : features.writes) {
    state.read(d, write + 1 - d, logits + d);
    state.enter(write, features.x[write]);
    d = write + 1;
  }
  if (d < width) state.read(d, width - d, logits + d);
}

// Arguments of a backward pass through some vectors of units: a step's features and initial state, the gradients of
// its logits, and the sums of the gradients of these columns of w_read and w_write, or null.
template <class S>
struct NadeStep {
  const Features<S>& features;
  const S *state, *dlogits;
  S *dread, *dwrite;
};

// The backward pass of a step through units of kVectors vectors from `vector` on: writes the gradient of the initial
// state to da and, with kX, the gradients of the features in `keep` by way of the state to dx. With kSums the
// gradients of the weights are accumulated. `opens` is scratch.
template <class S, int kVectors, bool kX, bool kSums>
inline void nade_units_backward(const Nade<S>& nade, int64_t vector, const NadeStep<S>& step,
                                std::vector<Units<S>>& opens, const uint8_t* keep, S* dx, Units<S>* da) {
  const int64_t stride = nade.read.stride(), writes = static_cast<int64_t>(step.features.writes.size());
  const S *w_read = nade.read.at(0, vector), *w_write = nade.write.at(0, vector), *x = step.features.x;
  opens.resize(std::max<size_t>(opens.size(), (writes + 1) * kVectors));
  for (int i = 0; i < kVectors; ++i) {
    const int64_t column = (vector + i) * kLanes<S>;
    Units<S> a(step.state + column, nade.read.units() - column);
    opens[i] = a.sigmoid();
    for (int64_t j = 0; j < writes; ++j) {
      const int64_t d = step.features.writes[j];
      a.v += x[d] * vector_at(w_write + d * stride, i);
      opens[(j + 1) * kVectors + i] = a.sigmoid();
    }
    da[i] = Units<S>();
  }
  int64_t d = nade.read.features() - 1;
  for (int64_t j = writes; j >= 0; --j) {  // the features that read the state after j writes
    Vector<S> open[kVectors], slope[kVectors], dopen[kVectors] = {}, others[kVectors] = {};
    for (int i = 0; i < kVectors; ++i) {
      open[i] = opens[j * kVectors + i].v;
      slope[i] = open[i] * (S(1) - open[i]);
      if (kSums && j < writes) vector_at(step.dwrite + d * stride, i) += x[d] * da[i].v;
    }
    const auto read = [&](int64_t d, Vector<S>* sum) {
      const S dlogit = step.dlogits[d];
      for (int i = 0; i < kVectors; ++i) {
        sum[i] += dlogit * vector_at(w_read + d * stride, i);
        if (kSums) vector_at(step.dread + d * stride, i) += dlogit * open[i];
      }
    };
    const auto add_to_x = [&](int64_t d) {
      if (!kX || (keep && !keep[d])) return;
      Vector<S> sum = {};
      for (int i = 0; i < kVectors; ++i)
        sum += (da[i].v + (dopen[i] + others[i]) * slope[i]) * vector_at(w_write + d * stride, i);
      dx[d] += sum_of_lanes<S>(sum);
    };
    const int64_t last = j > 0 ? step.features.writes[j - 1] : -1;
    for (; d - 1 > last; d -= 2) {  // two independent sums hide the latency of the additions
      add_to_x(d);
      read(d, dopen);
      add_to_x(d - 1);
      read(d - 1, others);
    }
    if (d > last) {
      add_to_x(d);
      read(d--, dopen);
    }
    for (int i = 0; i < kVectors; ++i) da[i].v += (dopen[i] + others[i]) * slope[i];
  }
}

// The gradients of w_read and w_write, summed over steps in groups.
template <class S>
class NadeWeightGradients {
 public:
  explicit NadeWeightGradients(const Nade<S>& nade)
      : nade_(nade), read_(nade.read.features(), nade.read.units()), write_(read_.features(), read_.units()),
        group_read_(read_.features(), read_.units()), group_write_(read_.features(), read_.units()) {}

  // Adds `count` steps, whose rows of scratch are x and the initial state, for part [begin, end) of `parts`.
  void add(Plane<S>& dlogits, Plane<S>& scratch, int64_t count, int64_t begin, int64_t end, int64_t parts) {
    const int64_t D = read_.features(), pairs = panels_of(read_.vectors(), 2);
    const int64_t first = pairs * begin / parts * 2, last = std::min(pairs * end / parts * 2, read_.vectors());
    if (first >= last) return;
    std::vector<Features<S>> features(std::min(kGroupRows, count));
    std::vector<Units<S>> opens;
    Units<S> da[2];
    for (int64_t k = 0; k < count; k += kGroupRows) {
      const int64_t group = std::min(kGroupRows, count - k);
      for (int64_t i = 0; i < group; ++i) features[i].assign(scratch[k + i], nullptr, D);
      for (int64_t v = first; v < last; v += 2) {
        const bool is_pair = v + 1 < read_.vectors();
        for (int64_t i = 0; i < group; ++i) {
          const NadeStep<S> step{features[i], scratch[k + i] + D, dlogits[k + i], group_read_.at(0, v),
                                 group_write_.at(0, v)};
          const auto backward =
              is_pair ? nade_units_backward<S, 2, false, true> : nade_units_backward<S, 1, false, true>;
          backward(nade_, v, step, opens, nullptr, nullptr, da);
        }
        for (int64_t d = 0; d < D; ++d)
          for (int i = 0; i < (is_pair ? 2 : 1); ++i) {
            move(group_read_.at(d, v + i), read_.at(d, v + i));
            move(group_write_.at(d, v + i), write_.at(d, v + i));
          }
      }
    }
  }
  void copy_to(S* w_read, S* w_write) {
    read_.copy_to(w_read);
    write_.copy_to(w_write);
  }

 private:
  // Adds a vector to another and sets it to zero.
  static void move(S* from, S* to) {
    vector_at(to, 0) += vector_at(from, 0);
    vector_at(from, 0) = Vector<S>{};
  }
  const Nade<S>& nade_;
  NadeWeights<S> read_, write_, group_read_, group_write_;
};

template <class S>
void nade_emission_log_prob(const NadeEmissionLogProb<S>& a) {
  const Sequences sequences{Steps::of(a, a.mask.steps), a.D, a.mask.entries};
  const std::vector<Place> places = places_of(sequences.steps);
  const Mask mask(sequences);
  const Nade<S> nade(a.weights.w_read, a.weights.w_write, a.D, a.weights.U);
  std::vector<double> terms(places.size());
  const auto head = [&, state = NadeState<S>(nade), features = Features<S>()](int64_t i, S* out) mutable {
    const S* x = a.x.at(places[i].row, places[i].step);
    const uint8_t* keep = mask.at(places[i]);
    features.assign(x, keep, a.D);
    add_reads(state, features, out + a.D, a.D, out);
    terms[i] = density_forward<Bernoulli, S>(x, keep, a.D, out, out);
  };
  emitter_core_forward<S>(places, a.z, layers_of(a.weights), head);
  sum_steps(places, terms, sequences.steps.rows, a.out);
}

template <class S>
void nade_emission_log_prob_backward(const NadeEmissionLogProbBackward<S>& a) {
  const Sequences sequences{Steps::of(a, a.mask.steps), a.D, a.mask.entries};
  const Steps& steps = sequences.steps;
  const std::vector<Place> places = places_of(steps);
  const Mask mask(sequences);
  const int64_t D = a.D, U = a.weights.U;
  const Nade<S> nade(a.weights.w_read, a.weights.w_write, D, U);
  NadeWeightGradients<S> gradients(nade);
  std::vector<double> terms(a.out ? places.size() : 0);
  const auto clear = [&](int64_t begin, int64_t end, int64_t parts) {
    if (a.dx) clear_unlisted(steps, a.dx, D, begin, end, parts);
  };
  const auto head = [&, state = NadeState<S>(nade), features = Features<S>(), opens = std::vector<Units<S>>()](
                        int64_t i, S* out, S* scratch) mutable {
    const Place& place = places[i];
    const S* x = a.x.at(place.row, place.step);
    const uint8_t* keep = mask.at(place);
    S *to = a.dx ? a.dx + (place.row * a.T + place.step) * D : nullptr, *first_state = scratch + D;
    std::copy_n(out + D, U, first_state);
    features.assign(x, keep, D);
    add_reads(state, features, first_state, D, out);
    if (a.out) terms[i] = density_forward<Bernoulli, S>(x, keep, D, out, scratch);
    density_backward<Bernoulli, S>(x, keep, a.dout[place.row], D, out, to);
    for (int64_t d = 0; d < D; ++d) scratch[d] = !keep || keep[d] ? x[d] : S(0);
    const NadeStep<S> step{features, first_state, out, nullptr, nullptr};
    const int64_t vectors = nade.read.vectors();
    for (int64_t v = 0; v < vectors; v += 2) {
      Units<S> da[2];
      const int count = v + 1 < vectors ? 2 : 1;
      const auto with_x = count == 2 ? nade_units_backward<S, 2, true, false> : nade_units_backward<S, 1, true, false>;
      const auto without =
          count == 2 ? nade_units_backward<S, 2, false, false> : nade_units_backward<S, 1, false, false>;
      (to ? with_x : without)(nade, v, step, opens, keep, to, da);
      for (int j = 0; j < count; ++j)
        da[j].store(out + D + (v + j) * kLanes<S>, std::min(kLanes<S>, U - (v + j) * kLanes<S>));
    }
  };
  const auto sums = [&](Plane<S>& out, Plane<S>& scratch, int64_t count, int64_t begin, int64_t end,
                        int64_t parts) { gradients.add(out, scratch, count, begin, end, parts); };
  emitter_core_backward<S>(steps, places, a.z, layers_of(a.weights), a.dz, layers_of(a.dweights), D + U, clear,
                           head, sums);
  gradients.copy_to(a.dweights.w_read, a.dweights.w_write);
  if (a.out) sum_steps(places, terms, steps.rows, a.out);
}

template <class S>
void nade_draw(const NadeDraw<S>& a) {
  const Nade<S> nade(a.w_read, a.w_write, a.D, a.U);
  for_blocks(a.N, product_work(a.D, a.U) + density_work(a.D), [&] {
    return [&, state = NadeState<S>(nade)](int64_t first, int64_t count) mutable {
      for (int64_t i = first; i < first + count; ++i) {
        const S *u = a.u.at(0, i), *logits = a.logits.at(0, i);
        state.begin(a.state.at(0, i));
        for (int64_t d = 0; d < a.D;) {
          // The logits of some features, valid until one of them changes the state.
          const int64_t some = std::min(kLanes<S>, a.D - d);
          S ahead[kLanes<S>];
          std::copy_n(logits + d, some, ahead);
          state.read(d, some, ahead);
          for (int64_t k = 0; k < some; ++k, ++d) {
            const bool is_one = u[d] < sigmoid_(ahead[k]);
            a.x[i * a.D + d] = is_one ? S(1) : S(0);
            if (!is_one) continue;
            state.enter(d++, S(1));
            break;
          }
        }
      }
    };
  });
}
