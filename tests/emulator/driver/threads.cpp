// Running a grid: block after block, and in a block one thread after the other on this one core.
//
// In a kernel with barriers every thread has a stack of its own and runs up to its next barrier; when all have come to
// it, all go on. (ucontext makes the stacks. From one to another go setjmp and longjmp, which need no system call.)
// So what lies between two barriers is done by whole threads in turn, and a missing barrier shows as a value that is
// not there yet: either in this order, or in the reversed one.
#include "emulator.h"
#include <setjmp.h>
#include <ucontext.h>
#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

using emulator::Dim3;

extern "C" {  // what device_code.h calls threadIdx and so on
__attribute__((visibility("default"))) Dim3 emulated_threadIdx, emulated_blockIdx, emulated_blockDim, emulated_gridDim;
}

namespace emulator {

const Kernel* running = nullptr;

namespace {

const size_t STACK = 1 << 16;
const int WARP = 32;

enum State { READY, AT_BLOCK_BARRIER, AT_WARP_BARRIER, ENDED };
struct Thread {
  std::unique_ptr<char[]> stack;  // made when the thread first runs; then it serves every kernel
  jmp_buf place;
  State state;
};
std::vector<Thread> threads(1024);
jmp_buf scheduler;
int current = -1;  // the thread that runs, in a kernel with barriers
void** arguments;

void stop_as(State state) {
  Thread& thread = threads[current];
  thread.state = state;
  if (!_setjmp(thread.place)) _longjmp(scheduler, 1);
}

void live() {
  for (;;) {
    running->call(arguments);
    stop_as(ENDED);
  }
}

void go_on() {
  Thread& thread = threads[current];
  if (_setjmp(scheduler)) return;  // it has stopped
  if (thread.stack) _longjmp(thread.place, 1);
  thread.stack.reset(new char[STACK]);
  ucontext_t context;
  getcontext(&context);
  context.uc_stack.ss_sp = thread.stack.get();
  context.uc_stack.ss_size = STACK;
  context.uc_link = nullptr;
  makecontext(&context, live, 0);
  setcontext(&context);
}

void become(int thread, Dim3 block) {
  unsigned index = thread;
  emulated_threadIdx = {index % block.x, index / block.x % block.y, index / block.x / block.y};
}

// Lets those go on that have all come to the same barrier. Says whether there were any.
bool open_barriers(int n) {
  bool opened = false, all = true;
  for (int first = 0; first < n; first += WARP) {
    int last = std::min(first + WARP, n), waiting = 0;
    for (int i = first; i < last; i++) {
      waiting += threads[i].state == AT_WARP_BARRIER;
      all = all && threads[i].state == AT_BLOCK_BARRIER;
    }
    if (waiting && waiting < last - first)
      for (int i = first; i < last; i++)
        if (threads[i].state == ENDED) die("threads of a warp ended while others wait at its barrier, in " + running->name);
    if (waiting == last - first) {
      for (int i = first; i < last; i++) threads[i].state = READY;
      opened = true;
    }
  }
  if (all)
    for (int i = 0; i < n; i++) threads[i].state = READY;
  return opened || all;
}

void run_block_with_barriers(int n, Dim3 block, bool reversed) {
  for (int i = 0; i < n; i++) threads[i].state = READY;
  for (;;) {
    int ended = 0;
    for (int k = 0; k < n; k++) {
      current = reversed ? n - 1 - k : k;
      if (threads[current].state == READY) {
        become(current, block);
        go_on();
      }
      ended += threads[current].state == ENDED;
    }
    current = -1;
    if (ended == n) return;
    if (!open_barriers(n)) die("threads wait at a barrier that the others never reach, in " + running->name);
  }
}

void wait_at(State barrier) {
  if (current < 0) die("a barrier in a kernel whose source names none");
  stop_as(barrier);
}

}  // namespace

void run(const Kernel& kernel, Dim3 grid, Dim3 block, void** parameters) {
  static const bool reversed = mode_is("reversed");
  emulated_gridDim = grid;
  emulated_blockDim = block;
  running = &kernel;
  arguments = parameters;
  int n = block.x * block.y * block.z;
  long blocks = (long)grid.x * grid.y * grid.z;
  for (long k = 0; k < blocks; k++) {
    long i = reversed ? blocks - 1 - k : k;
    emulated_blockIdx = {unsigned(i % grid.x), unsigned(i / grid.x % grid.y), unsigned(i / grid.x / grid.y)};
    memset(kernel.shared_begin, 0xff, kernel.shared_end - kernel.shared_begin);  // a block finds nothing of the last
    if (kernel.has_barriers) {
      run_block_with_barriers(n, block, reversed);
      continue;
    }
    for (int t = 0; t < n; t++) {
      become(reversed ? n - 1 - t : t, block);
      kernel.call(parameters);
    }
  }
  running = nullptr;
}

}  // namespace emulator

EXPORTED void emulated_block_barrier() { emulator::wait_at(emulator::AT_BLOCK_BARRIER); }
EXPORTED void emulated_warp_barrier() { emulator::wait_at(emulator::AT_WARP_BARRIER); }
