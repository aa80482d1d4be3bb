# Resolves BINARYMOS_CUDA into BINARYMOS_WITH_CUDA. The CUDA kernels are not
# written yet (CHANGELOG): until engine/backend/cuda_backend.cc exists, every
# build links the stub, and asking for CUDA is an error rather than a promise.
set(BINARYMOS_WITH_CUDA OFF)
set(cuda_backend ${PROJECT_SOURCE_DIR}/engine/backend/cuda_backend.cc)
if(NOT BINARYMOS_CUDA STREQUAL "OFF" AND EXISTS ${cuda_backend})
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    set(BINARYMOS_WITH_CUDA ON)
  endif()
endif()
if(BINARYMOS_CUDA STREQUAL "ON" AND NOT BINARYMOS_WITH_CUDA)
  message(FATAL_ERROR "BINARYMOS_CUDA=ON, but there is no CUDA backend in this "
                      "source tree or no CUDA compiler on this machine")
endif()
message(STATUS "CUDA backend: ${BINARYMOS_WITH_CUDA}")
