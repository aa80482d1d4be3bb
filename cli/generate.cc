// binarymos generate: a gRPC client that prints a completion.
#include <google/protobuf/util/json_util.h>
#include <grpcpp/client_context.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdio>
#include <iostream>
#include <iterator>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/time.h"
#include "binarymos/v1/inference.grpc.pb.h"
#include "cli/client.h"
#include "cli/command.h"
#include "cli/generate_flags.h"
#include "cli/signals.h"
#include "cli/terminal_text.h"

namespace binarymos {
namespace {

struct GenerateOptions {
  std::string server = kDefaultServer;
  std::string prompt;
  std::vector<int32_t> prompt_tokens;
  std::string request_id;
  std::string timeout;
  bool stream = false;
  bool json = false;
  bool quiet = false;
  v1::GenerateRequest request;
};

// Writes text and facts of an answer where they belong.
class Printer {
 public:
  explicit Printer(const GenerateOptions& options)
      : json_(options.json),
        quiet_(options.quiet),
        is_terminal_(isatty(STDOUT_FILENO) == 1) {}

  void Text(const std::string& text) {
    const std::string shown = is_terminal_ ? ForTerminal(text) : text;
    std::fwrite(shown.data(), 1, shown.size(), stdout);
    std::fflush(stdout);
    if (!text.empty()) at_line_start_ = text.back() == '\n';
  }

  void EndLine() {
    if (!at_line_start_) Text("\n");
  }

  void Json(const google::protobuf::Message& message) {
    google::protobuf::util::JsonPrintOptions options;
    options.preserve_proto_field_names = true;
    std::string json;
    // Fails only for messages with google.protobuf.Any.
    const auto status =
        google::protobuf::util::MessageToJsonString(message, &json, options);
    if (status.ok()) std::printf("%s\n", json.c_str());
    std::fflush(stdout);
  }

  void Usage(const v1::Usage& usage, const v1::Timing& timing, uint64_t seed,
             const std::string& request_id) {
    if (quiet_ || json_) return;
    const double rate =
        timing.decode_seconds() > 0
            ? (usage.completion_tokens() - 1) / timing.decode_seconds()
            : 0;
    std::fprintf(stderr,
                 "[%s: %d prompt tokens (%d cached), %d generated; first after "
                 "%.1f ms, then %.1f tokens/s; total %.3f s; seed %llu]\n",
                 request_id.c_str(), usage.prompt_tokens(),
                 usage.cached_tokens(), usage.completion_tokens(),
                 timing.ttft_seconds() * 1e3, rate, timing.total_seconds(),
                 static_cast<unsigned long long>(seed));
  }

 private:
  const bool json_;
  const bool quiet_;
  const bool is_terminal_;
  bool at_line_start_ = true;
};

grpc::Status GenerateOnce(v1::Inference::Stub& stub,
                          grpc::ClientContext& context,
                          const GenerateOptions& options, Printer& printer) {
  v1::GenerateResponse response;
  const grpc::Status status =
      stub.Generate(&context, options.request, &response);
  if (!status.ok()) return status;
  if (options.json) {
    printer.Json(response);
    return status;
  }
  for (const v1::Completion& completion : response.completions()) {
    if (response.completions_size() > 1) {
      printer.Text(absl::StrCat("--- sample ", completion.index(), "\n"));
    }
    printer.Text(completion.text());
    printer.EndLine();
  }
  printer.Usage(response.usage(), response.timing(), response.seed(),
                response.request_id());
  return status;
}

grpc::Status GenerateStreaming(v1::Inference::Stub& stub,
                               grpc::ClientContext& context,
                               const GenerateOptions& options,
                               Printer& printer) {
  const auto reader = stub.GenerateStream(&context, options.request);
  v1::GenerateStreamResponse message;
  v1::GenerateStreamResponse::Started started;
  std::optional<v1::GenerateStreamResponse::Ended> ended;
  while (reader->Read(&message)) {
    if (options.json) {
      printer.Json(message);
      continue;
    }
    if (message.has_started()) started = message.started();
    for (const v1::Delta& delta : message.deltas()) printer.Text(delta.text());
    if (message.has_ended()) ended = message.ended();
  }
  printer.EndLine();
  if (ended.has_value()) {
    printer.Usage(ended->usage(), ended->timing(), started.seed(),
                  started.request_id());
  }
  return reader->Finish();
}

// Empty, or what is wrong with the flags.
std::string FillPrompt(GenerateOptions& options) {
  if (!options.prompt_tokens.empty()) {
    if (!options.prompt.empty()) return "two prompts: text and tokens";
    for (const int32_t token : options.prompt_tokens) {
      options.request.mutable_tokens()->add_ids(token);
    }
    return "";
  }
  if (options.prompt.empty() || options.prompt == "-") {
    if (options.prompt.empty() && isatty(STDIN_FILENO) == 1) {
      return "no prompt: use --prompt, or pipe one in";
    }
    options.prompt.assign(std::istreambuf_iterator<char>(std::cin), {});
  }
  options.request.set_text(options.prompt);
  return "";
}

int Run(GenerateOptions& options) {
  std::string error = FillPrompt(options);
  if (options.stream && !options.json && options.request.n() > 1) {
    error = "--stream shows one sample; use --json for several";
  }
  absl::Duration timeout = absl::InfiniteDuration();
  if (!options.timeout.empty() &&
      !absl::ParseDuration(options.timeout, &timeout)) {
    error = absl::StrCat("--timeout: '", options.timeout,
                         "' is not a duration such as 500ms or 30s");
  }
  if (!error.empty()) return FailUsage(error);

  grpc::ClientContext context;
  if (timeout != absl::InfiniteDuration()) {
    context.set_deadline(std::chrono::system_clock::now() +
                         absl::ToChronoMilliseconds(timeout));
  }
  if (!options.request_id.empty()) {
    context.AddMetadata("x-request-id", options.request_id);
  }
  SignalWatcher signals([&context] { context.TryCancel(); });
  v1::Inference::Stub stub(OpenChannel(options.server));
  Printer printer(options);
  const grpc::Status status =
      options.stream ? GenerateStreaming(stub, context, options, printer)
                     : GenerateOnce(stub, context, options, printer);
  return status.ok() ? kExitOk : Fail(FromGrpc(status));
}

}  // namespace

Command AddGenerateCommand(CLI::App& app) {
  CLI::App* generate =
      app.add_subcommand("generate", "Ask a running server for a completion");
  auto options = std::make_shared<GenerateOptions>();
  generate->add_option("--prompt,prompt", options->prompt,
                       "Text to continue; - or absent: standard input");
  generate
      ->add_option("--prompt-tokens", options->prompt_tokens,
                   "Token ids instead of text: 1,15043,3186")
      ->delimiter(',')
      ->expected(1);
  generate->add_option("--server", options->server, "Address of the server")
      ->capture_default_str();
  generate->add_flag("--stream", options->stream,
                     "Print tokens as they are generated");
  generate->add_flag("--json", options->json,
                     "Print the answer, or each message of it, as JSON");
  generate->add_flag("--quiet", options->quiet,
                     "No usage line on standard error");
  generate->add_option("--timeout", options->timeout,
                       "Deadline of the call: 500ms, 30s");
  generate->add_option("--request-id", options->request_id,
                       "Name of the request in the server's log");
  AddRequestFlags(*generate, options->request);
  generate->footer(
      "Ctrl-C cancels the request. Errors name their gRPC status.\n\n"
      "Exit codes: 0 a completion, 1 a status other than OK, 2 usage.");
  return {generate, [options] { return Run(*options); }};
}

}  // namespace binarymos
