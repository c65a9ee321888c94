// What the files of the stand-in share. README.md beside this folder says how they fit together.
#pragma once
#include <functional>
#include <string>

#define EXPORTED extern "C" __attribute__((visibility("default")))

namespace emulator {

// What is counted, in the order in which emulator.py reads it.
enum Call {
  LAUNCH, PRODUCT, COPY_TO_DEVICE, COPY_TO_HOST, COPY_ON_DEVICE, FILL, SYNC, ALLOCATION, HOST_ALLOCATION, CALLS
};
void count(Call call, const std::string& what);

// The mode that this process runs in; none of them is the plain one.
bool mode_is(const char* name);  // "reversed", "deferred", "guarded", "idle"

// Work for the device: done at once, but in the deferred mode not before `finish`.
void submit(std::function<void()> work);
void finish();
bool unfinished();

bool on_device(const void* pointer);
void complain(const std::string& text);  // to stderr: CuPy shows the error's number alone
[[noreturn]] void die(const std::string& text);

// The grid of threads that a kernel is, from launch to end.
struct Dim3 { unsigned x, y, z; };
struct Code {  // emulated_kernel in device/device_code.h
  void (*call)(void** parameters);
  const size_t* sizes;  // of the parameters in bytes, then 0
  bool has_barriers;
  char *shared_begin, *shared_end;  // the memory that a block shares
};
struct Kernel : Code {
  std::string name;
};
void run(const Kernel& kernel, Dim3 grid, Dim3 block, void** parameters);
extern const Kernel* running;  // for the message of a fault

}  // namespace emulator
