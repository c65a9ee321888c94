// Device memory is host memory that is known to be the device's; copies check which side each pointer is on.
#include "emulator.h"
#include <cuda_runtime_api.h>
#include <sys/mman.h>
#include <csignal>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>

using namespace emulator;

namespace {

const size_t PAGE = 4096;

using Blocks = std::map<char*, size_t>;  // first byte: length
Blocks device_blocks, pinned_blocks;

bool holds(const Blocks& blocks, const void* pointer) {
  auto next = blocks.upper_bound((char*)pointer);
  if (next == blocks.begin()) return false;
  --next;
  return (char*)pointer < next->first + next->second;
}

size_t rounded(size_t bytes, size_t step) { return (bytes + step - 1) / step * step; }

// The guarded mode. A block ends where a page ends, and the pages on both sides may not be touched:
//
//     | no access | 0xff ...... | the block | up to 15 bytes of 0xff | no access |
//
// The 15 bytes keep the block aligned to 16. They are looked at when the block is freed, and what is read there
// is NaN. Freed blocks stay closed for good, so that a late use faults as well.
char* guarded_block(size_t bytes) {
  size_t inner = rounded(bytes ? bytes : 1, PAGE);
  char* base = (char*)mmap(nullptr, inner + 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (base == MAP_FAILED) return nullptr;
  memset(base + PAGE, 0xff, inner);
  mprotect(base, PAGE, PROT_NONE);
  mprotect(base + PAGE + inner, PAGE, PROT_NONE);
  return base + PAGE + inner - rounded(bytes, 16);
}

void close_guarded_block(char* block, size_t bytes) {
  for (char* byte = block + bytes; (uintptr_t)byte % 16; byte++)
    if (*byte != (char)0xff) die("something was written past the end of a block of " + std::to_string(bytes) + " bytes");
  char* page = (char*)((uintptr_t)block / PAGE * PAGE);
  madvise(page, rounded(bytes ? bytes : 1, PAGE), MADV_DONTNEED);
  mprotect(page, rounded(bytes ? bytes : 1, PAGE), PROT_NONE);
}

// A fault says which kernel it was, then goes the way that it would have gone.
struct sigaction before;
void on_fault(int, siginfo_t*, void*) {
  complain(running ? "out of bounds in the kernel " + running->name : "out of bounds outside a kernel");
  sigaction(SIGSEGV, &before, nullptr);
}

void watch_faults() {
  struct sigaction action;
  memset(&action, 0, sizeof action);
  action.sa_sigaction = on_fault;
  action.sa_flags = SA_SIGINFO;
  sigaction(SIGSEGV, &action, &before);
}

}  // namespace

bool emulator::on_device(const void* pointer) { return holds(device_blocks, pointer); }

EXPORTED cudaError_t cudaMalloc(void** pointer, size_t bytes) {
  static const bool guarded = mode_is("guarded");
  count(ALLOCATION, std::to_string(bytes));
  char* block = guarded ? guarded_block(bytes) : (char*)aligned_alloc(512, rounded(bytes ? bytes : 1, 512));
  if (!block) return cudaErrorMemoryAllocation;
  static bool watching = guarded && (watch_faults(), true);  // only now, so that it comes before Python's own handler
  (void)watching;
  if (!guarded) memset(block, 0xff, bytes);  // NaN as a float, -1 as an int
  device_blocks[block] = bytes ? bytes : 1;
  *pointer = block;
  return cudaSuccess;
}

EXPORTED cudaError_t cudaFree(void* pointer) {
  static const bool guarded = mode_is("guarded");
  finish();
  auto found = device_blocks.find((char*)pointer);
  if (found == device_blocks.end()) return pointer ? cudaErrorInvalidValue : cudaSuccess;
  if (guarded) close_guarded_block(found->first, found->second);
  else free(pointer);
  device_blocks.erase(found);
  return cudaSuccess;
}

EXPORTED cudaError_t cudaHostAlloc(void** pointer, size_t bytes, unsigned) {
  count(HOST_ALLOCATION, std::to_string(bytes));
  *pointer = aligned_alloc(PAGE, rounded(bytes ? bytes : 1, PAGE));
  pinned_blocks[(char*)*pointer] = bytes ? bytes : 1;
  return cudaSuccess;
}

EXPORTED cudaError_t cudaFreeHost(void* pointer) {
  finish();
  pinned_blocks.erase((char*)pointer);
  free(pointer);
  return cudaSuccess;
}

EXPORTED cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  *free = *total = (size_t)8 << 30;
  return cudaSuccess;
}

EXPORTED cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* pointer) {
  bool device = on_device(pointer);
  memset(attributes, 0, sizeof *attributes);
  attributes->type = device ? cudaMemoryTypeDevice : cudaMemoryTypeUnregistered;
  (device ? attributes->devicePointer : attributes->hostPointer) = (void*)pointer;
  return cudaSuccess;
}

// As the driver does it: a source in ordinary host memory has been read when the call returns, and a destination
// there has been written; only with pinned memory does a copy really run later.
EXPORTED cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t) {
  bool to_device = on_device(to), from_device = on_device(from);
  cudaMemcpyKind found = to_device && from_device ? cudaMemcpyDeviceToDevice
                         : to_device              ? cudaMemcpyHostToDevice
                         : from_device            ? cudaMemcpyDeviceToHost
                                                  : cudaMemcpyHostToHost;
  if (kind != found && kind != cudaMemcpyDefault) {
    complain("a copy of kind " + std::to_string(kind) + " between pointers of kind " + std::to_string(found));
    return cudaErrorInvalidValue;
  }
  count(to_device ? from_device ? COPY_ON_DEVICE : COPY_TO_DEVICE : COPY_TO_HOST, std::to_string(bytes));
  if (found == cudaMemcpyHostToDevice && !holds(pinned_blocks, from)) {
    std::string staged((const char*)from, bytes);
    submit([=] { memcpy(to, staged.data(), bytes); });
    return cudaSuccess;
  }
  submit([=] { memmove(to, from, bytes); });
  if (found == cudaMemcpyDeviceToHost && !holds(pinned_blocks, to)) finish();
  return cudaSuccess;
}

EXPORTED cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  cudaError_t error = cudaMemcpyAsync(to, from, bytes, kind, nullptr);
  count(SYNC, "cudaMemcpy");
  finish();
  return error;
}

EXPORTED cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
  if (!on_device(to)) return cudaErrorInvalidValue;
  count(FILL, std::to_string(bytes));
  submit([=] { memset(to, value, bytes); });
  return cudaSuccess;
}

EXPORTED cudaError_t cudaMemset(void* to, int value, size_t bytes) { return cudaMemsetAsync(to, value, bytes, nullptr); }
