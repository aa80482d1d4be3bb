// How far a long command is.
#pragma once

#include <chrono>
#include <cstdio>
#include <string>

namespace binarymos {

// Draws a bar that is redrawn in place on a terminal, and writes a line every
// tenth of the way elsewhere. Time is an argument. Used on one thread.
class Progress {
 public:
  using Time = std::chrono::steady_clock::time_point;

  // `out` outlives it.
  Progress(std::FILE* out, bool is_terminal, Time start)
      : out_(out), is_terminal_(is_terminal), start_(start) {}
  // A bar that was not finished is left on its line.
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  // `fraction` in [0, 1]; `detail` is short and has no control characters.
  void Update(double fraction, const std::string& detail, Time now);

 private:
  void Draw(const std::string& line);

  std::FILE* const out_;
  const bool is_terminal_;
  const Time start_;
  Time last_drawn_{};
  int tenths_ = 0;
  size_t width_ = 0;  // of the line on the terminal
};

// " 40% [########------------] 12s left, <detail>"
std::string ProgressBar(double fraction, std::chrono::seconds elapsed,
                        const std::string& detail);

// "9s", "2m05s", "1h02m".
std::string ShortTime(std::chrono::seconds time);

// Whether `file` is a terminal.
bool IsTerminal(std::FILE* file);

}  // namespace binarymos
