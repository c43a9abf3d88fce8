// rnn_scan for large batches, in bf16 on tensor cores (bf16_product.cuh). In a step of a group of rows a warp waits for the
// state, multiplies it by its part of the weights, synchronises with the other warps of its bundle to add the partial sums,
// computes the next state of 16 units, and sends it to all blocks. The loop has no barrier of the whole block, so that one
// warp can add and send while others multiply, for the same group or the next.
//
// A state is rounded to bf16 once, when it is sent; results in device memory stay in float32. They are accessed four units
// of a row at a time, so the number of units has to be a multiple of four, and units have to be contiguous.
//
// Two alternating states and two alternating barriers per group are enough. All warps of the cluster that have units, or
// are in a bundle with such a warp, run all steps of a group together. The phase of step k ends in a block when all warps
// with units have sent their state: warps of other blocks by the bytes that they send, warps of the same block by arriving.
// By then each has read the state of step k - 1, and so have the others of its bundle, whose partial sums it has received.
// So a warp that has waited for step k may overwrite the state of step k - 1, and set the expected bytes of step k + 1 on
// the barrier of step k - 1. No phase can be missed either: that of step k + 2 does not end before the slowest warp has
// waited for step k. The last step of a group is not exchanged.
//
// Partial sums are double buffered likewise: a warp of a bundle writes a buffer for the second time after all have reached
// the barrier of the turn between, and so have read it.
#pragma once

#include "bf16_product.cuh"
#include "rnn_scan_warps.cuh"

namespace dmm::cuda {

template <class Direction, class K, class Args>
class Bf16Scan {
  static constexpr int kWarps = K::tile().warps, kThreads = K::tile().threads(), kOwn = K::tile().block_outputs();
  static constexpr int kParts = K::tile().parts, kRowTiles = K::tile().row_tiles, kRows = K::tile().rows();
  static constexpr int kInputs = K::tile().inputs(), kStride = K::tile().stride(), kState = K::tile().state();
  static constexpr int kOperands = Direction::kOperands, kPlaces = kOperands + 1;
  static constexpr int kPeers = 4;  // peers with addresses in registers, in clusters of 5 blocks or more

 public:
  __device__ Bf16Scan(const Args& a, float* shared)
      : a_(a),
        direction_{a},
        rows_(a.ragged, cluster_, reinterpret_cast<Row*>(shared)),
        layout_(K::tile(), a.ragged.rows_per_cluster, a.ragged.groups(), kPlaces),
        shared_(reinterpret_cast<unsigned char*>(shared)),
        first_(cluster_.rank() * kOwn),
        unit_(first_ + 16 * warp() + 4 * (lane() % 4)),
        owns_(first_ + 16 * warp() < a.units),
        is_first_(threadIdx.x == 0),
        blocks_(cluster_.blocks()) {
    settle(unit_), settle(blocks_);
  }

  __device__ void run() {
    const int output = first_ + warp() / kParts * kParts * 16;  // the first output of the bundle
    const Bf16Weights<K> weights(shared_ + layout_.weights, direction_.weights(output), direction_.next_output(),
                                 direction_.next_input(), a_.units - output, a_.units);
    begin();
    const int left = (a_.units - first_ + 15) / 16, owners = left < kWarps ? left : kWarps;
    Exchange exchange(cluster_, blocks_, reinterpret_cast<uint64_t*>(shared_ + layout_.barriers), a_.hang, owners);
    exchange.start(rows_.groups(), [this](int group, int step) { return step < exchanged(group) ? bytes(group) : 0; });
    if (output < a_.units) take_steps(weights, exchange);
    clear_past_end();  // last, since clusters with short rows finish early
    for (int group = 0; owns_ && lane() == 0 && group < rows_.groups(); ++group)
      for (int i = 0; i < 2; ++i) exchange.arrive(group, exchanged(group) + i);  // in the phases that `finish` looks at
    exchange.finish(rows_.groups(), [this](int group) { return exchanged(group); });
  }

 private:
  // The state of a lane in a step of a group, of which it has four units of a row in each tile.
  struct Turn {
    int group, step, steps, time;
    int lengths[kRowTiles];  // -1 if the row is missing or the lane has no units
    const float* from[kRowTiles][kOperands];
    float* to[kRowTiles];

    __device__ bool is_last() const { return step + 1 == steps; }
    __device__ bool is_active(int r) const { return time < lengths[r]; }
  };

