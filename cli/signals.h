// SIGTERM and SIGINT as calls on an ordinary thread.
#pragma once

#include <atomic>
#include <csignal>
#include <functional>
#include <thread>

namespace binarymos {

// While it lives, `on_signal` is called for every SIGTERM and SIGINT, one call
// at a time, on a thread of its own: it may lock, log and allocate, which a
// signal handler may not. Create one at most, on the main thread, before any
// other thread is started: the signals are blocked in all of them.
class SignalWatcher {
 public:
  explicit SignalWatcher(std::function<void()> on_signal);
  ~SignalWatcher();  // no call is running or will be made; signals end the
                     // process again
  SignalWatcher(const SignalWatcher&) = delete;
  SignalWatcher& operator=(const SignalWatcher&) = delete;

 private:
  void Watch();

  const std::function<void()> on_signal_;
  sigset_t signals_;
  std::atomic<bool> done_ = false;
  std::thread thread_;
};

}  // namespace binarymos
