// Puts sequences into slots, for Sample: their parameters and what they have
// seen so far.
//
// changes [num_changes], each of another slot; ids, tokens: the lists that they
// share. slots, seen, suppressed: as in sample.h.
//
// Threads. A block has a change: it clears the slot's tables, then writes the
// tokens of its lists. Bytes: 4.1 vocab where there are penalties, else next to
// nothing. Predicted on an H200: 3 us, when sequences come.
#pragma once

#include "engine/kernels/cuda/device_code.h"
#include "engine/kernels/cuda/sample_state.h"

namespace binarymos::cuda {

struct SetSlots {
  static constexpr int kThreads = 256;

  const SlotChange* changes = nullptr;
  int num_changes = 0;
  const int32_t* suppressed_ids = nullptr;  // each id once in a list
  const SeenToken* seen_tokens = nullptr;   // likewise
  int vocab = 0;
  SampleSlot* slots = nullptr;
  int32_t* seen = nullptr;
  uint32_t* suppressed = nullptr;

  Grid grid() const { return {num_changes, 1}; }
  size_t shared_bytes() const { return 0; }

  template <typename Block>
  BINARYMOS_DEVICE void operator()(Block& block) const {
    const SlotChange& change = changes[block.x()];
    const int words = (vocab + 31) / 32;
    int32_t* const counts = seen + change.slot * int64_t{vocab};
    uint32_t* const waiting = suppressed + change.slot * int64_t{words};
    block.ForEach([&](int thread) {
      if (thread == 0) slots[change.slot] = change.state;
      if (change.state.keeps_history != 0) {
        for (int i = thread; i < vocab; i += kThreads) counts[i] = 0;
      }
      if (change.state.suppresses == 0) return;
      // A word has one thread: the list is short.
      for (int word = thread; word < words; word += kThreads) {
        uint32_t bits = 0;
        for (int i = change.suppressed_begin; i < change.suppressed_end; ++i) {
          const int id = suppressed_ids[i];
          if (id / 32 == word) bits |= 1u << (id % 32);
        }
        waiting[word] = bits;
      }
    });
    block.Sync();
    block.ForEach([&](int thread) {
      for (int i = change.seen_begin + thread; i < change.seen_end;
           i += kThreads) {
        counts[seen_tokens[i].token] = seen_tokens[i].count;
      }
    });
  }
};

}  // namespace binarymos::cuda
