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

#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma")
#define DMM_ISA avx512
#define DMM_VECTOR_BYTES 64
#define DMM_BLOCK_ROWS 14
#include "kernels.h"
