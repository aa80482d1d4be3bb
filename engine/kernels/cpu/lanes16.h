// Lanes16, 16 floats and the operations on them, for the instruction set that
// the including file is compiled for: the baseline (namespace `portable`), or
// in files named *_avx2.cc, *_avx512.cc and *_neon.cc, which get flags of their
// own, that one. Every operation gives the same bits everywhere, except that
// the payload of a NaN may differ.
//
// Files that get flags of their own must not instantiate inline functions of
// the standard library or of other headers: the linker could choose that copy
// for code that also runs on older CPUs. Hence the compiler's builtins there.
#pragma once

#if defined(BINARYMOS_CPU_NEON)
#define BINARYMOS_CPU_ARCH neon
#elif defined(__AVX512F__)
#define BINARYMOS_CPU_ARCH avx512
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define BINARYMOS_CPU_ARCH avx2
#else
#define BINARYMOS_CPU_ARCH portable
#endif

// With AVX-512 too.
#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define BINARYMOS_CPU_AVX2 1
#else
#define BINARYMOS_CPU_AVX2 0
#endif

namespace binarymos::cpu {
inline namespace BINARYMOS_CPU_ARCH {

inline constexpr int kLanes = 16;

// Operations act on each lane and round as IEEE 754 says.
struct Lanes16;

}  // namespace BINARYMOS_CPU_ARCH
}  // namespace binarymos::cpu

#if defined(BINARYMOS_CPU_NEON)
#include "engine/kernels/cpu/lanes16_neon.h"
#elif defined(__AVX512F__)
#include "engine/kernels/cpu/lanes16_avx512.h"
#elif BINARYMOS_CPU_AVX2
#include "engine/kernels/cpu/lanes16_avx2.h"
#else
#include "engine/kernels/cpu/lanes16_portable.h"
#endif