  template <class Weights>
  __device__ void take_steps(const Weights& weights, Exchange& exchange) {
    int active = drop_ended(rows_.groups(), 0);
    if (active == 0) return;
    Remote peers[kPeers];
#pragma unroll
    for (int i = 0; i < kPeers; ++i) peers[i] = remote(peer(i + 1 < blocks_ ? i : 0), shared_), settle(peers[i]);
    Turn turn = turn_of(0, 0);
#pragma unroll 1
    // docs-begin: step
    for (int buffer = 0; active > 0; buffer ^= 1) {
      if (turn.step > 0)
        exchange.wait(turn.group, turn.step - 1, [&] { return active_rows(turn.group, turn.step - 1); });
      __syncwarp();  // mma needs all lanes converged, and a wait may end lane by lane
      // Loaded after the wait, which would otherwise also wait for the thread's loads from device memory.
      float given[kRowTiles][4][kOperands];
      fetch(turn, given);
      // Done while the tensor cores multiply, so that the operands of the next turn are loaded in the meantime.
      const Turn next = following(turn, active);
      prefetch(next);
      float sums[kParts][kRowTiles][4];
      weights.multiply(state(turn.group, turn.step + 1), sums);
      put(sums, buffer);
      bundle_sync(1 + warp() / kParts, 32 * kParts);
      if (owns_) finish(exchange, turn, buffer, given, peers);
      turn = next;
    }
    // docs-end: step
  }
  // The number of groups with steps left; they are the first ones, since the first group has the longest row.
  __device__ int drop_ended(int groups, int step) const {
    while (groups > 0 && Direction::steps(rows_.longest(groups - 1)) <= step) --groups;
    return groups;
  }
  // The next turn; groups alternate, and `active` is the number of groups with steps left, 0 after the last turn.
  __device__ Turn following(const Turn& turn, int& active) const {
    const bool is_round = turn.group + 1 == active;
    if (is_round && turn.is_last()) active = drop_ended(active, turn.step + 1);
    return turn_of(is_round ? 0 : turn.group + 1, turn.step + is_round);
  }
  __device__ Turn turn_of(int group, int step) const {
    const int longest = rows_.longest(group);
    Turn turn{group, step, Direction::steps(longest), Direction::time(longest, step), {}, {}, {}};
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
      const int in_group = 8 * r + lane() / 4, row = row_of(group, r), last = rows_.count() - 1;
      const int length = rows_[row < last ? row : last].length;
      turn.lengths[r] = in_group < a_.ragged.rows_per_group && row <= last && unit_ < a_.units ? length : -1;
      const float* const* const begins = begins_of(row < last ? row : last);
#pragma unroll
      for (int i = 0; i < kOperands; ++i) turn.from[r][i] = begins[i] + turn.time * direction_.operand(i).step + unit_;
      turn.to[r] = const_cast<float*>(begins[kOperands]) + int64_t{turn.time} * a_.out_step + unit_;
    }
    return turn;
  }
  __device__ void fetch(const Turn& turn, float (&given)[kRowTiles][4][kOperands]) const {
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
      for (int i = 0; i < kOperands; ++i) {
        float4 x{};
        if (turn.is_active(r)) x = load_global(reinterpret_cast<const float4*>(turn.from[r][i]));
        given[r][0][i] = x.x, given[r][1][i] = x.y, given[r][2][i] = x.z, given[r][3][i] = x.w;
      }
  }
  __device__ void prefetch(const Turn& turn) const {
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
      for (int i = 0; i < kOperands; ++i)
        if (turn.time >= 0 && turn.is_active(r)) prefetch_global(turn.from[r][i]);
  }

