// exchange_floor for CUDA tensors: a scan's exchanges and nothing else, for the benchmarks.
#include "checks.h"
#ifdef DMM_FAST_CUDA
#include "cuda/exchange_floor.h"
#include "exchange_launch.h"
#endif

namespace dmm {

STABLE_TORCH_LIBRARY_FRAGMENT(dmm_fast, m) {
  m.def(
      "exchange_floor(Tensor rings, int steps, int cluster_size, int threads, str store=\"async_b32\","
      " int giving_warps=0) -> Tensor");
  m.def("_clusters_at_once(int device, int cluster_size, int shared_bytes) -> int");
}

#ifdef DMM_FAST_CUDA
namespace {

// How many numbers a thread stores at once.
int store_of(const std::string& name) {
  if (name == "async_b32") return 1;
  if (name == "async_v2") return 2;
  STD_TORCH_CHECK(name == "async_v4", "store: expected async_b32, async_v2 or async_v4, got ", name);
  return 4;
}

// rings [clusters, cluster_size * width], each turned by `steps` places. So many warps of a block give; 0: all.
Tensor exchange_floor(const Tensor& rings_, int64_t steps, int64_t cluster_size, int64_t threads, std::string store_,
                      int64_t giving_warps) {
  STD_TORCH_CHECK(rings_.scalar_type() == ScalarType::Float && rings_.dim() == 2,
                  "rings: expected Float of 2 dimensions, got ", describe(rings_));
  STD_TORCH_CHECK(steps >= 0 && steps <= INT32_MAX / 2, "steps: expected an int from 0, got ", steps);
  STD_TORCH_CHECK(cluster_size >= 1 && cluster_size <= 16, "cluster_size: expected an int from 1 to 16, got ",
                  cluster_size);
  STD_TORCH_CHECK(threads >= 32 && threads <= 1024 && threads % 32 == 0,
                  "threads: expected a multiple of 32 from 32 to 1024, got ", threads);
  const int store = store_of(store_);
  const int64_t warps = threads / 32, multiple = cluster_size * store;
  STD_TORCH_CHECK(giving_warps >= 0 && giving_warps <= warps, "giving_warps: expected an int from 0 to ", warps,
                  ", got ", giving_warps);
  STD_TORCH_CHECK(rings_.size(1) % multiple == 0, "rings: expected rows of a multiple of ", multiple,
                  ", for cluster_size = ", cluster_size, " and store = ", store_, ", got ", describe(rings_));
  const Tensor rings = torch::stable::contiguous(rings_), out = torch::stable::empty_like(rings);
  const cuda::ExchangeFloor args{rings.const_data_ptr<float>(),
                                 out.mutable_data_ptr<float>(),
                                 static_cast<int>(steps),
                                 static_cast<int>(rings.size(0)),
                                 static_cast<int>(cluster_size),
                                 static_cast<int>(rings.size(1) / cluster_size),
                                 static_cast<int>(threads),
                                 store,
                                 static_cast<int>(giving_warps ? giving_warps : warps)};
  std::ostringstream call;
  call << "exchange_floor on " << args.clusters << " clusters of " << cluster_size << " blocks of " << threads
       << " threads, " << store_ << " by " << args.giving_warps << " warps";
  launch_exchange(rings, call.str(), args, cuda::exchange_floor);
  return out;
}

// What a plan has to know of a device: clusters lie within parts of it whose number it does not tell.
int64_t clusters_at_once(int64_t device, int64_t cluster_size, int64_t shared_bytes) {
  STD_TORCH_CHECK(cluster_size >= 2 && cluster_size <= 16, "cluster_size: expected an int from 2 to 16, got ",
                  cluster_size);
  const torch::stable::accelerator::DeviceGuard guard(static_cast<int32_t>(device));
  int count = 0;
  const char* error =
      cuda::clusters_at_once(static_cast<int>(cluster_size), static_cast<int>(shared_bytes), &count);
  STD_TORCH_CHECK(error == nullptr, "clusters of ", cluster_size, " blocks with ", shared_bytes,
                  " bytes of shared memory: ", error ? error : "");
  return count;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(dmm_fast, CUDA, m) { m.impl("exchange_floor", TORCH_BOX(&exchange_floor)); }
// No tensor comes with this call, so there is no device to choose by.
STABLE_TORCH_LIBRARY_IMPL(dmm_fast, CompositeExplicitAutograd, m) {
  m.impl("_clusters_at_once", TORCH_BOX(&clusters_at_once));
}
#endif

}  // namespace dmm
