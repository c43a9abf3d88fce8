// What the planner of the scans (dmm_fast/cuda/plan.py) has to know of their kernels. For any build: plans are made on
// machines without a GPU too.
#include <torch/csrc/stable/library.h>
#include <torch/headeronly/util/Exception.h>

#include <string>

#include "cuda/plan_bytes.h"
#include "cuda/scan_kernels.h"

namespace dmm {
namespace {

std::string scan_kernels(std::string kind) {
  const std::string found = cuda::scan_kernels(kind);
  STD_TORCH_CHECK(!found.empty(), "kind: expected one of the scans' kernels, got ", kind);
  return found;
}

int64_t scan_shared_bytes(std::string scan, cuda::Plan plan, int64_t latents) {
  const int64_t bytes = cuda::plan_bytes(scan, plan, static_cast<int>(latents));
  STD_TORCH_CHECK(bytes > 0, "plan: expected one of ", scan, ", got ", cuda::describe(plan));
  return bytes;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(dmm_fast, m) {
  m.def("_scan_kernels(str kind) -> str");
  m.def("_scan_shared_bytes(str scan, int[] plan, int latents) -> int");
}

// No tensor comes with these calls, so there is no device to choose by.
STABLE_TORCH_LIBRARY_IMPL(dmm_fast, CompositeExplicitAutograd, m) {
  m.impl("_scan_kernels", TORCH_BOX(&scan_kernels));
  m.impl("_scan_shared_bytes", TORCH_BOX(&scan_shared_bytes));
}

}  // namespace dmm
