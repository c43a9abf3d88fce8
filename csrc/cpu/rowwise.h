// Shared parts of the rowwise ops: the list of valid steps, divided among the threads in equal ranges and
// processed in blocks of a few register tiles; and gradients of weights, summed over all steps.
//
// No result depends on the number of threads: steps are computed independently, a row's steps are added in
// order, and weight gradients are added in groups of kGroupRows with fixed boundaries.
//
// Included once for each instruction set, inside its namespace.

constexpr int64_t kBlockRows = kBlock * (56 / kBlock);  // the activations of a block fit in the L1 and L2 caches
constexpr int64_t kGroupRows = 2 * kBlockRows;
static_assert(kGroupRows <= kDepth, "a group is summed in one call");

struct Steps {  // the valid steps of all rows
  int64_t rows, batch, steps;
  const int64_t* lengths;   // [batch]; null: all steps
  const uint8_t* observed;  // [batch, steps], 0 or 1; null: all steps within the lengths

  // The steps of an op on sequences; or N single steps, as one row.
  template <class Params>
  static Steps of(const Params& a, const uint8_t* observed = nullptr) {
    return {a.P * a.B, a.B, a.T, a.lengths, observed};
  }
  static Steps single(int64_t count) { return {1, 1, count, nullptr, nullptr}; }

  bool counts(int64_t row, int64_t step) const {
    const int64_t b = row % batch;
    return (!lengths || step < lengths[b]) && (!observed || observed[b * steps + step]);
  }
};

struct Place {
  int64_t row, step;
};

template <class S>
struct Chain {  // latents [rows, steps, Z], and their initial state
  Steps steps;
  const Rows<const S>& z;
  const Rows<const S>& z_0;  // [rows, Z]
  const S* before(const Place& p) const { return p.step == 0 ? z_0.at(p.row, 0) : z.at(p.row, p.step - 1); }
};

template <class S>
struct ChainGradients {
  S *dz, *dz_0;
};

inline std::vector<Place> places_of(const Steps& steps) {
  std::vector<Place> places;
  for (int64_t row = 0; row < steps.rows; ++row)
    for (int64_t t = 0; t < steps.steps; ++t)
      if (steps.counts(row, t)) places.push_back({row, t});
  return places;
}

// A scratch matrix. The row stride is an odd number of cache lines, so that a column does not map to few
// cache sets; rows may be read and written up to whole_lanes(width).
template <class S>
class Plane {
 public:
  Plane(int64_t rows, int64_t width)
      : stride_((panels_of(width, kLine) | 1) * kLine), storage_(new S[rows * stride_ + kLine]) {
    base_ = reinterpret_cast<S*>((reinterpret_cast<uintptr_t>(storage_.get()) + 63) & ~uintptr_t(63));
    for (int64_t i = 0; i < rows; ++i) {
      pointers_.push_back(base_ + i * stride_);
      std::fill(base_ + i * stride_ + width, base_ + (i + 1) * stride_, S(0));
    }
  }
  S* operator[](int64_t row) { return base_ + row * stride_; }
  const S* const* rows() const { return pointers_.data(); }
  int64_t stride() const { return stride_; }
  std::vector<const S*> rows_from(int64_t column) const {
    std::vector<const S*> rows = pointers_;
    for (const S*& row : rows) row += column;
    return rows;
  }

 private:
  static constexpr int64_t kLine = 64 / sizeof(S);
  int64_t stride_;
  std::unique_ptr<S[]> storage_;
  S* base_;
  std::vector<const S*> pointers_;
};

// Sets rows [at, at + count) of `out` to f(W row + b).
template <class S, class F>
inline void layer(const S* const* rows, int64_t count, const Packed<S>& w, const S* bias, Plane<S>& out,
                  int64_t at, F f) {
  multiply(rows, count, w, [&](int64_t i, int64_t column, int64_t width, const S* sum) {
    S* to = out[at + i] + column;
    for_lanes<S>(width, [&](int64_t j, auto n) {
      const Lanes<S> b(bias + column + j, n);
#pragma GCC ivdep
      for (int64_t l = 0; l < kLanes<S>; ++l) to[j + l] = f(sum[j + l] + b[l]);
    });
  });
}

