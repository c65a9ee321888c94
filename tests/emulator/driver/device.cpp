// One device that says openly what it is, with streams and events that all share one queue.
#include "emulator.h"
#include <cuda.h>
#include <cuda_runtime_api.h>
#include <cstdint>
#include <cstring>

#undef cudaGetDeviceProperties

using namespace emulator;

static const int MAJOR = 8, MINOR = 0, VERSION = 12090;
static cudaError_t last_error = cudaSuccess;

static cudaError_t fail(cudaError_t error) { return last_error = error; }

static cudaError_t wait(const char* what) {
  count(SYNC, what);
  finish();
  return cudaSuccess;
}

static cudaError_t new_handle(void** handle) {
  static uintptr_t next = 0x1000;
  *handle = (void*)(next += 16);
  return cudaSuccess;
}

// The device

EXPORTED cudaError_t cudaGetDeviceCount(int* n) { return *n = 1, cudaSuccess; }
EXPORTED cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
EXPORTED cudaError_t cudaSetDevice(int device) { return device ? fail(cudaErrorInvalidDevice) : cudaSuccess; }
EXPORTED cudaError_t cudaDriverGetVersion(int* version) { return *version = VERSION, cudaSuccess; }
EXPORTED cudaError_t cudaRuntimeGetVersion(int* version) { return *version = VERSION, cudaSuccess; }
EXPORTED cudaError_t cudaDeviceSynchronize() { return wait("device"); }

EXPORTED cudaError_t cudaGetDeviceProperties_v2(cudaDeviceProp* properties, int) {
  memset(properties, 0, sizeof *properties);
  strcpy(properties->name, "CPU emulator (not a GPU)");
  properties->major = MAJOR;
  properties->minor = MINOR;
  properties->warpSize = 32;
  properties->maxThreadsPerBlock = properties->maxThreadsDim[0] = 1024;
  properties->maxGridSize[0] = 2147483647;
  properties->multiProcessorCount = 108;
  properties->sharedMemPerBlock = 49152;
  properties->totalGlobalMem = (size_t)8 << 30;
  return cudaSuccess;
}

EXPORTED cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor: *value = MAJOR; break;
    case cudaDevAttrComputeCapabilityMinor: *value = MINOR; break;
    case cudaDevAttrMaxThreadsPerBlock:
    case cudaDevAttrMaxBlockDimX: *value = 1024; break;
    case cudaDevAttrMaxGridDimX: *value = 2147483647; break;
    case cudaDevAttrWarpSize: *value = 32; break;
    case cudaDevAttrMultiProcessorCount: *value = 108; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = 49152; break;
    default: *value = 0;
  }
  return cudaSuccess;
}

// Errors

EXPORTED cudaError_t cudaGetLastError() {
  cudaError_t error = last_error;
  last_error = cudaSuccess;
  return error;
}
EXPORTED const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaErrorInvalidValue: return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation: return "cudaErrorMemoryAllocation";
    case cudaErrorInvalidDevice: return "cudaErrorInvalidDevice";
    case cudaErrorNotSupported: return "cudaErrorNotSupported";
    default: return "cudaErrorOfTheEmulator";
  }
}
EXPORTED const char* cudaGetErrorString(cudaError_t) { return "from the CPU emulator; its message is on stderr"; }

// Streams

EXPORTED cudaError_t cudaStreamCreate(cudaStream_t* stream) { return new_handle((void**)stream); }
EXPORTED cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) { return new_handle((void**)stream); }
EXPORTED cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned, int) { return new_handle((void**)stream); }
EXPORTED cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
EXPORTED cudaError_t cudaStreamGetFlags(cudaStream_t, unsigned* flags) { return *flags = 0, cudaSuccess; }
EXPORTED cudaError_t cudaStreamGetPriority(cudaStream_t, int* priority) { return *priority = 0, cudaSuccess; }
EXPORTED cudaError_t cudaStreamSynchronize(cudaStream_t) { return wait("stream"); }
EXPORTED cudaError_t cudaStreamQuery(cudaStream_t) { return unfinished() ? cudaErrorNotReady : cudaSuccess; }
EXPORTED cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) { return cudaSuccess; }
EXPORTED cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  return *status = cudaStreamCaptureStatusNone, cudaSuccess;
}

// Events

EXPORTED cudaError_t cudaEventCreate(cudaEvent_t* event) { return new_handle((void**)event); }
EXPORTED cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) { return new_handle((void**)event); }
EXPORTED cudaError_t cudaEventDestroy(cudaEvent_t) { return cudaSuccess; }
EXPORTED cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) { return cudaSuccess; }
EXPORTED cudaError_t cudaEventQuery(cudaEvent_t) { return unfinished() ? cudaErrorNotReady : cudaSuccess; }
EXPORTED cudaError_t cudaEventSynchronize(cudaEvent_t) { return wait("event"); }
EXPORTED cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t, cudaEvent_t) {
  return *milliseconds = 0, cudaSuccess;
}

// The driver's own calls

EXPORTED CUresult cuInit(unsigned) { return CUDA_ERROR_NO_DEVICE; }  // NVRTC asks; CuPy never does
EXPORTED CUresult cuGetErrorName(CUresult, const char** name) { return *name = "CUDA_ERROR_OF_THE_EMULATOR", CUDA_SUCCESS; }
EXPORTED CUresult cuGetErrorString(CUresult, const char** text) {
  return *text = "from the CPU emulator; its message is on stderr", CUDA_SUCCESS;
}
EXPORTED CUresult cuCtxGetCurrent(CUcontext* context) { return *context = (CUcontext)0x10, CUDA_SUCCESS; }
EXPORTED CUresult cuCtxSetCurrent(CUcontext) { return CUDA_SUCCESS; }
EXPORTED CUresult cuCtxGetDevice(CUdevice* device) { return *device = 0, CUDA_SUCCESS; }
EXPORTED CUresult cuStreamGetCtx(CUstream, CUcontext* context) { return *context = (CUcontext)0x10, CUDA_SUCCESS; }
EXPORTED CUresult cuDevicePrimaryCtxRelease_v2(CUdevice) { return CUDA_SUCCESS; }
