// All ops of the table: their registration with torch, and their implementation for tensors on a CPU.
#include "checks.h"
#include "cpu/dispatch.h"
#ifdef DMM_FAST_CUDA
#include "scan_launches.h"
#endif

namespace dmm {

#include "ops.inc"

}  // namespace dmm
