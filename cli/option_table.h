// Options that a flag, an environment variable or a line of a file can set.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace CLI {
class App;
class Option;
}  // namespace CLI

namespace binarymos {

// Where a value comes from, weakest first.
enum class Origin { kDefault, kFile, kEnvironment, kFlag };

// The one list of a command's options: it makes the flags and their help, reads
// the file and the environment, and prints the outcome. An option "grpc-port"
// is the flag --grpc-port, the variable BINARYMOS_GRPC_PORT and the key
// grpc-port of a TOML file. Flags beat variables, variables beat the file, the
// file beats the default; names that are not in the table are errors. Every
// table also has the option "config", the path of the file.
//
// Used on one thread, in this order: Add..., AddFlags, parse the command line,
// Load, ToToml.
class OptionTable {
 public:
  struct Spec {
    std::string group;        // heading in --help
    std::string name;         // lower case, words joined by '-'
    std::string help;         // without the default, which is added
    bool positional = false;  // may also stand without its flag
  };

  OptionTable();
  ~OptionTable();
  OptionTable(const OptionTable&) = delete;
  OptionTable& operator=(const OptionTable&) = delete;

  // `target` holds the default, receives the value and outlives the table.
  void AddText(Spec spec, std::string* target);
  void AddInt(Spec spec, int* target);
  void AddInt64(Spec spec, int64_t* target);
  // 0.9, 1e-3, 2.
  void AddNumber(Spec spec, double* target);
  // true or false; as a flag also --name and --no-name.
  void AddSwitch(Spec spec, bool* target);
  // 4096, 512KiB, 64MiB, 4GiB, 1TiB.
  void AddBytes(Spec spec, int64_t* target);
  // 0, 250ms, 30s, 5m, 1h30m; whole milliseconds.
  void AddDuration(Spec spec, std::chrono::milliseconds* target);

  // Declares the flags, in groups, in the order added. `app` outlives the
  // table; it must have been parsed before Load.
  void AddFlags(CLI::App& app);

  // Sets every target from file, variables and flags. `environment` is a list
  // like `environ`. INVALID_ARGUMENT naming the place, the name or value, what
  // is allowed and, for an unknown name, the nearest one; NOT_FOUND for a file
  // that cannot be read.
  absl::Status Load(const char* const* environment);

  // Every option with its value and origin, as a TOML file that gives the same
  // values:  grpc-port = 9000  # flag
  std::string ToToml() const;

 private:
  struct Entry;

  Entry& Add(Spec spec, std::string type_name);
  Entry* Find(const std::string& name);
  std::vector<std::string> Names() const;
  static std::string DefaultNote(const Entry& entry);
  static std::string VariableName(const std::string& name);
  absl::Status Set(Entry& entry, const std::string& text, Origin origin,
                   const std::string& place);
  absl::Status ApplyEnvironment(const char* const* environment);
  absl::Status ApplyFlags();
  absl::Status ApplyFile(const std::string& path);

  std::vector<std::unique_ptr<Entry>> entries_;
  std::string config_path_;
};

}  // namespace binarymos
