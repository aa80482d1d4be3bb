#include "engine/kernels/cpu/cpu_features.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace binarymos::cpu {
namespace {

#if defined(__x86_64__)
// Registers of 8 KiB per thread, which Linux saves for those that asked:
// Documentation/arch/x86/xstate.rst.
bool MayUseTiles() {
  constexpr long kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr long kTileData = 18;               // XFEATURE_XTILE_DATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#endif

}  // namespace

bool SupportsAvx2() {
#if defined(__x86_64__)
  // The builtin also asks the operating system (XGETBV).
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) {
    return false;
  }
  unsigned eax, ebx, ecx, edx;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
#else
  return false;
#endif
}

bool SupportsAvx512() {
#if defined(__x86_64__)
  return SupportsAvx2() && __builtin_cpu_supports("avx512f") &&
         __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512dq");
#else
  return false;
#endif
}

bool SupportsAmx() {
#if defined(__x86_64__)
  static const bool supported = [] {
    constexpr unsigned kTile = 1u << 24;
    constexpr unsigned kInt8 = 1u << 25;
    unsigned eax, ebx, ecx, edx;
    return SupportsAvx512() &&
           __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) != 0 &&
           (edx & kTile) != 0 && (edx & kInt8) != 0 && MayUseTiles();
  }();
  return supported;
#else
  return false;
#endif
}

}  // namespace binarymos::cpu