  // The rest of a step for a warp with units: computes their next state, and sends it to all blocks and to device memory.
  __device__ void finish(const Exchange& exchange, const Turn& turn, int buffer,
                         const float (&given)[kRowTiles][4][kOperands], const Remote (&peers)[kPeers]) const {
    float sums[kRowTiles][4], values[kRowTiles][4];
    add_up(buffer, sums);
    if (a_.tanh) next<true>(turn, sums, given, values);
    else next<false>(turn, sums, given, values);
    if (!turn.is_last()) {
      give(exchange, turn, values, peers);
      __syncwarp();
      if (lane() == 0) exchange.arrive(turn.group, turn.step);
      if (is_first_ && turn.step > 0 && turn.step + 2 < turn.steps)
        exchange.expect(turn.group, turn.step + 1, bytes(turn.group));
    }
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
      if (turn.is_active(r))
        store_global(reinterpret_cast<float4*>(turn.to[r]),
                     float4{values[r][0], values[r][1], values[r][2], values[r][3]});
      else if (turn.lengths[r] >= 0)
#pragma unroll
        for (int n = 0; n < 4; ++n) direction_.finish(rows_[row_of(turn.group, r)], turn.time, unit_ + n, sums[r][n]);
    }
  }

  // Initialises both states of each group, and the device memory offset of each row at time 0.
  __device__ void begin() const {
    constexpr int kPairs = kInputs / 2;
#pragma unroll 4
    for (int i = static_cast<int>(threadIdx.x); i < rows_.groups() * kRows * kPairs; i += kThreads) {
      const int place = i / kPairs, unit = 2 * (i % kPairs), group = place / kRows, in_group = place % kRows;
      const int row = rows_.first(group) + in_group;
      const bool is_there = in_group < a_.ragged.rows_per_group && row < rows_.count();
      const auto start = [&](int u) { return is_there && u < a_.units ? direction_.start(rows_[row], u) : 0.0f; };
      const uint32_t pair = pack_bf16(start(unit), start(unit + 1));
      const int at = in_group * kStride + 2 * unit;
      for (int step = 0; step < 2; ++step) *reinterpret_cast<uint32_t*>(state(group, step) + at) = pair;
    }
    const int row = static_cast<int>(threadIdx.x);
    static_assert(kThreads >= kMostRows);
    if (row >= rows_.count()) return;
    const Row& own = rows_[row];
    const int strides = strides_to(a_, 0, own.length);
    const float** const begins = begins_of(row);
    for (int i = 0; i < kOperands; ++i) begins[i] = direction_.operand(i).at(own.particle, own.sequence, strides, 0);
    begins[kOperands] =
        direction_.out() + int64_t{own.index} * a_.ragged.steps * a_.units + int64_t{strides} * a_.out_step;
  }

  // Partial sums of a tile, [8 rows][kSumsOfRow], owned by the warp with that index in the bundle.
  __device__ float* sums_of(int buffer, int owner, int r, int part) const {
    const int tile = ((buffer * kWarps + owner) * kRowTiles + r) * kParts + part;
    return reinterpret_cast<float*>(shared_ + layout_.sums) + tile * kSumsOfTile;
  }
  // Stores partial sums; a lane has those of the outputs lane / 4 and lane / 4 + 8, for two rows.
  __device__ void put(const float (&sums)[kParts][kRowTiles][4], int buffer) const {
    const int bundle = warp() / kParts * kParts, at = 2 * (lane() % 4) * kSumsOfRow + lane() / 4;
#pragma unroll
    for (int tile = 0; tile < kParts; ++tile)
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
        for (int n = 0; n < 4; ++n)
          sums_of(buffer, bundle + tile, r, warp() % kParts)[at + n % 2 * kSumsOfRow + n / 2 * 8] = sums[tile][r][n];
  }
  __device__ void add_up(int buffer, float (&sums)[kRowTiles][4]) const {
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
      const float* const from = sums_of(buffer, warp(), r, 0) + lane() / 4 * kSumsOfRow + 4 * (lane() % 4);
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        const float4 x = *reinterpret_cast<const float4*>(from + part * kSumsOfTile);
        const float four[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
        for (int n = 0; n < 4; ++n) sums[r][n] = part == 0 ? four[n] : sums[r][n] + four[n];
      }
    }
  }

  template <bool kTanh>
  __device__ void next(const Turn& turn, const float (&sums)[kRowTiles][4],
                       const float (&given)[kRowTiles][4][kOperands], float (&values)[kRowTiles][4]) const {
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
      const uint2 pairs = *reinterpret_cast<const uint2*>(state(turn.group, turn.step + 1) + place(r));
      const float before[4] = {low_bf16(pairs.x), high_bf16(pairs.x), low_bf16(pairs.y), high_bf16(pairs.y)};
#pragma unroll
      for (int n = 0; n < 4; ++n)
        values[r][n] = Direction::template next<kTanh>(sums[r][n], given[r][n], turn.is_active(r), before[n]);
    }
  }
  // Writes to the block's own state and to that of all other blocks.
  __device__ void give(const Exchange& exchange, const Turn& turn, const float (&values)[kRowTiles][4],
                       const Remote (&peers)[kPeers]) const {
    unsigned char* const own = state(turn.group, turn.step);
    float pairs[kRowTiles][2];
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
      const uint2 packed{pack_bf16(values[r][0], values[r][1]), pack_bf16(values[r][2], values[r][3])};
      pairs[r][0] = __uint_as_float(packed.x), pairs[r][1] = __uint_as_float(packed.y);
      if (turn.lengths[r] >= 0) *reinterpret_cast<uint2*>(own + place(r)) = packed;
    }
    if (exchange.is_lost()) return;
    const int at = static_cast<int>(own - shared_);
    const int barrier = layout_.barriers + 8 * (2 * turn.group + (turn.step & 1));
    const bool has_all = blocks_ > kPeers;
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
      if (turn.lengths[r] < 0) continue;
      if (has_all) {
#pragma unroll
        for (int i = 0; i < kPeers; ++i)
          transaction_store(true, peers[i] + (at + place(r)), pairs[r], peers[i] + barrier);
      }
