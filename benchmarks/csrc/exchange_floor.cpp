// exchange_floor for CUDA tensors: a scan's exchanges and nothing else, in a library of its own.
#include "exchange_floor.h"

#include "checks.h"
#include "cuda/plan.h"
#include "exchange_launch.h"

namespace dmm {
namespace {

// How many numbers a thread stores at once.
int store_of(const std::string& name) {
  if (name == "async_b32") return 1;
  if (name == "async_v2") return 2;
  if (name == "words") return cuda::kWordStore;
  STD_TORCH_CHECK(name == "async_v4", "store: expected async_b32, async_v2, async_v4 or words, got ", name);
  return 4;
}

// rings [clusters, cluster_size * width], each turned by `steps` places. So many warps of a block give; 0: all.
Tensor exchange_floor(const Tensor& rings_, int64_t steps, int64_t cluster_size, int64_t threads, std::string store_,
                      int64_t giving_warps) {
  STD_TORCH_CHECK(rings_.scalar_type() == ScalarType::Float && rings_.dim() == 2,
                  "rings: expected Float of 2 dimensions, got ", describe(rings_));
  STD_TORCH_CHECK(steps >= 0 && steps <= INT32_MAX / 2, "steps: expected an int from 0, got ", steps);
  STD_TORCH_CHECK(threads >= 32 && threads <= 1024 && threads % 32 == 0,
                  "threads: expected a multiple of 32 from 32 to 1024, got ", threads);
  const int store = store_of(store_);
  const int64_t most = store == cuda::kWordStore ? cuda::kMostTeamBlocks : cuda::kMostClusterBlocks;
  STD_TORCH_CHECK(cluster_size >= 1 && cluster_size <= most, "cluster_size: expected an int from 1 to ", most, ", got ",
                  cluster_size);
  const int64_t warps = threads / 32, multiple = cluster_size * store;
  STD_TORCH_CHECK(giving_warps >= 0 && giving_warps <= warps, "giving_warps: expected an int from 0 to ", warps,
                  ", got ", giving_warps);
  STD_TORCH_CHECK(rings_.size(1) % multiple == 0, "rings: expected rows of a multiple of ", multiple,
                  ", for cluster_size = ", cluster_size, " and store = ", store_, ", got ", describe(rings_));
  const Tensor rings = torch::stable::contiguous(rings_), out = torch::stable::empty_like(rings);
  cuda::ExchangeFloor args{rings.const_data_ptr<float>(),
                                 out.mutable_data_ptr<float>(),
                                 static_cast<int>(steps),
                                 static_cast<int>(rings.size(0)),
                                 static_cast<int>(cluster_size),
                                 static_cast<int>(rings.size(1) / cluster_size),
                                 static_cast<int>(threads),
                                 store,
                                 static_cast<int>(giving_warps ? giving_warps : warps)};
  std::optional<Tensor> words;
  if (store == cuda::kWordStore) {
    words = zero_words(rings, cuda::exchange_floor_mailbox(args).team_bytes * args.clusters);
    args.mailbox = cuda::exchange_floor_mailbox(args, words->mutable_data_ptr());
  }
  std::ostringstream call;
  call << "exchange_floor on " << args.clusters << " clusters of " << cluster_size << " blocks of " << threads
       << " threads, " << store_ << " by " << args.giving_warps << " warps";
  launch_exchange(rings, call.str(), args, cuda::exchange_floor);
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(dmm_fast_benchmarks, m) {
  m.def(
      "exchange_floor(Tensor rings, int steps, int cluster_size, int threads, str store=\"async_b32\","
      " int giving_warps=0) -> Tensor");
  m.def("check_hangs() -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(dmm_fast_benchmarks, CUDA, m) { m.impl("exchange_floor", TORCH_BOX(&exchange_floor)); }
// No tensor comes with this call, so there is no device to choose by.
STABLE_TORCH_LIBRARY_IMPL(dmm_fast_benchmarks, CompositeExplicitAutograd, m) {
  m.impl("check_hangs", TORCH_BOX(&check_hangs));
}

}  // namespace dmm
