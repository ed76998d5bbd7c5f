// main() of the tests that need a GPU: 77 (skipped) where there is none.
#include <gtest/gtest.h>

#include <cstdio>

#include "backends/cuda/backend.h"

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  if (ostro::cuda::device_count() == 0) {
    std::puts("skipped: this machine has no GPU");
    return 77;
  }
  return RUN_ALL_TESTS();
}
