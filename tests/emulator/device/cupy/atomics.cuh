#pragma once
// In place of CuPy's: device_code.h has the atomics.
#include "cupy/carray.cuh"
