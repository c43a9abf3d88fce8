// Kernel launches with and without clusters; compiled by nvcc only.
#pragma once

#include <cuda_runtime.h>

#include <mutex>
#include <set>
#include <string>
#include <tuple>

namespace dmm::cuda {

// Returns null, or an error message. It also clears the runtime's stored error, so that the next launch does not see it.
inline const char* text_of(cudaError_t error) {
  if (error == cudaSuccess) return nullptr;
  cudaGetLastError();
  return cudaGetErrorString(error);
}

inline const char* too_large_team(int blocks, int resident) {
  static thread_local std::string text;
  text = resident == 0 ? "expected a block that a multiprocessor has room for"
                       : "expected a team whose blocks can all be resident, got " + std::to_string(blocks) +
                             " blocks where " + std::to_string(resident) + " can be";
  return text.c_str();
}

// Null, or what went wrong.
template <class Kernel, class Args>
const char* launch_blocks(Kernel kernel, const Args& args, int blocks, int threads, size_t shared_bytes,
                          void* stream) {
  kernel<<<blocks, threads, shared_bytes, static_cast<cudaStream_t>(stream)>>>(args);
  return text_of(cudaGetLastError());
}

// Allows a kernel the maximum shared memory per block of the current device and, if requested, clusters of more than 8
// blocks. Done once, since a limit that changed with each launch could be too low for a launch of another thread.
inline cudaError_t allow_largest(const void* kernel, bool large_clusters) {
  static std::mutex mutex;
  static std::set<std::tuple<int, const void*, bool>> done;
  int device = 0, most = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  const std::lock_guard<std::mutex> lock(mutex);
  if (done.count({device, kernel, large_clusters})) return cudaSuccess;
  error = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  // All shared memory is dynamic: with DMM_SHARED a kernel has no static shared memory, which would have to be subtracted.
  if (error == cudaSuccess) error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most);
  if (error == cudaSuccess && large_clusters)
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  if (error == cudaSuccess) done.insert({device, kernel, large_clusters});
  return error;
}

// A launch on clusters. It must not be moved, since `config` points into it.
struct ClusterLaunch {
  cudaLaunchConfig_t config{};
  cudaLaunchAttribute size{};

  template <class Kernel>
  cudaError_t prepare(Kernel kernel, int blocks, int cluster_size, int threads, size_t shared_bytes) {
    config.gridDim = dim3(static_cast<unsigned>(blocks));
    config.blockDim = dim3(static_cast<unsigned>(threads));
    config.dynamicSmemBytes = shared_bytes;
    if (cluster_size > 1) {  // GPUs without clusters do not support the attribute
      size.id = cudaLaunchAttributeClusterDimension;
      size.val.clusterDim.x = static_cast<unsigned>(cluster_size);
      size.val.clusterDim.y = size.val.clusterDim.z = 1;
      config.attrs = &size;
      config.numAttrs = 1;
    }
    return allow_largest(reinterpret_cast<const void*>(kernel), cluster_size > 8);
  }
};

// Null, or what went wrong.
template <class Kernel, class Args>
const char* launch_clusters(Kernel kernel, const Args& args, int blocks, int cluster_size, int threads,
                            size_t shared_bytes, void* stream) {
  ClusterLaunch launch;
  cudaError_t error = launch.prepare(kernel, blocks, cluster_size, threads, shared_bytes);
  launch.config.stream = static_cast<cudaStream_t>(stream);
  if (error == cudaSuccess) error = cudaLaunchKernelEx(&launch.config, kernel, args);
  return text_of(error);
}

// Runs a scan on as many clusters as its rows need. Returns null, or an error message.
template <class Kernel, class Args>
const char* launch_scan(Kernel kernel, const Args& a, int threads, void* stream) {
  return launch_clusters(kernel, a, a.ragged.clusters() * a.cluster_size, a.cluster_size, threads,
                         static_cast<size_t>(shared_bytes(a)), stream);
}

// docs-begin: resident
// Launches `blocks` blocks that wait for one another: either all are resident, or none is launched.
template <class Kernel, class Args>
cudaError_t launch_resident(Kernel kernel, const Args& args, int blocks, int threads, size_t shared_bytes, void* stream) {
  cudaLaunchAttribute cooperative{};
  cooperative.id = cudaLaunchAttributeCooperative;
  cooperative.val.cooperative = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared_bytes;
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = &cooperative;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, kernel, args);
}
// docs-end: resident

// The maximum number of concurrently resident blocks of a kernel on the current device.
template <class Kernel>
cudaError_t most_resident(Kernel kernel, int threads, size_t shared_bytes, int* most) {
  int device = 0, multiprocessors = 0, blocks = 0;
  cudaError_t error = allow_largest(reinterpret_cast<const void*>(kernel), false);
  if (error == cudaSuccess) error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  if (error == cudaSuccess)
    error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads, shared_bytes);
  *most = blocks * multiprocessors;
  return error;
}

// Runs a scan on as many teams as its rows need, in consecutive launches whose blocks can all be resident. Returns null, or
// an error message.
template <class Kernel, class Args>
const char* launch_teams(Kernel kernel, Args a, int threads, void* stream) {
  const auto bytes = static_cast<size_t>(shared_bytes(a));
  const int teams = a.ragged.clusters();
  int most = 0;
  cudaError_t error = most_resident(kernel, threads, bytes, &most);
  if (error == cudaSuccess && most < a.cluster_size) return too_large_team(a.cluster_size, most);
  const int at_once = error == cudaSuccess ? most / a.cluster_size : 1;
  for (int& first = a.ragged.first_cluster; first < teams && error == cudaSuccess; first += at_once) {
    const int count = teams - first < at_once ? teams - first : at_once;
    error = launch_resident(kernel, a, count * a.cluster_size, threads, bytes, stream);
  }
  return text_of(error);
}

}  // namespace dmm::cuda
