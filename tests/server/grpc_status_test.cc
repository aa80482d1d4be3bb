#include "server/grpc_status.h"

#include <string>

#include "absl/strings/cord.h"
#include "gtest/gtest.h"

namespace binarymos {
namespace {

TEST(GrpcStatusTest, CodesAndMessagesStay) {
  EXPECT_TRUE(ToGrpcStatus(absl::OkStatus()).ok());
  for (int code = 1; code <= 16; ++code) {
    const grpc::Status status =
        ToGrpcStatus(absl::Status(static_cast<absl::StatusCode>(code), "why"));
    EXPECT_EQ(status.error_code(), static_cast<grpc::StatusCode>(code));
    EXPECT_EQ(status.error_message(), "why");
    EXPECT_EQ(status.error_details(), "");
  }
  EXPECT_EQ(ToGrpcStatus(absl::ResourceExhaustedError("")).error_code(),
            grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(ToGrpcStatus(absl::UnauthenticatedError("")).error_code(),
            grpc::StatusCode::UNAUTHENTICATED);
}

TEST(GrpcStatusTest, PayloadsBecomeDetails) {
  absl::Status status = absl::ResourceExhaustedError("full");
  status.SetPayload("t/Info", absl::Cord("\x01\x02"));
  // {1: 8, 2: "full", 3: {1: "t/Info", 2: "\1\2"}}
  EXPECT_EQ(ToGrpcStatus(status).error_details(),
            "\x08\x08\x12\x04"
            "full\x1a\x0c\x0a\x06t/Info\x12\x02\x01\x02");
}

}  // namespace
}  // namespace binarymos
