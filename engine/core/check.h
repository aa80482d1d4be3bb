// Checks for what only our own code can cause. What the outside can cause
// returns absl::Status instead.
#pragma once

#include <ostream>
#include <sstream>
#include <string>

namespace binarymos::internal {

// Collects the message of a failed check and ends the process in its
// destructor.
class CheckFailure {
 public:
  CheckFailure(const char* file, int line, const char* condition);
  [[noreturn]] ~CheckFailure();
  CheckFailure(const CheckFailure&) = delete;
  CheckFailure& operator=(const CheckFailure&) = delete;

  std::ostream& stream() { return stream_; }

 private:
  std::ostringstream stream_;
};

// Turns `stream << ...` into void, so that both arms of ?: agree.
struct Voidify {
  void operator&(std::ostream&) const {}
};

}  // namespace binarymos::internal

// BINARYMOS_CHECK(condition) << "more"; active in every build.
#define BINARYMOS_CHECK(condition)                                          \
  (condition) ? (void)0                                                     \
              : ::binarymos::internal::Voidify() &                          \
                    ::binarymos::internal::CheckFailure(__FILE__, __LINE__, \
                                                        #condition)         \
                        .stream()

// Comparisons that print both operands.
#define BINARYMOS_CHECK_OP(a, op, b) \
  BINARYMOS_CHECK((a)op(b)) << "(" << (a) << " vs. " << (b) << ") "
#define BINARYMOS_CHECK_EQ(a, b) BINARYMOS_CHECK_OP(a, ==, b)
#define BINARYMOS_CHECK_NE(a, b) BINARYMOS_CHECK_OP(a, !=, b)
#define BINARYMOS_CHECK_LT(a, b) BINARYMOS_CHECK_OP(a, <, b)
#define BINARYMOS_CHECK_LE(a, b) BINARYMOS_CHECK_OP(a, <=, b)
#define BINARYMOS_CHECK_GT(a, b) BINARYMOS_CHECK_OP(a, >, b)
#define BINARYMOS_CHECK_GE(a, b) BINARYMOS_CHECK_OP(a, >=, b)
