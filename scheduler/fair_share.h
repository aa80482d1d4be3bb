// What each tenant has had of the machine, and whose turn it is.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"

namespace binarymos {

// One tenant's account. Owned by FairShare.
struct TenantShare {
  std::string tenant;
  int64_t service = 0;    // tokens, weighted
  int num_sequences = 0;  // that have not ended
  int num_waiting = 0;    // of these
  int num_running = 0;    // of these
  size_t place = 0;       // in FairShare::waiting_, if num_waiting > 0
  // What its running sequences hold, while Scheduler::MakeWay counts it.
  int num_held = 0;
};

// Fair sharing by virtual token counters. Each tenant is charged for the tokens
// that are computed for it, and the one that was charged least is next. Who
// begins to wait is raised to the least of those who wait already, less a
// credit: time spent idle earns no more than that, and who asks for less than
// its share need not take turns. Between two tenants that keep waiting, service
// then differs by no more than the credit and what the sequences that one of
// them has running can still be charged.
//
// A prompt token costs 1, a generated one 2; what the prefix cache holds or a
// preemption makes compute again costs nothing. Confined to the serving-loop
// thread.
class FairShare {
 public:
  static constexpr int kPromptTokenCost = 1;
  static constexpr int kOutputTokenCost = 2;

  // `credit` is service, as charged.
  explicit FairShare(int64_t credit) : credit_(credit) {}

  // A sequence of `tenant` comes, or goes. The account stays while it has
  // sequences, or more service than one that is new would begin with.
  TenantShare& Join(const std::string& tenant);
  void Leave(TenantShare& share);

  // A sequence begins, or ceases, to wait.
  void BeginWaiting(TenantShare& share);
  void EndWaiting(TenantShare& share);

  static void Charge(TenantShare& share, int num_prompt_tokens,
                     int num_output_tokens) {
    share.service += int64_t{kPromptTokenCost} * num_prompt_tokens +
                     int64_t{kOutputTokenCost} * num_output_tokens;
  }

  // Whether `a` has had so much more than `b` that a step or two would not
  // change it: `a` should give way.
  bool IsFarAhead(const TenantShare& a, const TenantShare& b) const {
    return a.service - b.service >= credit_ / 2;
  }

  size_t num_accounts() const { return shares_.size(); }
  int num_tenants() const { return num_tenants_; }  // that have sequences

 private:
  // What a tenant begins to wait with, at least.
  int64_t Floor() const;
  void ForgetIdle();

  const int64_t credit_;
  int num_tenants_ = 0;
  absl::flat_hash_map<std::string, std::unique_ptr<TenantShare>> shares_;
  std::vector<TenantShare*> waiting_;
  const TenantShare* last_to_wait_ = nullptr;  // the last that ceased to
  size_t forget_at_ = 64;                      // accounts
};

}  // namespace binarymos
