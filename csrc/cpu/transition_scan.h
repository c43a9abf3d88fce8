// Drawing the prior chain. Rows are independent: a part processes its own rows through all steps, some register tiles at
// a time, without barriers.
//
// Included once for each instruction set, inside its namespace.

// Rows [begin, end) of the order of activity, through all steps. `inputs` is scratch [end - begin, I], z_{t-1} first.
template <class S>
void roll_out(const TransitionScan<S>& a, const Ragged& ragged, const TransitionNet<S>& net, int64_t begin,
              int64_t end, Plane<S>& inputs, TransitionPlanes<S>& planes, std::vector<S>& loc) {
  const int64_t Z = a.Z, further = a.I - Z;
  const Dense<S> out{a.z, a.T, Z};
  for (int64_t i = begin; i < end; ++i) std::copy_n(a.z_0.at(ragged.order[i], 0), Z, inputs[i - begin]);
  for (int64_t t = 0; t < a.T; ++t) {
    const int64_t count = std::min(ragged.active[t], end) - begin;
    if (count <= 0) return;  // the longest rows are first
    for (int64_t i = 0; i < count; ++i)
      std::copy_n(a.inputs.at(ragged.order[begin + i], t), further, inputs[i] + Z);
    transition_block(net, inputs.rows(), 0, count, planes);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t row = ragged.order[begin + i];
      const TransitionRow<S> drawn = row_at(net, planes, i);
#pragma GCC ivdep
      for (int64_t j = 0; j < Z; ++j) loc[j] = drawn.loc(j);
      draw_normal(loc.data(), drawn.pre_scale, a.eps.at(row, t), Z, inputs[i]);
      std::copy_n(inputs[i], Z, out.at(row, t));
    }
  }
}

template <class S>
void transition_scan(const TransitionScan<S>& a) {
  const Ragged ragged(a);
  const TransitionNet<S> net(a.weights);
  const double work = steps_of(ragged) * transition_work(a.weights, kForward);
  const int64_t parts = parts_for(work, ragged.rows);
  parallel_for(parts, [&](int64_t part, int64_t part_end) {
    const Share own(ragged.rows, part, part_end, parts);
    clear_past_end(ragged, Dense<S>{a.z, a.T, a.Z}, own.begin, own.end);
    TransitionPlanes<S> planes(net, kBlockRows);
    Plane<S> inputs(kBlockRows, a.I);
    std::vector<S> loc(a.Z);
    for (int64_t begin = own.begin; begin < own.end; begin += kBlockRows)
      roll_out(a, ragged, net, begin, std::min(begin + kBlockRows, own.end), inputs, planes, loc);
  });
}
