# Resolves BINARYMOS_CUDA into BINARYMOS_WITH_CUDA, and says how kernels are
# compiled. The backend links the CUDA runtime statically: a program built with
# it also runs where there is no driver, and falls back to the CPU.
set(BINARYMOS_WITH_CUDA OFF)
if(NOT BINARYMOS_CUDA STREQUAL "OFF")
  include(CheckLanguage)
  if(NOT CMAKE_CUDA_COMPILER AND EXISTS /usr/local/cuda/bin/nvcc)
    set(CMAKE_CUDA_COMPILER /usr/local/cuda/bin/nvcc CACHE FILEPATH "nvcc")
  endif()
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    set(BINARYMOS_WITH_CUDA ON)
  endif()
endif()
if(BINARYMOS_CUDA STREQUAL "ON" AND NOT BINARYMOS_WITH_CUDA)
  message(FATAL_ERROR "BINARYMOS_CUDA=ON, but there is no CUDA compiler (nvcc) "
                      "on this machine; put it in PATH or set CUDACXX")
endif()
message(STATUS "CUDA backend: ${BINARYMOS_WITH_CUDA}")

# 80 and 90a prove that everything compiles, quickly. Preset release has those of
# all devices since Ampere, and PTX for those to come.
set(BINARYMOS_CUDA_ARCHITECTURES "80-real;90a-real" CACHE STRING
    "Compute capabilities to compile kernels for, as CMAKE_CUDA_ARCHITECTURES")

if(BINARYMOS_WITH_CUDA)
  set(CMAKE_CUDA_ARCHITECTURES ${BINARYMOS_CUDA_ARCHITECTURES})
  set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
  enable_language(CUDA)
  # CMake 3.25 does not know that nvcc knows C++20 since 12.0.
  if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
    set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
    set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
  endif()
  set(CMAKE_CUDA_STANDARD 20)
  set(CMAKE_CUDA_STANDARD_REQUIRED ON)
  set(CMAKE_CUDA_EXTENSIONS OFF)
  find_package(CUDAToolkit REQUIRED)
  if(CUDAToolkit_VERSION VERSION_LESS 12)
    message(FATAL_ERROR "CUDA ${CUDAToolkit_VERSION} is too old; 12.0 or newer "
                        "is needed, or BINARYMOS_CUDA=OFF")
  endif()

  add_library(binarymos_cuda_options INTERFACE)
  target_include_directories(binarymos_cuda_options
                             INTERFACE ${PROJECT_SOURCE_DIR})
  target_compile_options(
    binarymos_cuda_options
    INTERFACE
      # Canonical arithmetic (DESIGN section 6): a fused multiply-add appears
      # where the source says so, division and roots round as IEEE 754 says.
      -fmad=false
      -prec-div=true
      -prec-sqrt=true
      -ftz=false
      --expt-relaxed-constexpr
      # Registers that spill to memory are errors, as is everything else.
      "SHELL:-Xptxas -warn-spills,-warn-lmem-usage"
      "SHELL:-Werror all-warnings"
      "SHELL:-Xcompiler -Wall,-Wextra,-ffp-contract=off"
      # The guard of tests/engine/cuda reads the compiled kernels.
      --no-compress)
endif()
