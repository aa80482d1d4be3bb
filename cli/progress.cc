#include "cli/progress.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>

#include "absl/strings/str_format.h"

namespace binarymos {
namespace {

constexpr int kBarWidth = 20;
constexpr auto kRedraw = std::chrono::milliseconds(100);

std::chrono::seconds TimeLeft(double fraction, std::chrono::seconds elapsed) {
  const auto seconds = static_cast<double>(elapsed.count());
  return std::chrono::seconds(
      std::llround(seconds * (1 - fraction) / fraction));
}

}  // namespace

bool IsTerminal(std::FILE* file) { return isatty(fileno(file)) == 1; }

std::string ShortTime(std::chrono::seconds time) {
  const auto seconds = static_cast<long>(time.count());
  if (seconds < 60) return absl::StrFormat("%ds", seconds);
  if (seconds < 3600) {
    return absl::StrFormat("%dm%02ds", seconds / 60, seconds % 60);
  }
  return absl::StrFormat("%dh%02dm", seconds / 3600, seconds / 60 % 60);
}

std::string ProgressBar(double fraction, std::chrono::seconds elapsed,
                        const std::string& detail) {
  fraction = std::clamp(fraction, 0.0, 1.0);
  const int filled = static_cast<int>(fraction * kBarWidth);
  std::string bar(filled, '#');
  bar.resize(kBarWidth, '-');
  std::string time = ShortTime(elapsed) + " in all";
  if (fraction < 1) {
    time = fraction > 0 && elapsed.count() > 0
               ? ShortTime(TimeLeft(fraction, elapsed)) + " left"
               : "starting";
  }
  return absl::StrFormat("%3d%% [%s] %s, %s", static_cast<int>(100 * fraction),
                         bar, time, detail);
}

Progress::~Progress() {
  if (width_ > 0) std::fputc('\n', out_);
}

void Progress::Update(double fraction, const std::string& detail, Time now) {
  const auto elapsed =
      std::chrono::duration_cast<std::chrono::seconds>(now - start_);
  if (is_terminal_) {
    if (fraction < 1 && now - last_drawn_ < kRedraw) return;
    last_drawn_ = now;
    Draw(ProgressBar(fraction, elapsed, detail));
    return;
  }
  const int tenths = static_cast<int>(fraction * 10);
  if (tenths <= tenths_) return;
  tenths_ = tenths;
  absl::FPrintF(out_, "%d%% after %s, %s\n", 10 * tenths, ShortTime(elapsed),
                detail);
  std::fflush(out_);
}

void Progress::Draw(const std::string& line) {
  std::string padded = line;  // over what a longer line left
  padded.resize(std::max(padded.size(), width_), ' ');
  width_ = line.size();
  absl::FPrintF(out_, "\r%s", padded);
  std::fflush(out_);
}

}  // namespace binarymos
