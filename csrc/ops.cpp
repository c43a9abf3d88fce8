// All ops of the table: what torch knows of each, and for tensors on a CPU how it is computed.
#include "checks.h"
#include "cpu/dispatch.h"
#ifdef DMM_FAST_CUDA
#include "scan_launches.h"
#endif

namespace dmm {

#include "ops.inc"

}  // namespace dmm
