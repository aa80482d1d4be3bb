// Shows absl::Mutex to ThreadSanitizer.
//
// Debian's Abseil and gRPC are not built for ThreadSanitizer, and absl::Mutex
// is a futex, so what gRPC hands from thread to thread looks like a race. These
// definitions stand before the library's, call them, and tell ThreadSanitizer
// of the order. It is one order for all of these locks, because gRPC also hands
// things over through atomics that cannot be seen: what a thread did before it
// left a lock comes before what another does after it entered one. Our own code
// has no absl::Mutex. Linked into the programs of the `tsan` preset.
#include <absl/synchronization/mutex.h>
#include <dlfcn.h>
#include <sanitizer/tsan_interface.h>

#include <cstdlib>

namespace {

// The library's own definition of a function that stands below.
template <typename Function>
Function* Next(const char* mangled) {
  void* const next = dlsym(RTLD_NEXT, mangled);
  if (next == nullptr) std::abort();
  return reinterpret_cast<Function*>(next);
}

// Its address stands for the order of all locks.
char order;

}  // namespace

// Of Debian 12: inline namespace debian3.
#define ABSL_SYMBOL(type_and_name) "_ZN4absl7debian3" type_and_name

namespace absl {

void Mutex::Lock() {
  static auto* const next = Next<void(Mutex*)>(ABSL_SYMBOL("5Mutex4LockEv"));
  next(this);
  __tsan_acquire(&order);
}

void Mutex::Unlock() {
  static auto* const next = Next<void(Mutex*)>(ABSL_SYMBOL("5Mutex6UnlockEv"));
  __tsan_release(&order);
  next(this);
}

bool Mutex::TryLock() {
  static auto* const next = Next<bool(Mutex*)>(ABSL_SYMBOL("5Mutex7TryLockEv"));
  const bool locked = next(this);
  if (locked) __tsan_acquire(&order);
  return locked;
}

void CondVar::Wait(Mutex* mutex) {
  static auto* const next =
      Next<void(CondVar*, Mutex*)>(ABSL_SYMBOL("7CondVar4WaitEPNS0_5MutexE"));
  __tsan_release(&order);
  next(this, mutex);
  __tsan_acquire(&order);
}

bool CondVar::WaitWithTimeout(Mutex* mutex, Duration timeout) {
  static auto* const next = Next<bool(CondVar*, Mutex*, Duration)>(
      ABSL_SYMBOL("7CondVar15WaitWithTimeoutEPNS0_5MutexENS0_8DurationE"));
  __tsan_release(&order);
  const bool timed_out = next(this, mutex, timeout);
  __tsan_acquire(&order);
  return timed_out;
}

bool CondVar::WaitWithDeadline(Mutex* mutex, Time deadline) {
  static auto* const next = Next<bool(CondVar*, Mutex*, Time)>(
      ABSL_SYMBOL("7CondVar16WaitWithDeadlineEPNS0_5MutexENS0_4TimeE"));
  __tsan_release(&order);
  const bool timed_out = next(this, mutex, deadline);
  __tsan_acquire(&order);
  return timed_out;
}

}  // namespace absl
