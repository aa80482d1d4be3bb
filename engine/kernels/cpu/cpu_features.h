// What the CPU that runs this process can do.
#pragma once

namespace binarymos::cpu {

// Whether code compiled with -mavx2 -mfma -mf16c runs here: the CPU has the
// three and the operating system saves the registers.
bool SupportsAvx2();

// Whether code compiled with the flags above and -mavx512f -mavx512bw
// -mavx512vl -mavx512dq runs here.
bool SupportsAvx512();

// Whether code compiled with those and -mamx-tile -mamx-int8 runs here. The
// first call asks the operating system to let this process use the tiles.
bool SupportsAmx();

}  // namespace binarymos::cpu
