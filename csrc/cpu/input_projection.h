// W x_t + b at the valid steps, and its gradient. For a sparse row, as in piano rolls, the product is computed as a sum
// of the columns of W at its nonzero values. All other rows use the dense GEMM.
//
// Included once for each instruction set, inside its namespace.

// Separates rows of x into sparse ones, which are passed on with the indices of their nonzero values, and dense ones.
template <class S>
class RowSorter {
 public:
  explicit RowSorter(int64_t inputs) : inputs_(inputs), places_(inputs) {}

  // sparse(places, count), or dense().
  template <class Sparse, class Dense>
  void sort(const S* x, Sparse sparse, Dense dense) {
    const int64_t most = inputs_ / 4;  // with more nonzero values the dense product is cheaper
    int64_t count = 0;
    for (int64_t k = 0; k < inputs_; ++k) {
      places_[count] = k;
      count += x[k] != S(0);
    }
    if (count <= most) sparse(places_.data(), count);
    else dense();
  }

 private:
  int64_t inputs_;
  std::vector<int64_t> places_;
};

// The transpose of `a` [rows, columns].
template <class S>
inline std::vector<S> transposed(const S* a, int64_t rows, int64_t columns) {
  std::vector<S> out(rows * columns);
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < columns; ++j) out[j * rows + i] = a[i * columns + j];
  return out;
}

// A sparse row costs nearly as much as a dense one, since its columns come from the L2 cache and not from registers.
inline double projection_work(int64_t rows, int64_t inputs, int64_t units) {
  return static_cast<double>(rows) * product_work(inputs, units);
}

template <class S>
void input_projection(const InputProjection<S>& a) {
  const Ragged ragged(a);
  const Dense<S> x_proj{a.x_proj, a.T, a.H};
  const int64_t D = a.D, H = a.H;
  const std::vector<S> columns = transposed(a.w, H, D);
  std::vector<std::pair<const S*, S*>> all;  // x_t and the destination of its projection
  for (int64_t row = 0; row < ragged.rows; ++row)
    for (int64_t t = 0; t < ragged.length(row); ++t) all.emplace_back(a.x.at(row, t), x_proj.at(row, t));
  const int64_t count = static_cast<int64_t>(all.size());
  const int64_t parts = parts_for(projection_work(count, D, H), count);
  parallel_for(parts, [&](int64_t begin, int64_t end) {
    clear_past_end(ragged, x_proj, ragged.rows * begin / parts, ragged.rows * end / parts);
    const Share own(count, begin, end, parts);
    std::vector<const S*> dense;
    std::vector<S*> dense_out;
    RowSorter<S> sorter(D);
    for (int64_t i = own.begin; i < own.end; ++i) {
      const auto [x, out] = all[i];
      const auto sum_columns = [&, x = x, out = out](const int64_t* places, int64_t count) {
        std::copy_n(a.b, H, out);
        for (int64_t n = 0; n < count; ++n) {
          const S* column = columns.data() + places[n] * H;
          const S value = x[places[n]];
#pragma GCC ivdep
          for (int64_t j = 0; j < H; ++j) out[j] += value * column[j];
        }
      };
      sorter.sort(x, sum_columns, [&, x = x, out = out] {
        dense.push_back(x);
        dense_out.push_back(out);
      });
    }
    if (dense.empty()) return;
    const Packed<S> w(a.w, H, D, D, 1);
    multiply(dense.data(), static_cast<int64_t>(dense.size()), w,
             [&](int64_t i, int64_t column, int64_t width, const S* sum) {
               S* out = dense_out[i] + column;
#pragma GCC ivdep
               for (int64_t j = 0; j < width; ++j) out[j] = sum[j] + a.b[column + j];
             });
  });
}

// dw [units, inputs] and db of the units in `mine`: the sums over all rows of dout x^T and of dout. Rows are summed in
// groups first, to limit the accumulation of rounding errors.
template <class S>
void add_projection_weights(const InputProjectionBackward<S>& a, const std::vector<const S*>& x,
                            const std::vector<const S*>& dout, const Slice<S>& mine) {
  constexpr int64_t kRows = 512;
  const int64_t D = a.D, width = mine.count(), count = static_cast<int64_t>(x.size());
  std::vector<S> total(D * width, S(0)), some(D * width);  // [inputs, units]
  std::vector<const S*> dense_x, dense_dout;
  RowSorter<S> sorter(D);
  std::fill_n(a.db + mine.begin, width, S(0));
  for (int64_t start = 0; start < count; start += kRows) {
    const int64_t stop = std::min(start + kRows, count);
    std::fill(some.begin(), some.end(), S(0));
    dense_x.clear();
    dense_dout.clear();
    for (int64_t i = start; i < stop; ++i) {
      const S* from = dout[i] + mine.begin;
      const auto add_to_columns = [&](const int64_t* places, int64_t nonzero) {
        for (int64_t n = 0; n < nonzero; ++n) {
          S* to = some.data() + places[n] * width;
          const S value = x[i][places[n]];
#pragma GCC ivdep
          for (int64_t j = 0; j < width; ++j) to[j] += value * from[j];
        }
      };
      sorter.sort(x[i], add_to_columns, [&] {
        dense_x.push_back(x[i]);
        dense_dout.push_back(from);
      });
    }
    add_outer(dense_x.data(), dense_dout.data(), static_cast<int64_t>(dense_x.size()), D, 0, width, some.data(),
              width);
#pragma GCC ivdep
    for (int64_t i = 0; i < D * width; ++i) total[i] += some[i];
    add_rows(dout.data() + start, stop - start, mine.begin, mine.end, a.db);
  }
  for (int64_t j = 0; j < width; ++j)
    for (int64_t k = 0; k < D; ++k) a.dw[(mine.begin + j) * D + k] = total[k * width + j];
}

template <class S>
void input_projection_backward(const InputProjectionBackward<S>& a) {
  const Ragged ragged(a);
  const Dense<S> dx_out{a.dx, a.T, a.D};
  const int64_t D = a.D, H = a.H;
  std::vector<const S*> x, dout;
  std::vector<S*> dx;
  for (int64_t row = 0; row < ragged.rows; ++row)
    for (int64_t t = 0; t < ragged.length(row); ++t) {
      x.push_back(a.x.at(row, t));
      dout.push_back(a.dx_proj.at(row, t));
      if (a.dx) dx.push_back(dx_out.at(row, t));
    }
  const int64_t count = static_cast<int64_t>(x.size());
  const int64_t parts = parts_for((a.dx ? 2 : 1) * projection_work(count, D, H), panels_of(H, kLanes<S>));
  parallel_for(parts, [&](int64_t begin, int64_t end) {
    add_projection_weights(a, x, dout, Slice<S>(H, begin, end, parts));
    if (!a.dx) return;
    clear_past_end(ragged, dx_out, ragged.rows * begin / parts, ragged.rows * end / parts);
    const Share own(count, begin, end, parts);
    const Packed<S> w(a.w, D, H, 1, D);
    multiply(dout.data() + own.begin, own.end - own.begin, w,
             [&](int64_t i, int64_t column, int64_t width, const S* sum) {
               std::copy_n(sum, width, dx[own.begin + i] + column);
             });
  });
}