#pragma unroll 1
      for (int i = has_all ? kPeers : 0; i + 1 < blocks_; ++i) {
        const Remote block = remote(peer(i), shared_);
        transaction_store(true, block + (at + place(r)), pairs[r], block + barrier);
      }
    }
  }
  // Each block starts with a different one, so that not all store to the same block first.
  __device__ int peer(int i) const {
    const int block = cluster_.rank() + 1 + i;
    return block < blocks_ ? block : block - blocks_;
  }

  // The number of a group's steps with an exchange: all but the last, whose state no block reads.
  __device__ int exchanged(int group) const {
    const int steps = Direction::steps(rows_.longest(group));
    return steps > 0 ? steps - 1 : 0;
  }
  // The number of active rows of a group in a step.
  __device__ int active_rows(int group, int step) const {
    return rows_.more_than(group, Direction::time(rows_.longest(group), step));
  }
  // Bytes received from other blocks for all rows of a group.
  __device__ int bytes(int group) const {
    const int left = rows_.count() - rows_.first(group), most = a_.ragged.rows_per_group;
    const int rows = left < most ? left : most;
    const int own = a_.units - first_ < kOwn ? a_.units - first_ : kOwn;
    return 2 * rows * (a_.units - own);
  }

  __device__ void clear_past_end() const {
    const int units = a_.units - first_ < kOwn ? a_.units - first_ : kOwn;
    const Deal deal(units);
    for (int i = 0; i < rows_.count(); ++i) {
      const Row& row = rows_[i];
      float* const out = direction_.out() + int64_t{row.index} * a_.ragged.steps * a_.units + first_;
      for_each(deal, a_.ragged.steps - row.length, units,
               [&](int t, int unit) { out[int64_t{row.length + t} * a_.units + unit] = 0.0f; });
    }
  }

  __device__ const float** begins_of(int row) const {
    return reinterpret_cast<const float**>(shared_ + layout_.places) + row * kPlaces;
  }
  __device__ int row_of(int group, int r) const { return rows_.first(group) + 8 * r + lane() / 4; }
  __device__ unsigned char* state(int group, int step) const {
    return shared_ + layout_.states + (2 * group + (step & 1)) * kState;
  }
  // The offset of the lane's four units in a state.
  __device__ int place(int r) const { return (8 * r + lane() / 4) * kStride + 2 * unit_; }
  __device__ static int lane() { return static_cast<int>(threadIdx.x) % 32; }
  __device__ static int warp() { return static_cast<int>(threadIdx.x) / 32; }

  const Args& a_;
  const Direction direction_;
  const Cluster cluster_{};
  const ClusterRows rows_;
  const Bf16Layout layout_;
  unsigned char* const shared_;
  const int first_;  // first unit of the block
  int unit_;         // first of the lane's four units
  const bool owns_;  // the warp has units
  const bool is_first_;  // the first thread of the block
  int blocks_;
};

template <class K>
__global__ __launch_bounds__(K::tile().threads(), 1) void rnn_scan_bf16_fwd_kernel(const __grid_constant__ RnnScan a) {
  if constexpr (kHasClusters) {
    DMM_SHARED(float, shared);
    Bf16Scan<WarpForward, K, RnnScan>(a, shared).run();
  }
}

template <class K>
__global__ __launch_bounds__(K::tile().threads(), 1) void rnn_scan_bf16_bwd_kernel(
    const __grid_constant__ RnnScanBackward a) {
  if constexpr (kHasClusters) {
    DMM_SHARED(float, shared);
    Bf16Scan<WarpBackward, K, RnnScanBackward>(a, shared).run();
  }
}

}  // namespace dmm::cuda
