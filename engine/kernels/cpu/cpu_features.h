// What the CPU that runs this process can do.
#pragma once

namespace binarymos::cpu {

// Whether code compiled with -mavx2 -mfma -mf16c runs here: the CPU has the
// three and the operating system saves the registers.
bool SupportsAvx2();

}  // namespace binarymos::cpu
