#include "cli/option_table.h"

#include <toml++/toml.h>

#include <CLI/CLI.hpp>
#include <limits>
#include <optional>
#include <string_view>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/strip.h"
#include "absl/time/time.h"
#include "cli/nearest.h"

namespace binarymos {
namespace {

constexpr char kVariablePrefix[] = "BINARYMOS_";

struct Unit {
  const char* name;
  int64_t bytes;
};
constexpr Unit kUnits[] = {{"TiB", int64_t{1} << 40},
                           {"GiB", int64_t{1} << 30},
                           {"MiB", int64_t{1} << 20},
                           {"KiB", int64_t{1} << 10}};

std::optional<int64_t> ParseBytes(absl::string_view text) {
  int64_t factor = 1;
  for (const Unit& unit : kUnits) {
    if (absl::ConsumeSuffix(&text, unit.name)) {
      factor = unit.bytes;
      break;
    }
  }
  int64_t count = 0;
  if (!absl::SimpleAtoi(text, &count)) return std::nullopt;
  if (count > std::numeric_limits<int64_t>::max() / factor ||
      count < std::numeric_limits<int64_t>::min() / factor) {
    return std::nullopt;
  }
  return count * factor;
}

std::string FormatBytes(int64_t bytes) {
  for (const Unit& unit : kUnits) {
    if (bytes != 0 && bytes % unit.bytes == 0) {
      return absl::StrCat(bytes / unit.bytes, unit.name);
    }
  }
  return absl::StrCat(bytes);
}

std::optional<std::chrono::milliseconds> ParseMilliseconds(
    const std::string& text) {
  absl::Duration duration;
  if (!absl::ParseDuration(text, &duration)) return std::nullopt;
  const absl::Duration whole = absl::Trunc(duration, absl::Milliseconds(1));
  if (duration == absl::InfiniteDuration() ||
      duration == -absl::InfiniteDuration() || duration != whole) {
    return std::nullopt;
  }
  return absl::ToChronoMilliseconds(duration);
}

// A TOML basic string.
std::string Quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (byte < 0x20 || byte == 0x7F) {
      out += absl::StrCat("\\u", absl::Hex(byte, absl::kZeroPad4));
    } else {
      out += c;
    }
  }
  return out + '"';
}

const char* OriginName(Origin origin) {
  switch (origin) {
    case Origin::kDefault:
      return "default";
    case Origin::kFile:
      return "file";
    case Origin::kEnvironment:
      return "environment";
    case Origin::kFlag:
      return "flag";
  }
  return "";
}

// A Service called "binarymos" makes Kubernetes set variables that look like
// misspelt options.
bool LooksLikeServiceLink(const std::string& name, const std::string& value) {
  return name.find("_SERVICE_") != std::string::npos ||
         value.rfind("tcp://", 0) == 0 || value.rfind("udp://", 0) == 0 ||
         name.find("_TCP_") != std::string::npos;
}

}  // namespace

struct OptionTable::Entry {
  Spec spec;
  std::string type_name;  // in --help; empty for a switch
  std::string expected;   // completes "'x' is not ..."
  std::function<bool(const std::string&)> parse;
  std::function<std::string()> to_toml;
  std::function<bool(const toml::node&)> accepts;

  Origin origin = Origin::kDefault;
  std::string place;  // "serve.toml:3", "BINARYMOS_HOST"
  CLI::Option* flag = nullptr;
};

OptionTable::OptionTable() {
  AddText({"Configuration", "config", "TOML file with options"}, &config_path_);
}

OptionTable::~OptionTable() = default;

OptionTable::Entry& OptionTable::Add(Spec spec, std::string type_name) {
  entries_.push_back(std::make_unique<Entry>());
  Entry& entry = *entries_.back();
  entry.spec = std::move(spec);
  entry.type_name = std::move(type_name);
  return entry;
}

void OptionTable::AddText(Spec spec, std::string* target) {
  Entry& entry = Add(std::move(spec), "TEXT");
  entry.expected = "a string";
  entry.parse = [target](const std::string& text) {
    *target = text;
    return true;
  };
  entry.to_toml = [target] { return Quoted(*target); };
  entry.accepts = [](const toml::node& node) { return node.is_string(); };
}

void OptionTable::AddInt(Spec spec, int* target) {
  Entry& entry = Add(std::move(spec), "INT");
  entry.expected = "a whole number in range";
  entry.parse = [target](const std::string& text) {
    return absl::SimpleAtoi(text, target);
  };
  entry.to_toml = [target] { return absl::StrCat(*target); };
  entry.accepts = [](const toml::node& node) { return node.is_integer(); };
}

