// Counting what reaches the device, and doing it now or later.
#include "emulator.h"
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

namespace emulator {

static long counts[CALLS];
static const char* const names[CALLS] = {"launch",         "product", "copy to device", "copy to host",   "copy on device",
                                         "fill",           "sync",    "allocation",     "host allocation"};
static bool recording;
static std::string record;
static std::vector<std::function<void()>> queue;

void count(Call call, const std::string& what) {
  counts[call]++;
  if (recording) record += std::string(names[call]) + ": " + what + "\n";
}

bool mode_is(const char* name) {
  static const char* mode = getenv("MINIDL_EMULATOR_MODE");
  return mode && !strcmp(mode, name);
}

void submit(std::function<void()> work) {
  static const bool idle = mode_is("idle"), deferred = mode_is("deferred");
  if (idle) return;
  if (deferred) queue.push_back(std::move(work));
  else work();
}

void finish() {
  std::vector<std::function<void()>> now;
  now.swap(queue);
  for (auto& work : now) work();
}

bool unfinished() { return !queue.empty(); }

void complain(const std::string& text) { fprintf(stderr, "emulator: %s\n", text.c_str()); }

void die(const std::string& text) {
  complain(text);
  abort();  // and not exit: Python then shows the line that it was at
}

}  // namespace emulator

// For emulator.py's trace().
EXPORTED void emulator_reset(int recording) {
  emulator::recording = recording;
  memset(emulator::counts, 0, sizeof emulator::counts);
  emulator::record.clear();
}
EXPORTED long emulator_count(int call) { return emulator::counts[call]; }
EXPORTED const char* emulator_record() { return emulator::record.c_str(); }
