#include "server/grpc_status.h"

#include <google/protobuf/any.pb.h>
#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/io/zero_copy_stream_impl_lite.h>

#include <cstdint>
#include <string>

#include "absl/strings/cord.h"
#include "absl/strings/string_view.h"

namespace binarymos {
namespace {

using google::protobuf::io::CodedOutputStream;

// Tags of google.rpc.Status {int32 code = 1; string message = 2;
// repeated google.protobuf.Any details = 3}, whose .proto the distribution does
// not have.
constexpr uint32_t kCodeTag = (1 << 3) | 0;
constexpr uint32_t kMessageTag = (2 << 3) | 2;
constexpr uint32_t kDetailsTag = (3 << 3) | 2;

void WriteBytes(uint32_t tag, const std::string& bytes,
                CodedOutputStream& out) {
  out.WriteTag(tag);
  out.WriteVarint32(static_cast<uint32_t>(bytes.size()));
  out.WriteString(bytes);
}

// A serialized google.rpc.Status; empty if there are no payloads.
std::string Details(const absl::Status& status) {
  std::string details;
  bool any = false;
  {
    google::protobuf::io::StringOutputStream stream(&details);
    CodedOutputStream out(&stream);
    out.WriteTag(kCodeTag);
    out.WriteVarint32(static_cast<uint32_t>(status.raw_code()));
    WriteBytes(kMessageTag, std::string(status.message()), out);
    status.ForEachPayload([&](absl::string_view type, const absl::Cord& value) {
      google::protobuf::Any detail;
      detail.set_type_url(std::string(type));
      detail.set_value(std::string(value));
      WriteBytes(kDetailsTag, detail.SerializeAsString(), out);
      any = true;
    });
  }
  return any ? details : std::string();
}

}  // namespace

grpc::Status ToGrpcStatus(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  // The codes have the same numbers.
  const auto code = static_cast<grpc::StatusCode>(status.code());
  return grpc::Status(code, std::string(status.message()), Details(status));
}

}  // namespace binarymos
