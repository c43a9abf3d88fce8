// The standard headers come first, so that no inline function of theirs is compiled for a wider target
// and then shared with code that runs everywhere.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <utility>
#include <vector>

#include "barrier.h"
#include "dispatch.h"


#define DMM_ISA baseline
#define DMM_VECTOR_BYTES 16
#define DMM_BLOCK_ROWS 4
#include "kernels.h"
