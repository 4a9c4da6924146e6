# Read by llama.cpp's CMake right after its project() line (CMAKE_PROJECT_llama.cpp_INCLUDE). llama-cpp-python forces the
# helper library of llama.cpp's own command line tools on; its 51 files are not used from Python and are half of the build.
set(LLAMA_BUILD_COMMON OFF)
set(LLAMA_BUILD_TOOLS OFF)
