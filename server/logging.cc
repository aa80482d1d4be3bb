#include "server/logging.h"

#include <grpc/support/log.h>
#include <spdlog/formatter.h>
#include <spdlog/pattern_formatter.h>
#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <charconv>
#include <cmath>
#include <cstdio>
#include <memory>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"

namespace binarymos {
namespace {

// Fields of the line that this thread is writing. spdlog formats on the thread
// that logs, so the formatter finds them here.
thread_local const std::initializer_list<LogField>* current_fields = nullptr;

// Length of the UTF-8 character at the start of `text`; 0 if there is none.
size_t Utf8Length(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[i]); };
  const uint8_t first = byte(0);
  if (first < 0x80) return 1;
  if (first < 0xC2 || first > 0xF4) return 0;
  const size_t length = first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4;
  if (text.size() < length) return 0;
  for (size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xC0) != 0x80) return 0;
  }
  // Overlong forms, surrogates, and beyond U+10FFFF.
  if (first == 0xE0 && byte(1) < 0xA0) return 0;
  if (first == 0xED && byte(1) > 0x9F) return 0;
  if (first == 0xF0 && byte(1) < 0x90) return 0;
  if (first == 0xF4 && byte(1) > 0x8F) return 0;
  return length;
}

// Appends `text` as the inside of a JSON string: bytes that are not UTF-8
// become U+FFFD, so that a line is valid whatever a client sent.
void AppendEscaped(std::string_view text, std::string& out) {
  while (!text.empty()) {
    const char c = text.front();
    const size_t length = Utf8Length(text);
    if (length == 0) {
      out += "\xEF\xBF\xBD";
    } else if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (c == '\n') {
      out += "\\n";
    } else if (c == '\t') {
      out += "\\t";
    } else if (c == '\r') {
      out += "\\r";
    } else if (static_cast<uint8_t>(c) < 0x20 || c == 0x7F) {
      static constexpr char kHex[] = "0123456789abcdef";
      out += "\\u00";
      out += kHex[static_cast<uint8_t>(c) >> 4];
      out += kHex[c & 15];
    } else {
      out.append(text.substr(0, length));
    }
    text.remove_prefix(length == 0 ? 1 : length);
  }
}

std::string Quoted(std::string_view text) {
  std::string out = "\"";
  AppendEscaped(text, out);
  out += '"';
  return out;
}

std::string NumberText(double value) {
  char buffer[32];
  const auto result = std::to_chars(buffer, buffer + sizeof(buffer), value);
  return std::string(buffer, result.ptr);
}

std::string JsonValue(const LogField::Value& value) {
  if (const auto* text = std::get_if<std::string_view>(&value)) {
    return Quoted(*text);
  }
  if (const auto* integer = std::get_if<int64_t>(&value)) {
    return absl::StrCat(*integer);
  }
  if (const auto* number = std::get_if<double>(&value)) {
    return std::isfinite(*number) ? NumberText(*number) : "null";
  }
  return std::get<bool>(value) ? "true" : "false";
}

bool NeedsQuotes(std::string_view text) {
  if (text.empty()) return true;
  for (const char c : text) {
    if (c <= ' ' || c == '"' || c == '=' || c == '\\' || c == 0x7F) return true;
  }
  return false;  // bytes above 0x7F are negative chars: <= ' '
}

std::string TextValue(const LogField::Value& value) {
  const auto* text = std::get_if<std::string_view>(&value);
  if (text == nullptr) return JsonValue(value);
  return NeedsQuotes(*text) ? Quoted(*text) : std::string(*text);
}

std::string_view View(spdlog::string_view_t view) {
  return {view.data(), view.size()};
}

// {"time":"2026-01-31T12:00:00.123456Z","level":"info","msg":"...", fields}
class JsonFormatter : public spdlog::formatter {
 public:
  void format(const spdlog::details::log_msg& message,
              spdlog::memory_buf_t& out) override {
    time_.format(message, out);
    std::string line =
        absl::StrCat("\",\"level\":",
                     Quoted(View(spdlog::level::to_string_view(message.level))),
                     ",\"msg\":", Quoted(View(message.payload)));
    if (current_fields != nullptr) {
      for (const LogField& field : *current_fields) {
        absl::StrAppend(&line, ",", Quoted(field.name), ":",
                        JsonValue(field.value));
      }
    }
    line += "}\n";
    out.append(line.data(), line.data() + line.size());
  }

  std::unique_ptr<spdlog::formatter> clone() const override {
    return std::make_unique<JsonFormatter>();
  }

 private:
  spdlog::pattern_formatter time_{"{\"time\":\"%Y-%m-%dT%H:%M:%S.%fZ",
                                  spdlog::pattern_time_type::utc, ""};
};

