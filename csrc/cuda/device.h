// Properties of a device that CUDA has no attribute for. This header is plain C++, without CUDA.
#pragma once

namespace dmm::cuda {

// Gets the number of concurrent clusters of two or more blocks with this much shared memory on the current device. For
// clusters of one, which are launched as plain blocks, CUDA returns an error. Returns null, or a static error message.
const char* clusters_at_once(int cluster_size, int shared_bytes, int* count);

}  // namespace dmm::cuda
