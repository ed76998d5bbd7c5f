#include "comm/contract.h"

namespace ostro::comm {
namespace {

void check_host(const char* call, const View& view) {
  OSTRO_CHECK(view.device == Device::cpu, call, " is given ", describe(view), " of a device");
}

}  // namespace

void check_all_reduce_sum(const View& data) {
  check_host("all_reduce_sum", data);
  OSTRO_CHECK(data.dtype == DType::f32, "all_reduce_sum sums f32, not ", describe(data));
  OSTRO_CHECK(data.contiguous(), "all_reduce_sum of ", describe(data), " with row stride ",
              data.row_stride);
}

void check_all_gather_columns(const View& part, const View& whole, int rank, int ranks) {
  check_host("all_gather_columns", part);
  check_host("all_gather_columns", whole);
  OSTRO_CHECK(whole.contiguous(), "all_gather_columns into ", describe(whole), " with row stride ",
              whole.row_stride);
  OSTRO_CHECK(part.dtype == whole.dtype && part.rows == whole.rows &&
                  part.cols == part_of(whole.cols, rank, ranks).size(),
              "all_gather_columns of ", describe(part), " as part ", rank, " of ", ranks, " of ",
              describe(whole));
}

void check_peer(const char* call, int peer, int rank, int ranks) {
  OSTRO_CHECK(0 <= peer && peer < ranks && peer != rank, call, " between rank ", rank, " and rank ",
              peer, " in a group of ", ranks);
}

void check_message(const char* call, const View& data, int peer, int rank, int ranks) {
  check_host(call, data);
  check_peer(call, peer, rank, ranks);
  OSTRO_CHECK(data.contiguous(), call, " of ", describe(data), " with row stride ",
              data.row_stride);
}

void check_root(int root, int ranks) {
  OSTRO_CHECK(0 <= root && root < ranks, "broadcast from rank ", root, " in a group of ", ranks);
}

void check_color(int color) { OSTRO_CHECK(color >= 0, "split with color ", color); }

}  // namespace ostro::comm