// 12:00:00.123 info  message name=value, in the terminal's own time zone. What
// a client may have put into a message cannot start a line of its own.
class TextFormatter : public spdlog::formatter {
 public:
  void format(const spdlog::details::log_msg& message,
              spdlog::memory_buf_t& out) override {
    prefix_.format(message, out);
    message.color_range_start = kLevelColumn;
    message.color_range_end = out.size();
    std::string line = " ";
    for (const char c : View(message.payload)) {
      const bool is_control = static_cast<uint8_t>(c) < 0x20 || c == 0x7F;
      line += is_control ? ' ' : c;
    }
    if (current_fields != nullptr) {
      for (const LogField& field : *current_fields) {
        line += ' ';
        line += field.name;
        line += '=';
        line += TextValue(field.value);
      }
    }
    line += '\n';
    out.append(line.data(), line.data() + line.size());
  }

  std::unique_ptr<spdlog::formatter> clone() const override {
    return std::make_unique<TextFormatter>();
  }

 private:
  static constexpr size_t kLevelColumn = 24;  // after date and time

  spdlog::pattern_formatter prefix_{"%Y-%m-%d %H:%M:%S.%e %-5l",
                                    spdlog::pattern_time_type::local, ""};
};

std::optional<spdlog::level::level_enum> ParseLevel(std::string_view name) {
  if (name == "trace") return spdlog::level::trace;
  if (name == "debug") return spdlog::level::debug;
  if (name == "info") return spdlog::level::info;
  if (name == "warn") return spdlog::level::warn;
  if (name == "error") return spdlog::level::err;
  if (name == "off") return spdlog::level::off;
  return std::nullopt;
}

spdlog::level::level_enum SpdlogLevel(LogLevel level) {
  switch (level) {
    case LogLevel::kTrace:
      return spdlog::level::trace;
    case LogLevel::kDebug:
      return spdlog::level::debug;
    case LogLevel::kInfo:
      return spdlog::level::info;
    case LogLevel::kWarn:
      return spdlog::level::warn;
    case LogLevel::kError:
      return spdlog::level::err;
  }
  return spdlog::level::info;
}

void LogGrpcMessage(gpr_log_func_args* args) {
  const LogLevel level =
      args->severity == GPR_LOG_SEVERITY_ERROR  ? LogLevel::kError
      : args->severity == GPR_LOG_SEVERITY_INFO ? LogLevel::kInfo
                                                : LogLevel::kDebug;
  Log(level, args->message, {{"source", "grpc"}});
}

}  // namespace

absl::Status InitLogging(const LogOptions& options) {
  const std::optional<spdlog::level::level_enum> level =
      ParseLevel(options.level);
  if (!level.has_value()) {
    return absl::InvalidArgumentError(
        absl::StrCat("log level '", options.level,
                     "' is not one of trace, debug, info, warn, error, off"));
  }
  if (options.format != "auto" && options.format != "text" &&
      options.format != "json") {
    return absl::InvalidArgumentError(absl::StrCat(
        "log format '", options.format, "' is not one of auto, text, json"));
  }
  const bool on_terminal = isatty(STDERR_FILENO) == 1;
  const bool json =
      options.format == "json" || (options.format == "auto" && !on_terminal);
  try {
    std::shared_ptr<spdlog::sinks::sink> sink;
    if (json) {
      sink = std::make_shared<spdlog::sinks::stderr_sink_mt>();
      sink->set_formatter(std::make_unique<JsonFormatter>());
    } else {
      const bool colors = on_terminal && std::getenv("NO_COLOR") == nullptr;
      sink = std::make_shared<spdlog::sinks::stderr_color_sink_mt>(
          colors ? spdlog::color_mode::always : spdlog::color_mode::never);
      sink->set_formatter(std::make_unique<TextFormatter>());
    }
    auto logger = std::make_shared<spdlog::logger>("binarymos", sink);
    logger->set_level(*level);
    logger->flush_on(spdlog::level::trace);
    spdlog::set_default_logger(std::move(logger));
  } catch (const spdlog::spdlog_ex& error) {
    return absl::InternalError(
        absl::StrCat("cannot set up the log: ", error.what()));
  }
  gpr_set_log_function(&LogGrpcMessage);
  return absl::OkStatus();
}

void Log(LogLevel level, std::string_view message,
         std::initializer_list<LogField> fields) {
  current_fields = &fields;
  spdlog::default_logger_raw()->log(
      SpdlogLevel(level),
      spdlog::string_view_t(message.data(), message.size()));
  current_fields = nullptr;
}

bool LogEnabled(LogLevel level) {
  return spdlog::default_logger_raw()->should_log(SpdlogLevel(level));
}

}  // namespace binarymos
