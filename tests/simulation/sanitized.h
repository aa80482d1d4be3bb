// Whether a sanitizer makes everything several times slower.
#pragma once

namespace binarymos {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr bool kSanitized = true;
#else
inline constexpr bool kSanitized = false;
#endif

}  // namespace binarymos
