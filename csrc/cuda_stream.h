// torch's current device and stream. The stream is known only to torch's own libraries, whose symbols are not visible to
// this library, so the function is looked up in the loaded library at run time.
#pragma once

#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>

#include "checks.h"

namespace dmm {

inline void* current_stream(const Tensor& t) {
  using Get = AOTITorchError (*)(int32_t, void**);
  static const Get get = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    return library ? reinterpret_cast<Get>(dlsym(library, "aoti_torch_get_current_cuda_stream")) : nullptr;
  }();
  STD_TORCH_CHECK(get != nullptr, "the current CUDA stream: expected it in libtorch_cuda.so, got no such function");
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(get(t.get_device_index(), &stream));
  return stream;
}

// Runs `launch(stream)` on the tensor's device; an error becomes an exception that begins with `what`.
template <class Launch>
void on_stream_of(const Tensor& t, const std::string& what, Launch launch) {
  const torch::stable::accelerator::DeviceGuard guard(t.get_device_index());
  const char* error = launch(current_stream(t));
  STD_TORCH_CHECK(error == nullptr, what, ": ", error ? error : "");
}

}  // namespace dmm
