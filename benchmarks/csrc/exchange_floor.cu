#include "exchange_floor.cuh"

#include "cuda/launch.cuh"

namespace dmm::cuda {
namespace {

const char* launch(void (*kernel)(ExchangeFloor), const ExchangeFloor& a, void* stream) {
  return launch_clusters(kernel, a, a.clusters * a.cluster_size, a.cluster_size, a.threads,
                         static_cast<size_t>(shared_bytes(a)), stream);
}

const char* launch_words(const ExchangeFloor& a, void* stream) {
  const auto bytes = static_cast<size_t>(shared_bytes(a));
  const int blocks = a.clusters * a.cluster_size;
  int most = 0;
  const cudaError_t error = most_resident(word_floor_kernel, a.threads, bytes, &most);
  if (error != cudaSuccess) return text_of(error);
  if (blocks > most) return too_large_team(blocks, most);
  return text_of(launch_resident(word_floor_kernel, a, blocks, a.threads, bytes, stream));
}

}  // namespace

const char* exchange_floor(const ExchangeFloor& a, void* stream) {
  switch (a.store) {
    case 1: return launch(exchange_floor_kernel<1>, a, stream);
    case 2: return launch(exchange_floor_kernel<2>, a, stream);
    case kWordStore: return launch_words(a, stream);
    case 4: return launch(exchange_floor_kernel<4>, a, stream);
    default: return "no kernel stores so many numbers at once";
  }
}

}  // namespace dmm::cuda