// Sets these rows of `out`, from column `offset` on, to W row where the ReLU was active, else to zero.
template <class S>
inline void layer_backward(const S* const* rows, int64_t count, const Packed<S>& w, Plane<S>& activation,
                           Plane<S>& out, int64_t at, int64_t offset) {
  multiply(rows, count, w, [&](int64_t i, int64_t column, int64_t width, const S* sum) {
    S* to = out[at + i] + offset + column;
    const S* open = activation[at + i] + offset + column;
#pragma GCC ivdep
    for (int64_t j = 0; j < width; ++j) to[j] = open[j] > S(0) ? sum[j] : S(0);
  });
}

// The sum of a row; the lanes of a vector are added in double.
template <class S>
inline double sum_of(const S* values, int64_t width) {
  using Loose = typename Simd<S>::Loose;
  Vector<S> lanes = {};
  int64_t j = 0;
  for (; j + kLanes<S> <= width; j += kLanes<S>) lanes += *reinterpret_cast<const Loose*>(values + j);
  double sum = 0;
  for (int64_t i = 0; i < kLanes<S>; ++i) sum += static_cast<double>(lanes[i]);
  for (; j < width; ++j) sum += static_cast<double>(values[j]);
  return sum;
}

// out [rows]: the sum of each row's terms, in the order of its steps.
template <class S>
inline void sum_steps(const std::vector<Place>& places, const std::vector<double>& terms, int64_t rows,
                      S* out) {
  size_t i = 0;
  for (int64_t row = 0; row < rows; ++row) {
    double sum = 0;
    for (; i < places.size() && places[i].row == row; ++i) sum += terms[i];
    out[row] = static_cast<S>(sum);
  }
}

// Writes zeros at the dropped steps, for part [begin, end) of `parts`.
template <class S>
inline void clear_unlisted(const Steps& steps, S* out, int64_t width, int64_t begin, int64_t end,
                           int64_t parts) {
  const int64_t last = steps.rows * end / parts;
  for (int64_t row = steps.rows * begin / parts; row < last; ++row)
    for (int64_t t = 0; t < steps.steps; ++t)
      if (!steps.counts(row, t)) std::fill_n(out + (row * steps.steps + t) * width, width, S(0));
}

// Writes zeros to all [rows, steps, width] outputs of a chain at the dropped steps, and to dz_0 of rows without
// valid steps.
template <class S>
inline void clear_chain(const Steps& steps, S* dz_0, int64_t width,
                        std::initializer_list<std::pair<S*, int64_t>> outputs, int64_t begin, int64_t end,
                        int64_t parts) {
  for (const auto& [out, out_width] : outputs) clear_unlisted(steps, out, out_width, begin, end, parts);
  const int64_t last = steps.rows * end / parts;
  for (int64_t row = steps.rows * begin / parts; row < last; ++row)
    if (steps.steps == 0 || !steps.counts(row, 0)) std::fill_n(dz_0 + row * width, width, S(0));
}

// Adds the gradient of z_{t-1} to that of its source, the preceding step or z_0.
template <class S>
inline void add_before(const Place& place, int64_t steps, int64_t width, const S* from,
                       const ChainGradients<S>& out) {
  if (place.step == 0) {
    std::copy_n(from, width, out.dz_0 + place.row * width);
    return;
  }
  S* dz = out.dz + (place.row * steps + place.step - 1) * width;
#pragma GCC ivdep
  for (int64_t j = 0; j < width; ++j) dz[j] += from[j];
}

// Number of GEMMs of a pass relative to the forward pass: the backward pass repeats them, and has as many each for
// the gradients of the inputs and of the weights.
constexpr double kForward = 1, kBackward = 3;

// A part has at least one register tile of steps, each with `step_work`.
inline int64_t row_parts_for(int64_t count, double step_work) {
  return parts_for(static_cast<double>(count) * step_work, count / kBlock);
}

// make() creates a thread's functor run(first, count), which processes blocks of steps.
template <class Make>
inline void for_blocks(int64_t count, double step_work, Make make) {
  const int64_t parts = row_parts_for(count, step_work);
  parallel_for(parts, [&](int64_t begin, int64_t end) {
    auto run = make();
    const int64_t last = count * end / parts;
    for (int64_t first = count * begin / parts; first < last; first += kBlockRows)
      run(first, std::min(kBlockRows, last - first));
  });
}