void OptionTable::AddInt64(Spec spec, int64_t* target) {
  Entry& entry = Add(std::move(spec), "INT");
  entry.expected = "a whole number in range";
  entry.parse = [target](const std::string& text) {
    return absl::SimpleAtoi(text, target);
  };
  entry.to_toml = [target] { return absl::StrCat(*target); };
  entry.accepts = [](const toml::node& node) { return node.is_integer(); };
}

void OptionTable::AddNumber(Spec spec, double* target) {
  Entry& entry = Add(std::move(spec), "NUMBER");
  entry.expected = "a number such as 0.9";
  entry.parse = [target](const std::string& text) {
    return absl::SimpleAtod(text, target);
  };
  entry.to_toml = [target] { return absl::StrCat(*target); };
  entry.accepts = [](const toml::node& node) { return node.is_number(); };
}

void OptionTable::AddSwitch(Spec spec, bool* target) {
  Entry& entry = Add(std::move(spec), "");
  entry.expected = "true or false";
  entry.parse = [target](const std::string& text) {
    return absl::SimpleAtob(text, target);
  };
  entry.to_toml = [target] { return *target ? "true" : "false"; };
  entry.accepts = [](const toml::node& node) { return node.is_boolean(); };
}

void OptionTable::AddBytes(Spec spec, int64_t* target) {
  Entry& entry = Add(std::move(spec), "BYTES");
  entry.expected = "a number of bytes such as 4096, 64MiB or 4GiB";
  entry.parse = [target](const std::string& text) {
    const std::optional<int64_t> bytes = ParseBytes(text);
    if (bytes.has_value()) *target = *bytes;
    return bytes.has_value();
  };
  entry.to_toml = [target] { return Quoted(FormatBytes(*target)); };
  entry.accepts = [](const toml::node& node) {
    return node.is_integer() || node.is_string();
  };
}

void OptionTable::AddDuration(Spec spec, std::chrono::milliseconds* target) {
  Entry& entry = Add(std::move(spec), "DURATION");
  entry.expected = "a duration such as 250ms, 30s or 5m";
  entry.parse = [target](const std::string& text) {
    const auto duration = ParseMilliseconds(text);
    if (duration.has_value()) *target = *duration;
    return duration.has_value();
  };
  entry.to_toml = [target] {
    return Quoted(absl::FormatDuration(absl::FromChrono(*target)));
  };
  entry.accepts = [](const toml::node& node) { return node.is_string(); };
}

// " [9000]", or nothing for an empty text.
std::string OptionTable::DefaultNote(const Entry& entry) {
  const std::string value = entry.to_toml();
  if (value == "\"\"") return "";
  return absl::StrCat(
      " [", absl::StripSuffix(absl::StripPrefix(value, "\""), "\""), "]");
}

void OptionTable::AddFlags(CLI::App& app) {
  for (const std::unique_ptr<Entry>& entry : entries_) {
    const Spec& spec = entry->spec;
    std::string names = absl::StrCat("--", spec.name);
    // Const, or CLI11 takes it for the variable that the flag sets.
    const std::string help = absl::StrCat(spec.help, DefaultNote(*entry));
    if (entry->type_name.empty()) {
      absl::StrAppend(&names, ",!--no-", spec.name);
      entry->flag = app.add_flag(names, help);
    } else {
      if (spec.positional) absl::StrAppend(&names, ",", spec.name);
      // The value is read from the option in ApplyFlags.
      entry->flag = app.add_option(
          names, [](const CLI::results_t&) { return true; }, help);
      entry->flag->type_name(entry->type_name);
    }
    entry->flag->group(spec.group)
        ->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
  }
}

OptionTable::Entry* OptionTable::Find(const std::string& name) {
  for (const std::unique_ptr<Entry>& entry : entries_) {
    if (entry->spec.name == name) return entry.get();
  }
  return nullptr;
}

std::vector<std::string> OptionTable::Names() const {
  std::vector<std::string> names;
  for (const std::unique_ptr<Entry>& entry : entries_) {
    names.push_back(entry->spec.name);
  }
  return names;
}

std::string OptionTable::VariableName(const std::string& name) {
  return absl::StrCat(
      kVariablePrefix,
      absl::AsciiStrToUpper(absl::StrReplaceAll(name, {{"-", "_"}})));
}

absl::Status OptionTable::Set(Entry& entry, const std::string& text,
                              Origin origin, const std::string& place) {
  if (!entry.parse(text)) {
    return absl::InvalidArgumentError(
        absl::StrCat(place, ": '", text, "' is not ", entry.expected));
  }
  entry.origin = origin;
  entry.place = place;
  return absl::OkStatus();
}

