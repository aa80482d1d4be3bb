#include "server/file_limit.h"

#include <sys/resource.h>

#include <limits>

#include "server/logging.h"

namespace binarymos {
namespace {

constexpr long kWanted = 4096;

}  // namespace

long RaiseFileLimit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return 0;
  if (limit.rlim_cur < limit.rlim_max) {
    rlimit raised = limit;
    raised.rlim_cur = limit.rlim_max;
    if (setrlimit(RLIMIT_NOFILE, &raised) == 0) limit = raised;
  }
  const long files = limit.rlim_cur == RLIM_INFINITY
                         ? std::numeric_limits<long>::max()
                         : static_cast<long>(limit.rlim_cur);
  if (files < kWanted) {
    Log(LogLevel::kWarn,
        "few files may be open at once, which limits connections; raise the "
        "hard limit (ulimit -Hn)",
        {{"limit", files}, {"wanted", kWanted}});
  }
  return files;
}

}  // namespace binarymos