// Gradients of weights and biases: dw = sum a^T b and db = sum a over all steps, from scratch rows that are
// filled and summed chunk by chunk.
template <class S>
class WeightGradients {
 public:
  // `a` and `b` point to the rows [m] and [n] of a chunk, and must outlive this object.
  void add(const S* const* a, int64_t m, const S* const* b, int64_t n, S* dw, S* db) {
    const int64_t blocks = panels_of(m, kBlockRows);
    layers_.push_back({a, b, m, n, dw, db, blocks});
    units_ += blocks * panels_of(n, kPanel<S>);
  }

  // For weights outside of such layers: `sum` is called with the arguments of the member function sum.
  void also(std::function<void(int64_t, int64_t, int64_t, int64_t)> sum) { also_ = std::move(sum); }

  void clear(int64_t begin, int64_t end, int64_t parts) const {
    for (const Layer& layer : layers_) {
      const int64_t size = layer.m * layer.n, from = size * begin / parts, to = size * end / parts;
      std::fill(layer.dw + from, layer.dw + to, S(0));
      const int64_t bias = layer.m * begin / parts, bias_end = layer.m * end / parts;
      std::fill(layer.db + bias, layer.db + bias_end, S(0));
    }
  }

  // Adds `count` rows of the chunk, for part [begin, end) of `parts` of the work: the units are the blocks
  // of rows of each panel of each layer.
  void sum(int64_t count, int64_t begin, int64_t end, int64_t parts) const {
    int64_t first = units_ * begin / parts, last = units_ * end / parts, seen = 0;
    for (const Layer& layer : layers_) {
      const int64_t panels = panels_of(layer.n, kPanel<S>);
      for (int64_t p = 0; p < panels; ++p, seen += layer.blocks) {
        const int64_t block = std::max<int64_t>(first - seen, 0),
                      block_end = std::min(last - seen, layer.blocks);
        if (block >= block_end) continue;
        const int64_t row = layer.m * block / layer.blocks, row_end = layer.m * block_end / layer.blocks;
        for (int64_t k = 0; k < count; k += kGroupRows) {
          const int64_t group = std::min(kGroupRows, count - k);
          const int64_t column = p * kPanel<S>;
          add_outer_panel(layer.a + k, layer.b + k, group, row, row_end, column,
                          std::min(kPanel<S>, layer.n - column), layer.dw, layer.n);
          if (p == 0) add_rows(layer.a + k, group, row, row_end, layer.db);
        }
      }
    }
    if (also_) also_(count, begin, end, parts);
  }

 private:
  struct Layer {
    const S *const *a, *const *b;
    int64_t m, n;
    S *dw, *db;
    int64_t blocks;
  };

  std::vector<Layer> layers_;
  std::function<void(int64_t, int64_t, int64_t, int64_t)> also_;
  int64_t units_ = 0;
};

// The division of a backward pass's steps into chunks, to limit the scratch rows, with kGroupRows for each part.
struct Chunks {
  int64_t count, parts, rows;
  Chunks(int64_t steps, double step_work)
      : count(steps),
        parts(row_parts_for(steps, step_work)),
        rows(std::min(parts * kGroupRows, std::max<int64_t>(steps, 1))) {}
};

// For each chunk: run(at, first, count) on blocks of steps, where `at` is the offset of the block's rows in the
// chunk's scratch; then the weight gradients, and after(at, first, count), which may read results of other
// threads. clear(begin, end, parts) is called first.
template <class S, class Clear, class Run, class After>
inline void backward_blocks(const Chunks& chunks, const WeightGradients<S>& gradients, Clear clear, Run run,
                            After after) {
  Barrier barrier(chunks.parts);
  parallel_for(chunks.parts, [&](int64_t begin, int64_t end) {
    gradients.clear(begin, end, chunks.parts);
    clear(begin, end, chunks.parts);
    for (int64_t chunk = 0; chunk < chunks.count; chunk += chunks.rows) {
      const int64_t rows = std::min(chunks.rows, chunks.count - chunk);
      const int64_t from = rows * begin / chunks.parts, to = rows * end / chunks.parts;
      for (int64_t at = from; at < to; at += kBlockRows) run(at, chunk + at, std::min(kBlockRows, to - at));
      barrier.arrive(end - begin);
      gradients.sum(rows, begin, end, chunks.parts);
      after(from, chunk + from, to - from);
      barrier.arrive(end - begin);
    }
  });
}
