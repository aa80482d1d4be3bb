#include "scheduler/fair_share.h"

#include <algorithm>
#include <limits>

#include "engine/core/check.h"

namespace binarymos {

TenantShare& FairShare::Join(const std::string& tenant) {
  std::unique_ptr<TenantShare>& share = shares_[tenant];
  if (share == nullptr) {
    share = std::make_unique<TenantShare>();
    share->tenant = tenant;
  }
  TenantShare& joined = *share;
  if (joined.num_sequences++ == 0) ++num_tenants_;
  if (shares_.size() > forget_at_) ForgetIdle();
  return joined;
}

void FairShare::Leave(TenantShare& share) {
  if (--share.num_sequences == 0) --num_tenants_;
}

void FairShare::BeginWaiting(TenantShare& share) {
  if (share.num_waiting++ > 0) return;
  share.service = std::max(share.service, Floor());
  share.place = waiting_.size();
  waiting_.push_back(&share);
}

void FairShare::EndWaiting(TenantShare& share) {
  BINARYMOS_CHECK_GT(share.num_waiting, 0);
  if (--share.num_waiting > 0) return;
  waiting_.back()->place = share.place;
  waiting_[share.place] = waiting_.back();
  waiting_.pop_back();
  last_to_wait_ = &share;
}

int64_t FairShare::Floor() const {
  if (waiting_.empty()) {
    return last_to_wait_ == nullptr ? 0 : last_to_wait_->service - credit_;
  }
  int64_t least = std::numeric_limits<int64_t>::max();
  for (const TenantShare* share : waiting_) {
    least = std::min(least, share->service);
  }
  return least - credit_;
}

// Names are the clients' choice, so the table must not grow with them.
void FairShare::ForgetIdle() {
  const int64_t floor = Floor();
  absl::erase_if(shares_, [&](const auto& entry) {
    const TenantShare& share = *entry.second;
    return share.num_sequences == 0 && share.service <= floor &&
           &share != last_to_wait_;
  });
  forget_at_ = std::max<size_t>(64, 2 * shares_.size());
}

}  // namespace binarymos
