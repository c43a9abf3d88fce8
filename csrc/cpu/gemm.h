// Small GEMMs for the scans: rows anywhere in memory, weights packed once and kept in cache.
//
// Included once for each instruction set, inside its namespace. kLanes is the number of elements of a vector register.

template <class S>
struct Simd;
template <>
struct Simd<float> {
  typedef float Vector __attribute__((vector_size(DMM_VECTOR_BYTES)));
  typedef float Loose __attribute__((vector_size(DMM_VECTOR_BYTES), aligned(4), may_alias));
};
template <>
struct Simd<double> {
  typedef double Vector __attribute__((vector_size(DMM_VECTOR_BYTES)));
  typedef double Loose __attribute__((vector_size(DMM_VECTOR_BYTES), aligned(8), may_alias));
};

template <class S>
constexpr int64_t kLanes = DMM_VECTOR_BYTES / sizeof(S);
template <class S>
constexpr int64_t kPanel = 2 * kLanes<S>;  // columns of one packed panel
constexpr int64_t kBlock = DMM_BLOCK_ROWS;   // rows of one register tile

constexpr int64_t panels_of(int64_t width, int64_t panel) { return (width + panel - 1) / panel; }

// The width of the panel that begins at a column of `outputs`: a single vector if few columns remain.
template <class S>
constexpr int64_t panel_lanes(int64_t outputs, int64_t column) {
  return outputs - column > kLanes<S> ? kPanel<S> : kLanes<S>;
}

// The multiply-adds of one row.
inline double product_work(int64_t outputs, int64_t inputs) {
  return static_cast<double>(outputs) * static_cast<double>(inputs);
}

// A weight W [n, k] (or its transpose) as panels of kPanel output columns: panel p holds, for every k,
// the weights of its outputs side by side, zero where the last panel has fewer than its lanes.
template <class S>
class Packed {
 public:
  // outputs(j) has weight element (j, k) at data[j * output_stride + k * input_stride].
  Packed(const S* data, int64_t outputs, int64_t inputs, int64_t output_stride, int64_t input_stride)
      : inputs_(inputs), outputs_(outputs), storage_(allocation(outputs, inputs)) {
    base_ = align(storage_.get());
    for (int64_t p = 0; p < panels(); ++p) {
      S* panel = base_ + p * inputs * kPanel<S>;
      const int64_t first = p * kPanel<S>, have = std::min(kPanel<S>, outputs - first);
      const int64_t lanes = panel_lanes<S>(outputs, first);
      const S* from = data + first * output_stride;
      if (have < lanes) std::fill_n(panel, lanes * inputs, S(0));
      if (output_stride == 1) {
        for (int64_t k = 0; k < inputs; ++k) std::copy_n(from + k * input_stride, have, panel + k * lanes);
        continue;
      }
      // Some lines at a time, so that they stay in the L1 cache while each output writes to all of them.
      for (int64_t start = 0; start < inputs; start += kPackedLines) {
        const int64_t stop = std::min(start + kPackedLines, inputs);
        for (int64_t j = 0; j < have; ++j)
          for (int64_t k = start; k < stop; ++k)
            panel[k * lanes + j] = from[j * output_stride + k * input_stride];
      }
    }
  }
  const S* panel(int64_t p) const { return base_ + p * inputs_ * kPanel<S>; }
  int64_t panels() const { return panels_of(outputs_, kPanel<S>); }
  int64_t inputs() const { return inputs_; }
  int64_t outputs() const { return outputs_; }

 private:
  static constexpr int64_t kAlign = 64 / sizeof(S);
  static constexpr int64_t kPackedLines = 64;
  static S* allocation(int64_t outputs, int64_t inputs) {
    return new S[panels_of(outputs, kPanel<S>) * kPanel<S> * inputs + kAlign];
  }
  static S* align(S* p) {
    return reinterpret_cast<S*>((reinterpret_cast<uintptr_t>(p) + 63) & ~uintptr_t(63));
  }
  int64_t inputs_, outputs_;
  std::unique_ptr<S[]> storage_;
  S* base_;
};

template <class S>
using Vector = typename Simd<S>::Vector;

template <class S>
inline Vector<S>& vector_at(S* data, int64_t vector) {
  return *reinterpret_cast<Vector<S>*>(data + vector * kLanes<S>);
}
template <class S>
inline const Vector<S>& vector_at(const S* data, int64_t vector) {
  return *reinterpret_cast<const Vector<S>*>(data + vector * kLanes<S>);
}

// tile[i][j] = sum_k rows[k or i][column + i or k] panel[k][j], for kRows values of i and one panel of
// kVectors vectors. The rows are those of the result (kOuter false) or those of the sum (kOuter true).
// docs-begin: register tile
template <class S, int kRows, int kVectors, bool kOuter>
inline void multiply_tile(const S* const* rows, int64_t column, const S* panel, int64_t count, S* tile) {
  Vector<S> sum[kRows][kVectors] = {};
  for (int64_t k = 0; k < count; ++k) {
    Vector<S> b[kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) b[v] = vector_at(panel + k * kVectors * kLanes<S>, v);
    const S* from = kOuter ? rows[k] + column : nullptr;
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      const S a = kOuter ? from[i] : rows[i][k];
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) sum[i][v] += a * b[v];
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) vector_at(tile + i * kPanel<S>, v) = sum[i][v];
}
// docs-end: register tile

template <class S>
using TileFunction = void (*)(const S* const*, int64_t, const S*, int64_t, S*);

