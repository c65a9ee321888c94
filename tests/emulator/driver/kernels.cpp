// Modules, functions and launches. A "module" is the path of a shared library that compile.py made of a kernel.
#include "emulator.h"
#include <cuda.h>
#include <dlfcn.h>
#include <cstring>
#include <vector>

using namespace emulator;

static const char PREFIX[] = "MINIDL_EMULATOR:";  // as compile.py writes it

EXPORTED CUresult cuModuleLoadData(CUmodule* module, const void* image) {
  if (strncmp((const char*)image, PREFIX, strlen(PREFIX))) {
    complain("precompiled device code cannot run on a CPU");
    return CUDA_ERROR_INVALID_IMAGE;
  }
  void* library = dlopen((const char*)image + strlen(PREFIX), RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    complain(dlerror());
    return CUDA_ERROR_INVALID_IMAGE;
  }
  *module = (CUmodule)library;
  return CUDA_SUCCESS;
}

EXPORTED CUresult cuModuleUnload(CUmodule) { return CUDA_SUCCESS; }

EXPORTED CUresult cuModuleGetFunction(CUfunction* function, CUmodule module, const char* name) {
  auto describe = (void (*)(Code*))dlsym(module, (std::string(name) + "__describe").c_str());
  if (!describe) return CUDA_ERROR_NOT_FOUND;
  auto kernel = new Kernel{{}, name};  // CuPy keeps functions for as long as the process lives
  describe(kernel);
  *function = (CUfunction)kernel;
  return CUDA_SUCCESS;
}

EXPORTED CUresult cuFuncGetAttribute(int* value, CUfunction_attribute attribute, CUfunction) {
  *value = attribute == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : 0;
  return CUDA_SUCCESS;
}
EXPORTED CUresult cuFuncSetAttribute(CUfunction, CUfunction_attribute, int) { return CUDA_SUCCESS; }
EXPORTED CUresult cuOccupancyMaxPotentialBlockSize(int* grid, int* block, CUfunction, CUoccupancyB2DSize, size_t, int) {
  return *grid = 108, *block = 256, CUDA_SUCCESS;
}
EXPORTED CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, CUfunction, int, size_t) {
  return *blocks = 8, CUDA_SUCCESS;
}

EXPORTED CUresult cuLaunchKernel(CUfunction function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                                 unsigned bz, unsigned shared, CUstream, void** parameters, void**) {
  auto kernel = (const Kernel*)function;
  unsigned long threads = (unsigned long)bx * by * bz;
  bool fits = gx && gy && gz && gy <= 65535 && gz <= 65535 && threads && threads <= 1024 && bz <= 64;
  if (!fits || shared > 49152) {
    complain("a launch of " + kernel->name + " that no GPU would take: its grid, block or shared memory");
    return CUDA_ERROR_INVALID_VALUE;
  }
  count(LAUNCH, kernel->name);
  std::vector<std::string> values;  // copied now, as the driver does: the caller may change them after the call
  for (const size_t* size = kernel->sizes; *size; size++)
    values.emplace_back((const char*)parameters[values.size()], *size);
  submit([=]() mutable {
    std::vector<void*> pointers;
    for (auto& value : values) pointers.push_back(value.data());
    run(*kernel, {gx, gy, gz}, {bx, by, bz}, pointers.data());
  });
  return CUDA_SUCCESS;
}
