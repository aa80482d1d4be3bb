#include "server/health_service.h"

#include <chrono>
#include <map>
#include <string>

#include "absl/status/status.h"
#include "gtest/gtest.h"
#include "scheduler/loop_status.h"

namespace binarymos {
namespace {

using std::chrono::seconds;

class Recorder : public grpc::HealthCheckServiceInterface {
 public:
  void SetServingStatus(const std::string& name, bool serving) override {
    serving_[name] = serving;
    ++num_changes_;
  }
  void SetServingStatus(bool) override { ADD_FAILURE() << "not by name"; }

  bool serving(const std::string& name) const { return serving_.at(name); }
  int num_changes() const { return num_changes_; }

 private:
  std::map<std::string, bool> serving_;
  int num_changes_ = 0;
};

class HealthServiceTest : public ::testing::Test {
 protected:
  void ExpectAliveAndReady(bool alive, bool ready) {
    EXPECT_EQ(recorder_.serving("liveness"), alive);
    for (const char* name :
         {"", "readiness", "binarymos.v1.Inference", "binarymos.v1.Control"}) {
      EXPECT_EQ(recorder_.serving(name), ready) << name;
    }
    EXPECT_EQ(health_.alive(), alive);
    EXPECT_EQ(health_.ready(), ready);
  }

  const MonotonicTime start_ = MonotonicTime() + seconds(1000);
  Recorder recorder_;
  LoopStatus loop_;
  HealthService health_{&recorder_};
};

TEST_F(HealthServiceTest, LoadingIsAliveAndNotReady) {
  ExpectAliveAndReady(true, false);
  health_.Update(start_ + std::chrono::hours(5));
  ExpectAliveAndReady(true, false);
}

TEST_F(HealthServiceTest, LoadedIsReadyUntilDraining) {
  loop_.Beat(start_);
  health_.SetLoaded(&loop_);
  health_.Update(start_ + seconds(1));
  ExpectAliveAndReady(true, true);
  health_.SetDraining();
  health_.Update(start_ + seconds(2));
  ExpectAliveAndReady(true, false);
}

TEST_F(HealthServiceTest, SilentLoopIsNotAliveUntilItBeatsAgain) {
  loop_.Beat(start_);
  health_.SetLoaded(&loop_);
  health_.Update(start_ + seconds(29));
  ExpectAliveAndReady(true, true);
  health_.Update(start_ + seconds(31));
  ExpectAliveAndReady(false, false);
  loop_.Beat(start_ + seconds(40));
  health_.Update(start_ + seconds(41));
  ExpectAliveAndReady(true, true);
}

TEST_F(HealthServiceTest, FailedLoopIsNotAlive) {
  loop_.Beat(start_);
  health_.SetLoaded(&loop_);
  health_.Update(start_);
  loop_.SetFailed(absl::InternalError("lost"));
  health_.Update(start_);
  ExpectAliveAndReady(false, false);
}

TEST_F(HealthServiceTest, OnlyChangesAreTold) {
  loop_.Beat(start_);
  health_.SetLoaded(&loop_);
  health_.Update(start_);
  const int num_changes = recorder_.num_changes();
  for (int i = 0; i < 10; ++i) health_.Update(start_ + seconds(i));
  EXPECT_EQ(recorder_.num_changes(), num_changes);
}

}  // namespace
}  // namespace binarymos
