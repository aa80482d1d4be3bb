#include "engine/model/bounded_json.h"

#include <exception>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace binarymos {
namespace {

using nlohmann::json;

// Walks the events of a document without building it. A method that returns
// false ends the parse.
class LimitChecker : public nlohmann::json_sax<json> {
 public:
  explicit LimitChecker(const JsonLimits& limits) : limits_(limits) {}

  const std::string& error() const { return error_; }

  bool null() override { return Value(); }
  bool boolean(bool) override { return Value(); }
  bool number_integer(number_integer_t) override { return Value(); }
  bool number_unsigned(number_unsigned_t) override { return Value(); }
  bool number_float(number_float_t, const string_t&) override {
    return Value();
  }
  bool string(string_t&) override { return Value(); }
  bool binary(binary_t&) override { return Value(); }
  bool start_object(size_t) override { return Open(); }
  bool end_object() override { return Close(); }
  bool start_array(size_t) override { return Open(); }
  bool end_array() override { return Close(); }
  bool key(string_t& name) override {
    if (!keys_.back().insert(name).second) {
      return Fail(absl::StrCat("key \"", name, "\" stands twice"));
    }
    return Value();
  }
  bool parse_error(size_t position, const std::string&,
                   const nlohmann::detail::exception& error) override {
    return Fail(absl::StrCat("at byte ", position, ": ", error.what()));
  }

 private:
  bool Fail(std::string error) {
    if (error_.empty()) error_ = std::move(error);
    return false;
  }
  bool Value() {
    if (++num_values_ <= limits_.max_values) return true;
    return Fail(absl::StrCat("more than ", limits_.max_values, " values"));
  }
  bool Open() {
    keys_.emplace_back();
    if (static_cast<int>(keys_.size()) > limits_.max_depth) {
      return Fail(absl::StrCat("nested deeper than ", limits_.max_depth));
    }
    return Value();
  }
  bool Close() {
    keys_.pop_back();
    return true;
  }

  const JsonLimits limits_;
  size_t num_values_ = 0;
  std::vector<std::set<std::string>> keys_;  // of the objects that are open
  std::string error_;
};

}  // namespace

absl::StatusOr<json> ParseBoundedJson(std::string_view text,
                                      const std::string& file,
                                      const JsonLimits& limits) {
  try {
    LimitChecker checker(limits);
    if (!json::sax_parse(text.begin(), text.end(), &checker)) {
      return absl::InvalidArgumentError(
          absl::StrCat(file, ": not valid JSON: ", checker.error()));
    }
    json document = json::parse(text.begin(), text.end(), nullptr,
                                /*allow_exceptions=*/false);
    if (!document.is_object()) {
      return absl::InvalidArgumentError(
          absl::StrCat(file, ": expected a JSON object at the root"));
    }
    return document;
  } catch (const std::exception& error) {
    return absl::InvalidArgumentError(
        absl::StrCat(file, ": cannot parse JSON: ", error.what()));
  }
}

}  // namespace binarymos
