// Included before a kernel's source when g++ compiles it: what CUDA C++ has and C++ has not.
// NVRTC has accepted the source by then, so it is enough that right code works here.
#pragma once
#include <immintrin.h>
#include <algorithm>
#include <cassert>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __constant__
#define __managed__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) __attribute__((aligned(n)))

// One block runs at a time, so its shared memory can be static. The section lets threads.cpp fill it before each block.
#define __shared__ static __attribute__((section("emulated_shared")))
extern "C" char __start_emulated_shared[] __attribute__((weak)), __stop_emulated_shared[] __attribute__((weak));

// Threads and barriers: see driver/threads.cpp

struct emulated_dim3 { unsigned x, y, z; };
extern "C" {
extern emulated_dim3 emulated_threadIdx, emulated_blockIdx, emulated_blockDim, emulated_gridDim;
void emulated_block_barrier();
void emulated_warp_barrier();
}
#define threadIdx emulated_threadIdx
#define blockIdx emulated_blockIdx
#define blockDim emulated_blockDim
#define gridDim emulated_gridDim
static const int warpSize = 32;
static inline void __syncthreads() { emulated_block_barrier(); }
static inline void __syncwarp(unsigned = 0xffffffffu) { emulated_warp_barrier(); }
static inline void __threadfence() {}
static inline void __threadfence_block() {}

// Shuffles of a whole warp: every lane leaves its value, and after a barrier takes another's.
static inline int emulated_thread() {
  return threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
}
template <class T> static inline T emulated_exchange(T value, int lane) {
  static T values[1024];
  int thread = emulated_thread();
  values[thread] = value;
  emulated_warp_barrier();
  T found = values[thread / warpSize * warpSize + lane];
  emulated_warp_barrier();
  return found;
}
template <class T> static inline T __shfl_sync(unsigned, T value, int lane, int width = warpSize) {
  int mine = emulated_thread() % warpSize;
  return emulated_exchange(value, mine / width * width + lane % width);
}
template <class T> static inline T __shfl_xor_sync(unsigned, T value, int mask, int = warpSize) {
  return emulated_exchange(value, (emulated_thread() % warpSize) ^ mask);
}
template <class T> static inline T __shfl_down_sync(unsigned, T value, unsigned delta, int width = warpSize) {
  int mine = emulated_thread() % warpSize;
  return emulated_exchange(value, mine % width + (int)delta < width ? mine + delta : mine);
}
template <class T> static inline T __shfl_up_sync(unsigned, T value, unsigned delta, int width = warpSize) {
  int mine = emulated_thread() % warpSize;
  return emulated_exchange(value, mine % width >= (int)delta ? mine - delta : mine);
}

// Atomics: one core runs all threads, so reading, changing and writing is not interrupted.
template <class T, class F> static inline T emulated_atomic(T* place, F change) {
  T old = *place;
  *place = change(old);
  return old;
}
template <class T, class U> static inline T atomicAdd(T* p, U v) { return emulated_atomic(p, [=](T o) { return T(o + T(v)); }); }
template <class T, class U> static inline T atomicSub(T* p, U v) { return emulated_atomic(p, [=](T o) { return T(o - T(v)); }); }
template <class T, class U> static inline T atomicMax(T* p, U v) { return emulated_atomic(p, [=](T o) { return T(v) > o ? T(v) : o; }); }
template <class T, class U> static inline T atomicMin(T* p, U v) { return emulated_atomic(p, [=](T o) { return T(v) < o ? T(v) : o; }); }
template <class T, class U> static inline T atomicExch(T* p, U v) { return emulated_atomic(p, [=](T) { return T(v); }); }
template <class T, class U> static inline T atomicAnd(T* p, U v) { return emulated_atomic(p, [=](T o) { return T(o & T(v)); }); }
template <class T, class U> static inline T atomicOr(T* p, U v) { return emulated_atomic(p, [=](T o) { return T(o | T(v)); }); }
template <class T, class U> static inline T atomicXor(T* p, U v) { return emulated_atomic(p, [=](T o) { return T(o ^ T(v)); }); }
template <class T> static inline T atomicCAS(T* p, T expected, T v) { return emulated_atomic(p, [=](T o) { return o == expected ? v : o; }); }

// Functions

using std::isfinite, std::isinf, std::isnan, std::max, std::min, std::signbit;
template <class To, class From> static inline To emulated_bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "");
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}
static inline unsigned __float_as_uint(float x) { return emulated_bits<unsigned>(x); }
static inline float __uint_as_float(unsigned x) { return emulated_bits<float>(x); }
static inline int __float_as_int(float x) { return emulated_bits<int>(x); }
static inline float __int_as_float(int x) { return emulated_bits<float>(x); }
static inline long long __double_as_longlong(double x) { return emulated_bits<long long>(x); }
static inline double __longlong_as_double(long long x) { return emulated_bits<double>(x); }
static inline float rsqrtf(float x) { return 1 / std::sqrt(x); }
static inline double rsqrt(double x) { return 1 / std::sqrt(x); }
static inline float __fdividef(float a, float b) { return a / b; }
#define __expf expf  // the C library has functions of these names for itself
#define __logf logf
static inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
static inline int __clzll(long long x) { return x ? __builtin_clzll(x) : 64; }
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
template <class T> static inline T __ldg(const T* p) { return *p; }

// Half precision, as far as CuPy's own headers name it
static inline __attribute__((target("f16c"))) unsigned short __float2half_rn(float x) { return _cvtss_sh(x, 0); }
static inline __attribute__((target("f16c"))) float __half2float(unsigned short x) { return _cvtsh_ss(x); }
#define __half_as_ushort(h) (__half_raw(h).x)
#define __ushort_as_half(u) (half(__half_raw{(unsigned short)(u)}))

// How a kernel is called with the driver's array of pointers to its parameters

struct emulated_kernel {  // Code in driver/emulator.h
  void (*call)(void**);
  const size_t* sizes;
  bool has_barriers;
  char *shared_begin, *shared_end;
};
template <class... A> static inline const size_t* emulated_sizes(void (*)(A...)) {
  static const size_t sizes[] = {sizeof(A)..., 0};
  return sizes;
}
template <class... A, size_t... I>
static inline void emulated_call(void (*kernel)(A...), void** p, std::index_sequence<I...>) {
  kernel(*reinterpret_cast<std::remove_cv_t<A>*>(p[I])...);
}
template <class... A> static inline void emulated_call(void (*kernel)(A...), void** p) {
  emulated_call(kernel, p, std::index_sequence_for<A...>{});
}
#define EMULATED_KERNEL(name, barriers)                                                             \
  extern "C" void name##__describe(emulated_kernel* description) {                                  \
    *description = {[](void** p) { emulated_call(&::name, p); }, emulated_sizes(&::name), barriers, \
                    __start_emulated_shared, __stop_emulated_shared};                               \
  }
