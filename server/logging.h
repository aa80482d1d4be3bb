// Log lines: readable on a terminal, JSON elsewhere if asked for.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <type_traits>
#include <variant>

#include "absl/status/status.h"

namespace binarymos {

struct LogOptions {
  std::string level = "info";   // trace, debug, info, warn, error, off
  std::string format = "auto";  // text, json; auto: text on a terminal
};

// Makes standard error the destination of spdlog's default logger and of
// gRPC's own messages. Call once, before other threads log; until then spdlog's
// defaults hold. INVALID_ARGUMENT for a value that is not in the lists above.
absl::Status InitLogging(const LogOptions& options);

enum class LogLevel { kTrace, kDebug, kInfo, kWarn, kError };

// A named value in a line: text ends with `name=value`, JSON has a member.
// Holds a view: strings outlive the call.
struct LogField {
  using Value = std::variant<std::string_view, int64_t, double, bool>;

  template <typename T>
  LogField(std::string_view field_name, const T& field_value)
      : name(field_name), value(ToValue(field_value)) {}

  std::string_view name;
  Value value;

 private:
  template <typename T>
  static Value ToValue(const T& v) {
    if constexpr (std::is_same_v<T, bool>) {
      return v;
    } else if constexpr (std::is_integral_v<T>) {
      return static_cast<int64_t>(v);
    } else if constexpr (std::is_floating_point_v<T>) {
      return static_cast<double>(v);
    } else {
      return std::string_view(v);
    }
  }
};

// One line. Thread-safe. Lines about a request carry the field "request_id";
// no line carries text of a prompt or an answer.
//   Log(LogLevel::kInfo, "request ended",
//       {{"request_id", id}, {"status", "OK"}, {"output_tokens", 12}});
void Log(LogLevel level, std::string_view message,
         std::initializer_list<LogField> fields = {});

// Whether lines of `level` are written, for lines that are costly to build.
bool LogEnabled(LogLevel level);

}  // namespace binarymos
