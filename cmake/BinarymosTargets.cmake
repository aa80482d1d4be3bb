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
  binarymos_show_locks(${name})
  if(BINARYMOS_SANITIZE)
    set_target_properties(${name} PROPERTIES BINARYMOS_TEST_PROGRAM ON)
    # GCC 12 sees uninitialized memory in std::regex once it is instrumented.
    target_compile_options(${name} PRIVATE -Wno-maybe-uninitialized)
    # One process for all cases: starting one takes a second there.
    add_test(NAME ${name} COMMAND ${name} --gtest_brief=1)
    set_tests_properties(${name} PROPERTIES TIMEOUT 1800)
  else()
    include(GoogleTest)
    gtest_discover_tests(${name} DISCOVERY_MODE PRE_TEST
                         PROPERTIES TIMEOUT 300)
  endif()
endfunction()

# binarymos_show_locks(program): lets ThreadSanitizer see the locks of
# libraries that are not built for it.
function(binarymos_show_locks program)
  if(BINARYMOS_SANITIZE STREQUAL "thread")
    target_sources(${program} PRIVATE
      ${PROJECT_SOURCE_DIR}/tests/sanitizers/absl_mutex_tsan.cc)
    target_link_libraries(${program} PRIVATE absl::synchronization dl)
  endif()
endfunction()
