#include "scheduler/token_stream.h"

#include <iterator>
#include <utility>

namespace binarymos {

TokenStream::TokenStream(std::function<void()> on_ready)
    : on_ready_(std::move(on_ready)) {}

void TokenStream::Push(TokenEvent event) {
  bool was_empty = false;
  {
    MutexLock lock(mutex_);
    was_empty = events_.empty();
    events_.push_back(std::move(event));
  }
  if (was_empty && on_ready_) on_ready_();
}

void TokenStream::Drain(std::vector<TokenEvent>& events) {
  MutexLock lock(mutex_);
  if (events.empty()) {  // the reader's memory becomes the stream's
    events.swap(events_);
    return;
  }
  events.insert(events.end(), std::make_move_iterator(events_.begin()),
                std::make_move_iterator(events_.end()));
  events_.clear();
}

}  // namespace binarymos
