#include "comm/mpi_launch.h"

#include <gtest/gtest.h>

#include <cstdlib>

#include "base/error.h"

namespace ostro::comm {
namespace {

// A clean environment but for what a test sets, whatever started the test.
class MpiLaunchTest : public ::testing::Test {
 protected:
  void SetUp() override {
    for (const char* name :
         {"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK",
          "OMPI_COMM_WORLD_LOCAL_SIZE", "PMI_RANK", "PMI_SIZE", "PMIX_RANK", "MPI_LOCALRANKID",
          "MPI_LOCALNRANKS", "SLURM_NTASKS", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"})
      ::unsetenv(name);
  }
  static void set(const char* name, const char* value) { ::setenv(name, value, 1); }
};

TEST_F(MpiLaunchTest, NoneIfStartedByHand) { EXPECT_FALSE(mpi_launch()); }

TEST_F(MpiLaunchTest, ABatchScriptIsNotARank) {
  set("SLURM_NTASKS", "8");
  set("SLURM_LOCALID", "0");
  EXPECT_FALSE(mpi_launch());
}

TEST_F(MpiLaunchTest, OpenMpi) {
  set("OMPI_COMM_WORLD_RANK", "5");
  set("OMPI_COMM_WORLD_SIZE", "8");
  set("OMPI_COMM_WORLD_LOCAL_RANK", "1");
  set("OMPI_COMM_WORLD_LOCAL_SIZE", "4");
  set("PMIX_RANK", "5");
  const auto launch = mpi_launch();
  ASSERT_TRUE(launch);
  EXPECT_EQ(launch->rank, 5);
  EXPECT_EQ(launch->ranks, 8);
  EXPECT_EQ(launch->rank_on_this_host, 1);
  EXPECT_EQ(launch->ranks_on_this_host, 4);
  EXPECT_FALSE(launch->one_host);
  set("OMPI_COMM_WORLD_SIZE", "4");
  EXPECT_TRUE(mpi_launch()->one_host);
}

TEST_F(MpiLaunchTest, SlurmWithPmix) {
  set("PMIX_RANK", "3");
  set("SLURM_STEP_NUM_TASKS", "4");
  set("SLURM_NTASKS", "16");
  set("SLURM_LOCALID", "1");
  const auto launch = mpi_launch();
  ASSERT_TRUE(launch);
  EXPECT_EQ(launch->rank, 3);
  EXPECT_EQ(launch->ranks, 4);
  EXPECT_EQ(launch->rank_on_this_host, 1);
  EXPECT_EQ(launch->ranks_on_this_host, 4);
  EXPECT_FALSE(launch->one_host);  // srun has not said so
}

TEST_F(MpiLaunchTest, NamesWhatIsNotANumber) {
  for (const char* value : {"", "x", "2x", "-1", "99999999999"}) {
    set("PMI_RANK", value);
    try {
      mpi_launch();
      ADD_FAILURE() << value;
    } catch (const InvalidArgument& error) {
      EXPECT_EQ(std::string(error.what()), "the environment has PMI_RANK=\"" + std::string(value) +
                                               "\", which is not a number");
    }
  }
}

}  // namespace
}  // namespace ostro::comm
