# binarymos_library(name SOURCES ... DEPS ...): one static library per folder.
function(binarymos_library name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS" ${ARGN})
  if(ARG_SOURCES)
    add_library(${name} STATIC ${ARG_SOURCES})
    target_link_libraries(${name} PUBLIC binarymos_options ${ARG_DEPS})
  else()
    add_library(${name} INTERFACE)
    target_link_libraries(${name} INTERFACE binarymos_options ${ARG_DEPS})
  endif()
endfunction()

# binarymos_test(name SOURCES ... DEPS ...): one test program per folder of
# tests/, each of its cases a test of ctest.
function(binarymos_test name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE binarymos_options ${ARG_DEPS}
                                        GTest::gmock GTest::gtest_main)
  if(BINARYMOS_SANITIZE)
    # GCC 12 sees uninitialized memory in std::regex once it is instrumented.
    target_compile_options(${name} PRIVATE -Wno-maybe-uninitialized)
  endif()
  include(GoogleTest)
  gtest_discover_tests(${name} DISCOVERY_MODE PRE_TEST
                       PROPERTIES TIMEOUT 300)
endfunction()
