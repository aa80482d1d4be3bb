#include "engine/backend/backend_factory.h"

#include <string>

#include "absl/status/status.h"
#include "engine/kernels/cpu/binary_mos_linear.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace binarymos {
namespace {

using testing::HasSubstr;

struct BadOptions {
  std::string name;
  BackendOptions options;
  absl::StatusCode code;
  std::string message;  // a part of it
};

class BadOptionsTest : public testing::TestWithParam<BadOptions> {};

TEST_P(BadOptionsTest, AreRefusedWithAReason) {
  const auto backend = CreateBackend(GetParam().options);
  EXPECT_EQ(backend.status().code(), GetParam().code);
  EXPECT_THAT(backend.status().message(), HasSubstr(GetParam().message));
}

constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;

INSTANTIATE_TEST_SUITE_P(
    Options, BadOptionsTest,
    testing::Values(
        BadOptions{"Device", {.device = "gpu"}, kInvalid, "device is \"gpu\""},
        BadOptions{"NoDevice", {.device = ""}, kInvalid, "device is \"\""},
        BadOptions{"Ordinal", {.device = "cuda:x"}, kInvalid, "cuda:<number>"},
        BadOptions{"NoOrdinal", {.device = "cuda:"}, kInvalid, "cuda:<number>"},
        BadOptions{
            "MinusOne", {.device = "cuda:-1"}, kInvalid, "cuda:<number>"},
        BadOptions{"NegativeThreads",
                   {.device = "cpu", .num_threads = -1},
                   kInvalid,
                   "num_threads is -1"},
        BadOptions{"ManyThreads",
                   {.device = "cpu", .num_threads = 5000},
                   kInvalid,
                   "num_threads is 5000"},
        BadOptions{"Kernels",
                   {.device = "cpu", .cpu_kernels = "sse"},
                   kInvalid,
                   "cpu_kernels is \"sse\""},
        BadOptions{"KernelsOfAnotherDevice",
                   {.device = "cuda:0", .cpu_kernels = "portable"},
                   kInvalid,
                   "has no meaning"},
        BadOptions{"PinnedThreadsOfAnotherDevice",
                   {.device = "cuda", .cpu_pin = true},
                   kInvalid,
                   "cpu_pin has no meaning with device=cuda"},
        BadOptions{
            "PinnedThreadsOfTheReference",
            {.device = "cpu", .cpu_pin = true, .cpu_kernels = "reference"},
            kInvalid,
            "cpu_pin has no meaning with cpu_kernels=reference"},
        BadOptions{"FastLinear",
                   {.device = "cpu", .fast_linear = true},
                   kInvalid,
                   "fast_linear has no meaning on a CPU"},
        BadOptions{"FastLinearOfTheReference",
                   {.cpu_kernels = "reference", .fast_linear = true},
                   kInvalid,
                   "fast_linear has no meaning on a CPU"},
        BadOptions{"Bits",
                   {.device = "cpu", .activation_bits = 10},
                   kInvalid,
                   "activation_bits is 10"},
        BadOptions{"Memory",
                   {.device = "cpu", .gpu_memory_utilization = 1.5},
                   kInvalid,
                   "gpu_memory_utilization is 1.5"},
        BadOptions{"BitsOfTheReference",
                   {.device = "cpu",
                    .cpu_kernels = "reference",
                    .activation_bits = 14},
                   kInvalid,
                   "does not quantize"}),
    [](const auto& test) { return test.param.name; });

TEST(BackendFactoryTest, ThePortableCpuIsAlwaysThere) {
  const auto backend = CreateBackend(
      {.device = "cpu", .num_threads = 3, .cpu_kernels = "portable"});
  ASSERT_TRUE(backend.ok()) << backend.status();
  EXPECT_EQ((*backend)->description(), "cpu (portable, 3 threads)");
}

TEST(BackendFactoryTest, TheCpuSaysThatItsThreadsArePinned) {
  const auto backend = CreateBackend({.device = "cpu",
                                      .num_threads = 2,
                                      .cpu_pin = true,
                                      .cpu_kernels = "portable"});
  ASSERT_TRUE(backend.ok()) << backend.status();
  EXPECT_EQ((*backend)->description(), "cpu (portable, 2 threads, pinned)");
}

TEST(BackendFactoryTest, TheCpuDescribesItsBestKernels) {
  const auto backend = CreateBackend({.device = "cpu", .num_threads = 1});
  ASSERT_TRUE(backend.ok()) << backend.status();
  const char* expected = "cpu (portable, 1 thread)";
  if (cpu::Supports(cpu::BinaryMosPath::kAmx)) {
    expected = "cpu (amx, 1 thread)";
  } else if (cpu::Supports(cpu::BinaryMosPath::kAvx512)) {
    expected = "cpu (avx512, 1 thread)";
  } else if (cpu::Supports(cpu::BinaryMosPath::kAvx2)) {
    expected = "cpu (avx2, 1 thread)";
  } else if (cpu::Supports(cpu::BinaryMosPath::kNeon)) {
    expected = "cpu (neon, 1 thread)";
  }
  EXPECT_EQ((*backend)->description(), expected);
}

TEST(BackendFactoryTest, KernelsAreUnavailableWhereTheyCannotRun) {
  for (const cpu::BinaryMosPath path :
       {cpu::BinaryMosPath::kPortable, cpu::BinaryMosPath::kAvx2,
        cpu::BinaryMosPath::kAvx512, cpu::BinaryMosPath::kAmx,
        cpu::BinaryMosPath::kNeon}) {
    const std::string name = cpu::Name(path);
    SCOPED_TRACE(name);
    const auto backend = CreateBackend({.device = "cpu", .cpu_kernels = name});
    if (cpu::Supports(path)) {
      ASSERT_TRUE(backend.ok()) << backend.status();
      EXPECT_THAT((*backend)->description(), HasSubstr("cpu (" + name));
    } else {
      EXPECT_TRUE(absl::IsUnavailable(backend.status())) << backend.status();
    }
  }
}

TEST(BackendFactoryTest, TheReferenceIsADevice) {
  const auto backend =
      CreateBackend({.device = "auto", .cpu_kernels = "reference"});
  ASSERT_TRUE(backend.ok()) << backend.status();
  EXPECT_EQ((*backend)->description(), "cpu (reference)");
}

TEST(BackendFactoryTest, AutomaticAlwaysFindsADevice) {
  const auto backend = CreateBackend({});
  ASSERT_TRUE(backend.ok()) << backend.status();
  // And says why, if it is not CUDA.
  if ((*backend)->description().find("cpu") == 0) {
    EXPECT_THAT((*backend)->note(), HasSubstr("CUDA"));
    EXPECT_THAT((*backend)->note(), HasSubstr("--device=cpu"));
  } else {
    EXPECT_EQ((*backend)->note(), "");
  }
}

TEST(BackendFactoryTest, FastLinearsDoNotFallBackToACpu) {
  for (const char* device : {"auto", "cuda"}) {
    const auto backend = CreateBackend({.device = device, .fast_linear = true});
    if (backend.ok()) {
      EXPECT_THAT((*backend)->description(), HasSubstr("cuda"));
    } else {
      EXPECT_TRUE(absl::IsUnavailable(backend.status())) << backend.status();
      EXPECT_THAT(backend.status().message(),
                  HasSubstr("leave out --fast-linear"));
    }
  }
}

TEST(BackendFactoryTest, WhoAsksForTheCpuNeedsNoNote) {
  const auto backend = CreateBackend({.device = "cpu"});
  ASSERT_TRUE(backend.ok()) << backend.status();
  EXPECT_EQ((*backend)->note(), "");
}

TEST(BackendFactoryTest, ADeviceThatIsNotThereIsUnavailable) {
  const auto backend = CreateBackend({.device = "cuda:1000"});
  EXPECT_TRUE(absl::IsUnavailable(backend.status())) << backend.status();
}

TEST(BackendFactoryTest, TheNumberOfThreadsIsFoundIfNotGiven) {
  const auto backend =
      CreateBackend({.device = "cpu", .cpu_kernels = "portable"});
  ASSERT_TRUE(backend.ok()) << backend.status();
  EXPECT_THAT(
      (*backend)->description(),
      testing::MatchesRegex("cpu \\(portable, (1 thread|[0-9]+ threads)\\)"));
}

}  // namespace
}  // namespace binarymos