template <class S, int kVectors, bool kOuter, size_t... I>
constexpr std::array<TileFunction<S>, sizeof...(I)> tiles_by_rows(std::index_sequence<I...>) {
  return {&multiply_tile<S, static_cast<int>(I) + 1, kVectors, kOuter>...};
}

// The tile function for a number of rows and of lanes of a panel.
template <class S, bool kOuter>
inline TileFunction<S> tile_function(int64_t rows, int64_t lanes) {
  static constexpr auto kNarrow = tiles_by_rows<S, 1, kOuter>(std::make_index_sequence<kBlock>{});
  static constexpr auto kWide = tiles_by_rows<S, 2, kOuter>(std::make_index_sequence<kBlock>{});
  return (lanes == kPanel<S> ? kWide : kNarrow)[rows - 1];
}

// For `count` rows: finish(row, column, width, values) receives each row's products, one panel at a time.
template <class S, class Finish>
inline void multiply(const S* const* rows, int64_t count, const Packed<S>& w, Finish finish) {
  if (count == 0) return;
  alignas(64) S tile[kBlock * kPanel<S>];
  // Blocks of equal height: 20 rows are 10 + 10 and not 14 + 6.
  const int64_t blocks = panels_of(count, kBlock);
  for (int64_t p = 0; p < w.panels(); ++p) {
    const int64_t column = p * kPanel<S>, width = std::min(kPanel<S>, w.outputs() - column);
    const int64_t lanes = panel_lanes<S>(w.outputs(), column);
    for (int64_t block = 0; block < blocks; ++block) {
      const Share share(count, block, blocks);
      const auto tile_of = tile_function<S, false>(share.end - share.begin, lanes);
      tile_of(rows + share.begin, 0, w.panel(p), w.inputs(), tile);
      for (int64_t i = share.begin; i < share.end; ++i)
        finish(i, column, width, tile + (i - share.begin) * kPanel<S>);
    }
  }
}

// The units of a layer that belong to parts [begin, end) of `parts`, divided at vector boundaries as evenly as
// possible.
template <class S>
struct Slice {
  int64_t begin, end;
  Slice(int64_t units, int64_t part, int64_t part_end, int64_t parts) {
    const int64_t vectors = panels_of(units, kLanes<S>);
    begin = std::min(vectors * part / parts * kLanes<S>, units);
    end = std::min(vectors * part_end / parts * kLanes<S>, units);
  }
  int64_t count() const { return end - begin; }
};

constexpr int64_t kDepth = 224;  // rows of a sum packed at a time: a panel of them fits in the L1 cache

// The rows [begin, end) and the columns [column, column + width) of c [.., stride] += the sum over `count`
// rows, at most kDepth, of a_k^T b_k. The columns are at most a panel; rows stay where they are.
template <class S>
inline void add_outer_panel(const S* const* a, const S* const* b, int64_t count, int64_t begin, int64_t end,
                            int64_t column, int64_t width, S* c, int64_t stride) {
  alignas(64) S packed[kDepth * kPanel<S>];
  alignas(64) S tile[kBlock * kPanel<S>];
  const int64_t lanes = panel_lanes<S>(width, 0), blocks = panels_of(end - begin, kBlock);
  for (int64_t k = 0; k < count; ++k) {
    S* line = packed + k * lanes;
    for (int64_t j = 0; j < width; ++j) line[j] = b[k][column + j];
    for (int64_t j = width; j < lanes; ++j) line[j] = S(0);
  }
  for (int64_t block = 0; block < blocks; ++block) {
    const Share share(end - begin, block, blocks);
    const auto tile_of = tile_function<S, true>(share.end - share.begin, lanes);
    tile_of(a, begin + share.begin, packed, count, tile);
    for (int64_t i = share.begin; i < share.end; ++i) {
      S* line = c + (begin + i) * stride + column;
      const S* sum = tile + (i - share.begin) * kPanel<S>;
#pragma GCC ivdep
      for (int64_t j = 0; j < width; ++j) line[j] += sum[j];
    }
  }
}

// c [m, stride] += the sum over `count` rows of a_k^T b_k, in the columns [begin, end).
template <class S>
inline void add_outer(const S* const* a, const S* const* b, int64_t count, int64_t m, int64_t begin,
                      int64_t end, S* c, int64_t stride) {
  const int64_t chunks = panels_of(count, kDepth);
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {  // all of c for some rows, which stay in the L2 cache
    const Share rows(count, chunk, chunks);
    for (int64_t column = begin; column < end; column += kPanel<S>)
      add_outer_panel(a + rows.begin, b + rows.begin, rows.end - rows.begin, 0, m, column,
                      std::min(kPanel<S>, end - column), c, stride);
  }
}

// out [begin, end) += the sum of the rows, in groups of a few, to limit the accumulation of rounding errors.
template <class S>
inline void add_rows(const S* const* rows, int64_t count, int64_t begin, int64_t end, S* out) {
  constexpr int64_t kFew = 16;
  S sum[kPanel<S>];
  for (int64_t j = begin; j < end; j += kPanel<S>) {
    const int64_t width = std::min(kPanel<S>, end - j);
    for (int64_t k = 0; k < count; k += kFew) {
      std::fill_n(sum, width, S(0));
      for (int64_t few = k; few < std::min(k + kFew, count); ++few)
#pragma GCC ivdep
        for (int64_t l = 0; l < width; ++l) sum[l] += rows[few][j + l];
      for (int64_t l = 0; l < width; ++l) out[j + l] += sum[l];
    }
  }
}