// The path of the file is needed before the file can be read, and the file must
// be read before what is stronger than it.
absl::Status OptionTable::Load(const char* const* environment) {
  const std::string variable = VariableName("config") + "=";
  std::string path;
  for (const char* const* line = environment; *line != nullptr; ++line) {
    const std::string text = *line;
    if (text.rfind(variable, 0) == 0) path = text.substr(variable.size());
  }
  const Entry& config = *Find("config");
  if (config.flag != nullptr && config.flag->count() > 0) {
    path = config.flag->results().back();
  }
  if (!path.empty()) {
    if (absl::Status status = ApplyFile(path); !status.ok()) return status;
  }
  if (absl::Status status = ApplyEnvironment(environment); !status.ok()) {
    return status;
  }
  return ApplyFlags();
}

absl::Status OptionTable::ApplyFile(const std::string& path) {
  toml::table table;
  try {
    table = toml::parse_file(path);
  } catch (const toml::parse_error& error) {
    const auto line = error.source().begin.line;
    // Line 0: the file could not be opened.
    if (line == 0) {
      return absl::NotFoundError(
          absl::StrCat(path, ": ", std::string(error.description())));
    }
    return absl::InvalidArgumentError(
        absl::StrCat(path, ":", line, ": ", std::string(error.description())));
  } catch (const std::exception& error) {
    return absl::NotFoundError(absl::StrCat(path, ": ", error.what()));
  }
  for (auto&& [key, node] : table) {
    const std::string name(key.str());
    const std::string place = absl::StrCat(path, ":", node.source().begin.line);
    Entry* entry = Find(name);
    if (entry == nullptr || name == "config") {
      return absl::InvalidArgumentError(absl::StrCat(
          place, ": unknown key '", name, "'", DidYouMean(name, Names())));
    }
    if (!entry->accepts(node)) {
      return absl::InvalidArgumentError(absl::StrCat(
          place, ": ", name, " is not ", entry->expected, " of TOML"));
    }
    std::string text;
    if (const auto* string = node.as_string()) {
      text = string->get();
    } else if (const auto* number = node.as_floating_point()) {
      text = absl::StrCat(number->get());
    } else if (const auto* integer = node.as_integer()) {
      text = absl::StrCat(integer->get());
    } else {
      text = node.as_boolean()->get() ? "true" : "false";
    }
    if (absl::Status status = Set(*entry, text, Origin::kFile, place);
        !status.ok()) {
      return status;
    }
  }
  return absl::OkStatus();
}

absl::Status OptionTable::ApplyEnvironment(const char* const* environment) {
  std::vector<std::string> variables;
  for (const std::string& name : Names()) {
    variables.push_back(VariableName(name));
  }
  for (const char* const* line = environment; *line != nullptr; ++line) {
    const std::string text = *line;
    if (text.rfind(kVariablePrefix, 0) != 0) continue;
    const size_t end = text.find('=');
    if (end == std::string::npos) continue;
    const std::string variable = text.substr(0, end);
    const std::string value = text.substr(end + 1);
    const auto known = std::find(variables.begin(), variables.end(), variable);
    if (known == variables.end()) {
      return absl::InvalidArgumentError(absl::StrCat(
          "unknown environment variable ", variable,
          DidYouMean(variable, variables),
          LooksLikeServiceLink(variable, value)
              ? " (set by Kubernetes? use enableServiceLinks: false)"
              : ""));
    }
    Entry& entry = *entries_[known - variables.begin()];
    if (absl::Status status = Set(entry, value, Origin::kEnvironment, variable);
        !status.ok()) {
      return status;
    }
  }
  return absl::OkStatus();
}

absl::Status OptionTable::ApplyFlags() {
  for (const std::unique_ptr<Entry>& entry : entries_) {
    if (entry->flag == nullptr || entry->flag->count() == 0) continue;
    if (absl::Status status =
            Set(*entry, entry->flag->results().back(), Origin::kFlag,
                absl::StrCat("--", entry->spec.name));
        !status.ok()) {
      return status;
    }
  }
  return absl::OkStatus();
}

std::string OptionTable::ToToml() const {
  std::string text;
  std::string group;
  for (const std::unique_ptr<Entry>& entry : entries_) {
    if (entry->spec.group != group) {
      group = entry->spec.group;
      absl::StrAppend(&text, text.empty() ? "" : "\n", "# ", group, "\n");
    }
    const bool is_path_of_this_file = entry->spec.name == "config";
    absl::StrAppend(&text, is_path_of_this_file ? "# " : "", entry->spec.name,
                    " = ", entry->to_toml(), "  # ", OriginName(entry->origin));
    if (entry->origin == Origin::kFile ||
        entry->origin == Origin::kEnvironment) {
      absl::StrAppend(&text, " ", entry->place);
    }
    text += '\n';
  }
  return text;
}

}  // namespace binarymos
