// Facts about a device that CUDA has no attribute for. Nothing of CUDA here.
#pragma once

namespace dmm::cuda {

// How many clusters of two or more blocks with so much shared memory the current device runs at a time. CUDA answers
// with an error for a cluster of one, which is launched as a plain block. Null, or what went wrong: static text.
const char* clusters_at_once(int cluster_size, int shared_bytes, int* count);

}  // namespace dmm::cuda
