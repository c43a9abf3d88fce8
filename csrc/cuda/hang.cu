#include "hang.h"

#include <new>

#include "launch.cuh"

namespace dmm::cuda {

const char* new_hang_record(HangRecord** record) {
  // A capture in the strictest mode forbids allocations, which may synchronise; this one does not belong to the capture.
  cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
  cudaError_t error = cudaThreadExchangeStreamCaptureMode(&mode);
  if (error != cudaSuccess) return text_of(error);
  void* memory = nullptr;
  error = cudaHostAlloc(&memory, sizeof(HangRecord), cudaHostAllocPortable | cudaHostAllocMapped);
  const cudaError_t restored = cudaThreadExchangeStreamCaptureMode(&mode);
  if (error != cudaSuccess) return text_of(error);
  // With unified addressing, as on every 64-bit system, the device uses the same address.
  *record = new (memory) HangRecord{};
  return text_of(restored);
}

}  // namespace dmm::cuda
