#include "cli/signals.h"

#include <pthread.h>

#include <utility>

namespace binarymos {

SignalWatcher::SignalWatcher(std::function<void()> on_signal)
    : on_signal_(std::move(on_signal)) {
  sigemptyset(&signals_);
  sigaddset(&signals_, SIGTERM);
  sigaddset(&signals_, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals_, nullptr);
  thread_ = std::thread([this] { Watch(); });
}

SignalWatcher::~SignalWatcher() {
  done_ = true;
  pthread_kill(thread_.native_handle(), SIGTERM);  // ends sigwait
  thread_.join();
  pthread_sigmask(SIG_UNBLOCK, &signals_, nullptr);
}

void SignalWatcher::Watch() {
  int signal_number = 0;
  while (sigwait(&signals_, &signal_number) == 0 && !done_) on_signal_();
}

}  // namespace binarymos
